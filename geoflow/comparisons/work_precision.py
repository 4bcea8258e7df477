"""Solvers and tolerances compared: errors at equal flow times, and what they cost.

The reference is a walk at a tight tolerance in float64, on a level set kept to 10⁻¹⁰. A second
walk at a tenth of that tolerance says how far the reference itself is off. Both are dopri5's unless
another solver is named: on a stiff flow its stability holds it to short steps whatever the
tolerance, so that the tighter walk costs little more than the first, and its fifth order makes the
reference's error small. Every error is measured in float64, by the reference's own L and R, also
that of a walk in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from geoflow import solvers as known_solvers
from geoflow.comparisons.dataset import (
    ATOL_OVER_RTOL,
    FLOAT32,
    TIGHTER,
    Run,
    Values,
    attributes,
    to_dataset,
)
from geoflow.errors import ConvergenceError, CriticalPointError, InputError
from geoflow.experiments import registry
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.regularizers import squared_norm
from geoflow.problems.problem import Problem
from geoflow.solvers import Solver, Tolerance
from geoflow.trajectories import records
from geoflow.trajectories.records import Observable
from geoflow.walking.loop import walk
from geoflow.walking.settings import WalkSettings

# Names that an observable's own variables would collide with, beside those of a trajectory.
TAKEN = {"level", "level_error", "evaluations"}

REFERENCE_SOLVER, REFERENCE_RTOL = "dopri5", 1e-7
REFERENCE_LEVEL_RTOL = 1e-10
# What float32 resolves of the level.
FLOAT32_LEVEL_RTOL = 1e-5
DEFAULT_TIMES = (0.1, 0.3, 1.0)


def compare(
    flow: RegularizingFlow,
    solvers: Sequence[str] | Mapping[str, Solver],
    rtols: Sequence[float] | Mapping[str, Sequence[float]],
    times: Sequence[float] = DEFAULT_TIMES,
    observables: Mapping[str, Observable] | None = None,
    max_evaluations: int | None = None,
    *,
    float32: RegularizingFlow | None = None,
    reference: str = REFERENCE_SOLVER,
    reference_rtol: float = REFERENCE_RTOL,
    provenance: Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Walk with every solver at every tolerance, from the same start to the same flow times.

    Each walk has atol = 10⁻³ rtol, as ``walk`` has by default. A walk that does not come to a flow
    time has NaN there, and its ``status`` says why, in the words of :func:`geoflow.walk`; or
    ``not_resolved``, its tolerance being below what float32 resolves, or ``not_run``. Nothing is
    raised for it.

    Parameters
    ----------
    flow : RegularizingFlow
        In float64.
    solvers : sequence of str, or mapping of str to Solver
        Names of :func:`geoflow.solvers.names`, or solvers with settings of their own under labels
        of your choice. A label that ends in ``:float32`` is run on ``float32``.
    rtols : sequence of float, or mapping of str to sequence of float
        Tolerances, of every solver or by label.
    times : sequence of float
        Flow times > 0, increasing. Every walk stops at each of them, so that many cost more.
    observables : mapping of str to callable, optional
        Functions θ → float, of θ in float64.
    max_evaluations : int, optional
        Budget of each walk, a Hessian-vector product counting 2; the reference has none of its
        own but walk's. None: walk's own, 100,000.
    float32 : RegularizingFlow, optional
        The same flow in float32, from the same start.
    reference : str
        Solver of the reference.
    reference_rtol : float
        Tolerance of the reference; the walk that its error is estimated by has a tenth of it.
    provenance : mapping, optional
        Where the problem comes from, JSON-able, as for :func:`geoflow.walk`.
    note : callable, optional
        Told what each walk is as it starts.

    Returns
    -------
    xarray.Dataset
        Dimensions ``solver``, ``rtol`` and ``snapshot``. After Ctrl-C, what had been walked, with
        the attribute ``status`` ``interrupted``.

    Raises
    ------
    InputError
        An argument that cannot be used.
    ConvergenceError, CriticalPointError
        The start of the reference cannot be projected onto the level set.
    KeyboardInterrupt
        Before there is a reference.
    """
    observables = dict(observables or {})
    chosen = _chosen(solvers, float32)
    wanted = _wanted(chosen, rtols, reference_rtol)
    ends = _checked_times(times)
    # Refused before the first walk.
    WalkSettings(max_evaluations=max_evaluations)
    if flow.problem.dtype != torch.float64:
        raise InputError(f"flow is in {flow.problem.dtype}; the reference needs torch.float64")
    records.check_observables(observables, flow.problem.theta0)
    for name in TAKEN & set(observables):
        raise InputError(f"observables: {name!r} is taken; choose another")
    known_solvers.get(reference)
    report = note or (lambda text: None)

    judge = _Judge(flow, observables)
    level_rtol = min(flow.level_set.level_rtol, REFERENCE_LEVEL_RTOL)
    level_set = LevelSet(flow.problem, flow.level_set.level, level_rtol)
    exact = RegularizingFlow(level_set, flow.regularizer)
    pair = []
    for rtol in (reference_rtol, TIGHTER * reference_rtol):
        report(f"reference, {reference} at rtol {rtol:g}")
        solver = known_solvers.get(reference)
        # Its steps end at the times: what is interpolated would not fall with rtol in order.
        solver.dense = False
        run = judge.walk(exact, solver, rtol, ends, None)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        pair.append(run)

    grid = sorted({r for several in wanted.values() for r in several}, reverse=True)
    runs: dict[tuple[str, float], Run] = {}
    status = "done"
    for label, rtol in ((label, r) for label, several in wanted.items() for r in several):
        report(f"{label} at rtol {rtol:g}")
        where = float32 if label.endswith(FLOAT32) and float32 else flow
        run = judge.walk(where, chosen[label], rtol, ends, max_evaluations)
        runs[label, rtol] = run
        if run.status == "interrupted":
            status = "interrupted"
            break
    config = {
        "solvers": {label: {"name": s.name, **s.options} for label, s in chosen.items()},
        "rtols": wanted,
        "times": ends,
        "max_evaluations": max_evaluations,
        "observables": sorted(observables),
        "threads": torch.get_num_threads(),
        "provenance": dict(provenance or {}),
    }
    header = attributes(flow, config, reference, reference_rtol, pair) | {
        "reference_level_rtol": level_rtol,
        "status": status,
    }
    return to_dataset(list(observables), list(chosen), grid, ends, runs, pair, header)


def compare_experiment(
    experiment: str,
    solvers: Sequence[str],
    rtols: Sequence[float] | Mapping[str, Sequence[float]],
    times: Sequence[float] = DEFAULT_TIMES,
    max_evaluations: int | None = None,
    *,
    seed: int = 0,
    data: str | None = None,
    reference: str = REFERENCE_SOLVER,
    reference_rtol: float = REFERENCE_RTOL,
    note: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Compare solvers on an experiment, with R = ‖θ‖².

    The network is trained in float64. ``NAME:float32`` walks from the same weights, rounded, on
    the same level, kept to a relative 10⁻⁵.

    Parameters
    ----------
    experiment : str
        Name of an experiment.
    solvers, rtols, times, max_evaluations, reference, reference_rtol, note
        See :func:`compare`; solvers by name, each followed by ``:float32`` or not.
    seed : int
        Decides the problem.
    data : str, optional
        See :meth:`geoflow.experiments.Experiment.prepare`.

    Raises
    ------
    InputError, DataError
        An argument or data that cannot be used.
    """
    found = registry.get(experiment)
    # Before the training, which takes its time.
    _wanted(_names(solvers), rtols, reference_rtol)
    _checked_times(times)
    known_solvers.get(reference)
    # One's own experiment need not take a dtype: that it gives float64 is checked by compare.
    prepared = found.prepare(seed, data=data)
    flow = RegularizingFlow(LevelSet(prepared.problem), squared_norm)
    single = None
    if any(label.endswith(FLOAT32) for label in solvers):
        if prepared.module is None or prepared.loss_fn is None or prepared.train is None:
            raise InputError(
                f"solvers: for {FLOAT32} the network of {experiment!r} must be known; return a "
                "PreparedExperiment with module, loss_fn and train"
            )
        problem = Problem.from_module(
            prepared.module,
            prepared.loss_fn,
            *prepared.train,
            batch_size=prepared.batch_size,
            dtype=torch.float32,
            device=prepared.problem.device,
        )
        level_set = LevelSet(problem, flow.level_set.level, FLOAT32_LEVEL_RTOL)
        single = RegularizingFlow(level_set, squared_norm)
    return compare(
        flow,
        solvers,
        rtols,
        times,
        prepared.observables,
        max_evaluations,
        float32=single,
        reference=reference,
        reference_rtol=reference_rtol,
        provenance=prepared.provenance,
        note=note,
    )


class _Judge:
    """Measures every walk by the reference's own flow and observables."""

    def __init__(self, flow: RegularizingFlow, observables: Mapping[str, Observable]) -> None:
        self.flow, self.observables = flow, observables

    def walk(
        self,
        flow: RegularizingFlow,
        solver: Solver,
        rtol: float,
        times: list[float],
        max_evaluations: int | None,
    ) -> Run:
        nothing = np.empty((0, flow.problem.n_parameters))
        before = flow.problem.evaluations
        try:
            ds = walk(
                flow,
                solver,
                rtol=rtol,
                atol=ATOL_OVER_RTOL * rtol,
                t_end=times[-1],
                stop=None,
                max_evaluations=max_evaluations,
                snapshot_times=times,
            )
        except InputError as error:
            return Run("not_resolved", str(error), nothing, {})
        except (ConvergenceError, CriticalPointError) as error:
            critical = isinstance(error, CriticalPointError)
            status = "critical_point" if critical else "projection_failed"
            return Run(status, str(error), nothing, {}, flow.problem.evaluations - before)
        spent = flow.problem.evaluations - before
        at = ds.isel(step=ds["snapshot_step"].values)
        values = self.measure(ds["theta"].values.astype(float))
        values["evaluations"] = (at["n_gradient"] + 2 * at["n_hvp"]).values.astype(float)
        values["wall_time"] = at["wall_time"].values
        return Run(
            ds.attrs["status"],
            ds.attrs["status_message"],
            ds["theta"].values.astype(float),
            values,
            spent,
            ds.sizes["step"] - 1,
            int(ds["n_rejected"][-1]),
        )

    def measure(self, thetas: NDArray[np.float64]) -> Values:
        level_set = self.flow.level_set
        rows = []
        for row in thetas:
            theta = torch.as_tensor(row).to(self.flow.problem.theta0)
            state = self.flow.evaluate(theta)
            residual = abs(level_set.residual(state.loss))
            rows.append(
                {
                    "regularizer": state.regularizer,
                    "angle": state.angle,
                    "level_error": residual / abs(level_set.level),
                    "level_distance": residual / state.gradient_norm,
                }
                | {name: float(f(theta)) for name, f in self.observables.items()}
            )
        names = ("regularizer", "angle", "level_error", "level_distance", *self.observables)
        return {name: np.array([row[name] for row in rows], dtype=float) for name in names}


def _names(labels: Sequence[str]) -> dict[str, Solver]:
    if isinstance(labels, str) or len(set(labels)) < len(labels):
        raise InputError(f"solvers={labels!r}; use a list in which no name comes twice")
    return {label: known_solvers.get(label.removesuffix(FLOAT32)) for label in labels}


def _chosen(
    solvers: Sequence[str] | Mapping[str, Solver], float32: RegularizingFlow | None
) -> dict[str, Solver]:
    chosen = dict(solvers) if isinstance(solvers, Mapping) else _names(solvers)
    if not chosen:
        raise InputError("solvers is empty; name at least one")
    for label in chosen:
        if label.endswith(FLOAT32) and float32 is None:
            raise InputError(f"solver {label!r} needs the flow in float32; give float32=…")
    if float32 is not None and float32.problem.dtype != torch.float32:
        raise InputError(f"float32 is in {float32.problem.dtype}; make its problem in float32")
    return chosen


def _wanted(
    chosen: Mapping[str, Solver],
    rtols: Sequence[float] | Mapping[str, Sequence[float]],
    reference_rtol: float,
) -> dict[str, list[float]]:
    Tolerance.checked(reference_rtol * TIGHTER, 0.0, torch.float64)
    if isinstance(rtols, Mapping):
        missing = set(chosen) ^ set(rtols)
        if missing:
            raise InputError(f"rtols: {sorted(missing)[0]!r} is not in both solvers and rtols")
        wanted = {label: [float(r) for r in rtols[label]] for label in chosen}
    else:
        wanted = {label: [float(r) for r in rtols] for label in chosen}
    for several in wanted.values():
        if not several or len(set(several)) < len(several):
            raise InputError(f"rtols={several}; use at least one, and none twice")
        for rtol in several:
            Tolerance.checked(rtol, 0.0, torch.float64)
            if rtol <= reference_rtol:
                raise InputError(
                    f"rtol={rtol} is not looser than the reference's, {reference_rtol}; "
                    "drop it, or use a tighter reference_rtol"
                )
    return wanted


def _checked_times(times: Sequence[float]) -> list[float]:
    ends = [float(t) for t in times]
    rising = all(a < b for a, b in zip([0.0, *ends], ends, strict=False))
    if not ends or not rising or not math.isfinite(ends[-1]):
        raise InputError(f"times={ends[:5]}; use finite, increasing flow times above 0")
    return ends
