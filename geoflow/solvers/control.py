"""Step-size control, apart from the solvers: what the next step is, by the errors of those before.

An error is that of a step over the error allowed, so that 1 is as much as is accepted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geoflow.errors import ConvergenceError, CriticalPointError, StepSizeError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.level_set import SMALLER_STEPS
from geoflow.manifold.protocol import State

# What a flow raises at a point that is none of the walk's, only tried: the step was too long.
TOO_FAR = (ConvergenceError, CriticalPointError)
TOO_INACCURATE = "the local error stays above the tolerance"
REMEDY = (
    "loosen rtol, or choose a level further from the minimum; beside a kink of L or R, or where ∇L "
    "grows without bound, no step is short enough"
)


@dataclass(frozen=True)
class Elementary:
    """The next step is the one whose error, ∝ h^``order``, is that allowed.

    Hairer, Nørsett & Wanner, Solving ODEs I, section II.4.

    Parameters
    ----------
    order : int
        Power of the step size with which the error estimate falls: of an embedded pair, the lower
        order plus one.
    safety : float
        The step taken, over that step.
    shrink, grow : float
        Least and largest ratio of a step to the one before it.
    retry : tuple of float
        Least and largest ratio of a step to the rejected one it replaces.
    """

    order: int
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0
    retry: tuple[float, float] = (0.1, 1.0)

    def accepted(self, error: float) -> float:
        """Ratio of the next step to one that was accepted with this error."""
        return _clipped(self.wanted(error), self.shrink, self.grow)

    def rejected(self, error: float) -> float:
        """Ratio of the next attempt to one that was rejected with this error."""
        return _clipped(self.wanted(error), *self.retry) if math.isfinite(error) else self.retry[0]

    def wanted(self, error: float) -> float:
        """Ratio before it is held between its limits."""
        return self.safety * error ** (-1 / self.order) if error > 0 else math.inf


def _clipped(ratio: float, least: float, largest: float) -> float:
    return min(max(ratio, least), largest)


def first_step(state: FlowState, allowed: float) -> float:
    """A step along the velocity as long as the error allowed, in flow time.

    And no longer than the flow's own scale of time: where the velocity all but vanishes its size
    says nothing. R times a number is walked down in steps of the same lengths.
    """
    speed = max(state.tangent_norm, torch.finfo(state.theta.dtype).tiny)
    return min(allowed / speed, state.time_scale)


def clip_step(step: float, max_time: float) -> float:
    """Shorten a step that would pass ``max_time``, or would leave a sliver before it.

    A step that covers more than half of what is left is halved into two equal ones, so that
    no step is ever spent on a remainder of rounding size.
    """
    if step >= max_time:
        return max_time
    return max_time / 2 if 2 * step > max_time else step


def check_step(step: float, state: State, cause: str) -> None:
    """Refuse a step that no longer moves the state beyond its rounding.

    Raises
    ------
    StepSizeError
        With the cause: why the steps before it were rejected. One that has a remedy of its own
        gives it after a semicolon.
    """
    size, speed = (float(torch.linalg.vector_norm(v)) for v in (state.flat, state.velocity))
    if step * speed <= 4 * torch.finfo(state.flat.dtype).eps * size:
        # No step is smaller than this one.
        cause = cause.removesuffix(f"; {SMALLER_STEPS}")
        remedy = "" if ";" in cause else f"; {REMEDY}"
        raise StepSizeError(
            f"step size underflow at a step of {step:.1e} in flow time, by which θ changes as "
            f"little as by rounding: {cause}{remedy}"
        )
