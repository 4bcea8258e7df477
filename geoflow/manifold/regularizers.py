"""Regularisation functions R(θ): scalar, differentiable by ``torch.func``, of flat θ.

Any callable θ (P,) → scalar serves as one; its ``__name__`` goes into the archive.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.system.naming import named


def squared_norm(theta: Tensor) -> Tensor:
    """R(θ) = ‖θ‖², weights and biases alike (Tahir & Katz 2021, section II)."""
    return torch.dot(theta, theta)


def pseudo_huber_norm(theta: Tensor, *, delta: float = 1e-2) -> Tensor:
    """R(θ) = Σ δ²(√(1 + (θᵢ/δ)²) − 1)/δ with δ > 0: a smooth stand-in for ‖θ‖₁."""
    if not 0 < delta < math.inf:
        raise InputError(f"delta={delta}; use a positive number")
    return (torch.sqrt(delta**2 + theta**2) - delta).sum()


def quartic_norm(theta: Tensor) -> Tensor:
    """R(θ) = Σ θᵢ⁴, which weighs down the largest parameters first."""
    return (theta**4).sum()


# Named in archives: a file decides what is read, never what is run.
REGULARIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__: f for f in (squared_norm, pseudo_huber_norm, quartic_norm)
}


DEFAULT = squared_norm.__name__


def get(name: str) -> Callable[[Tensor], Tensor]:
    """Return the regularisation function of this name, as an archive has it.

    Parameters
    ----------
    name : str
        ``"squared_norm"``, or with options ``"pseudo_huber_norm:delta=0.1"``: what follows ``*``
        in the function's signature, numbers all. The function returned has this name.

    Raises
    ------
    InputError
        It is not one of geoflow's, or does not take these options.
    """
    base, options = named(name)
    if base not in REGULARIZERS:
        raise InputError(
            f"flow: the regularisation function {name!r} is not one of geoflow's own "
            f"({', '.join(REGULARIZERS)}); make the flow in Python and give it"
        )
    function = REGULARIZERS[base]
    taken = getattr(function, "__kwdefaults__", None) or {}
    for option in options:
        if option not in taken:
            known = ", ".join(taken) or "none"
            raise InputError(f"regularizer {name!r}: its options are: {known}; use those")
    options = {k: options[k] for k in taken if options.get(k, taken[k]) != taken[k]}
    if not options:
        return function
    function(torch.zeros(1), **options)
    chosen = functools.partial(function, **options)
    listed = ",".join(f"{k}={v!r}" for k, v in options.items())
    chosen.__name__ = f"{base}:{listed}"  # type: ignore[attr-defined]
    return chosen
