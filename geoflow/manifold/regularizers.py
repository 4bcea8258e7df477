"""Regularisation functions R(θ): scalar, differentiable by ``torch.func``, of flat θ.

Any callable θ (P,) → scalar serves as one; its ``__name__`` goes into the archive.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from geoflow.errors import InputError


def squared_norm(theta: Tensor) -> Tensor:
    """R(θ) = ‖θ‖², weights and biases alike (Tahir & Katz 2021, section II)."""
    return torch.dot(theta, theta)


def pseudo_huber_norm(theta: Tensor) -> Tensor:
    """R(θ) = Σ δ²(√(1 + (θᵢ/δ)²) − 1)/δ with δ = 0.01: a smooth stand-in for ‖θ‖₁."""
    delta = 1e-2
    return (torch.sqrt(delta**2 + theta**2) - delta).sum()


def quartic_norm(theta: Tensor) -> Tensor:
    """R(θ) = Σ θᵢ⁴, which weighs down the largest parameters first."""
    return (theta**4).sum()


# Named in archives: a file decides what is read, never what is run.
REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (squared_norm, pseudo_huber_norm, quartic_norm)
}


def get(name: str) -> Callable[[Tensor], Tensor]:
    """Return the regularisation function of this name, as an archive has it.

    Raises
    ------
    InputError
        It is not one of geoflow's.
    """
    if name not in REGULARIZERS:
        raise InputError(
            f"flow: the regularisation function {name!r} is not one of geoflow's own; make the "
            "flow in Python and give it"
        )
    return REGULARIZERS[name]
