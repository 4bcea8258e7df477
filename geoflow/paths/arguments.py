"""Arguments of a path, checked before its first evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from geoflow import solvers
from geoflow.errors import InputError
from geoflow.manifold.flows import RegularizingFlow
from geoflow.paths.continuation import FIRST_SOLVER, SOLVER
from geoflow.system import kinds
from geoflow.system.memory import check_memory
from geoflow.trajectories import path_schema, records
from geoflow.trajectories.records import Observable
from geoflow.walking.memory import vector_bytes
from geoflow.walking.snapshots import MOST_TIMES
from geoflow.walking.stopping import DEFAULT_MAX_EVALUATIONS


def checked_levels(levels: kinds.Reals) -> list[float]:
    """Levels as numbers.

    Raises
    ------
    InputError
        They are no different finite numbers, or there is none.
    """
    give = "one finite number, not zero, or more"
    named = isinstance(levels, str | bytes)
    several = [] if named else kinds.listed(levels, "levels", give, MOST_TIMES)
    try:
        found = [kinds.real(level) for level in several]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # a tensor on no device
        found = []
    if not found or not all(math.isfinite(c) and c != 0 for c in found):
        raise InputError(f"levels={kinds.shown(levels)}; give {give}")
    if len(set(found)) < len(found):
        raise InputError(f"levels={kinds.shown(found)}; give each once")
    return found


def check_tolerances(levels: Sequence[float], flow: RegularizingFlow) -> None:
    """Refuse levels so near zero that the flow's tolerance of them is no normal number.

    Raises
    ------
    InputError
        There is one.
    """
    own, least = flow.level_set, torch.finfo(flow.problem.dtype).tiny
    for level in levels:
        if own.level_rtol * abs(level) + own.level_atol < least:
            raise InputError(
                f"levels: {level} is too near zero, as its tolerance, level_rtol={own.level_rtol} "
                f"of it, is below what {flow.problem.dtype} resolves; name levels beyond "
                f"{least / own.level_rtol:.1e}"
            )


def checked_budget(max_evaluations: float | None) -> int:
    """Evaluations of a whole path; None: as many as of a walk.

    Raises
    ------
    InputError
        No positive whole number, or more than files count.
    """
    if max_evaluations is None:
        return DEFAULT_MAX_EVALUATIONS
    return kinds.as_count(max_evaluations, "max_evaluations", 1, kinds.COUNTED)


def check_resolved(degrees: float, limit: float, dtype: torch.dtype) -> None:
    """Refuse an angle so near 180° that rounding does not let a point come to it.

    Raises
    ------
    InputError
        ``limit``, the KKT residual there, is below what ``dtype`` resolves.
    """
    resolution = 100 * torch.finfo(dtype).eps
    if limit < resolution:
        # Rounded to a number that is short, and then still below.
        gap = math.degrees(math.asin(resolution))
        places = math.ceil(-math.log10(gap))
        largest = 180 - math.ceil(gap * 10**places) / 10**places
        raise InputError(
            f"degrees={degrees}: its KKT residual {limit:.1e} is below what {dtype} resolves; use "
            f"at most {largest:.{places}f}"
        )


def check_fits(flow: RegularizingFlow) -> None:
    """Refuse a path whose walks would not fit: their own refusal offers other solvers.

    Raises
    ------
    InputError
        They need more memory than there is.
    """
    check_memory(
        max(vector_bytes(flow, solvers.get(name)) for name in (FIRST_SOLVER, SOLVER)),
        f"the walks of a path in {flow.problem.n_parameters:,} parameters",
        "use a problem in float32, or evaluate fewer examples at a time (batch_size)",
        flow.problem.device,
    )


def check_names(observables: Mapping[str, Observable], flow: RegularizingFlow) -> None:
    """Refuse observables by names that the file has for something else, or that have no value.

    Raises
    ------
    InputError
        There is one.
    """
    taken = sorted(set(observables) & path_schema.VARIABLES.keys())
    if taken:
        raise InputError(f"observables: {taken[0]!r} is taken or not a name; choose another")
    records.check_observables(observables, flow.problem.theta0)
