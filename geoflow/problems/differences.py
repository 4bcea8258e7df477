"""A gradient compared with differences of its function, near a point and at it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from geoflow.errors import GeoflowError, InputError
from geoflow.problems.widened import Either

# A derivative by differences may differ from the gradient's by this part of ‖∇f‖.
DIFFERENCE_RTOL = {torch.float64: 1e-3, torch.float32: 5e-2}

# Where differences agree with one another, they show a smaller part of ‖∇f‖ that is missing: from
# the one on it is said, from the other on it is refused. In between it may be that of a solver
# inside, whose steps depend on θ outside of the graph.
MISSING_RTOL = 1e-5
MISSING_REFUSED = 1e-4

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


def check_gradient(
    function: Derivable, theta0: Tensor, name: str, wide: Sequence[Either]
) -> tuple[Tensor, Tensor]:
    """Compare a gradient with differences of the function near ``theta0``, along two directions.

    A part of a function that leaves the graph, by ``detach`` or NumPy, has no share in the
    gradient, and nothing else tells of it. The point is not ``theta0`` itself, where what is
    computed at a module's own parameters would agree. There the function may have a kink, but no
    jump.

    Differences in float32 are off by rounding as much as most slopes are large. So those of a
    float32 function are taken in float64 too, by :mod:`geoflow.problems.widened`.

    Parameters
    ----------
    function : callable
        θ (P,) → value and gradient.
    theta0 : Tensor, shape (P,)
        Where.
    name : str
        The argument that it is.
    wide : sequence of Either
        The same in float64 too, after what is of fewer examples: the first that can be evaluated
        counts.

    Returns
    -------
    tuple of Tensor
        Value and gradient at ``theta0``, evaluated once more after all the others.

    Raises
    ------
    InputError
        They differ by more than differences do; or the function jumps at ``theta0``, or is another
        there after evaluations elsewhere.
    """
    start, wrong = function(theta0), None
    try:
        _check_beside(function, theta0, name, wide, start)
    except InputError as error:
        wrong = error
    # First, since what is kept from one evaluation to the next makes differences and jumps.
    again = function(theta0)
    _check_kept(start, again, name)
    if wrong is not None:
        raise wrong
    return again


def _check_kept(start: tuple[Tensor, Tensor], again: tuple[Tensor, Tensor], name: str) -> None:
    """Refuse a function whose value at θ depends on where it was evaluated before."""
    first, second = float(start[0]), float(again[0])
    # What is compiled at its first use may round otherwise later.
    if abs(second - first) > 100 * torch.finfo(start[0].dtype).eps * abs(first):
        raise InputError(
            f"{name}: at theta0 it is {first:.9g}, and after evaluations elsewhere other by "
            f"{second - first:.1e}, so it keeps something from one evaluation to the next (the "
            "previous θ, a count of calls); compute it from θ alone"
        )


def _check_beside(
    function: Derivable,
    theta0: Tensor,
    name: str,
    wide: Sequence[Either],
    start: tuple[Tensor, Tensor],
) -> None:
    """Compare the gradient with differences beside ``theta0``, and the values with that there."""
    theta, random = point_near(theta0, 0)
    if not math.isfinite(_value(function, theta)):
        theta = theta0
    value, gradient = function(theta)
    norm = float(torch.linalg.vector_norm(gradient))
    if not math.isfinite(norm):
        raise InputError(f"{name}: its gradient at theta0 is not finite; start elsewhere")
    steepest = max(norm, float(torch.linalg.vector_norm(start[1])))
    # Before the differences, so that the last evaluation is further away.
    jump = _jump(function, theta0, float(start[0]), random / random.norm(), steepest, name)
    found = _mismatch(function, theta, value, gradient, random)
    if theta.dtype == torch.float32:
        # Of all examples where they disagree: at a low loss, the rounding of large outputs is more
        # than float32 resolves the loss to.
        agrees, in_float64 = _mismatch_in_float64(wide[-1:] if found else wide, theta, random)
        found = in_float64 or (None if agrees else found)
    if found is not None:
        _say(found, name, theta.dtype)
    if jump is not None:
        raise jump


def _say(found: Mismatch, name: str, dtype: torch.dtype) -> None:
    """Refuse a gradient that is not its function's, or warn of a small part that is missing."""
    if found.part is None:
        said = f"{name}: along a direction it changes by {found.changes[-1]:.6g} and its gradient"
        raise InputError(f"{said} says {found.slope:.6g}, so {_cause(found, dtype)}")
    said = (
        f"{name}: along a direction it changes by {found.changes[0]:.9g} and its gradient says "
        f"{found.slope:.9g}, off by {found.part:.1e} over every step, so a part of it is not in "
        "the gradient (detach, item, NumPy, load_state_dict), or a solver inside is that "
        "inaccurate; compute it from θ alone, or to a smaller tolerance"
    )
    if found.part > MISSING_REFUSED:
        raise InputError(said)
    warnings.warn(said, stacklevel=6)


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


def _mismatch(
    function: Derivable, theta: Tensor, value: Tensor, gradient: Tensor, random: Tensor
) -> Mismatch | None:
    """Compare a gradient with differences of values along a random direction, and θ's own."""
    small = None
    for along in _directions(function, theta, value, gradient, random):
        allowed = DIFFERENCE_RTOL[theta.dtype] * along.size
        tried = []
        for step in steps(theta):
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
            small = _missing(along, *tried[0], steps(theta)[0])
    # A kink may be so near that all steps are beyond it, but not at another point too.
    if small is not None and _is_missing_elsewhere(function, theta):
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
        norm = float(torch.linalg.vector_norm(gradient))
        self.size = max(norm / math.sqrt(theta.numel()), abs(self.slope))

    def difference(self, step: float) -> tuple[float, float]:
        """Quotient of a central difference, and ten times what rounding makes of it."""
        ahead, behind = (
            _value(self._function, self._theta + s * self._unit) for s in (step, -step)
        )
        eps = torch.finfo(self._theta.dtype).eps
        rounding = 10 * eps * max(abs(ahead), abs(behind), self._value) / step
        return (ahead - behind) / (2 * step), rounding


def _directions(
    function: Derivable, theta: Tensor, value: Tensor, gradient: Tensor, random: Tensor
) -> Iterator[_Direction]:
    for direction in (random, random.sign() * theta.abs()):
        size = float(torch.linalg.vector_norm(direction))
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


def _is_missing_elsewhere(function: Derivable, theta: Tensor) -> bool:
    there, other = point_near(theta, 1)
    if not math.isfinite(_value(function, there)):
        return True
    value, gradient = function(there)
    step = steps(there)[0]
    return any(
        _missing(along, *along.difference(step), step) is not None
        for along in _directions(function, there, value, gradient, other)
    )


def _mismatch_in_float64(
    functions: Sequence[Either], theta: Tensor, random: Tensor
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
            found = _mismatch(function, theta64, value, gradient, random.double())
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
    off, size = (float(torch.linalg.vector_norm(t)) for t in (found - right, right))
    return off <= ALIKE * size


def _cause(found: Mismatch, dtype: torch.dtype) -> str:
    """Why differences over several steps are likely to be off, and the remedy."""
    if found.is_scattered:
        other = "" if dtype == torch.float32 else ", or take float32 for θ"
        return (
            f"it is rounded more coarsely than {str(dtype).removeprefix('torch.')} (torch.autocast,"
            f" .float(), .half()) or jumps; compute it in the dtype of θ{other}"
        )
    return (
        "a part of it is not in the gradient (detach, item, NumPy, checkpointing, "
        "vector_to_parameters) or it is not differentiable; compute it from θ alone"
    )


def _value(function: Derivable, theta: Tensor) -> float:
    """Value beside ``theta0``, where the function may have none, as a root or a Cholesky factor."""
    try:
        return float(function(theta)[0])
    except (GeoflowError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError):
        return math.nan


def _jump(
    function: Derivable, theta0: Tensor, start: float, unit: Tensor, steepest: float, name: str
) -> InputError | None:
    """What to say of a value at ``theta0`` that those near it do not come to."""
    _, far, near, _ = steps(theta0)
    for side in (unit, -unit):
        close = _value(function, theta0 + near * side)
        # What a slope and rounding make of it; a kink is no more than that.
        explained = 100 * steepest * near + 1e4 * torch.finfo(theta0.dtype).eps * abs(start)
        if abs(close - start) <= explained:
            continue
        further = _value(function, theta0 + far * side)
        # A root's change is smaller the nearer it is, a jump's is not.
        if abs(close - start) > 0.5 * abs(further - start):
            return InputError(
                f"{name}: at theta0 it is {start:.6g} and {near:.0e} beside it {close:.6g}, so it "
                "jumps there (a parametrization that takes its own weights otherwise than others "
                'does, as orthogonal of a matrix that is not square: orthogonal_map="cayley" does '
                "not); start elsewhere"
            )
    return None


def point_near(theta: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A point near θ, by a thousandth of its size, and the vector at random that leads there."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(theta.shape, generator=generator, dtype=torch.float64, device="cpu")
    random = random.to(theta)
    scale = max(float(torch.linalg.vector_norm(theta)), 1.0)
    return theta + random * (1e-3 * scale / math.sqrt(theta.numel())), random


def steps(theta: Tensor) -> list[float]:
    """Step sizes for differences: the best of a smooth function first, others near kinks."""
    scale = max(float(torch.linalg.vector_norm(theta)), 1.0)
    best = torch.finfo(theta.dtype).eps ** (1 / 3) * scale
    return [best, best / 30, best / 1000, 10 * best]
