"""The way into a path: its arguments checked, its points recorded, its end told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from geoflow.archive import path_files
from geoflow.archive.pieces import Pieces
from geoflow.errors import ArchiveError, BranchError, ConvergenceError, InputError, StorageError
from geoflow.manifold.flows import RegularizingFlow, check_single
from geoflow.paths.continuation import Continuation
from geoflow.paths.recording import Recording
from geoflow.system.progress import Progress
from geoflow.trajectories import path_dataset, path_schema, records
from geoflow.trajectories.path_dataset import PathPoint
from geoflow.trajectories.records import Observable
from geoflow.trajectories.storable import storable
from geoflow.walking import ending
from geoflow.walking.fitting import check_fit
from geoflow.walking.settings import DEFAULTS
from geoflow.walking.stopping import DEFAULT_MAX_EVALUATIONS, Stationary

# Attributes that two calls of the same settings differ in.
CLOCKS = ("created",)


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
        netCDF-4 file to write the path to. Each point is kept beside it as it is reached. Where
        the process ends early, by Ctrl-C too, the same call goes on from the last of them, to the
        same numbers.
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
    ArchiveError
        The disk does not take a point, what was kept is damaged, or another process is at it.
    """
    check_single(flow, "a regularisation path")
    observables = dict(observables or {})
    levels = _checked_levels(levels)
    limit = path_schema.kkt_limit(Stationary(degrees).degrees)
    check_fit(flow, DEFAULTS.make_solver(), DEFAULTS.goals(), observables)
    _check_resolved(degrees, limit, flow.problem.dtype)
    _check_names(observables, flow)
    budget = _checked_budget(max_evaluations)
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
    tensors = [[t.name, list(t.shape)] for t in flow.problem.tensors]
    settings = {n: v for n, v in header.items() if n not in CLOCKS} | {"tensors": tensors}
    continuation = Continuation(flow, limit, degrees)
    with Pieces(archive, settings, overwrite=overwrite) as pieces:
        recording = Recording(
            continuation, observables, smallest_eigenvalue, header, budget, pieces
        )
        end = _follow(recording, levels, Progress(progress), may_stop=archive is None)
        ds = recording.dataset(recording.points, end[0], storable(end[1]))
        pieces.finish(ds, path_files.save_path)
    return ds if archive is None else path_files.open_path(archive)


def _follow(
    recording: Recording, levels: Sequence[float], shown: Progress, *, may_stop: bool
) -> ending.End:
    """Go from level to level, and say how that ends.

    ``may_stop``: Ctrl-C ends the path; without, it is raised, as the points are kept.
    """
    own = recording.flow.level_set.level
    with shown:
        try:
            recording.next(None, 0)
            for level in levels:
                if level != own:
                    recording.next(level, _nearest(level, recording.points))
                shown.show(recording.points[-1].values)
        except KeyboardInterrupt:
            if not (recording.points and may_stop):
                raise
            return "interrupted", "interrupted by the user"
        except (ArchiveError, StorageError):
            raise
        except Exception as error:
            if not recording.points:
                where = "the first point is reached"
                raise ending.before_the_start(error, recording.budget, where) from error
            return _end_of(error, recording.budget)
    return "complete", f"all {len(levels)} levels were reached"


def _nearest(level: float, points: Sequence[PathPoint]) -> int:
    """The point whose level is nearest, of those at one distance the latest."""

    def away(number: int) -> float:
        at = points[number].values["level"]
        return abs(math.log(at / level)) if at / level > 0 else math.inf

    return min(reversed(range(len(points))), key=away)


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
    if isinstance(error, BranchError):
        return error.status, str(error)
    if isinstance(error, ConvergenceError) and error.reason == "kkt":
        return "not_converged", str(error)
    return ending.of_error(error, budget)
