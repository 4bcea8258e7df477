"""A problem's loss at theta0, by which it is known again: what a user's code holds may change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems.protocol import ProblemLike
from geoflow.problems.scaling import length

Numbers = NDArray[np.float64]

# Another number of threads, another machine or another order of a sum changes no more than this, in
# units of the dtype's resolution; and rounding of θ, or one that was measured, this many times it.
UNITS, TIMES = 1e3, 8


@dataclass(frozen=True)
class First:
    """What a problem gave at θ0 when it was made.

    Attributes
    ----------
    theta0 : Tensor, shape (P,)
        Where.
    alone, beside_gradient : ndarray, shape (n,)
        The loss, or losses, by themselves and as they come with their gradients.
    allowed : float
        By how much they may be others without being those of something else.
    """

    theta0: Tensor
    alone: Numbers
    beside_gradient: Numbers
    allowed: float

    @classmethod
    def of(
        cls,
        theta0: Tensor,
        alone: Tensor,
        beside_gradient: Tensor,
        gradient: Tensor | None = None,
        rounding: float = 0.0,
    ) -> First:
        """From the losses, and what rounding is known to make of them.

        Parameters
        ----------
        theta0, alone, beside_gradient
            See the attributes.
        gradient : Tensor, shape (P,), optional
            That of a single loss.
        rounding : float
            That of the loss itself, in its units.
        """
        losses = as_numbers(alone), as_numbers(beside_gradient)
        eps = torch.finfo(theta0.dtype).eps
        of_theta = 0.0
        if gradient is not None:
            of_theta = eps * length(theta0) * length(gradient)
        size = float(np.abs(losses[0]).max())
        return cls(theta0, *losses, UNITS * eps * size + TIMES * (of_theta + rounding))


def check(
    problem: ProblemLike,
    theta: Tensor | None = None,
    losses: Tensor | None = None,
    *,
    alone: bool = False,
) -> None:
    """Refuse a problem whose loss at θ0 is no longer what it was when it was made.

    Tensors in a closure, a default argument, an object or a list of batches are a user's own, and
    change with whatever is written into them: the level set would be another, and the data none
    that any hash names. A problem of another class than geoflow's own tells nothing of before.

    Parameters
    ----------
    problem : ProblemLike
        One or several.
    theta, losses : Tensor, shape (P,), and scalar or shape (n,), optional
        A point, and the losses there, where they are known: at θ0 they are compared. Else each
        problem is evaluated there once, without gradient and not counted.
    alone : bool
        The losses have come without gradients. Elsewhere than at θ0 nothing is evaluated then.

    Raises
    ------
    InputError
        It is another.
    """
    for one, known in _each(problem, losses):
        first: First | None = getattr(one, "_first", None)
        if first is None:
            continue
        then = first.alone if alone or known is None else first.beside_gradient
        if known is None or theta is None or not torch.equal(theta, first.theta0):
            if alone:
                continue
            then, known = first.alone, one.loss(first.theta0)
        now = as_numbers(known)
        off = np.abs(now - then)
        if not (off <= first.allowed).all():
            worst = int(np.argmax(np.nan_to_num(off, nan=np.inf)))
            raise InputError(
                f"problem: its loss at theta0 was {then[worst]:.9g} when it was made, and is "
                f"{now[worst]:.9g}, other by {now[worst] - then[worst]:.1e}: something that it "
                "uses has been changed since (a tensor in a closure, an argument, an object or a "
                "batch); make the problem anew"
            )


def _each(problem: Any, losses: Tensor | None) -> Iterator[tuple[Any, Tensor | None]]:
    """Problems that remember, each with its losses."""
    several = getattr(problem, "problems", None)
    if several is None:
        yield problem, losses
        return
    for i, one in enumerate(several):
        yield one, None if losses is None else torch.atleast_1d(losses)[i : i + 1]


def as_numbers(losses: Tensor) -> Numbers:
    """Losses as an array of float64, shape (n,)."""
    return np.atleast_1d(losses.detach().to("cpu", torch.float64).numpy())
