"""A walk written to disk as it goes: the recorder behind ``walk(archive=…)``.

Beside ``FILE.nc`` stands the folder ``.FILE.nc.parts`` with

- ``theta-<step>.npz``: up to ``SNAPSHOTS_PER_PART`` snapshots from that step on (see
  :mod:`geoflow.walking.streamed_snapshots`),
- ``steps-<number>.npz``: the records of up to ``STEPS_PER_PART`` steps,
- ``checkpoint.npz``: what the walk needs to go on, how many records hold, and the attributes.

The checkpoint is written last and replaced whole, so that it is the one that says what counts:
whatever else is there was on its way when the process ended. At the end the parts become
``FILE.nc``, one after the other, and the folder goes.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import time as clock
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.archive import netcdf, parts, trajectory_files
from geoflow.archive.checkpoint import Checkpoint
from geoflow.archive.saved import check_same_walk, check_target, saved
from geoflow.archive.seal import identity
from geoflow.errors import ArchiveError, InputError, StorageError
from geoflow.problems.protocol import ProblemLike
from geoflow.system import files, interrupts, locks, translation
from geoflow.trajectories import schema
from geoflow.trajectories.dataset import assemble
from geoflow.trajectories.layout import layout_of
from geoflow.trajectories.records import Snapshot, StepRecords
from geoflow.walking.advancing import increasing
from geoflow.walking.snapshots import SnapshotRule, between
from geoflow.walking.streamed_snapshots import StreamedSnapshots, key_of

STEPS_PER_PART = 65_536
PENDING_BYTES = 16 * 2**20


class Stream:
    """Streams a walk beside its archive; holds the archive's lock until it is closed.

    Make one with :meth:`create` or :meth:`reopen`. A context manager, that closes.

    Parameters
    ----------
    path : Path
        The archive.
    problem : ProblemLike
        Gives the layout of θ.
    header : mapping
        Global attributes, all but how the walk ended.
    lock : locks.Lock
        Of the folder beside ``path``.
    look_back : float
        Flow time over which records are kept in memory.
    interval : float
        Seconds between checkpoints.

    Attributes
    ----------
    records : StepRecords
        The latest records, as far back as a stopping criterion looks.
    n_steps : int
        Records so far.
    snapshots : StreamedSnapshots
        Those kept so far.
    """

    def __init__(
        self,
        path: Path,
        problem: ProblemLike,
        header: Mapping[str, Any],
        lock: locks.Lock,
        look_back: float,
        interval: float,
    ) -> None:
        self.path, self.problem, self.header = path, problem, header
        self.lock, self.folder = lock, lock.folder
        self.look_back, self.interval = look_back, interval
        config = json.loads(header["config"])
        self.observables: list[str] = config["observables"]
        self.theta_dtype: str = config["theta_dtype"]
        self.records = StepRecords(header)
        self.snapshots = StreamedSnapshots(self.folder, self.observables)
        self.n_steps = self.n_saved = 0
        self.saved_at = clock.monotonic()
        self.unpacked = False
        # The file that has the archive's name so far, and that this walk may replace.
        self.replaces: str | None = identity(path)

    @classmethod
    def create(
        cls,
        path: Path,
        problem: ProblemLike,
        header: Mapping[str, Any],
        *,
        look_back: float,
        interval: float,
        overwrite: bool,
    ) -> Stream:
        """Start a walk at ``problem.theta0``.

        Raises
        ------
        InputError
            A walk was streamed there and not finished.
        ArchiveError
            Another process is writing there, or the disk does not take it.
        """
        netcdf.load_ahead()
        lock = locks.Lock(parts.folder_beside(path), parts.CHECKPOINT, parts.OWN)
        try:
            check_target(path, overwrite=overwrite)
            stream = cls(path, problem, header, lock, look_back, interval)
            with translation.writing(lock.folder):
                lock.clear()
                nothing = dict.fromkeys(problem.counts, 0)
                stream._write(Checkpoint(0, {"theta": problem.theta0}, None, nothing))
        except BaseException:
            lock.release()
            raise
        return stream

    @classmethod
    def reopen(
        cls,
        path: Path,
        problem: ProblemLike,
        header: Mapping[str, Any],
        *,
        look_back: float,
        interval: float,
        rule: SnapshotRule,
    ) -> tuple[Stream, Checkpoint]:
        """Take up a walk, unfinished or finished; its steps are offered to ``rule`` once more.

        Raises
        ------
        ArchiveError
            Another process is writing there, or something is missing or damaged.
        """
        netcdf.load_ahead()
        lock = locks.Lock(parts.folder_beside(path), parts.CHECKPOINT, parts.OWN)
        # What was not there before goes again: it would stand before the archive from now on.
        fresh = not parts.is_resumable(path)
        try:
            stream = cls(path, problem, header, lock, look_back, interval)
            if fresh:
                with translation.writing(lock.folder):
                    stream._unpack()
            kept = saved(path)
            checkpoint, stream.replaces = kept.checkpoint, kept.replaces
            with translation.writing(lock.folder):
                stream._restore(checkpoint, rule)
        except BaseException:
            lock.remove() if fresh else lock.release()
            raise
        return stream, checkpoint

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *details: object) -> None:
        self.lock.release()

    @property
    def last_kept(self) -> int:
        """The step whose θ was kept last; −1 for none."""
        return self.snapshots.last

    def record(self, record: Mapping[str, float], dropped: Sequence[int]) -> None:
        """Add an accepted step; the θ of the ``dropped`` ones is no longer wanted."""
        self.records.append(record)
        self.n_steps += 1
        for step in dropped:
            self.snapshots.drop(step)

    def keep(self, snapshot: Snapshot) -> None:
        """Keep θ at the step recorded last."""
        self.snapshots.keep(snapshot)

    def accepted(self, checkpoint: Checkpoint) -> None:
        """Save where a checkpoint is due, or where much waits for one."""
        due = clock.monotonic() - self.saved_at >= self.interval
        full = self.n_steps // STEPS_PER_PART > self.n_saved // STEPS_PER_PART
        waiting = len(self.snapshots.pending) * self.problem.n_parameters * 8
        if due or full or waiting >= PENDING_BYTES:
            self.save(checkpoint)

    def save(self, checkpoint: Checkpoint) -> None:
        """Make everything up to here durable.

        Raises
        ------
        StorageError
            The disk does not take it; what was saved before still holds.
        """
        try:
            with translation.writing(self.folder):
                self._write(checkpoint)
        except ArchiveError as error:
            raise self._failure(error) from error
        self.n_saved = self.n_steps
        self._forget()
        self.saved_at = clock.monotonic()

    def _write(self, checkpoint: Checkpoint) -> None:
        self.snapshots.save()
        n_forgotten = self.n_steps - len(self.records)
        for number, (start, end) in enumerate(_spans(self.n_steps)):
            if end > self.n_saved:
                rows = self.records.arrays(start - n_forgotten)
                parts.write(self._steps(number), {n: c[: end - start] for n, c in rows.items()})
        self._write_checkpoint(checkpoint)
        self.snapshots.remove_dropped()

    def _write_checkpoint(self, checkpoint: Checkpoint) -> None:
        arrays, state = checkpoint.pack()
        tensors = layout_of(self.problem)
        beside = {"attributes": self.header, "tensors": tensors, "replaces": self.replaces}
        text = json.dumps({**state, **beside})
        arrays["state"] = np.frombuffer(text.encode(), np.uint8)
        parts.write(self.folder / parts.CHECKPOINT, arrays)

    def finish(self, checkpoint: Checkpoint, end: Mapping[str, str]) -> xr.Dataset:
        """Turn the parts into the archive, remove them, and open the archive lazily.

        Raises
        ------
        StorageError
            The disk does not take it, or another file got its name during the walk; the parts stay,
        and the walk can be resumed.
        """
        self.save(checkpoint)
        try:
            # Before it is written, too, which may take long.
            self._may_replace()
            whole = files.replacing(self.path, folder=self.folder, free=self._may_replace)
            trajectory_files.write(self._dataset(end), self.path, checkpoint, whole)
        except (ArchiveError, InputError) as error:
            raise self._failure(error) from error
        with interrupts.put_off():
            self.lock.remove()
        return trajectory_files.open_trajectory(self.path)

    def give_up(self) -> None:
        """Remove the parts where they hold nothing but what the archive does."""
        if self.unpacked:
            self.lock.remove()

    def _may_replace(self) -> bool:
        """Whether there is no file but one that the walk may replace; raises where there is one."""
        if files.is_regular(self.path) and identity(self.path) != self.replaces:
            check_same_walk(self.path, self.header, self.folder)
        return True

    def _failure(self, error: Exception) -> StorageError:
        if os.path.lexists(self.folder / parts.CHECKPOINT):
            return StorageError(
                f"{error}; the walk is kept up to its last checkpoint, and "
                f"`geoflow resume {self.path}` goes on"
            )
        return StorageError(
            f"writing {self.path} failed: {self.folder} has gone; where it was renamed, or a "
            "folder that it is in, the walk is kept there up to its last checkpoint"
        )

    def _steps(self, number: int) -> Path:
        return self.folder / f"steps-{number:06d}.npz"

    def _forget(self) -> None:
        """Drop from memory the records that neither the next part nor a stop needs."""
        times = self.records.columns["time"]
        if times:
            # The one at or before the start of the time looked back on is needed too, and the
            # one before the last, against which a change is seen.
            needed = bisect.bisect_right(times, times[-1] - self.look_back) - 1
            needed = min(needed, len(times) - 2)
            current = len(times) - self.n_steps % STEPS_PER_PART
            self.records.forget(max(0, min(needed, current)))

    def _unpack(self) -> None:
        """Take a finished archive apart again."""
        self.lock.clear()
        with trajectory_files.open_trajectory(self.path) as ds:
            self.snapshots.unpack(ds, self.path)
            for number, (start, end) in enumerate(_spans(ds.sizes["step"])):
                with translation.reading(self.path):
                    rows = _columns(ds, self.records.columns, start, end)
                parts.write(self._steps(number), rows)
            checkpoint = trajectory_files.read_checkpoint(self.path, ds)
        self._write_checkpoint(checkpoint)
        self.unpacked = True

    def _restore(self, checkpoint: Checkpoint, rule: SnapshotRule) -> None:
        """Read the records and find the snapshots again, by offering every step to the rule."""
        kept: dict[str, float] = {}
        before = -math.inf
        if checkpoint.n_steps > STEPS_PER_PART * len(list(self.folder.glob("steps-*.npz"))):
            raise ArchiveError(f"{self.folder}: some of its {checkpoint.n_steps} steps are missing")
        for number, (start, end) in enumerate(_spans(checkpoint.n_steps)):
            rows = self._read_steps(number, end - start)
            if (times := increasing(rows["time"], before)) is not rows["time"]:
                rows["time"] = times
                parts.write(self._steps(number), rows)
            self.records.extend(rows)
            self.n_steps = self.n_saved = start + len(rows["time"])
            if self.n_steps < end:
                raise ArchiveError(f"{self._steps(number)} is too short; run again")
            self._forget()
            events = rows.get("event", np.zeros(len(rows["time"])))
            columns = zip(rows["time"], rows["arc_length"], events, strict=True)
            for step, (time, arc, event) in enumerate(columns, start):
                if step:
                    within = between(rule, before, time)
                    kept |= {key_of(step, k): at for k, at in enumerate(within)}
                keep, dropped = (True, []) if event else rule.offer(step, float(time), float(arc))
                for gone in dropped:
                    del kept[key_of(gone)]
                if keep:
                    kept[key_of(step)] = float(time)
                before = float(time)
        self.snapshots.find(kept, self.problem.n_parameters, np.dtype(self.theta_dtype))
        wanted = {part.name for part in self.snapshots.where.values()}
        wanted |= {self._steps(i).name for i in range(len(_spans(self.n_steps)))}
        self.lock.clear(keep=[parts.CHECKPOINT, *wanted])

    def _read_steps(self, number: int, most: int) -> dict[str, NDArray[Any]]:
        """Columns of a part of steps, the first so many rows of them."""
        found = parts.read(self._steps(number))
        shape = (found["time"].size if "time" in found else 0,)
        columns = {n: np.dtype(c.typecode) for n, c in self.records.columns.items()}
        parts.check(self._steps(number), found, {n: (shape, d) for n, d in columns.items()})
        return {name: found[name][:most] for name in columns}

    def _dataset(self, end: Mapping[str, str]) -> xr.Dataset:
        """Return the trajectory, its arrays reading one part at a time."""
        # Imported here, as importing it takes longer than all of geoflow.
        import dask.array as da
        from dask.delayed import delayed

        arrays: dict[str, Any] = {}
        for name, column in self.records.columns.items():
            dtype = np.dtype(column.typecode)
            blocks = [
                da.from_delayed(delayed(_rows)(self._steps(i), name, b - a), (b - a,), dtype)
                for i, (a, b) in enumerate(_spans(self.n_steps))
            ]
            arrays[name] = da.concatenate(blocks)
        arrays |= self.snapshots.arrays(self.problem.n_parameters, np.dtype(self.theta_dtype))
        return assemble(self.problem, arrays, self.observables, {**self.header, **end})


def _spans(n_steps: int) -> list[tuple[int, int]]:
    """First step, and the one after the last, of each part."""
    starts = range(0, n_steps, STEPS_PER_PART)
    return [(start, min(start + STEPS_PER_PART, n_steps)) for start in starts]


def _rows(part: Path, name: str, n: int) -> NDArray[Any]:
    return parts.read(part, [name])[name][:n]


def _columns(ds: xr.Dataset, names: Iterable[str], start: int, end: int) -> dict[str, NDArray[Any]]:
    """Columns of the records; those of a variable by step and constraint taken apart."""
    several = {
        column: values
        for name in schema.CONSTRAINTS
        if name in ds
        for values in [ds[name][start:end].values]
        for column in schema.column_names(name, values.shape[1])
    }
    return {
        name: several[name][:, int(name.rpartition("_")[2])]
        if name in several
        else ds[name][start:end].values
        for name in names
    }
