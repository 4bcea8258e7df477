"""Solvers and tolerances compared: errors at equal flow times, and what they cost.

The reference is a walk at a tight tolerance in float64, on a level set kept to 10⁻¹⁰. A second
walk at a tenth of that tolerance says how far the reference itself is off. Both are dopri5's unless
another solver is named: on a stiff flow its stability holds it to short steps whatever the
tolerance, so that the tighter walk costs little more than the first, and its fifth order makes the
reference's error small. Every error is measured in float64, by the reference's own L and R, also
that of a walk in float32.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from geoflow import solvers as known_solvers
from geoflow import trajectory
from geoflow.archive import check_target
from geoflow.errors import ArchiveError, ConvergenceError, CriticalPointError, InputError
from geoflow.experiments import registry
from geoflow.flows import RegularizingFlow
from geoflow.level_set import LevelSet
from geoflow.problem import Problem
from geoflow.regularizers import squared_norm
from geoflow.solvers import Solver, Tolerance
from geoflow.trajectory import Observable
from geoflow.walk import walk

SCHEMA_VERSION = "1.0"

# Names that an observable's own variables would collide with, beside those of a trajectory.
TAKEN = {"level", "level_error", "evaluations"}

REFERENCE_SOLVER, REFERENCE_RTOL, TIGHTER = "dopri5", 1e-7, 0.1
REFERENCE_LEVEL_RTOL = 1e-10
# As in the defaults of walk: so that rtol alone says how tight a walk is.
ATOL_OVER_RTOL = 1e-3
# What float32 resolves of the level.
FLOAT32, FLOAT32_LEVEL_RTOL = ":float32", 1e-5
DEFAULT_TIMES = (0.1, 0.3, 1.0)

Values = dict[str, NDArray[np.float64]]


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
    time has NaN there, and its ``status`` says why; nothing is raised for it.

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
    if max_evaluations is not None and max_evaluations < 1:
        raise InputError(f"max_evaluations={max_evaluations}; use a positive number")
    if flow.problem.dtype != torch.float64:
        raise InputError(f"flow is in {flow.problem.dtype}; the reference needs torch.float64")
    trajectory.check_observables(observables, flow.problem.theta0)
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
        run = judge.walk(exact, known_solvers.get(reference), rtol, ends, None)
        if run.status == "interrupted":
            raise KeyboardInterrupt
        pair.append(run)

    grid = sorted({r for several in wanted.values() for r in several}, reverse=True)
    runs: dict[tuple[str, float], _Run] = {}
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
    header = _header(flow, config, reference, reference_rtol, pair) | {
        "reference_level_rtol": level_rtol,
        "status": status,
    }
    return _dataset(judge, list(chosen), grid, ends, runs, pair, header)


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
    """Compare solvers on one of the paper's experiments, with R = ‖θ‖².

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
    prepared = found.prepare(seed, data=data)
    flow = RegularizingFlow(LevelSet(prepared.problem), squared_norm)
    single = None
    if any(label.endswith(FLOAT32) for label in solvers):
        problem = Problem.from_module(
            prepared.module,
            found.loss_fn,
            *prepared.train,
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


def save_comparison(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a comparison to a netCDF-4 file, whole or not at all.

    Raises
    ------
    InputError
        The file is there already, or its folder cannot be written.
    ArchiveError
        Writing failed; ``path`` is as it was.
    """
    path = check_target(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        ds.to_netcdf(temporary, engine="netcdf4", format="NETCDF4")
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"writing {path} failed ({error}); free space or choose another") from (
            error
        )
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Run:
    """One walk: what it has at the flow times it came to, and how it ended."""

    status: str
    message: str
    theta: NDArray[np.float64]
    values: Values
    spent: int = 0
    n_steps: int = 0
    n_rejected: int = 0


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
    ) -> _Run:
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
            return _Run("not_resolved", str(error), nothing, {})
        except (ConvergenceError, CriticalPointError) as error:
            critical = isinstance(error, CriticalPointError)
            status = "critical_point" if critical else "projection_failed"
            return _Run(status, str(error), nothing, {}, flow.problem.evaluations - before)
        spent = flow.problem.evaluations - before
        at = ds.isel(step=ds["snapshot_step"].values)
        values = self.measure(ds["theta"].values.astype(float))
        values["evaluations"] = (at["n_gradient"] + 2 * at["n_hvp"]).values.astype(float)
        values["wall_time"] = at["wall_time"].values
        return _Run(
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


def _errors(run: _Run, reference: _Run, names: Sequence[str]) -> Values:
    """Errors at the flow times that both came to: of θ relative, of every scalar absolute."""
    n = min(len(run.theta), len(reference.theta))
    exact = reference.theta[:n]
    distance = np.linalg.norm(run.theta[:n] - exact, axis=1)
    found = {"theta_error": distance / np.linalg.norm(exact, axis=1)}
    for name in names:
        if n:
            found[f"{name}_error"] = np.abs(run.values[name][:n] - reference.values[name][:n])
    return found


def _dataset(
    judge: _Judge,
    labels: list[str],
    grid: list[float],
    times: list[float],
    runs: Mapping[tuple[str, float], _Run],
    references: Sequence[_Run],
    header: Mapping[str, Any],
) -> xr.Dataset:
    scalars = ["regularizer", "angle", *judge.observables]
    texts = {n: n.replace("_", " ") for n in judge.observables}
    texts |= {"regularizer": "R", "angle": "the angle between grad R and grad L"}
    units = {"angle": "degree", "angle_error": "degree", "wall_time": "s"}
    about = {"theta_error": "distance from the reference over the reference's norm"}
    about |= {f"{n}_error": f"absolute error of {texts[n]}" for n in scalars}
    about |= {
        "level_error": "constraint error |L - c|/|c|, L evaluated in float64",
        "level_distance": "first-order distance |L - c|/|grad L| from the level set",
        "evaluations": "gradient evaluations up to the snapshot, an HVP counting 2",
        "wall_time": "wall time up to the snapshot",
    }
    dims = ("solver", "rtol", "snapshot")
    shape = (len(labels), len(grid), len(times))
    arrays = {name: np.full(shape, np.nan) for name in about}
    status = np.full(shape[:2], "not_run", dtype=object)
    message = np.full(shape[:2], "", dtype=object)
    counts = {
        "evaluations_spent": "gradient evaluations of the whole walk, an HVP counting 2",
        "n_steps": "accepted steps",
        "n_rejected": "rejected attempts",
    }
    numbers = {name: np.zeros(shape[:2], dtype=np.int64) for name in counts}
    reference, tighter = references
    for (label, rtol), run in runs.items():
        cell = labels.index(label), grid.index(rtol)
        status[cell], message[cell] = run.status, run.message
        numbers["evaluations_spent"][cell] = run.spent
        numbers["n_steps"][cell], numbers["n_rejected"][cell] = run.n_steps, run.n_rejected
        found = run.values | _errors(run, reference, scalars)
        for name in about:
            if name in found:
                arrays[name][cell][: len(found[name])] = found[name]

    def described(where: tuple[str, ...], values: Any, text: str, unit: str = "1") -> Any:
        return where, values, {"long_name": text, "units": unit}

    variables = {n: described(dims, arrays[n], about[n], units.get(n, "1")) for n in about}
    variables |= {n: described(dims[:2], numbers[n], counts[n]) for n in counts}
    variables["status"] = described(dims[:2], status, "how the walk ended")
    variables["status_message"] = described(dims[:2], message, "how the walk ended, in words")
    own = _errors(tighter, reference, scalars)
    for name in ("theta_error", *(f"{n}_error" for n in scalars)):
        text = f"the reference's own: {about[name]}, by a walk at a tenth of its rtol"
        values = _padded(own.get(name, np.empty(0)), len(times))
        unit = units.get(name, "1")
        variables[f"reference_{name}"] = described(("snapshot",), values, text, unit)
    for name in (*scalars, "level_error", "evaluations", "wall_time"):
        text = f"of the reference: {about.get(name) or texts[name]}"
        values = _padded(reference.values[name], len(times))
        unit = units.get(name, "1")
        variables[f"reference_{name}"] = described(("snapshot",), values, text, unit)
    dtypes = ["float32" if label.endswith(FLOAT32) else "float64" for label in labels]
    atols = ATOL_OVER_RTOL * np.array(grid)
    coordinates = {
        "solver": described(("solver",), np.array(labels, dtype=object), "solver"),
        "dtype": described(("solver",), np.array(dtypes, dtype=object), "dtype of the walk"),
        "rtol": described(("rtol",), grid, "local error allowed, relative to the norm of theta"),
        "atol": described(("rtol",), atols, "local error allowed, absolute"),
        "snapshot_time": described(("snapshot",), times, "flow time of the snapshot"),
    }
    return xr.Dataset(variables, coordinates, header)


def _padded(values: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    return np.append(values, np.full(length - len(values), np.nan))


def _header(
    flow: RegularizingFlow,
    config: Mapping[str, Any],
    solver: str,
    rtol: float,
    references: Sequence[_Run],
) -> dict[str, Any]:
    atol = ATOL_OVER_RTOL * rtol
    of_walk = trajectory.attributes(flow, solver=solver, rtol=rtol, atol=atol, config=config)
    # What is said of the reference is named so, and a comparison is no trajectory.
    header = {"geoflow_comparison": SCHEMA_VERSION}
    for name, value in of_walk.items():
        if name in ("solver", "rtol", "atol"):
            header[f"reference_{name}"] = value
        elif name not in ("geoflow_schema", "history", "dtype"):
            header[name] = value
    named = f"{header['experiment']}, seed {header['seed']}: " if header["experiment"] else ""
    return header | {
        "title": f"{named}solvers and tolerances compared",
        "config": json.dumps(config, sort_keys=True),
        "reference_status": references[0].status,
        "reference_check_rtol": TIGHTER * rtol,
        "reference_check_status": references[1].status,
    }


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
