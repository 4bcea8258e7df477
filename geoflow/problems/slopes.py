"""The slope of a function by its gradient, compared with differences along a direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from geoflow.errors import GeoflowError, InputError
from geoflow.problems.scaling import length
from geoflow.problems.spacing import point_near, scales, steps
from geoflow.problems.widened import Either

# A derivative by differences may differ from the gradient's by this part of ‖∇f‖.
DIFFERENCE_RTOL = {torch.float64: 1e-3, torch.float32: 5e-2}

# Where differences agree with one another, they show a smaller part of ‖∇f‖ that is missing, from
# this one on.
MISSING_RTOL = 1e-5

# Where differences over several steps are off the slope, and off one another by this part of it, it
# is by the value's rounding.
SCATTERED = 0.5

# Steps that differences over which must agree, besides the best of a smooth function.
FACTORS = (3.0, 1 / 3, 10.0, 0.1)

# What a function gives in float64 and in float32 differs by rounding, and by no more than this part
# of it where it is one function.
ALIKE = 0.1


class Derivable(Protocol):
    """A scalar function of flat θ and its gradient."""

    def __call__(self, theta: Tensor, /) -> tuple[Tensor, Tensor]:
        """Value and gradient at θ."""


class Mismatch(NamedTuple):
    """A slope that no difference along its direction agrees with.

    Attributes
    ----------
    slope : float
        By the gradient.
    changes : list of float
        By differences over several steps.
    noise : float
        What rounding may have made of these.
    part : float, optional
        Of ‖∇f‖, where it is a small one that they agree on.
    """

    slope: float
    changes: list[float]
    noise: float
    part: float | None = None

    @property
    def is_scattered(self) -> bool:
        """Whether rounding explains it that is coarser than the dtype's own.

        A part without a gradient is missing in all of them alike; coarse rounding is another in
        each.
        """
        return self.spread > SCATTERED * self.off + self.noise

    @property
    def off(self) -> float:
        """How far the differences are off the slope."""
        return max(abs(found - self.slope) for found in self.changes)

    @property
    def spread(self) -> float:
        """How far they are off one another."""
        return max(self.changes) - min(self.changes)


def mismatch(
    function: Derivable,
    theta: Tensor,
    value: Tensor,
    gradient: Tensor,
    random: Tensor,
    least: float,
) -> Mismatch | None:
    """Compare a gradient with differences of values along a random direction, and θ's own."""
    small = None
    for along in _directions(function, theta, value, gradient, random):
        allowed = DIFFERENCE_RTOL[theta.dtype] * along.size
        tried = []
        for step in steps(theta, least):
            found, rounding = along.difference(step)
            tried.append((found, rounding))
            # In float32 it is most often more than allowed, and other steps would tell no more.
            sharp = rounding <= allowed or theta.dtype == torch.float32
            if sharp and abs(found - along.slope) <= allowed + rounding:
                break
        else:
            off = [t for t in tried if not abs(t[0] - along.slope) <= allowed + t[1]]
            if len(off) == len(tried):
                return Mismatch(along.slope, [c for c, _ in off], max(r for _, r in off))
            # Of small steps rounding may explain anything; those of others that agree it does not.
            clear = [c for c, r in off if abs(c - along.slope) > allowed + 10 * r]
            mismatch = Mismatch(along.slope, clear, 0.0)
            if len(clear) > 2 and mismatch.spread <= ALIKE * mismatch.off:
                return mismatch
        if small is None and theta.dtype == torch.float64:
            small = _missing(along, *tried[0], steps(theta, least)[0])
    # A kink may be so near that all steps are beyond it, but not at another point too.
    if small is not None and _is_missing_elsewhere(function, theta, least):
        return small
    return None


class _Direction:
    """A function along a direction of unit length.

    Attributes
    ----------
    slope : float
        By the gradient.
    size : float
        What a mismatch is measured by: the slope, or that of a direction at random.
    """

    def __init__(
        self, function: Derivable, theta: Tensor, value: Tensor, gradient: Tensor, unit: Tensor
    ) -> None:
        self._function, self._theta, self._unit = function, theta, unit
        self._value = abs(float(value))
        self.slope = float(torch.dot(gradient, unit))
        norm = length(gradient)
        self.size = max(norm / math.sqrt(theta.numel()), abs(self.slope))

    def difference(self, step: float) -> tuple[float, float]:
        """Quotient of a central difference, and ten times what rounding makes of it."""
        ahead, behind = (
            value_of(self._function, self._theta + s * self._unit) for s in (step, -step)
        )
        eps = torch.finfo(self._theta.dtype).eps
        rounding = 10 * eps * max(abs(ahead), abs(behind), self._value) / step
        return (ahead - behind) / (2 * step), rounding


def _directions(
    function: Derivable, theta: Tensor, value: Tensor, gradient: Tensor, random: Tensor
) -> Iterator[_Direction]:
    for direction in (random, random.sign() * theta.abs()):
        size = length(direction)
        if size != 0:
            yield _Direction(function, theta, value, gradient, direction / size)


def _missing(along: _Direction, found: float, rounding: float, step: float) -> Mismatch | None:
    """A small part of the slope that differences over many steps agree is missing in it.

    Those beyond kinks, or off by higher derivatives or by rounding, do not agree.
    """
    off = found - along.slope
    if not abs(off) > MISSING_RTOL * along.size + rounding:
        return None
    changes = [found]
    for factor in FACTORS:
        found, rounding = along.difference(factor * step)
        if rounding > ALIKE * abs(off):
            continue
        if not abs(found - along.slope - off) <= ALIKE * abs(off):
            return None
        changes.append(found)
    if len(changes) < 3:
        return None
    return Mismatch(along.slope, changes, 0.0, abs(off) / along.size)


def _is_missing_elsewhere(function: Derivable, theta: Tensor, least: float) -> bool:
    there, other = point_near(theta, 1, least)
    if not math.isfinite(value_of(function, there)):
        return True
    value, gradient = function(there)
    step = steps(there, least)[0]
    return any(
        _missing(along, *along.difference(step), step) is not None
        for along in _directions(function, there, value, gradient, other)
    )


def mismatch_in_float64(
    functions: Sequence[Either], theta: Tensor, random: Tensor, least: float
) -> tuple[bool, Mismatch | None]:
    """The same in float64, of the first function that can be had in it.

    Returns
    -------
    bool
        Whether its gradient agrees, and it asks for no fewer digits than those of float32.
    Mismatch or None
        One that float32 has too, and that rounding does not explain.
    """
    theta64 = theta.double()
    for function in functions:
        try:
            value, gradient = function(theta64)
            found = mismatch(function, theta64, value, gradient, random.double(), least)
            if found is None:
                return not function.fewer_digits, None
            pairs = zip(function(theta), (value, gradient), strict=True)
            same = all(_alike(a.double(), b) for a, b in pairs)
        # Not everything takes float64: memory, devices, what a user's code asserts.
        except Exception:
            continue
        # What NumPy computes in float32 is not known better.
        rounded = found.is_scattered or value == value.float()
        if same and math.isfinite(sum(found.changes)) and not rounded:
            return False, found
    return False, None


def _alike(found: Tensor, right: Tensor) -> bool:
    """Whether two values or gradients are those of one function, but for rounding."""
    off, size = (length(t) for t in (found - right, right))
    return off <= ALIKE * size


def gradient_at(function: Derivable, theta: Tensor) -> Tensor | None:
    """∇f, or None where f is not defined or not finite."""
    try:
        found = function(theta)
    # Outside its domain a function may fail, as a Cholesky factorisation does.
    except (InputError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "memory" in str(error):
            raise
        return None
    return found[1] if all(bool(torch.isfinite(t).all()) for t in found) else None


def value_of(function: Derivable, theta: Tensor) -> float:
    """Value beside ``theta0``, where the function may have none, as a root or a Cholesky factor."""
    try:
        return float(function(theta)[0])
    except (GeoflowError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError):
        return math.nan


def unit_of(function: Callable[[Tensor], Tensor], theta0: Tensor) -> float:
    """What a function is as far from ``theta0`` as that is large; one at the most.

    Where it all but vanishes at ``theta0``, as a loss does that is fitted, its rounding is not of
    its size there.
    """
    there = (point_near(theta0, 4, scale, 1.0)[0] for scale in scales(theta0))
    sizes = [abs(value_of(lambda at: (function(at), at), at)) for at in there]
    return min([1.0, *(size for size in sizes if 0 < size < math.inf)])
