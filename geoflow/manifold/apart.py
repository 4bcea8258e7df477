"""Products with a Hessian by gradients a little apart, however small or large θ is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Gradients that differ by no more than so many units of their rounding say little of a Hessian.
UNRESOLVED = 1e4


class Apart:
    """Differences of a gradient along unit vectors, over their length.

    The step is a part of ‖θ‖. Where θ is nearer to zero than the function varies, gradients so
    close differ by rounding alone; from then on it is that part of one.

    Parameters
    ----------
    theta : Tensor, shape (P,)
        Where.
    part : float
        Step over ‖θ‖.
    rounding : float
        Relative error of the gradients; 0 for the resolution of θ's dtype.

    Attributes
    ----------
    step : float
        In units of θ.
    """

    def __init__(self, theta: Tensor, part: float, rounding: float = 0.0) -> None:
        self.theta, self.part = theta, part
        self.rounding = rounding or torch.finfo(theta.dtype).eps
        self.step = part * (float(torch.linalg.vector_norm(theta)) or 1.0)

    def __call__(self, gradient: Callable[[Tensor], Tensor], here: Tensor, unit: Tensor) -> Tensor:
        """Difference along a unit vector, shape of the gradient: one evaluation, rarely two."""
        found = gradient(self.theta + self.step * unit) - here
        if self.step < self.part:
            least = UNRESOLVED * self.rounding * float(torch.linalg.vector_norm(here))
            if not float(torch.linalg.vector_norm(found)) > least:
                self.step = self.part
                found = gradient(self.theta + self.step * unit) - here
        return found.div_(self.step)
