"""A gradient compared with differences of its function, near a point and at it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems.scaling import length
from geoflow.problems.slopes import (
    Derivable,
    Mismatch,
    gradient_at,
    mismatch,
    mismatch_in_float64,
    unit_of,
    value_of,
)
from geoflow.problems.spacing import least_size, point_near, steps
from geoflow.problems.widened import Either

# A loss and that beside its gradient may differ by this part of |L| and of ‖∇L‖‖θ‖: other kernels
# may compute it, some of it in float32.
VALUE_RTOL = {torch.float64: 1e-6, torch.float32: 1e-4}

# A part of ‖∇f‖ that differences show to be missing is said, and from this one on refused. In
# between it may be that of a solver inside, whose steps depend on θ outside of the graph.
MISSING_REFUSED = 1e-4
# So far from θ0, over its size, one that vanishes there has grown, by this factor at the least.
FURTHER, GROWN = 0.1, 10.0


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


def check_same_value(
    loss: Tensor,
    beside: Tensor,
    gradient: Tensor,
    theta0: Tensor,
    function: Callable[[Tensor], Tensor],
) -> None:
    """Compare the loss with the one that comes with its gradient, at θ0.

    Raises
    ------
    InputError
        They differ by more than rounding of θ and of the loss makes of it.
    """
    size = length(theta0) or 1.0
    slope = length(gradient) * size
    rtol = VALUE_RTOL[theta0.dtype]
    allowed = rtol * (max(abs(float(loss)), abs(float(beside))) + slope)
    off = abs(float(loss) - float(beside))
    if not off <= allowed and not off <= allowed + rtol**2 * unit_of(function, theta0):
        raise InputError(
            f"loss: it is {float(loss):.9g}, and {float(beside):.9g} where its gradient is "
            "computed with it, so it is another function there (requires_grad, "
            "torch.is_grad_enabled); compute the same in both"
        )


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
    least = least_size(lambda at: gradient_at(function, at), theta0)
    theta, random = point_near(theta0, 0, least)
    if not math.isfinite(value_of(function, theta)):
        theta = theta0
    value, gradient = function(theta)
    norm = length(gradient)
    if not math.isfinite(norm):
        raise InputError(f"{name}: its gradient at theta0 is not finite; start elsewhere")
    steepest = max(norm, length(start[1]))
    # Before the differences, so that the last evaluation is further away.
    unit = random / random.norm()
    jump = _jump(function, theta0, float(start[0]), unit, steepest, name, least)
    found = _mismatch(function, theta, (value, gradient), random, wide, least)
    if found is not None and found.part is not None:
        found = _grown(found, function, theta0, wide, least) or found
    if found is not None and _is_hidden(found, function, theta, least):
        raise InputError(
            f"{name}: it is {float(start[0]):.1e} at theta0, so near zero that rounding of its "
            "terms hides how it changes there; start where it is higher, as after fewer epochs"
        )
    if found is not None:
        _say(found, name, theta.dtype)
    if jump is not None:
        raise jump


def _mismatch(
    function: Derivable,
    theta: Tensor,
    at: tuple[Tensor, Tensor],
    random: Tensor,
    wide: Sequence[Either],
    least: float,
) -> Mismatch | None:
    """A slope that differences do not agree with, in float64 too where θ is of float32."""
    found = mismatch(function, theta, *at, random, least)
    if theta.dtype == torch.float32:
        # Of all examples where they disagree: at a low loss, the rounding of large outputs is more
        # than float32 resolves the loss to.
        agrees, in_float64 = mismatch_in_float64(wide[-1:] if found else wide, theta, random, least)
        found = in_float64 or (None if agrees else found)
    return found


def _is_hidden(found: Mismatch, function: Derivable, theta: Tensor, least: float) -> bool:
    """Whether rounding of terms that cancel, or are lost beside one, makes a slope a mismatch.

    As in the logarithm of a softmax where all examples are classified by wide margins. What a part
    does that leaves the graph, differences over several steps agree on.
    """
    agree = any(found.changes) and not found.is_scattered
    if found.part is not None or agree:
        return False
    off = min(abs(change - found.slope) for change in found.changes) * steps(theta, least)[0]
    rounding = 10 * torch.finfo(theta.dtype).eps
    # Away from θ in one direction a loss may vanish too, but hardly in the opposite one to θ.
    units = unit_of(lambda at: function(at)[0], theta), abs(value_of(function, -theta))
    return any(off <= rounding * min(unit, 1.0) for unit in units)


def _grown(
    found: Mismatch, function: Derivable, theta0: Tensor, wide: Sequence[Either], least: float
) -> Mismatch | None:
    """What a small part that is missing has become further from ``theta0``, if far more.

    That of a solver inside is about as small there. One that vanishes at ``theta0``, as a branch
    does whose last weights start at zero, is not.
    """
    theta, random = point_near(theta0, 0, least, FURTHER)
    if gradient_at(function, theta) is None:
        return None
    grown = _mismatch(function, theta, function(theta), random, wide, least)
    if grown is None or grown.is_scattered or found.part is None:
        return None
    size = grown.part or grown.off / max(abs(c) for c in (grown.slope, *grown.changes))
    return grown if size > max(GROWN * found.part, MISSING_REFUSED) else None


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


def _jump(
    function: Derivable,
    theta0: Tensor,
    start: float,
    unit: Tensor,
    steepest: float,
    name: str,
    least: float,
) -> InputError | None:
    """What to say of a value at ``theta0`` that those near it do not come to."""
    _, far, near, _ = steps(theta0, least)
    for side in (unit, -unit):
        close = value_of(function, theta0 + near * side)
        # What a slope and rounding make of it; a kink is no more than that.
        explained = 100 * steepest * near + 1e4 * torch.finfo(theta0.dtype).eps * abs(start)
        if abs(close - start) <= explained:
            continue
        further = value_of(function, theta0 + far * side)
        # A root's change is smaller the nearer it is, a jump's is not.
        if abs(close - start) > 0.5 * abs(further - start):
            return InputError(
                f"{name}: at theta0 it is {start:.6g} and {near:.0e} beside it {close:.6g}, so it "
                "jumps there (a parametrization that takes its own weights otherwise than others "
                'does, as orthogonal of a matrix that is not square: orthogonal_map="cayley" does '
                "not); start elsewhere"
            )
    return None
