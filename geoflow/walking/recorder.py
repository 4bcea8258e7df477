"""What a walk hands its records to, and the recorder that keeps them in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import xarray as xr

from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import InputError
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds
from geoflow.trajectories.dataset import to_dataset
from geoflow.trajectories.records import Snapshot, StepRecords


class Recorder(Protocol):
    """Takes what a walk records; the walk itself keeps none of it.

    Attributes
    ----------
    records : StepRecords
        The latest records, at least those a stopping criterion looks at.
    n_steps : int
        Records so far.
    """

    records: StepRecords
    n_steps: int

    @property
    def last_kept(self) -> int:
        """The step at whose end θ was kept last; −1 for none, or where it was within a step."""

    def record(self, record: Mapping[str, float], dropped: Sequence[int]) -> None:
        """Add an accepted step; the θ of the ``dropped`` ones is no longer wanted."""

    def keep(self, snapshot: Snapshot) -> None:
        """Keep θ at the end of the step recorded last, or within it."""

    def accepted(self, checkpoint: Checkpoint) -> None:
        """Take note that the walk could go on from here: called after every accepted step."""

    def finish(self, checkpoint: Checkpoint, end: Mapping[str, str]) -> xr.Dataset:
        """Return the trajectory; ``end`` is its status and message."""


def check_recorder(recorder: Any) -> None:
    """Refuse what is no recorder, before anything is evaluated.

    Raises
    ------
    InputError
        Names what is missing.
    """
    methods = ("record", "keep", "accepted", "finish")
    missing = [n for n in ("records", "n_steps", "last_kept") if not hasattr(recorder, n)]
    missing += [n for n in methods if not callable(getattr(recorder, n, None))]
    if missing or isinstance(recorder, type):
        what = f" without {', '.join(missing)}" if missing else ", no instance"
        raise InputError(
            f"recorder={kinds.shown(recorder)} is a {type(recorder).__name__}{what}; give what has "
            "all that a geoflow.walking.recorder.Recorder has, or None"
        )


class Memory:
    """Keeps everything in memory."""

    def __init__(
        self, problem: ProblemLike, observables: Sequence[str], header: Mapping[str, Any]
    ) -> None:
        self.problem, self.observables, self.header = problem, observables, header
        self.records = StepRecords(header)
        self.snapshots: list[Snapshot] = []
        self.n_steps = 0

    @property
    def last_kept(self) -> int:
        """The step whose θ was kept last; −1 for none."""
        last = self.snapshots[-1] if self.snapshots else None
        return last.step if last and last.between is None else -1

    def record(self, record: Mapping[str, float], dropped: Sequence[int]) -> None:
        """Add an accepted step."""
        self.records.append(record)
        self.n_steps += 1
        if dropped:
            gone = set(dropped)
            self.snapshots = [s for s in self.snapshots if s.step not in gone]

    def keep(self, snapshot: Snapshot) -> None:
        """Keep θ at the step recorded last."""
        self.snapshots.append(snapshot)

    def accepted(self, checkpoint: Checkpoint) -> None:
        """Do nothing: memory does not outlive the process."""

    def finish(self, checkpoint: Checkpoint, end: Mapping[str, str]) -> xr.Dataset:
        """Return the trajectory."""
        header = {**self.header, **end}
        return to_dataset(self.problem, self.records, self.snapshots, self.observables, header)
