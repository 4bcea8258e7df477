"""A gradient compared with differences of its function, near a point and at it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from geoflow.errors import GeoflowError, InputError

# A derivative by differences may differ from the gradient's by this part of ‖∇f‖.
DIFFERENCE_RTOL = {torch.float64: 1e-3, torch.float32: 5e-2}

# Where differences over several steps are off the slope, and off one another by this part of it, it
# is by the value's rounding.
SCATTERED = 0.5


class Derivable(Protocol):
    """A scalar function of flat θ and its gradient."""

    def __call__(self, theta: Tensor, /) -> tuple[Tensor, Tensor]:
        """Value and gradient at θ."""


def check_gradient(function: Derivable, theta0: Tensor, name: str) -> None:
    """Compare a gradient with differences of the function near ``theta0``, along two directions.

    A part of a function that leaves the graph, by ``detach`` or NumPy, has no share in the
    gradient, and nothing else tells of it. The point is not ``theta0`` itself, where what is
    computed at a module's own parameters would agree. There the function may have a kink, but no
    jump.

    Raises
    ------
    InputError
        They differ by more than differences do; or the function jumps at ``theta0``.
    """
    start, slopes = function(theta0)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(theta0.shape, generator=generator, dtype=torch.float64).to(theta0)
    scale = max(float(torch.linalg.vector_norm(theta0)), 1.0)
    theta = theta0 + random * (1e-3 * scale / math.sqrt(theta0.numel()))
    if not math.isfinite(_value(function, theta)):
        theta = theta0
    value, gradient = function(theta)
    norm = float(torch.linalg.vector_norm(gradient))
    if not math.isfinite(norm):
        raise InputError(f"{name}: its gradient at theta0 is not finite; start elsewhere")
    eps = torch.finfo(theta.dtype).eps
    for direction in (random, random.sign() * theta.abs()):
        size = float(torch.linalg.vector_norm(direction))
        if size == 0:
            continue
        unit = direction / size
        slope = float(torch.dot(gradient, unit))
        allowed = DIFFERENCE_RTOL[theta.dtype] * max(norm / math.sqrt(theta.numel()), abs(slope))
        changes, noise = [], 0.0
        for step in steps(theta):
            ahead, behind = (_value(function, theta + s * unit) for s in (step, -step))
            found = (ahead - behind) / (2 * step)
            rounding = 10 * eps * max(abs(ahead), abs(behind), abs(float(value))) / step
            if abs(found - slope) <= allowed + rounding:
                break
            changes.append(found)
            noise = max(noise, rounding)
        else:
            said = f"{name}: along a direction it changes by {found:.6g} and its gradient says "
            cause = _cause(changes, slope, noise, theta.dtype)
            raise InputError(f"{said}{slope:.6g}, so {cause}")
    steepest = max(norm, float(torch.linalg.vector_norm(slopes)))
    _check_jump(function, theta0, float(start), random / random.norm(), steepest, name)


def _cause(changes: list[float], slope: float, noise: float, dtype: torch.dtype) -> str:
    """Why differences over several steps are likely to be off, and the remedy.

    A part without a gradient is missing in all of them alike; coarse rounding is another in each,
    by more than the ``noise`` of the dtype's own.
    """
    off = max(abs(found - slope) for found in changes)
    if max(changes) - min(changes) > SCATTERED * off + noise:
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


def _check_jump(
    function: Derivable, theta0: Tensor, start: float, unit: Tensor, steepest: float, name: str
) -> None:
    """Refuse a value at ``theta0`` that those near it do not come to."""
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
            raise InputError(
                f"{name}: at theta0 it is {start:.6g} and {near:.0e} beside it {close:.6g}, so it "
                "jumps there (a parametrization that takes its own weights otherwise than others "
                'does, as orthogonal of a matrix that is not square: orthogonal_map="cayley" does '
                "not); start elsewhere"
            )


def steps(theta: Tensor) -> list[float]:
    """Step sizes for differences: the best of a smooth function first, others near kinks."""
    scale = max(float(torch.linalg.vector_norm(theta)), 1.0)
    best = torch.finfo(theta.dtype).eps ** (1 / 3) * scale
    return [best, best / 30, best / 1000, 10 * best]
