"""The only loop: step, record, keep θ, stop."""

from __future__ import annotations

import math
import os
import time as clock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from tqdm import tqdm

from geoflow import archive as archives
from geoflow import solvers, trajectory
from geoflow.errors import (
    ConvergenceError,
    CriticalPointError,
    EvaluationLimitError,
    InputError,
    StepSizeError,
)
from geoflow.flows import FlowState, RegularizingFlow
from geoflow.snapshots import AtTimes, Every, SnapshotRule, Thinned
from geoflow.solvers import Carry, Solver, Tolerance
from geoflow.stopping import Stationary, Stop
from geoflow.trajectory import Observable, Snapshot, StepRecords

DEFAULT_MAX_EVALUATIONS = 100_000


def walk(
    flow: RegularizingFlow,
    solver: str | Solver = solvers.DEFAULT,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    t_end: float | None = None,
    stop: Stop | None = Stationary(175.0),  # noqa: B008 - immutable
    max_evaluations: int | None = None,
    reproject_every: float | None = None,
    snapshot_times: Sequence[float] | None = None,
    snapshot_every: float | None = None,
    observables: Mapping[str, Observable] | None = None,
    archive: str | Path | None = None,
    progress: bool = False,
    *,
    max_snapshots: int = 100,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> xr.Dataset:
    """Walk along the level set, down R, and return the trajectory.

    Parameters
    ----------
    flow : RegularizingFlow
        The vector field; the walk starts at ``flow.problem.theta0``, re-projected.
    solver : str or Solver
        A name of :func:`geoflow.solvers.names`, or a solver with settings of its own.
    rtol, atol : float
        Local error allowed in θ, relative to ‖θ‖ and absolute.
    t_end : float, optional
        Flow time at which the walk ends.
    stop : Stop, optional
        A further criterion; the default ends the walk at an angle of 175° between ∇R and ∇L.
    max_evaluations : int, optional
        Budget in gradient evaluations, a Hessian-vector product counting 2. Never exceeded.
        None: 100,000.
    reproject_every : float, optional
        Flow time between re-projections for torchdiffeq's solvers. None: every accepted step.
    snapshot_times : sequence of float, optional
        Keep θ at exactly these flow times.
    snapshot_every : float, optional
        Keep θ at the multiples of this flow time. With neither, at most ``max_snapshots``
        accepted steps are kept, evenly in arc length, the first and the last among them.
    observables : mapping of str to callable, optional
        Functions θ → float, evaluated where θ is kept; one variable each.
    archive : str or Path, optional
        netCDF-4 file to write the trajectory to.
    progress : bool
        Show the walk on standard error, where that is a terminal.
    max_snapshots : int
        See ``snapshot_every``.
    provenance : mapping, optional
        Where the problem comes from, JSON-able; kept in ``config``. Its ``title``,
        ``experiment`` and ``seed`` become attributes.
    overwrite : bool
        Replace ``archive`` where it exists.

    Returns
    -------
    xarray.Dataset
        Schema 1.0. Its ``status`` says how the walk ended: ``stationary``, ``t_end``,
        ``plateau``, ``max_evaluations``; ``step_size_underflow``, ``projection_failed`` or
        ``critical_point`` where it could not go on; ``interrupted`` after Ctrl-C.

    Raises
    ------
    InputError
        An argument that cannot be used.
    ConvergenceError, CriticalPointError
        θ0 cannot be projected onto the level set, so there is no walk to keep.
    """
    observables = dict(observables or {})
    chosen = _solver(solver, reproject_every)
    tolerance = Tolerance.checked(rtol, atol, flow.problem.dtype)
    rule = _snapshot_rule(snapshot_times, snapshot_every, max_snapshots)
    t_end = _checked("t_end", t_end, math.inf)
    if max_evaluations is None:
        max_evaluations = DEFAULT_MAX_EVALUATIONS
    elif max_evaluations < 1:
        raise InputError(f"max_evaluations={max_evaluations}; use a positive number")
    trajectory.check_observables(observables, flow.problem.theta0)
    _check_memory(flow, rule)
    target = archives.check_target(archive, overwrite=overwrite) if archive else None

    config = {
        "solver": {"name": chosen.name, **chosen.options},
        "rtol": tolerance.rtol,
        "atol": tolerance.atol,
        "t_end": None if math.isinf(t_end) else t_end,
        "stop": None if stop is None else {"name": type(stop).__name__, **stop.options},
        "max_evaluations": max_evaluations,
        "snapshot_times": None if snapshot_times is None else [float(t) for t in snapshot_times],
        "snapshot_every": snapshot_every,
        "max_snapshots": max_snapshots,
        "observables": sorted(observables),
        "provenance": dict(provenance or {}),
    }
    header = trajectory.attributes(
        flow,
        solver=chosen.name,
        rtol=tolerance.rtol,
        atol=tolerance.atol,
        config=config,
    )
    run = _Walk(flow, chosen, tolerance, rule, observables, progress)
    status, message = run.run(t_end, stop, max_evaluations)
    header |= {"status": status, "status_message": message}
    ds = trajectory.to_dataset(
        flow.problem, run.records, run.snapshots, sorted(observables), header
    )
    if target:
        archives.save_trajectory(ds, target, overwrite=overwrite)
    return ds


class _Walk:
    """What changes along one walk."""

    def __init__(
        self,
        flow: RegularizingFlow,
        solver: Solver,
        tolerance: Tolerance,
        rule: SnapshotRule,
        observables: Mapping[str, Observable],
        progress: bool,
    ) -> None:
        self.flow, self.solver, self.tolerance = flow, solver, tolerance
        self.rule, self.observables = rule, observables
        self.records = StepRecords()
        self.snapshots: list[Snapshot] = []
        self.progress = _Progress(progress)
        self.counts0 = flow.problem.counts
        self.clock0 = clock.perf_counter()
        self.state: FlowState | None = None
        self.time = self.arc_length = 0.0
        self.n_rejected = self.n_reprojection = 0

    def run(self, t_end: float, stop: Stop | None, max_evaluations: int) -> tuple[str, str]:
        """Walk to an end; return its status and message."""
        problem = self.flow.problem
        with self.progress, problem.budget(max_evaluations):
            try:
                state, projection = self.flow.project(problem.theta0)
                self.n_reprojection += projection.iterations
                self._record(state, 0.0, math.nan)
                carry = self.solver.init(self.flow, state, self.tolerance)
                end = self._judge(t_end, stop)
                while end is None:
                    carry = self._step(carry, t_end)
                    end = self._judge(t_end, stop)
            except KeyboardInterrupt:
                end = "interrupted", "interrupted by the user"
            except EvaluationLimitError:
                end = "max_evaluations", f"the budget of {max_evaluations} evaluations is spent"
            except StepSizeError as error:
                end = "step_size_underflow", str(error)
            except ConvergenceError as error:
                end = self._failed("projection_failed", error)
            except CriticalPointError as error:
                end = self._failed("critical_point", error)
            if self.rule.keeps_last and len(self.records):
                self._keep()
        return end

    def _step(self, carry: Carry, t_end: float) -> Carry:
        state = self._state()
        target = min(self.rule.next_time(self.time), t_end)
        result = self.solver.step(self.flow, state, carry, self.tolerance, target - self.time)
        # The sum may round past or short of the time asked for; the step ended exactly there.
        exact = result.time >= target - self.time
        self.time = target if exact else self.time + result.time
        self.arc_length += float(torch.linalg.vector_norm(result.state.theta - state.theta))
        self.n_rejected += result.n_rejected
        self.n_reprojection += result.n_reprojection
        self._record(result.state, result.time, result.error_estimate)
        return result.carry

    def _state(self) -> FlowState:
        assert self.state is not None, "a walk has a state from its first record on"
        return self.state

    def _record(self, state: FlowState, step_size: float, error_estimate: float) -> None:
        counts = self.flow.problem.counts
        record = trajectory.step_record(
            self.flow,
            state,
            time=self.time,
            arc_length=self.arc_length,
            step_size=step_size,
            error_estimate=error_estimate,
            n_rejected=self.n_rejected,
            n_reprojection=self.n_reprojection,
            counts={name: counts[name] - self.counts0[name] for name in counts},
            wall_time=clock.perf_counter() - self.clock0,
        )
        self.state = state
        self.records.append(record)
        self.progress.show(record)
        keep, dropped = self.rule.offer(len(self.records) - 1, self.time, self.arc_length)
        if dropped:
            self.snapshots = [s for s in self.snapshots if s.step not in set(dropped)]
        if keep:
            self._keep()

    def _keep(self) -> None:
        step = len(self.records) - 1
        if not self.snapshots or self.snapshots[-1].step != step:
            theta = self._state().theta
            self.snapshots.append(Snapshot(step, self.time, theta, self.observables))

    def _judge(self, t_end: float, stop: Stop | None) -> tuple[str, str] | None:
        end = stop(self.records) if stop else None
        if end is None and self.time >= t_end:
            end = "t_end", f"the walk reached flow time {t_end:g}"
        return end

    def _failed(self, status: str, error: ConvergenceError | CriticalPointError) -> tuple[str, str]:
        if not len(self.records):
            raise error
        return status, str(error)


class _Progress:
    """One line on standard error: angle, R, |L − c|, evaluations and their rate."""

    def __init__(self, wanted: bool) -> None:
        # disable=None: shown on a terminal only.
        self.bar: tqdm[Any] = tqdm(
            desc="walk", unit="eval", disable=None if wanted else True, mininterval=0.2
        )

    def __enter__(self) -> None:
        self.bar.__enter__()

    def __exit__(self, *details: Any) -> None:
        self.bar.__exit__(*details)

    def show(self, record: Mapping[str, float]) -> None:
        """Show the latest accepted step."""
        if self.bar.disable:
            return
        self.bar.set_postfix_str(
            f"angle {record['angle']:.1f}°, R {record['regularizer']:.5g}, "
            f"|L−c| {abs(record['level_residual']):.1e}",
            refresh=False,
        )
        self.bar.update(record["n_gradient"] + 2 * record["n_hvp"] - self.bar.n)


def _solver(solver: str | Solver, reproject_every: float | None) -> Solver:
    if isinstance(solver, str):
        return solvers.get(solver, reproject_every)
    if reproject_every is not None:
        raise InputError(
            f"reproject_every={reproject_every} goes with a solver's name; "
            "give it to the solver instance"
        )
    return solver


def _snapshot_rule(times: Sequence[float] | None, every: float | None, limit: int) -> SnapshotRule:
    if times is not None and every is not None:
        raise InputError("snapshot_times and snapshot_every are both given; choose one")
    if times is not None:
        return AtTimes(times)
    return Thinned(limit) if every is None else Every(every)


def _checked(name: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}={value}; use a positive flow time")
    return float(value)


def _check_memory(flow: RegularizingFlow, rule: SnapshotRule) -> None:
    """Refuse a walk whose snapshots would not fit, before it starts."""
    if isinstance(rule, Every):
        return
    n = rule.limit if isinstance(rule, Thinned) else len(rule.times)  # type: ignore[attr-defined]
    needed = 2 * n * flow.problem.theta0.numel() * flow.problem.theta0.element_size()
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > available:
        raise InputError(
            f"{n} snapshots of {flow.problem.n_parameters} parameters need {needed / 2**30:.1f} "
            f"GiB and {available / 2**30:.1f} GiB are free; keep fewer snapshots"
        )
