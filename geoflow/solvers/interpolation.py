"""Interpolants of a step from what is known at its ends, or of its stages."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from geoflow.manifold.protocol import State
from geoflow.solvers.base import Interpolant


def hermite(start: State, end: State, duration: float) -> Interpolant:
    """Cubic through two states with their velocities: third order, of a smooth flow.

    Hairer, Nørsett & Wanner, Solving ODEs I, section II.6. A stiff part of the velocities it
    takes for a slope that lasts: what it adds inside is at most 4/27 of ``duration`` times that.

    Parameters
    ----------
    start, end : State
        The ends.
    duration : float
        Flow time between them, > 0.
    """

    def at(time: float) -> Tensor:
        s = time / duration
        theta = torch.lerp(start.flat, end.flat, s * s * (3 - 2 * s))
        theta.add_(start.velocity, alpha=time * (1 - s) ** 2)
        return theta.add_(end.velocity, alpha=-time * s * (1 - s))

    return at


def dormand_prince(start: State, stages: Sequence[Tensor], duration: float) -> Interpolant:
    """Interpolant of order 4 from the stages of a dopri5 step (Shampine, Math. Comp. 46, 1986)."""
    from scipy.integrate import RK45

    def at(time: float) -> Tensor:
        weights = time * RK45.P @ (time / duration) ** np.arange(RK45.P.shape[1])
        theta = start.flat.clone()
        for weight, stage in zip(weights, stages, strict=True):
            theta.add_(stage, alpha=float(weight))
        return theta

    return at


def moved_end(inside: Interpolant, end: Tensor, duration: float) -> Interpolant:
    """Bend an interpolant so that it ends where a step did after its re-projection."""

    @functools.cache
    def shift() -> Tensor:
        return end - inside(duration)

    def at(time: float) -> Tensor:
        s = time / duration
        return inside(time).add_(shift(), alpha=s * s * (3 - 2 * s))

    return at
