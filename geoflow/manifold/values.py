"""L and ∇L at one θ, of one constraint or of several."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.normals import Numbers
from geoflow.problems.checks import check_like
from geoflow.system import kinds

# L and ∇L at one θ: a number and a vector (P,); of n > 1 constraints of shape (n,) and (n, P).
Evaluated = tuple[Tensor | float, Tensor]


def as_values(loss: Tensor | Numbers | float) -> Numbers:
    """Losses as an array of float64, shape (n,), from a number or n of them."""
    if isinstance(loss, Tensor):
        loss = loss.detach().to("cpu", torch.float64).numpy()
    return np.atleast_1d(np.asarray(loss, np.float64))


def check_gradient(gradient: Tensor, theta0: Tensor) -> None:
    """Refuse what is no ∇L, nor rows of them.

    Raises
    ------
    InputError
        Another shape, dtype or device than those of θ0.
    """
    kinds.check_kind(gradient, Tensor, "gradient", "∇L as a torch.Tensor")
    one = gradient[0] if gradient.ndim == 2 and len(gradient) else gradient
    check_like(one, theta0, "gradient" if one is gradient else "gradient: each row")


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
