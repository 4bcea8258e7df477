"""A walk made up and handed to a recorder, one step at a time, as the loop does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

import references
from geoflow.archive.checkpoint import Checkpoint
from geoflow.trajectories import dataset
from geoflow.trajectories.records import Snapshot
from geoflow.walking.recorder import Recorder
from geoflow.walking.snapshots import SnapshotRule, Thinned

OBSERVABLES = {"first": lambda theta: float(theta[0])}
END = {"status": "t_end", "status_message": "made up"}

FLOW = references.sphere_linear().flow
HEADER = dataset.attributes(
    FLOW,
    solver="rk4",
    rtol=1e-3,
    atol=0.0,
    config={"observables": list(OBSERVABLES), "theta_dtype": "float64", "provenance": {}},
)


def theta(step: int) -> Tensor:
    return torch.arange(6, dtype=torch.float64) + 10 * step


def record(names: Iterable[str], step: int) -> dict[str, float]:
    """Another number in every column; flow time and arc length are the number of the step."""
    return {name: step + 1000 * i for i, name in enumerate(names)} | {
        "time": step,
        "arc_length": step,
        # As many as its checkpoint counts.
        "n_gradient": step,
        "n_hvp": 0,
    }


def checkpoint(step: int) -> Checkpoint:
    counts = {"gradient": step, "hvp": 0}
    return Checkpoint(step + 1, {"theta": theta(step)}, {"step_size": 1.0}, counts)


def take(recorder: Recorder, steps: Iterable[int], rule: SnapshotRule | None = None) -> None:
    """Record these steps; without a rule, each keeps its θ."""
    rule = rule or Thinned(10**6)
    for step in steps:
        keep, dropped = rule.offer(step, float(step), float(step))
        names: Mapping[str, Any] = recorder.records.columns
        recorder.record(record(names, step), dropped)
        if keep:
            recorder.keep(Snapshot(step, float(step), theta(step), OBSERVABLES))
        recorder.accepted(checkpoint(step))
