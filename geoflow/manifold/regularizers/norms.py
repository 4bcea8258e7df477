"""Norms of the parameters, and distances of them: functions of θ alone, which cost no gradient."""

from __future__ import annotations

import math

import torch

from geoflow.errors import InputError
from geoflow.manifold.regularizers.named import Make, regularizer
from geoflow.manifold.regularizers.tensors import Patterns, entries


@regularizer
def squared_norm(*, tensors: Patterns = None) -> Make:
    """R(θ) = ‖θ‖², weights and biases alike (Tahir & Katz 2021, section II).

    Parameters
    ----------
    theta : Tensor, shape (P,), optional
        Where; without it a :class:`Regularizer` of these options is returned.
    tensors : str or sequence of str, optional
        Patterns of the names of the tensors that R is of, as ``"*.weight"``. None: all.
    sign : int
        −1 for −R, up which a walk goes.
    """
    return entries(lambda w: torch.dot(w, w), tensors)


@regularizer
def pseudo_huber_norm(*, delta: float = 1e-2, tensors: Patterns = None) -> Make:
    """R(θ) = Σ δ²(√(1 + (θᵢ/δ)²) − 1)/δ with δ > 0: a smooth stand-in for ‖θ‖₁.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    delta : float
        δ, in units of θ.
    """
    _check_positive("delta", delta)
    return entries(lambda w: (torch.sqrt(delta**2 + w**2) - delta).sum(), tensors)


@regularizer
def quartic_norm(*, tensors: Patterns = None) -> Make:
    """R(θ) = Σ θᵢ⁴, which weighs down the largest parameters first.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    """
    return entries(lambda w: (w**4).sum(), tensors)


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name}={value}; use a positive number")
