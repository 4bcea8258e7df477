"""Powers of two that bring numbers to the size of one, where their squares would leave a float."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the powers, so that they and their inverses are normal numbers of the dtype.
LARGEST_EXPONENT = {torch.float64: 1000, torch.float32: 120}


def power_of_two(size: float, dtype: torch.dtype = torch.float64) -> float:
    """2^k with ``size``·2^k from 1/2 to 1; 1 for zero. Multiplying by it rounds nothing.

    Parameters
    ----------
    size : float
        A magnitude.
    dtype : torch.dtype
        Of what will be multiplied by it.
    """
    if size == 0 or not math.isfinite(size):
        return 1.0
    most = LARGEST_EXPONENT[dtype]
    return 2.0 ** max(-most, min(most, -math.frexp(size)[1]))


def scaled_norm(x: Tensor) -> float:
    """Euclidean norm, though the squares of the entries be zero or infinite in their dtype."""
    scale = power_of_two(float(x.abs().max()), x.dtype) if x.numel() else 1.0
    return float(torch.linalg.vector_norm(x * scale)) / scale
