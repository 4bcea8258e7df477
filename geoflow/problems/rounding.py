"""What rounding makes of a float32 loss: how far it is off the same loss in float64."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from geoflow.problems import slopes, spacing
from geoflow.problems.counting import Counted
from geoflow.problems.scaling import length
from geoflow.problems.unchanged import Numbers, as_numbers
from geoflow.problems.widened import Either

# Points beside θ0: at one alone an error may be small by chance.
BESIDE = 3

# What rounding of θ makes of a loss, in units of its bound ε(|L| + ‖∇L‖‖θ‖), comes to a half at the
# most where there is no other. More than this is that of the loss itself, as of a cross-entropy
# that is a small difference of large logits.
UNITS = 2

# Points whose loss is more than so many times that at θ0 tell nothing of it.
NEAR = 4

# An error that is the same at all points, to this part of it, is none by rounding: the function is
# another in float64, as one of random numbers is that a generator gives.
SCATTER = 0.1

# Those whose rounding has been warned of in this process.
_WARNED: WeakSet[Counted] = WeakSet()


def measured(wide: Sequence[Either], theta0: Tensor, n: int = 1) -> Numbers:
    """Largest error of n float32 losses by their own rounding, in units of L.

    Zero where rounding of θ explains it, which re-projections see for themselves, and where
    nothing can be said, in float64 or of what cannot be evaluated there.

    Parameters
    ----------
    wide : sequence of Either
        θ → the losses, a scalar or of shape (n,), and in float32 their gradients, (P,) or (n, P):
        the first that can be evaluated counts.
    theta0 : Tensor, shape (P,)
        At it and beside it they are evaluated, in both dtypes.
    n : int
        How many there are.
    """
    if theta0.dtype != torch.float32:
        return np.zeros(n)
    near = (spacing.point_near(theta0, seed)[0] for seed in range(BESIDE))
    points = list(itertools.chain([theta0], near))
    for function in wide:
        try:
            found = [_at(function, point) for point in points]
        # Not everything takes float64: memory, devices, what a user's code asserts.
        except Exception:
            continue
        errors, sizes, explained = (np.array(of_all) for of_all in zip(*found, strict=True))
        # Where the loss is much larger than at θ0, so may its error be.
        here = sizes <= NEAR * sizes[0]
        off = np.where(here & (abs(errors) > UNITS * explained), abs(errors), 0).max(0)
        spread = np.where(here, errors, errors[0])
        own = (off <= slopes.ALIKE * sizes[0]) & (np.ptp(spread, axis=0) > SCATTER * off)
        return np.where(own, off, 0.0)
    return np.zeros(n)


def _at(function: Either, theta: Tensor) -> tuple[Numbers, Numbers, Numbers]:
    """Errors of the losses at a point, their sizes, and what rounding of θ makes of them."""
    losses, gradients = function(theta)
    exact = as_numbers(function(theta.double())[0])
    norms = np.array([length(row) for row in torch.atleast_2d(gradients)])
    size = abs(exact)
    explained = torch.finfo(theta.dtype).eps * (size + norms * length(theta))
    return as_numbers(losses) - exact, size, explained


def of(problem: Any, n: int) -> Numbers:
    """The same of each of n constraints, as it was measured when their problems were made."""
    several = getattr(problem, "problems", None)
    problems = [problem] if several is None else several
    found = [np.atleast_1d(getattr(one, "_rounding", 0.0)) for one in problems]
    known = np.concatenate(found)
    return known if len(known) == n else np.zeros(n)


def beyond(errors: Numbers, tolerances: Numbers, scales: Numbers) -> str:
    """What to say of losses that rounding keeps off their levels; empty where it does not.

    Parameters
    ----------
    errors, tolerances, scales : ndarray, shape (n,)
        Of each loss its own rounding, what its level is kept to, and what that is relative to.
    """
    if not (errors > tolerances).any():
        return ""
    worst = int(np.argmax(errors / scales))
    which = f" of constraint {worst}" if len(errors) > 1 else ""
    part = _upwards(errors[worst] / scales[worst])
    return (
        f"in float32 the loss{which} is known to {part} of its level at the best, whatever is "
        f"recorded; use float64, or level_rtol={part} where that is enough"
    )


def _upwards(number: float) -> str:
    """Two digits that are no less."""
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / unit) * unit:.1e}"


def warn_once(problem: Any, said: str) -> None:
    """Warn of the rounding of a problem's losses, where that has not been done before."""
    problems = getattr(problem, "problems", None) or [problem]
    # Of problems of another class no rounding is known.
    own = [one for one in problems if isinstance(one, Counted)]
    if not all(one in _WARNED for one in own):
        _WARNED.update(own)
        warnings.warn(said, stacklevel=3)
