"""θ of a walk at any flow time, from its snapshots."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from geoflow import solvers
from geoflow.errors import InputError
from geoflow.manifold.protocol import Flow, State, check_flow
from geoflow.problems import arithmetic
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.earlier import same_data
from geoflow.solvers import Solver, Tolerance
from geoflow.system import kinds
from geoflow.system.memory import check_memory
from geoflow.system.threads import one_blas_thread
from geoflow.system.translation import numerics
from geoflow.trajectories import schema
from geoflow.trajectories.given import check_placed, check_walk, kept_dtype, theta_of
from geoflow.walking.advancing import after_step
from geoflow.walking.fitting import differences, earlier_values, is_earlier
from geoflow.walking.inside import Inside

# What rounding in the dtype of the snapshots does to a loss, over its level: a hundred units.
UNITS_OF_ROUNDING = 100

# Attributes that say how it walked.
NEEDED = ("config", "level", "rtol", "atol", "dtype", "regularizer_name", "data_sha256")


@arithmetic.without_autocast()
def interpolate(
    ds: xr.Dataset, times: ArrayLike, flow: Flow, *, solver: Solver | None = None
) -> xr.DataArray:
    """θ at flow times between the snapshots, to the accuracy of the walk.

    From the snapshot before each of them the flow is integrated anew, by the solver and to the
    tolerance of the walk: whatever lies between the snapshots, the error is the walk's own; of
    ``dopri5``, whose interpolant is an order below its steps, up to some three times that. It costs
    the steps from there, which ``flow.problem.counts`` have; times between the same two snapshots
    share them.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory, as :func:`geoflow.walk` returns it.
    times : array_like of float
        Flow times, increasing, from the first snapshot to the end of the walk.
    flow : Flow
        That of the walk.
    solver : Solver, optional
        Needed only where the walk had a solver that is not geoflow's own.

    Returns
    -------
    xarray.DataArray, shape (time, parameter)
        ``theta``, in the dtype of the walk, with ``time`` as a coordinate. At the time of a
        snapshot it is that of the snapshot.

    Raises
    ------
    InputError
        Times that are not there or do not increase, another flow than the walk's, one with a state
        beyond θ, or snapshots in a narrower dtype than the walk's that does not resolve its
        tolerance.
    StepSizeError, ConvergenceError, CriticalPointError
        A step fails.
    """
    check_walk(ds, "theta", "time", "snapshot_time", attributes=NEEDED)
    check_flow(flow)
    at = np.atleast_1d(kinds.as_numbers(times, "times"))
    there, tolerance = ds["snapshot_time"].values, _tolerance(ds, flow)
    if not (np.diff(there) > 0).all():
        raise InputError("ds: its snapshots are not in the order of the walk; cut it in that order")
    if not ds.sizes["step"]:
        raise InputError("ds holds no step; cut it along snapshot only, or open it anew")
    end = float(ds["time"][-1])
    if at.ndim != 1 or not np.isfinite(at).all() or not at.size or not (np.diff(at) > 0).all():
        raise InputError(f"times={at.tolist()[:5]}; use increasing flow times")
    if not (there.size and there[0] <= at[0] and at[-1] <= end):
        known = f"{float(there[0])} to {end}" if there.size else "none, for want of snapshots"
        raise InputError(f"times={float(at[0])} to {float(at[-1])}; the walk has {known}")
    needed = at.size * ds.sizes["parameter"] * np.dtype(ds.attrs["dtype"]).itemsize
    check_memory(needed, f"times: {at.size:,} of them", "ask for fewer")
    config = json.loads(ds.attrs["config"])
    if solver is not None and not hasattr(solver, "step"):
        raise InputError(f"solver={kinds.shown(solver)}; give the instance that walked")
    chosen = solver or solvers.from_config(config["solver"])
    solvers.check_needs(chosen, flow)
    found = np.empty((at.size, ds.sizes["parameter"]), ds.attrs["dtype"])
    thetas = theta_of(ds)
    before = np.searchsorted(there, at, side="right") - 1
    check_placed(ds, np.unique(before).tolist())
    for index in np.unique(before):
        rows = np.flatnonzero(before == index)
        start, then = torch.from_numpy(thetas[int(index)].values), _recorded(ds, int(index))
        wanted = at[rows] - there[index]
        with numerics(), one_blas_thread():
            made = _from(flow, chosen, tolerance, start, wanted, then, float(there[index]))
            for row, theta in zip(rows, made, strict=True):
                found[row] = theta.cpu().numpy()
    return xr.DataArray(
        found,
        {"time": ("time", at, {"long_name": "flow time", "units": "1"})},
        ("time", "parameter"),
        "theta",
        {"long_name": "parameters, flat", "units": "1"},
    )


def _recorded(ds: xr.Dataset, snapshot: int) -> dict[str, float]:
    """The scalars recorded at a snapshot; none where it lies between two records."""
    step = int(ds["snapshot_step"][snapshot])
    if float(ds["time"][step]) != float(ds["snapshot_time"][snapshot]):
        return {}
    return {str(n): float(v[step]) for n, v in ds.data_vars.items() if v.dims == ("step",)}


def _from(
    flow: Flow,
    solver: Solver,
    tolerance: Tolerance,
    theta: Tensor,
    times: NDArray[np.float64],
    then: Mapping[str, float],
    begin: float,
) -> Iterator[Tensor]:
    """θ at increasing flow times after a snapshot at ``begin``, where ``then`` was recorded."""
    kept = theta.dtype
    theta = theta.to(flow.problem.theta0)
    left = list(times)
    if left[0] == 0:
        yield theta
        del left[0]
    if not left:
        return
    state, _ = flow.start(theta)
    if state.flat.numel() != theta.numel():
        raise InputError("flow: its state holds more than θ, which snapshots do not; resume a walk")
    # Another R may have the name of the walk's.
    values = {name: v for name, v in flow.values(state).items() if name in then}
    different = differences(values, then, kept)
    # What earlier versions computed less exactly is the walk's to its own tolerance, or it is not.
    near = tolerance.rtol / math.sqrt(torch.finfo(kept).eps)
    if different and (differences(values, then, kept, near) or not _was(flow, state, then, kept)):
        raise InputError(f"flow: {different[0]}; give that of the walk")
    carry, now = solver.init(flow, state, tolerance), 0.0
    while left:
        target = left[-1] if solvers.is_dense(solver) else left[0]
        result = solver.step(flow, state, carry, tolerance, target - now)
        whole = after_step(now, result.time, target, begin)
        inside = Inside(flow, state, result, _no_shorter)
        passed = [time for time in left if time < whole]
        yield from inside.flats([time - now for time in passed])
        del left[: len(passed)]
        if left and left[0] == whole:
            yield result.state.flat
            del left[0]
        state, carry, now = result.state, result.carry, whole


def _was(flow: Flow, state: State, then: Mapping[str, float], dtype: torch.dtype) -> bool:
    """Whether what was recorded is what earlier versions computed of the flow."""
    found = earlier_values(flow, state)
    values = found and {name: v for name, v in found.items() if name in then}
    return is_earlier(values, then, dtype)


def _no_shorter(time: float) -> tuple[State, int]:
    raise AssertionError("a step without an interpolant ends at the time asked for")


def _tolerance(ds: xr.Dataset, flow: Flow) -> Tolerance:
    """The walk's, after making sure that the flow is its own and its snapshots are good enough.

    Raises
    ------
    InputError
        They are not.
    """
    problem, levels = flow.problem, flow.level_set.levels
    then = schema.levels(ds.attrs) or [ds.attrs["level"]]
    alike = ds.sizes["parameter"] == problem.n_parameters
    alike &= len(levels) == len(then) and np.allclose(levels, then, rtol=1e-9, atol=0)
    alike &= flow.regularizer_name == ds.attrs["regularizer_name"]
    alike &= dtype_name(problem.dtype) == ds.attrs["dtype"]
    if not (alike and same_data(problem, ds.attrs["data_sha256"])):
        raise InputError(
            "flow: its data, parameters, dtype, level or R are not those of ds; give its own"
        )
    # In the dtype of the walk they are its own points, whatever its rtol is.
    kept = kept_dtype(ds)
    coarse = ds.attrs["rtol"] < UNITS_OF_ROUNDING * torch.finfo(kept).eps
    if coarse and kept.itemsize < problem.dtype.itemsize:
        raise InputError(
            f"ds: its snapshots are kept in {kept}, which does not resolve the walk's rtol of "
            f"{ds.attrs['rtol']:g}; walk again without theta_dtype"
        )
    return Tolerance.checked(ds.attrs["rtol"], ds.attrs["atol"], problem.dtype)
