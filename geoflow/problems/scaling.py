"""Powers of two that bring numbers to the size of one, where their squares would leave a float.

Times a power of two, nothing changes but exponents: what comes of it is the same to the bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of the powers, so that they and their inverses are normal numbers of the dtype.
LARGEST_EXPONENT = {torch.float64: 1000, torch.float32: 120}


def in_range(norm: float, dtype: torch.dtype) -> bool:
    """Whether squares of vectors of this length, and products of two such, lose no digits."""
    info = torch.finfo(dtype)
    return math.sqrt(info.tiny) / info.eps <= norm <= math.sqrt(info.max) * info.eps


def power_of_two(size: float, dtype: torch.dtype = torch.float64) -> float:
    """2^k with ``size``·2^k from 1/2 to 1; 1 for zero and what is not finite.

    Parameters
    ----------
    size : float
        A magnitude.
    dtype : torch.dtype
        Of what will be multiplied by it.
    """
    if not 0 < size < math.inf:
        return 1.0
    most = LARGEST_EXPONENT[dtype]
    return 2.0 ** max(-most, min(most, -math.frexp(size)[1]))


def scale_of(v: Tensor) -> float:
    """The power of two that takes the largest entry to about 1; 1 where there is none."""
    return power_of_two(float(v.abs().max()), v.dtype) if v.numel() else 1.0


def length(v: Tensor) -> float:
    """‖v‖, of whatever scale v is."""
    norm = float(torch.linalg.vector_norm(v))
    if in_range(norm, v.dtype):
        return norm
    scale = scale_of(v)
    return norm if scale == 1 else float(torch.linalg.vector_norm(v * scale)) / scale
