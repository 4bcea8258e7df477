"""Solvers and tolerances compared: errors at equal flow times, and what they cost.

The reference is a walk at a tight tolerance in float64, on a level set kept to 10⁻¹⁰. A second
walk at a tenth of that tolerance says how far the reference itself is off. Every error is measured
in float64, by the reference's own L and R, also that of a walk in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from geoflow import solvers as known_solvers
from geoflow.comparisons.counterpart import check_counterpart
from geoflow.comparisons.dataset import (
    FLOAT32,
    TIGHTER,
    Run,
    attributes,
    to_dataset,
)
from geoflow.comparisons.judging import Judge
from geoflow.comparisons.reference import reference_for
from geoflow.errors import InputError
from geoflow.experiments import Data, registry
from geoflow.manifold.flows import RegularizingFlow, check_single
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.regularizers import squared_norm
from geoflow.problems import arithmetic
from geoflow.problems.problem import Problem
from geoflow.solvers import Solver, Tolerance
from geoflow.system import kinds
from geoflow.trajectories import records, storable
from geoflow.trajectories.records import Observed
from geoflow.walking.settings import WalkSettings
from geoflow.walking.snapshots import MOST_TIMES

# Names that an observable's own variables would collide with, beside those of a trajectory.
TAKEN = {"level", "level_error", "evaluations"}

REFERENCE_LEVEL_RTOL = 1e-10
# What float32 resolves of the level.
FLOAT32_LEVEL_RTOL = 1e-5
# Of a tolerance, over which its walks are spread.
JITTER, MOST_RUNS = 0.15, 1000
DEFAULT_TIMES = (0.1, 0.3, 1.0)


@arithmetic.without_autocast()
def compare(
    flow: RegularizingFlow,
    solvers: Sequence[str] | Mapping[str, Solver],
    rtols: kinds.Reals | Mapping[str, kinds.Reals],
    times: kinds.Reals = DEFAULT_TIMES,
    observables: Mapping[str, Observed] | None = None,
    max_evaluations: float | None = None,
    *,
    float32: RegularizingFlow | None = None,
    reference: str | None = None,
    reference_rtol: float | None = None,
    runs: int = 1,
    provenance: Mapping[str, Any] | None = None,
    note: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Walk with every solver at every tolerance, from the same start to the same flow times.

    Each walk has atol = 10⁻³ rtol; that of ``walk`` is 10⁻⁶ unless it is given, which is the same
    at its default rtol alone. A walk that does not come to a flow time has NaN there, and its
    ``status`` says why, in the words of :func:`geoflow.walk`; or ``not_resolved``, its tolerance
    being below what float32 resolves, or ``not_run``. Nothing is raised for it.

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
    max_evaluations : int or float, optional
        Budget of each walk, a Hessian-vector product counting 2; the reference has none of its
        own but walk's. None: walk's own, 100,000.
    float32 : RegularizingFlow, optional
        The same flow in float32, from the same start: level, L, R and ∇R there are compared, to
        what float32 rounds.
    reference : str, optional
        Solver of the reference. None: SUNDIALS' CVODE, a method of other hands, where
        ``geoflow[sundials]`` is installed, and dopri5 elsewhere.
    reference_rtol : float, optional
        Tolerance of the reference; the walk that its error is estimated by has a tenth of it.
        None: a hundredth of the tightest compared, at most 10⁻⁷.
    runs : int
        Walks for each solver and tolerance, at tolerances spread evenly over ±15% of it: a count
        varies with rounding. Values are means over them, and ``…_deviation`` is beside those of
        the cost and of the error in θ.
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
    kinds.check_kind(flow, RegularizingFlow, "flow", kinds.A_FLOW)
    check_single(flow, "a comparison of solvers")
    kinds.check_kind(provenance, Mapping | None, "provenance", "a dict")
    _check_note(note)
    observables = records.as_observables(observables, flow.problem)
    chosen = _chosen(solvers, float32)
    wanted = _wanted(chosen, rtols)
    reference, reference_rtol = reference_for(wanted, reference, reference_rtol)
    jitters = _jitters(runs)
    ends = _checked_times(times)
    # Refused before the first walk; Python's own number, where it is one of NumPy's.
    max_evaluations = WalkSettings(max_evaluations=max_evaluations).max_evaluations
    if flow.problem.dtype != torch.float64:
        raise InputError(f"flow is in {flow.problem.dtype}; the reference needs torch.float64")
    if float32 is not None:
        check_counterpart(float32, flow)
    records.check_observables(observables, flow.problem.theta0)
    errors = {f"{name}_error" for name in ("theta", "regularizer", "angle", *observables)}
    for name in sorted((TAKEN | errors) & set(observables)):
        raise InputError(f"observables: {name!r} is taken; choose another")
    config = {
        "solvers": {label: {"name": s.name, **s.options} for label, s in chosen.items()},
        "rtols": wanted,
        "times": ends,
        "jitters": jitters,
        "max_evaluations": max_evaluations,
        "observables": sorted(observables),
        "threads": torch.get_num_threads(),
        "provenance": dict(provenance or {}),
    }
    storable.as_json(config, "provenance, with the settings,")
    report = note or (lambda text: None)

    judge = Judge(flow, observables)
    level_rtol = min(flow.level_set.level_rtol, REFERENCE_LEVEL_RTOL)
    level_set = LevelSet(flow.problem, flow.level_set.level, level_rtol)
    exact = RegularizingFlow(level_set, flow.regularizer)
    pair = []
    for rtol in (reference_rtol, TIGHTER * reference_rtol):
        report(f"reference, {reference} at rtol {rtol:g}")
        solver = known_solvers.get(reference)
        # Its steps end at the times: what is interpolated would not fall with rtol in order.
        solver.dense = False
        run = judge.reference(exact, solver, rtol, ends)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        pair.append(run)

    grid = sorted({r for several in wanted.values() for r in several}, reverse=True)
    found: dict[tuple[str, float], list[Run]] = {}
    status = "done"
    for label, rtol in ((label, r) for label, several in wanted.items() for r in several):
        report(f"{label} at rtol {rtol:g}")
        where = float32 if label.endswith(FLOAT32) and float32 else flow
        several = found.setdefault((label, rtol), [])
        for jitter in jitters:
            several.append(judge.walk(where, chosen[label], jitter * rtol, ends, max_evaluations))
            if several[-1].status == "interrupted":
                status = "interrupted"
                break
        if status == "interrupted":
            break
    header = attributes(flow, config, reference, reference_rtol, pair) | {
        "reference_level_rtol": level_rtol,
        "status": status,
    }
    return to_dataset(list(observables), list(chosen), grid, ends, found, pair, header)


@arithmetic.without_autocast()
def compare_experiment(
    experiment: str,
    solvers: Sequence[str],
    rtols: kinds.Reals | Mapping[str, kinds.Reals],
    times: kinds.Reals = DEFAULT_TIMES,
    max_evaluations: float | None = None,
    *,
    seed: int = 0,
    data: str | None = None,
    reference: str | None = None,
    reference_rtol: float | None = None,
    runs: int = 1,
    note: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Compare solvers on an experiment, with R = ‖θ‖².

    The network is trained in float64. ``NAME:float32`` walks from the same weights, rounded, on
    the same level, kept to a relative 10⁻⁵.

    Parameters
    ----------
    experiment : str
        Name of an experiment.
    solvers, rtols, times, max_evaluations, reference, reference_rtol, runs, note
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
    reference_for(_wanted(_names(solvers), rtols), reference, reference_rtol)
    _checked_times(times)
    _jitters(runs)
    _check_note(note)
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
            *Data(*prepared.train),
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
        runs=runs,
        provenance=prepared.provenance,
        note=note,
    )


def _names(labels: Sequence[str]) -> dict[str, Solver]:
    give = "a list of names, or a dict of solvers"
    kinds.check_kind(labels, Sequence, "solvers", give)
    for label in labels:
        kinds.check_kind(label, str, "solvers: one", "its name")
    if isinstance(labels, str) or len(set(labels)) < len(labels):
        raise InputError(f"solvers={kinds.shown(labels)}; use a list in which no name comes twice")
    return {label: known_solvers.get(label.removesuffix(FLOAT32)) for label in labels}


def _chosen(
    solvers: Sequence[str] | Mapping[str, Solver], float32: RegularizingFlow | None
) -> dict[str, Solver]:
    chosen = dict(solvers) if isinstance(solvers, Mapping) else _names(solvers)
    if not chosen:
        raise InputError("solvers is empty; name at least one")
    for label, solver in chosen.items():
        kinds.check_kind(label, str, "solvers: a label", "a text")
        if not (hasattr(solver, "step") and hasattr(solver, "options")):
            raise InputError(
                f"solvers[{label!r}]={kinds.shown(solver)} is none; make one, as gf.solvers.get "
                "does of a name"
            )
        if label.endswith(FLOAT32) and float32 is None:
            raise InputError(f"solver {label!r} needs the flow in float32; give float32=…")
    kinds.check_kind(float32, RegularizingFlow | None, "float32", kinds.A_FLOW)
    if float32 is not None and float32.problem.dtype != torch.float32:
        raise InputError(f"float32 is in {float32.problem.dtype}; make its problem in float32")
    return chosen


def _wanted(
    chosen: Mapping[str, Solver],
    rtols: kinds.Reals | Mapping[str, kinds.Reals],
) -> dict[str, list[float]]:
    if isinstance(rtols, Mapping):
        missing = set(chosen) ^ set(rtols)
        if missing:
            raise InputError(f"rtols: {min(missing, key=str)!r} is not in both solvers and rtols")
        wanted = {label: _numbers(rtols[label], f"rtols[{label!r}]") for label in chosen}
    else:
        given = _numbers(rtols, "rtols")
        wanted = dict.fromkeys(chosen, given)
    for several in wanted.values():
        if not several or len(set(several)) < len(several):
            raise InputError(f"rtols={kinds.shown(several)}; use at least one, and none twice")
        for rtol in several:
            Tolerance.checked(rtol, 0.0, torch.float64)
    return wanted


def _jitters(runs: int) -> list[float]:
    runs = kinds.as_whole(runs, "runs")
    if runs < 1 or runs > MOST_RUNS:
        raise InputError(f"runs={runs}; use 1 to {MOST_RUNS}")
    return [1.0] if runs == 1 else [float(f) for f in np.linspace(1 - JITTER, 1 + JITTER, runs)]


def _checked_times(times: kinds.Reals) -> list[float]:
    ends = _numbers(times, "times")
    rising = all(a < b for a, b in zip([0.0, *ends], ends, strict=False))
    if not ends or not rising or not math.isfinite(ends[-1]):
        raise InputError(f"times={ends[:5]}; use finite, increasing flow times above 0")
    return ends


def _numbers(values: Any, name: str) -> list[float]:
    if isinstance(values, str | bytes | Mapping):
        raise InputError(f"{name}={kinds.shown(values)}; give a list of numbers")
    several = kinds.listed(values, name, "a list of numbers", MOST_TIMES)
    return [kinds.as_number(value, name) for value in several]


def _check_note(note: Any) -> None:
    kinds.check_kind(note, Callable | None, "note", "a function of a text")
