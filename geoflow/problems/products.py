"""Products with ∇²L: by PyTorch's second derivatives where they are right, else by differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems.checks import DIFFERENCE_RTOL, Derivable, steps

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass
class HessianProducts:
    """Chooses at the first product, and keeps to it.

    PyTorch has second derivatives that are missing, and some that are wrong: those of weight
    normalisation's fused kernel are.

    Attributes
    ----------
    exact : bool, optional
        Whether products are exact to rounding; None before the first.
    """

    exact: bool | None = None

    def choose(self, derived: Product, function: Derivable, theta: Tensor) -> None:
        """Compare PyTorch's product along one direction with differences of gradients.

        Parameters
        ----------
        derived : callable
            (θ, v) → ∇²L v by PyTorch's second derivatives.
        function : callable
            θ → (L, ∇L).
        theta : Tensor, shape (P,)
            Where.
        """
        fault = _fault(derived, function, theta)
        self.exact = not fault
        if fault:
            error = torch.finfo(theta.dtype).eps ** (2 / 3)
            warnings.warn(
                f"loss: {fault}; Hessian-vector products are differences of gradients, with "
                f"relative errors of about {error:.0e}",
                stacklevel=4,
            )


def difference(function: Derivable, theta: Tensor, v: Tensor) -> Tensor:
    """∇²L v by a central difference of gradients: two evaluations."""
    size = float(torch.linalg.vector_norm(v))
    if size == 0:
        return torch.zeros_like(v)
    step = steps(theta)[0] / size
    ahead, behind = (function(theta + s * v)[1] for s in (step, -step))
    return (ahead - behind) / (2 * step)


def _fault(derived: Product, function: Derivable, theta: Tensor) -> str:
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(theta.shape, generator=generator, dtype=torch.float64).to(theta)
    v = v / torch.linalg.vector_norm(v)
    try:
        found = derived(theta, v)
    except InputError as error:
        return str(error).removeprefix("loss: ")
    for step in steps(theta):
        ahead, behind = (function(theta + s * v)[1] for s in (step, -step))
        expected = (ahead - behind) / (2 * step)
        rounding = 10 * torch.finfo(theta.dtype).eps * torch.linalg.vector_norm(ahead) / step
        allowed = DIFFERENCE_RTOL[theta.dtype] * torch.linalg.vector_norm(expected) + rounding
        if torch.linalg.vector_norm(found - expected) <= allowed:
            return ""
    return "PyTorch's second derivatives of it are not those of its gradient"
