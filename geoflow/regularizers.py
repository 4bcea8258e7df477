"""Regularisation functions R(θ): scalar, differentiable by ``torch.func``, of flat θ.

Any callable θ (P,) → scalar serves as one; its ``__name__`` goes into the archive.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
