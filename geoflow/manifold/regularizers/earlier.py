"""vᵀ∇²L v as earlier versions computed it: archives of walks down it are known by that alone."""

from __future__ import annotations

import torch
from torch import Tensor

from geoflow.problems.protocol import ProblemLike


def second_difference(problem: ProblemLike, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """vᵀ∇²L v and its gradient, of gradients on both sides at eps^(1/4) along v: three evaluations.

    The step knows nothing of the scale of θ. The value is off by its square times the fourth
    derivative, and the gradient by the jumps of ∇L within it over its square.
    """
    step = float(torch.finfo(theta.dtype).eps ** (1 / 4))
    at = (theta + step * v, theta, theta - step * v)
    ahead, middle, behind = (problem.value_and_gradient(point)[1] for point in at)
    value = torch.dot(v, ahead - behind) / (2 * step)
    return value, (ahead - 2 * middle + behind) / step**2
