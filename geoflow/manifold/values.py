"""L and ∇L at one θ, of one constraint or of several."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.normals import Numbers

# L and ∇L at one θ: a number and a vector (P,); of n > 1 constraints of shape (n,) and (n, P).
Evaluated = tuple[Tensor | float, Tensor]


def as_values(loss: Tensor | Numbers | float) -> Numbers:
    """Losses as an array of float64, shape (n,), from a number or n of them."""
    if isinstance(loss, Tensor):
        loss = loss.detach().to("cpu", torch.float64).numpy()
    return np.atleast_1d(np.asarray(loss, np.float64))


def only(values: Numbers, names: str) -> float:
    """Return the one number there is, where there is one.

    Raises
    ------
    InputError
        There are several.
    """
    if len(values) != 1:
        raise InputError(f"the level set has {len(values)} constraints; use {names} in its place")
    return values[0]
