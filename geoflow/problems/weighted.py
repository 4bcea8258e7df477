"""Sums of losses and what they weigh in a mean: of one batch, and of all parts together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.system import kinds

# The sum of the losses of some examples, and their weight: scalars both.
Weighted = tuple[Tensor, Tensor]


def as_weighted(found: Any) -> tuple[Tensor, Any]:
    """Return what a user's ``batch_loss`` gave, where it is a sum and a weight.

    Raises
    ------
    InputError
        It is something else.
    """
    if not (isinstance(found, tuple | list) and len(found) == 2):
        raise InputError(
            f"batch_loss returned a {type(found).__name__}; return (sum of losses, weight)"
        )
    total, weight = found
    if not (isinstance(total, Tensor) and total.shape == ()):
        shape = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
        raise InputError(f"batch_loss returned a sum of {shape}; it must be a scalar tensor")
    return total, as_weight(weight)


def as_weight(weight: Any) -> Any:
    """Return the weight of a batch, where it is one.

    Raises
    ------
    InputError
        It is no finite number, or below zero. Of a tensor on a GPU its value is not looked at.
    """
    if isinstance(weight, Tensor | np.ndarray):
        found = weight if isinstance(weight, Tensor) else torch.as_tensor(weight, device="cpu")
        if found.numel() == 1 and not found.is_complex():
            found = found.reshape(())
            with suppress(RuntimeError):  # inside torch.func.vmap there are several values
                if found.device.type == "cpu":
                    as_weight(float(found.detach()))
            return found
    try:
        number = math.nan if isinstance(weight, str | bytes) else kinds.real(weight)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(
            f"batch_loss returned the weight {kinds.shown(weight)}; return a finite number that "
            "is not below zero, such as that of the examples"
        )
    return number


def add_up(
    contributions: Iterable[tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Add up what the parts of a loss give: sums and weights, each for itself.

    A problem over several processes adds up theirs in the same way before it divides.

    Parameters
    ----------
    contributions : iterable
        (tensors, weight) of each part: of its sum of losses, say, and of that sum's gradient.

    Returns
    -------
    tuple of Tensor
        Sums over the parts: in float64 where there are several, whatever the network's dtype, so
        that their number costs no digits.
    Tensor
        Sum of the weights, likewise.

    Raises
    ------
    InputError
        There is no part.
    """
    remaining = iter(contributions)
    first = next(remaining, None)
    if first is None:
        raise InputError(
            "batches: this pass gave none; give the same whenever they are iterated, as a list or "
            "a DataLoader does"
        )
    sums, weight = first
    for n, (tensors, more) in enumerate(remaining):
        if n == 0:
            sums = tuple(t.to(_widest(t.device), copy=True) for t in sums)
            weight = weight.to(_widest(weight.device))
        sums = tuple(total.add_(t) for total, t in zip(sums, tensors, strict=True))
        weight = weight + more
    return sums, weight


def _widest(device: torch.device) -> torch.dtype:
    # Apple's processors have no float64.
    return torch.float32 if device.type == "mps" else torch.float64
