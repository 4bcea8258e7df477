"""How a walk ends that no goal of its own has ended: the status, and why, in one line."""

from __future__ import annotations

import numpy as np
import torch

from geoflow.errors import (
    ConvergenceError,
    CriticalPointError,
    DivergenceError,
    EvaluationLimitError,
    InputError,
    NumericalError,
    ObservableError,
    ProcessLostError,
    StepSizeError,
)
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.normals import Numbers
from geoflow.problems import rounding
from geoflow.solvers.control import REMEDY
from geoflow.system.translation import kind_and_reason

End = tuple[str, str]

STATUS: dict[type[Exception], str] = {
    StepSizeError: "step_size_underflow",
    ConvergenceError: "projection_failed",
    CriticalPointError: "critical_point",
    NumericalError: "numerical_failure",
    ObservableError: "observable_failed",
    ProcessLostError: "process_lost",
    DivergenceError: "processes_diverged",
}

OF_PROCESSES = (ProcessLostError, DivergenceError)

# Of a ConvergenceError, what is more than a projection that failed.
BY_REASON = {"floor": "level_not_kept", "not_finite": "numerical_failure"}

# By how many of its roundings a loss differs from one evaluation to another.
ROUNDINGS = 4


def of_error(error: Exception, max_evaluations: int) -> End:
    """Status and message of a walk that an error ended; what was walked is kept.

    Parameters
    ----------
    error : Exception
        geoflow's own, or whatever a user's loss, regularisation function or solver raised.
    max_evaluations : int
        The walk's budget.
    """
    if isinstance(error, ObservableError) and isinstance(error.__cause__, OF_PROCESSES):
        # A user's function may evaluate a problem over several processes too.
        error = error.__cause__
    if isinstance(error, EvaluationLimitError):
        return "max_evaluations", f"the budget of {max_evaluations} evaluations is spent"
    if isinstance(error, ConvergenceError) and error.reason in BY_REASON:
        return BY_REASON[error.reason], str(error)
    status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), None)
    if status:
        return status, str(error)
    return "evaluation_failed", f"an evaluation raised {kind_and_reason(error)}"


def of_jump(end: End, jump: str) -> End:
    """Status and message of a walk without a step, given what jumps there; empty for nothing."""
    status, message = end
    # Of what is no kink, stiffness or tolerance, their remedies say nothing.
    return (status, f"{message.removesuffix(f'; {REMEDY}')}; {jump}") if jump else end


def spent_before(max_evaluations: int, where: str) -> InputError:
    """What to raise where a budget was spent before there was anything to keep."""
    return InputError(f"max_evaluations={max_evaluations} are spent before {where}; allow more")


def of_rest(angle: float | None, multiplier: float | None) -> End:
    """Status and message of a walk whose flow has no velocity left but rounding.

    Parameters
    ----------
    angle : float, optional
        Between ∇R and ∇L, in degrees, where the flow has one.
    multiplier : float, optional
        λ.
    """
    if angle is None or multiplier is None:
        return "at_rest", "the flow is at rest: its velocity is zero to rounding"
    # −0 is no multiplier to wonder about.
    where = f"the flow is at rest: angle {angle:.3f}°, λ = {multiplier + 0.0:.3g}"
    return below_the_level(where) if multiplier < 0 else ("at_rest", where)


def at_the_minimum(multiplier: float) -> End:
    """Status and message where R has its minimum on the level set, to within its tolerance."""
    where = f"the flow is at rest: λ = {multiplier:.3g} is zero to within the level's tolerance"
    return "at_rest", f"{where}, so that R has its minimum at this level"


def below_the_level(where: str) -> End:
    """Status and message where R falls towards a lower loss, not against it."""
    return (
        "negative_multiplier",
        f"{where}: the minimum of R has a lower loss than the level; is the network trained?",
    )


def how_close(level_set: LevelSet, n_at_floor: int, furthest: Numbers) -> str:
    """What to add to the message of a walk that did not keep to its level as closely as asked.

    Parameters
    ----------
    level_set : LevelSet
        What was walked along.
    n_at_floor : int
        Re-projections of the walk that rounding ended.
    furthest : ndarray, shape (n,)
        The greatest |L − c| of each constraint; of length 0 where they are not known.
    """
    if n_at_floor:
        said = f"; {n_at_floor} re-projections came as close as rounding lets them, no closer"
    else:
        said = off_the_level(level_set, furthest)
    return said + rounded_off(level_set)


def rounded_off(level_set: LevelSet) -> str:
    """What to add where the loss itself is rounded more coarsely than the level is kept."""
    said = rounding.beyond(level_set.rounding, level_set.tolerances, level_set.scales)
    return f"; {said}" if said else ""


def off_the_level(level_set: LevelSet, furthest: Numbers) -> str:
    """What to add where a walk left the level between re-projections; see :func:`how_close`."""
    # By some last digits where it was re-projected in another evaluation.
    eps = torch.finfo(level_set.problem.dtype).eps
    allowed = 1.01 * level_set.tolerances + ROUNDINGS * eps * np.abs(level_set.levels)
    if not (furthest > allowed).any():
        return ""
    worst = int(np.argmax(furthest / level_set.scales))
    which = f" of constraint {worst}" if level_set.n_constraints > 1 else ""
    return (
        f"; off the level{which} by up to {furthest[worst] / abs(level_set.levels[worst]):.1e} c "
        f"between re-projections, where level_rtol is {level_set.level_rtol:g}"
    )
