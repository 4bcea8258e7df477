"""The way into a path: its arguments checked, its points recorded, its end told."""

from __future__ import annotations

import math
import time as clock
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from geoflow.archive import path_files
from geoflow.errors import ConvergenceError, InputError, StorageError
from geoflow.manifold.flows import FlowState, RegularizingFlow
from geoflow.paths.continuation import Continuation, Reached
from geoflow.paths.corrector import residual_of
from geoflow.system import files
from geoflow.system.progress import Progress
from geoflow.trajectories import path_dataset, path_schema, records
from geoflow.trajectories.path_dataset import PathPoint
from geoflow.trajectories.records import Observable, Snapshot
from geoflow.trajectories.storable import storable
from geoflow.walking import ending
from geoflow.walking.fitting import check_fit
from geoflow.walking.settings import DEFAULTS
from geoflow.walking.stopping import DEFAULT_MAX_EVALUATIONS, Stationary

# Of the smallest eigenvalue, relative to the range of the spectrum; and its seed.
EIGENVALUE_TOL, EIGENVALUE_SEED = 1e-6, 0


def regularization_path(
    flow: RegularizingFlow,
    levels: Sequence[float],
    degrees: float = 175.0,
    observables: Mapping[str, Observable] | None = None,
    archive: str | Path | None = None,
    *,
    max_evaluations: int | None = None,
    smallest_eigenvalue: bool = False,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Follow the KKT point of min R on L = c while c changes: every weight decay from one run.

    Where ∇R = −λ∇L, θ is a stationary point of L + R/λ: one weight-decay solution, the penalty of
    which, 1/λ, is read off. The path begins with a walk on the flow's own level, whose end is its
    first point; from there each level is reached from the point so far whose level is nearest.

    Parameters
    ----------
    flow : RegularizingFlow
        On a level set of a single constraint.
    levels : sequence of float
        c, in units of the loss, in the order in which they are to be reached, up or down or both.
    degrees : float
        Angle between ∇R and ∇L that each point comes to at the least: its KKT residual
        ‖Π∇R‖/‖∇R‖ is at most sin(180° − ``degrees``).
    observables : mapping of str to callable, optional
        Functions θ → float, evaluated at each point; one variable each.
    archive : str or Path, optional
        netCDF-4 file to write the path to.
    max_evaluations : int, optional
        Budget in gradient evaluations, a Hessian-vector product counting 2, the first walk and
        the smallest eigenvalues included. Never exceeded. None: 100,000.
    smallest_eigenvalue : bool
        Compute the smallest eigenvalue of A = Π(∇²R + λ∇²L)Π on the tangent space at each point,
        which is a minimum of R on its level set where that is positive. NaN where it did not
        converge. Costs some hundreds of Hessian-vector products a point.
    provenance : mapping, optional
        Where the problem comes from, JSON-able; see :func:`geoflow.walk`.
    overwrite : bool
        Replace ``archive`` where it exists.
    progress : bool
        Show the path on standard error, where that is a terminal or a notebook's.

    Returns
    -------
    xarray.Dataset
        Over ``level``, in the order reached: see :mod:`geoflow.trajectories.path_schema`. Its
        ``status`` is ``complete``, or says why the path ended before all levels.

    Raises
    ------
    InputError
        An argument that cannot be used, or a budget that is spent before the first point.
    ConvergenceError, CriticalPointError
        The first point is not reached, so there is no path to keep.
    """
    observables = dict(observables or {})
    levels = _checked_levels(levels)
    limit = path_schema.kkt_limit(Stationary(degrees).degrees)
    check_fit(flow, DEFAULTS.make_solver(), DEFAULTS.goals(), observables)
    _check_resolved(degrees, limit, flow.problem.dtype)
    _check_names(observables, flow)
    budget = _checked_budget(max_evaluations)
    target = None if archive is None else files.check_target(archive, overwrite=overwrite)
    config = {
        "levels": levels,
        "degrees": degrees,
        "max_evaluations": budget,
        "smallest_eigenvalue": smallest_eigenvalue,
        "observables": sorted(observables),
        "threads": torch.get_num_threads(),
        "provenance": dict(provenance or {}),
    }
    header = path_dataset.attributes(flow, degrees=degrees, config=config)
    recorder = _Recorder(flow, observables, smallest_eigenvalue)
    continuation = Continuation(flow, limit, degrees, budget)
    reached: list[Reached] = []
    end = "complete", f"all {len(levels)} levels were reached"
    shown = Progress(progress)
    with shown:
        try:
            for level in [None, *levels]:
                if level is None:
                    point = continuation.start()
                elif level == flow.level_set.level:
                    continue
                else:
                    point = continuation.to(level, _nearest(level, reached))
                with continuation.budget():
                    recorder.record(point)
                reached.append(point)
                shown.show(recorder.points[-1].values)
        except KeyboardInterrupt:
            if not recorder.points:
                raise
            end = "interrupted", "interrupted by the user"
        except StorageError:
            raise
        except Exception as error:
            if not recorder.points:
                raise ending.before_the_start(
                    error, budget, "the first point is reached"
                ) from error
            end = _end_of(error, budget)
    status, message = end
    ended = {"status": status, "status_message": storable(message)}
    ds = path_dataset.to_dataset(
        flow.problem, recorder.points, sorted(observables), {**header, **ended}
    )
    if target is not None:
        path_files.write(ds, target)
        return path_files.open_path(target)
    return ds


class _Recorder:
    """Makes records of the points."""

    def __init__(
        self,
        flow: RegularizingFlow,
        observables: Mapping[str, Callable[..., float]],
        eigenvalues: bool,
    ) -> None:
        self.flow, self.observables, self.eigenvalues = flow, observables, eigenvalues
        self.points: list[PathPoint] = []
        self.counts0, self.clock0 = flow.problem.counts, clock.perf_counter()

    def record(self, reached: Reached) -> None:
        """Take in a point."""
        state, problem = reached.state, self.flow.problem
        flow = reached.flow
        values: dict[str, Any] = {
            "level": flow.level_set.level,
            "penalty": 1 / state.multiplier,
            "kkt_residual": residual_of(state),
            "method": reached.method,
            "n_between": reached.n_between,
            "n_correction": reached.n_corrections,
        }
        of_flow = flow.values(state)
        values |= {name: of_flow[name] for name in path_schema.OF_FLOW}
        if self.eigenvalues:
            values["smallest_eigenvalue"] = _smallest_eigenvalue(flow, state)
        kept = Snapshot(len(self.points), 0.0, state.theta, self.observables)
        counts = problem.counts
        values |= kept.values
        values |= {f"n_{name}": counts[name] - self.counts0[name] for name in ("gradient", "hvp")}
        values["wall_time"] = clock.perf_counter() - self.clock0
        self.points.append(PathPoint(values, kept.theta))


def _smallest_eigenvalue(flow: RegularizingFlow, state: FlowState) -> float:
    """Of A on the tangent space; NaN where it does not converge."""
    # Imported here, as SciPy comes with it.
    from geoflow.analysis.curvature import tangent_hessian
    from geoflow.analysis.curvature.matrix_free import extreme_eigenvalues

    operator = tangent_hessian(flow, state)
    found = extreme_eigenvalues(
        operator, 1, which="smallest", tol=EIGENVALUE_TOL, seed=EIGENVALUE_SEED
    )
    return float(found.values[0])


def _nearest(level: float, reached: Sequence[Reached]) -> Reached:
    """The point whose level is nearest, of those at one distance the latest."""

    def away(point: Reached) -> float:
        at = point.flow.level_set.level
        return abs(math.log(at / level)) if at / level > 0 else math.inf

    return min(reversed(reached), key=away)


def _checked_levels(levels: Sequence[float]) -> list[float]:
    try:
        found = [float(level) for level in levels]
    except (TypeError, ValueError):
        found = []
    if not found or not all(math.isfinite(c) and c != 0 for c in found):
        raise InputError(f"levels={levels!r}; give one finite number, not zero, or more")
    if len(set(found)) < len(found):
        raise InputError(f"levels={found}; give each once")
    return found


def _checked_budget(max_evaluations: int | None) -> int:
    budget = DEFAULT_MAX_EVALUATIONS if max_evaluations is None else max_evaluations
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise InputError(f"max_evaluations={max_evaluations!r}; use a positive whole number")
    return budget


def _check_resolved(degrees: float, limit: float, dtype: torch.dtype) -> None:
    resolution = 100 * torch.finfo(dtype).eps
    if limit < resolution:
        largest = 180 - math.degrees(math.asin(resolution))
        raise InputError(
            f"degrees={degrees}: its KKT residual {limit:.1e} is below what {dtype} resolves; use "
            f"at most {largest:.9g}"
        )


def _check_names(observables: Mapping[str, Observable], flow: RegularizingFlow) -> None:
    taken = sorted(set(observables) & path_schema.VARIABLES.keys())
    if taken:
        raise InputError(f"observables: {taken[0]!r} is taken or not a name; choose another")
    records.check_observables(observables, flow.problem.theta0)


def _end_of(error: Exception, budget: int) -> ending.End:
    if isinstance(error, ConvergenceError) and error.reason == "kkt":
        return "not_converged", str(error)
    return ending.of_error(error, budget)
