"""Flow time: what it is after a step, and that it grows with every one."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import StepSizeError


def after_step(now: float, taken: float, target: float, start: float = 0.0) -> float:
    """Flow time after a step that was asked to go no further than to ``target``.

    Parameters
    ----------
    now : float
        Flow time before it.
    taken : float
        Flow time of the step.
    target : float
        The sum may round past or short of it; a step that has taken what was left ended there.
    start : float
        Where ``now`` is counted from, for the message.

    Raises
    ------
    StepSizeError
        It is the same as before: what follows would have no order in time. So ends a flow that
        exists for a finite time only.
    """
    time = target if taken >= target - now else now + taken
    if time <= now:
        raise StepSizeError(
            f"flow time no longer advances at {start + now:.6g}: a step of {taken:.1e} is below "
            "its rounding, as where the flow ends in finite time; use an R with a lower bound, or "
            "a t_end before that"
        )
    return time


def increasing(times: NDArray[np.float64], before: float) -> NDArray[np.float64]:
    """Flow times of accepted steps, those that stand still moved on by rounding.

    Before geoflow ended a walk where time stands, it streamed such; no archive can hold them.

    Parameters
    ----------
    times : array of float, shape (step,)
        Which never fall.
    before : float
        Of the step before the first.
    """
    if times.size and times[0] > before and (np.diff(times) > 0).all():
        return times
    found = times.copy()
    for i, time in enumerate(times):
        before = found[i] = max(time, math.nextafter(before, math.inf))
    return found
