"""The walk that an analysis is of: its snapshots, its name, and whether a flow is its own."""

from __future__ import annotations

import math
from collections import Counter
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds
from geoflow.trajectories.given import check_placed, check_walk, kept_dtype, kept_theta

# The loss of a snapshot, computed again, differs by rounding and by the software's version.
LOSS_RTOL = {torch.float64: 1e-8, torch.float32: 1e-3}


def snapshot_indices(ds: xr.Dataset, snapshots: kinds.Wholes | None, default: int) -> list[int]:
    """Indices of the snapshots asked for, from 0 on; None: ``default`` of them, evenly.

    Raises
    ------
    InputError
        One is not there or given twice, or none is given.
    """
    kinds.check_dataset(ds, "snapshot", "theta")
    check_walk(ds, "theta")
    n = ds.sizes["snapshot"]
    if not n:
        raise InputError("ds holds no snapshot; walk again with snapshots")
    if snapshots is None:
        even = np.linspace(0, n - 1, min(n, default)).round()
        return [int(i) for i in even]
    # Each may be named from the front and from the back.
    given = kinds.as_wholes(snapshots, "snapshots", max(2 * n, kinds.MOST))
    bad = [i for i in given if not -n <= i < n]
    if bad or not given:
        what = f"{bad[0]} is not there" if bad else "none is given"
        raise InputError(f"snapshots={kinds.shown(given)}: {what}; there are 0 to {n - 1}")
    if len(set(given)) < len(given):
        twice = Counter(given).most_common(1)[0][0]
        raise InputError(f"snapshots={kinds.shown(given)}: {twice} is given twice; give each once")
    # The first and the last may be one.
    return list(dict.fromkeys(i % n for i in given))


def theta_at(ds: xr.Dataset, problem: ProblemLike, index: int) -> Tensor:
    """Parameters of a snapshot, shape (P,), as the problem takes them.

    Raises
    ------
    InputError
        The problem has another number of parameters.
    """
    if ds.sizes["parameter"] != problem.n_parameters:
        raise InputError(
            f"flow has {problem.n_parameters} parameters and ds {ds.sizes['parameter']}; "
            "give the flow of this walk"
        )
    theta = torch.as_tensor(kept_theta(ds, index), device="cpu")
    return theta.to(dtype=problem.dtype, device=problem.device)


def loss_rtol(ds: xr.Dataset, problem: ProblemLike) -> float:
    """How far a loss at a snapshot, computed again, may be from the one that was recorded."""
    # θ may be kept with fewer digits than it was computed with.
    return max(LOSS_RTOL[problem.dtype], LOSS_RTOL[kept_dtype(ds)])


def check_loss(ds: xr.Dataset, problem: ProblemLike, index: int, loss: float) -> None:
    """Make sure that a snapshot has the loss that was recorded there, of several their mean.

    Raises
    ------
    InputError
        It has another, so that the walk is one of another problem; or the dataset was cut along
        its steps.
    """
    check_placed(ds, [index])
    check_walk(ds, "train_loss", attributes=("level", "level_rtol"))
    step = int(ds["snapshot_step"][index])
    recorded, rtol = float(ds["train_loss"][step]), loss_rtol(ds, problem)
    if float(ds["snapshot_time"][index]) != float(ds["time"][step]):
        # Within a step nothing is recorded: it is the level, as near as re-projection came.
        recorded, rtol = float(ds.attrs["level"]), max(rtol, 2 * float(ds.attrs["level_rtol"]))
    if not math.isclose(loss, recorded, rel_tol=rtol):
        raise InputError(
            f"flow has the loss {loss:.9g} at snapshot {index} and ds {recorded:.9g}; "
            "give the flow of this walk: the same data, network and loss"
        )


def state_at(ds: xr.Dataset, flow: RegularizingFlow, index: int) -> FlowState:
    """State at a snapshot, after making sure that it is the flow's own.

    Raises
    ------
    InputError
        The flow is not that of the walk.
    """
    state = flow.evaluate(theta_at(ds, flow.problem, index))
    check_loss(ds, flow.problem, index, float(state.values.mean()))
    return state


def check_walked(
    ds: xr.Dataset, problem: ProblemLike, snapshots: kinds.Wholes | None = None
) -> None:
    """Make sure that a walk is of a problem, by its loss at the first of the snapshots asked for.

    Raises
    ------
    InputError
        It has another, or there is no such snapshot.
    """
    index = snapshot_indices(ds, snapshots, 1)[0]
    check_loss(ds, problem, index, float(problem.loss(theta_at(ds, problem, index)).mean()))


def walk_attributes(ds: xr.Dataset) -> dict[str, Any]:
    """Which walk a result is of, and the version that made it, for its attributes."""
    return {
        "experiment": ds.attrs["experiment"],
        "walk_seed": ds.attrs["seed"],
        "geoflow_version": version("geoflow"),
    }
