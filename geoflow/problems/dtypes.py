"""Dtypes of θ, by the names that NumPy and the archives have."""

from __future__ import annotations

import torch

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype as NumPy and the attributes have it."""
    return str(dtype).removeprefix("torch.")
