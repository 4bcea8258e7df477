"""Snapshots of a walk that is written to disk as it goes, and the parts that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.archive import parts
from geoflow.errors import ArchiveError
from geoflow.system import translation
from geoflow.trajectories.records import Snapshot

SNAPSHOTS_PER_PART = 64
# In the key of a snapshot within a step, between the step and its number there.
BETWEEN = "."


class StreamedSnapshots:
    """Snapshots so far, in the order of the walk: those that wait, and those in parts.

    Parameters
    ----------
    folder : Path
        Where the parts are.
    observables : sequence of str
        Names of the functions that each snapshot has values of.

    Attributes
    ----------
    kept : dict of str to array
        Flow time and observables of each, by its key.
    pending : dict of str to array
        θ of those that wait.
    where : dict of str to Path
        The part of each of the others.
    """

    def __init__(self, folder: Path, observables: Sequence[str]) -> None:
        self.folder, self.observables = folder, observables
        self.kept: dict[str, NDArray[np.float64]] = {}
        self.pending: dict[str, NDArray[Any]] = {}
        self.where: dict[str, Path] = {}

    @property
    def last(self) -> int:
        """The step whose θ was kept last; −1 for none."""
        last = next(reversed(self.kept), "-1")
        return -1 if BETWEEN in last else int(last)

    def keep(self, snapshot: Snapshot) -> None:
        """Keep a snapshot after the others."""
        scalars = [snapshot.time, *(snapshot.values[name] for name in self.observables)]
        key = key_of(snapshot.step, snapshot.between)
        self.kept[key] = np.array(scalars)
        self.pending[key] = snapshot.theta

    def drop(self, step: int) -> None:
        """Leave out the one at the end of a step; its part stays until :meth:`remove_dropped`."""
        del self.kept[key_of(step)]
        self.pending.pop(key_of(step), None)

    def save(self) -> None:
        """Write parts of all that wait."""
        while group := list(self.pending)[:SNAPSHOTS_PER_PART]:
            step, between, index = group[0].partition(BETWEEN)
            # By their names the parts are in the order of the walk.
            number = f"{BETWEEN}{int(index):09d}" if between else ""
            part = self.folder / f"theta-{int(step):09d}{number}.npz"
            arrays = {key: self.pending[key] for key in group}
            arrays["scalars"] = np.stack([self.kept[key] for key in group])
            parts.write(part, arrays)
            for key in group:
                self.where[key] = part
                del self.pending[key]

    def remove_dropped(self) -> None:
        """Remove the parts none of whose snapshots is kept, now that no checkpoint needs them."""
        if len(self.where) > len(self.kept):
            before = set(self.where.values())
            self.where = {key: self.where[key] for key in self.kept}
            for part in before - set(self.where.values()):
                part.unlink()

    def unpack(self, ds: xr.Dataset, path: Path) -> None:
        """Take those of a finished walk apart again.

        Parameters
        ----------
        ds : xarray.Dataset
            The walk, which is read as it is taken apart.
        path : Path
            Its file.

        Raises
        ------
        ArchiveError
            It cannot be read.
        """
        names = ("snapshot_time", *self.observables)
        with translation.reading(path):
            keys = _keys(ds)
        for i, key in enumerate(keys):
            with translation.reading(path):
                self.kept[key] = np.array([float(ds[name][i]) for name in names])
                self.pending[key] = ds["theta"][i].values
            if len(self.pending) == SNAPSHOTS_PER_PART:
                self.save()
        self.save()

    def find(self, kept: Mapping[str, float], n: int, dtype: np.dtype[Any]) -> None:
        """Find the snapshots of these keys in the parts; what else these have is not taken up.

        Parameters
        ----------
        kept : mapping of str to float
            Flow time by key, in the order of the walk.
        n, dtype
            Length of θ, and its dtype.

        Raises
        ------
        ArchiveError
            One is missing, or a part is damaged.
        """
        self.kept, self.where = {}, {}
        for part in sorted(self.folder.glob("theta-*.npz")):
            # All of it, to find damage now and not when the walk has come to its end.
            thetas = parts.read(part)
            rows = (len(thetas) - 1, 1 + len(self.observables)), np.dtype(np.float64)
            wanted = dict.fromkeys(thetas.keys() & kept.keys(), ((n,), dtype))
            parts.check(part, thetas, {"scalars": rows, **wanted})
            scalars = thetas.pop("scalars")
            for key, row in zip(thetas, scalars, strict=True):
                if key in kept:
                    # As its step has it, whose time may have been moved on.
                    row[0] = kept[key]
                    self.kept[key], self.where[key] = row, part
        if list(self.kept) != list(kept):
            lost = next(iter(kept.keys() - self.kept.keys()), None)
            raise ArchiveError(f"{self.folder}: the snapshot of step {lost} is missing; run again")

    def measured(
        self, most: int
    ) -> tuple[list[tuple[NDArray[Any], dict[str, float]]], dict[str, float]]:
        """θ and the values of observables of some that have any, and the greatest in size of all.

        The last comes first, then the first, then such between as are evenly far from each other;
        of those in parts only.

        Parameters
        ----------
        most : int
            How many.
        """
        names = self.observables
        if not names or not self.where:
            return [], {}
        keys = list(self.where)
        values = np.array([self.kept[key][1:] for key in keys])
        numbers = np.isfinite(values)
        rows = np.flatnonzero(numbers.any(axis=1))
        sizes = np.abs(np.where(numbers, values, 0.0)).max(axis=0)
        places = np.unique(np.linspace(0, len(rows) - 1, most).round().astype(int))
        chosen = [int(rows[k]) for k in places] if len(rows) else []
        found = []
        for row in [*chosen[-1:], *chosen[:-1]]:
            (theta,) = _thetas(self.where[keys[row]], [keys[row]])
            found.append((theta, dict(zip(names, values[row].tolist(), strict=True))))
        return found, dict(zip(names, sizes.tolist(), strict=True))

    def arrays(self, n: int, dtype: np.dtype[Any]) -> dict[str, Any]:
        """Times, observables, steps and θ, of n parameters, which are read one part at a time."""
        # Imported here, as importing it takes longer than all of geoflow.
        import dask.array as da
        from dask.delayed import delayed

        names = ("snapshot_time", *self.observables)
        scalars = np.array(list(self.kept.values()), dtype=float).reshape(-1, len(names))
        arrays: dict[str, Any] = dict(zip(names, scalars.T, strict=True))
        steps = [int(key.partition(BETWEEN)[0]) for key in self.kept]
        arrays["snapshot_step"] = np.array(steps, dtype=np.int64)
        groups = [(part, list(keys)) for part, keys in groupby(self.where, self.where.get)]
        blocks = [
            da.from_delayed(delayed(_thetas)(part, keys), (len(keys), n), dtype)
            for part, keys in groups
        ]
        arrays["theta"] = da.concatenate(blocks) if blocks else np.empty((0, n), dtype)
        return arrays


def key_of(step: int, index: int | None = None) -> str:
    """Key of the snapshot at the end of a step, or of one within it."""
    return f"{step}" if index is None else f"{step}{BETWEEN}{index}"


def _keys(ds: xr.Dataset) -> list[str]:
    """Keys of a trajectory's snapshots."""
    at, steps = ds["snapshot_time"].values, ds["snapshot_step"].values
    index: dict[int, int] = {}
    found = []
    for time, step, end in zip(at, steps, ds["time"].values[steps], strict=True):
        index[step] = index.get(step, -1) + 1
        found.append(key_of(step, None if time == end else index[step]))
    return found


def _thetas(part: Path, keys: Sequence[str]) -> NDArray[Any]:
    thetas = parts.read(part, keys)
    return np.stack([thetas[key] for key in keys])
