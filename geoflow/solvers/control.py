"""Step-size control shared by the solvers."""

from __future__ import annotations


def clip_step(step: float, max_time: float) -> float:
    """Shorten a step that would pass ``max_time``, or would leave a sliver before it.

    A step that covers more than half of what is left is halved into two equal ones, so that
    no step is ever spent on a remainder of rounding size.
    """
    if step >= max_time:
        return max_time
    return max_time / 2 if 2 * step > max_time else step
