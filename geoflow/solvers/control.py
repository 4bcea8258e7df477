"""Step-size control shared by the solvers."""

from __future__ import annotations

import torch

from geoflow.errors import StepSizeError
from geoflow.manifold.flows import FlowState


def clip_step(step: float, max_time: float) -> float:
    """Shorten a step that would pass ``max_time``, or would leave a sliver before it.

    A step that covers more than half of what is left is halved into two equal ones, so that
    no step is ever spent on a remainder of rounding size.
    """
    if step >= max_time:
        return max_time
    return max_time / 2 if 2 * step > max_time else step


def check_step(step: float, state: FlowState, cause: str) -> None:
    """Refuse a step that no longer moves θ beyond its rounding.

    Raises
    ------
    StepSizeError
        With the cause: why the steps before it were rejected.
    """
    norm = float(torch.linalg.vector_norm(state.theta))
    if step * state.tangent_norm <= 4 * torch.finfo(state.theta.dtype).eps * norm:
        raise StepSizeError(
            f"step size underflow at {step:.1e} of flow time: {cause}; loosen rtol, choose a level "
            "further from the minimum, or a stiff-aware solver"
        )
