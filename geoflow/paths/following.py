"""The way into a path, from its arguments to its dataset: level by level, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from geoflow import solvers
from geoflow.archive import path_files
from geoflow.archive.pieces import Pieces
from geoflow.errors import (
    ArchiveError,
    BranchError,
    ConvergenceError,
    EvaluationLimitError,
    InputError,
)
from geoflow.manifold.flows import RegularizingFlow, check_single
from geoflow.manifold.protocol import apart_from, check_unchanged
from geoflow.paths.arguments import (
    check_fits,
    check_names,
    check_resolved,
    check_tolerances,
    checked_budget,
    checked_levels,
)
from geoflow.paths.continuation import FAILURES, FIRST_SOLVER, Continuation
from geoflow.paths.recording import Recording
from geoflow.paths.scale import away, same_side
from geoflow.problems import arithmetic
from geoflow.system import kinds
from geoflow.trajectories import path_dataset, path_schema, records
from geoflow.trajectories.dataset import WALK_TITLE
from geoflow.trajectories.layout import layout_of
from geoflow.trajectories.path_dataset import PathPoint
from geoflow.trajectories.records import Observable, Observed
from geoflow.trajectories.storable import storable
from geoflow.walking import ending
from geoflow.walking.bar import Progress
from geoflow.walking.fitting import check_fit
from geoflow.walking.settings import DEFAULTS
from geoflow.walking.stopping import Stationary

# Attributes that two calls of the same settings differ in.
CLOCKS = ("created",)


@arithmetic.without_autocast()
def regularization_path(
    flow: RegularizingFlow,
    levels: kinds.Reals,
    degrees: float = 175.0,
    observables: Mapping[str, Observed] | None = None,
    archive: str | Path | None = None,
    *,
    max_evaluations: float | None = None,
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
    observables : mapping of str to callable, problem or regularizer, optional
        Functions θ → float, evaluated at each point; one variable each. Of a problem it is its
        loss, and one of ``gf.regularizers`` is made for the flow's problem. What they evaluate
        counts for nothing.
    archive : str or Path, optional
        netCDF-4 file to write the path to. Each point is kept beside it as it is reached. Where
        the process ends early, by Ctrl-C too, the same call goes on from the last of them, to the
        same numbers.
    max_evaluations : int or float, optional
        Budget in gradient evaluations, a Hessian-vector product counting 2, the first walk and
        the smallest eigenvalues included. Never exceeded. Where R evaluates other problems these
        have as many again, all together. None: 100,000.
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
    ConvergenceError, CriticalPointError, BranchError
        The first point is not reached, so there is no path to keep. A BranchError: R falls towards
        a lower loss (λ < 0), as on a level above L(θ = 0) where R = ‖θ‖², so that the walk's end is
        no weight-decay solution.
    ArchiveError
        The disk does not take a point, what was kept is damaged, or another process is at it.
    """
    kinds.check_kind(flow, RegularizingFlow, "flow", kinds.A_FLOW)
    check_single(flow, "a regularisation path")
    observables = records.as_observables(observables, flow.problem)
    kinds.check_kind(provenance, Mapping | None, "provenance", "a dict")
    levels = checked_levels(levels)
    check_tolerances(levels, flow)
    kinds.check_kind(degrees, Real, "degrees", "an angle between 90 and 180")
    kinds.check_switch(overwrite, "overwrite")
    kinds.check_switch(progress, "progress")
    kinds.check_switch(smallest_eigenvalue, "smallest_eigenvalue")
    if smallest_eigenvalue and flow.problem.n_parameters == 1:
        raise InputError(
            "smallest_eigenvalue=True: a level set in 1 parameter has no tangent directions; leave "
            "it out"
        )
    degrees = Stationary(degrees).degrees  # checked, and a float as the file has it
    limit = path_schema.kkt_limit(degrees)
    check_fit(flow, solvers.get(FIRST_SOLVER), DEFAULTS.goals(), observables)
    check_resolved(degrees, limit, flow.problem.dtype)
    check_names(observables, flow)
    provenance = dict(provenance or {})
    if isinstance(title := provenance.get("title"), str):
        provenance["title"] = title.replace(WALK_TITLE, "regularisation path")
    settings = Settings(
        levels=levels,
        degrees=degrees,
        max_evaluations=checked_budget(max_evaluations),
        smallest_eigenvalue=bool(smallest_eigenvalue),
        provenance=provenance,
        cost_of_r=bool(apart_from(flow)),
    )
    return follow(flow, settings, levels, observables, archive, overwrite=overwrite, shown=progress)


@dataclass(frozen=True)
class Settings:
    """What a path's file keeps of the arguments of :func:`regularization_path`, which see.

    ``cost_of_r`` says whether it has what the problems of R cost: files of before have not.
    """

    levels: Sequence[float]
    degrees: float
    max_evaluations: int
    smallest_eigenvalue: bool
    provenance: Mapping[str, Any]
    cost_of_r: bool


def follow(
    flow: RegularizingFlow,
    settings: Settings,
    levels: Sequence[float],
    observables: Mapping[str, Observable],
    archive: str | Path | None,
    *,
    overwrite: bool = False,
    shown: bool = False,
    taken: Sequence[PathPoint] = (),
) -> xr.Dataset:
    """Follow a path, from its start or from points that there are.

    Parameters
    ----------
    flow, observables, archive, overwrite
        As for :func:`regularization_path`.
    settings : Settings
        Of the whole path.
    levels : sequence of float
        That are still to be reached.
    shown : bool
        Show the path on standard error.
    taken : sequence of PathPoint
        From which it goes on.

    Raises
    ------
    InputError, ConvergenceError, CriticalPointError, ArchiveError
        As :func:`regularization_path` does.
    """
    check_fits(flow)
    check_unchanged(flow)
    degrees, limit = settings.degrees, path_schema.kkt_limit(settings.degrees)
    config = {
        "levels": list(settings.levels),
        "degrees": degrees,
        "max_evaluations": settings.max_evaluations,
        "smallest_eigenvalue": settings.smallest_eigenvalue,
        "observables": sorted(observables),
        "threads": torch.get_num_threads(),
        "provenance": dict(settings.provenance),
        **({"level_atol": flow.level_set.level_atol} if flow.level_set.level_atol else {}),
    }
    header = path_dataset.attributes(
        flow, degrees=degrees, config=config, cost_of_r=settings.cost_of_r
    )
    tensors = {"tensors": layout_of(flow.problem)}
    kept = {n: v for n, v in header.items() if n not in CLOCKS} | tensors
    continuation = Continuation(flow, limit, degrees)
    with Pieces(archive, kept, overwrite=overwrite) as pieces:
        recording = Recording(
            continuation,
            observables,
            settings.smallest_eigenvalue,
            header,
            settings.max_evaluations,
            pieces,
        )
        recording.take(taken)
        all_levels = [flow.level_set.level, *settings.levels]
        end = _follow(recording, levels, all_levels, Progress(shown), kept=archive is not None)
        ds = recording.dataset(recording.points, end[0], storable(end[1]))
        if pieces.target is not None:
            path_files.check_path(ds, pieces.target)
        pieces.finish(ds, path_files.write)
    return ds if archive is None else path_files.open_path(archive)


def _follow(
    recording: Recording,
    levels: Sequence[float],
    all_levels: Sequence[float],
    shown: Progress,
    *,
    kept: bool,
) -> ending.End:
    """Go from level to level, and say how that ends.

    ``kept``: the points are in files. Ctrl-C and what is wrong with these is raised then; else it
    ends the path, which is lost otherwise.
    """
    own = recording.flow.level_set.level
    with shown:
        try:
            if not recording.points:
                recording.next(None, 0)
            for level in levels:
                if level != own:
                    _reach(recording, level, all_levels)
                shown.show(recording.points[-1].values)
        except KeyboardInterrupt:
            if kept or not recording.points:
                raise
            return "interrupted", "interrupted by the user"
        except Exception as error:
            if kept and isinstance(error, ArchiveError):
                raise
            if not recording.points:
                if isinstance(error, EvaluationLimitError):
                    where = "the first point is reached"
                    raise ending.spent_before(recording.budget, where) from error
                raise
            return _end_of(error, recording.budget)
    return "complete", f"all {len(all_levels) - 1} levels were reached"


def _reach(recording: Recording, level: float, levels: Sequence[float]) -> None:
    """Add the point on a level, and where the branch folds before it, those round the fold."""
    failed: Exception | None = None
    if not recording.goes_round:
        for nearest in _nearest(level, recording.points):
            try:
                recording.next(level, nearest)
                return
            except (BranchError, *FAILURES) as error:
                short_of = recording.continuation.short_of
                if short_of is None or (isinstance(error, BranchError) and error.status != "fold"):
                    raise
                if failed is None:
                    at, failed = short_of, error
    else:
        at = recording.reached[-1]
    first = len(recording.points)
    while True:
        before = recording.points[-1]
        passed = [other for other in levels if other in _levels_of(recording.points)]
        try:
            recording.round(at, level, passed)
        except (BranchError, *FAILURES) as error:
            if failed and len(recording.points) == first:
                raise failed from None
            where = f"round a fold, last to L = {before.values['level']:.6g}"
            raise BranchError(f"the path was followed {where}: {error}", status="fold") from None
        at = recording.reached[-1]
        if recording.points[-1].values["level"] == level:
            return


def _levels_of(points: Sequence[PathPoint]) -> set[float]:
    return {float(point.values["level"]) for point in points}


def _nearest(level: float, points: Sequence[PathPoint]) -> list[int]:
    """The points whose level is nearest, the latest first: round a fold one level has several."""

    def distance(number: int) -> tuple[bool, float]:
        at = float(points[number].values["level"])
        # In log L; those on the other side of L = 0 come last, and are as far as they are in L.
        other_side = not same_side(at, level)
        return other_side, abs(at - level if other_side else away(at, level))

    distances = [distance(number) for number in range(len(points))]
    return [n for n in reversed(range(len(points))) if distances[n] == min(distances)]


def _end_of(error: Exception, budget: int) -> ending.End:
    if isinstance(error, BranchError):
        return error.status, str(error)
    if isinstance(error, ConvergenceError) and error.reason == "kkt":
        return "not_converged", str(error)
    return ending.of_error(error, budget)
