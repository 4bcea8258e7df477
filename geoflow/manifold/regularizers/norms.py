"""Norms of the parameters, and distances of them: functions of θ alone, which cost no gradient."""

from __future__ import annotations

import hashlib
import math
from functools import partial

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import ThetaFunction
from geoflow.manifold.regularizers.named import (
    Make,
    Regularizer,
    checked_patterns,
    regularizer,
    suffix,
)
from geoflow.manifold.regularizers.tensors import Patterns, each, entries, known, of_entries
from geoflow.problems.checks import check_like
from geoflow.problems.protocol import ProblemLike


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

    Raises
    ------
    InputError
        Patterns that are none, or another ``sign``: as of each function with these options.
    """
    return entries(lambda w: torch.dot(w, w), tensors)


@regularizer
def pseudo_huber_norm(*, delta: float = 1e-2, tensors: Patterns = None) -> Make:
    """R(θ) = Σ δ²(√(1 + (θᵢ/δ)²) − 1)/δ with δ > 0: :func:`l1` with ε = δ, by another name.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    delta : float
        δ, in units of θ.

    Raises
    ------
    InputError
        ``delta`` is not positive, or its square no positive float.
    """
    _check_positive("delta", delta)
    return entries(lambda w: _smooth_root(w**2, delta).sum(), tensors)


@regularizer
def l1(*, epsilon: float = 1e-3, tensors: Patterns = None) -> Make:
    """R(θ) = Σ (√(θᵢ² + ε²) − ε): ‖θ‖₁ made smooth, below it by at most ε an entry.

    The curvature at zero is 1/ε, by which a walk grows stiff where ε is small.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    epsilon : float
        ε > 0, in units of θ: entries far below it count as θᵢ²/2ε.

    Raises
    ------
    InputError
        ``epsilon`` is not positive, or its square no positive float.
    """
    _check_positive("epsilon", epsilon)
    return entries(lambda w: _smooth_root(w**2, epsilon).sum(), tensors)


@regularizer
def group_lasso(
    *, epsilon: float = 1e-3, axis: int = 0, rows: int = 1, tensors: Patterns = None
) -> Make:
    """R(θ) = Σ √p (√(‖w‖² + ε²) − ε) over groups w of p weights each, smoothed by ε.

    The group lasso (Yuan & Lin 2006, Journal of the Royal Statistical Society B 68), over the
    weights of neurons as Scardapane et al. (2017, Neurocomputing 241) take it. Tensors of less than
    two dimensions, as biases are, have no groups and are left out.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    epsilon : float
        ε > 0, in units of θ.
    axis : int
        Along which groups follow one another: 0 for the incoming weights of each neuron or filter,
        1 for the outgoing weights of each neuron or channel of the layer before.
    rows : int
        Neurons in a group: of an attention's head, as many as it has dimensions.

    Raises
    ------
    InputError
        ``epsilon`` is not positive, or its square no positive float; ``axis`` is neither 0 nor 1;
        ``rows`` is no positive whole number, or does not divide a tensor; or no tensor has groups.
    """
    _check_positive("epsilon", epsilon)
    if axis not in (0, 1):
        raise InputError(f"axis={axis}; use 0 for incoming weights or 1 for outgoing ones")
    if rows < 1:
        raise InputError(f"rows={rows}; use a positive whole number")
    return each(
        partial(_group_norms, epsilon=epsilon, axis=axis, rows=rows), tensors, matrices=True
    )


@regularizer
def quantization_error(*, bits: int = 4, tensors: Patterns = None) -> Make:
    """R(θ) = Σ (θᵢ − qᵢ)²: the squared distance to the nearest point of a grid.

    Each tensor has its own grid, symmetric and uniform: the multiples of s = max|θᵢ|/(2^(bits−1) −
    1), which moves with θ; gradient and products take that in. R is piecewise quadratic, with a
    kink where an entry lies half-way between two points: there its derivatives jump.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    bits : int
        Of a number of the grid, from 2 to 16.

    Raises
    ------
    InputError
        ``bits`` is another number.
    """
    if not 2 <= bits <= 16:
        raise InputError(f"bits={bits}; use 2 to 16")
    return each(partial(_grid_distance, largest=2 ** (bits - 1) - 1), tensors, matrices=False)


@regularizer
def quartic_norm(*, tensors: Patterns = None) -> Make:
    """R(θ) = Σ θᵢ⁴, which weighs down the largest parameters first.

    Parameters
    ----------
    theta, tensors, sign
        See :func:`squared_norm`.
    """
    return entries(lambda w: (w**4).sum(), tensors)


def distance_to(target: Tensor, *, tensors: Patterns = None, sign: int = 1) -> Regularizer:
    """R(θ) = ‖θ − θ_B‖²: towards another network.

    Archives hold the SHA-256 of θ_B and not θ_B: such a walk is resumed with its flow, made in
    Python, and is not run again from its file alone.

    Parameters
    ----------
    target : Tensor, shape (P,)
        θ_B.
    tensors, sign
        See :func:`squared_norm`.

    Raises
    ------
    InputError
        θ_B is no flat tensor of finite real numbers, or ``sign`` neither 1 nor −1.
    """
    flat = isinstance(target, Tensor) and target.ndim == 1 and not target.is_complex()
    if not flat or not torch.isfinite(target).all():
        raise InputError(
            "distance_to: the target is no flat tensor of finite, real numbers; give θ_B"
        )
    if sign not in (1, -1):
        raise InputError(f"regularizer 'distance_to': sign={sign!r}; use 1 or -1")
    point, patterns = target.detach().clone(), checked_patterns("distance_to", tensors)
    digest = hashlib.sha256(point.to("cpu", torch.float64).numpy().tobytes()).hexdigest()

    def make(problem: ProblemLike | None) -> ThetaFunction:
        if problem is not None:
            check_like(point, problem.theta0, "distance_to: the target")
        if patterns is None:
            return ThetaFunction(lambda theta: ((theta - point) ** 2).sum())
        chosen = of_entries(known(problem), patterns)
        return ThetaFunction(lambda theta: ((chosen(theta) - chosen(point)) ** 2).sum())

    options = {"sha256": digest[:16], "tensors": patterns, "sign": sign}
    name = suffix("distance_to", options, {"tensors": None, "sign": 1})
    again = partial(distance_to, point, tensors=patterns, sign=sign)
    return Regularizer(name, make, sign, again)


def _group_norms(weight: Tensor, *, epsilon: float, axis: int, rows: int) -> Tensor:
    moved = weight.movedim(axis, 0)
    if len(moved) % rows:
        raise InputError(
            f"regularizer 'group_lasso': rows={rows} does not divide a weight of shape "
            f"{tuple(weight.shape)}; name the tensors that it does by tensors="
        )
    groups = moved.reshape(len(moved) // rows, -1)
    norms = _smooth_root((groups**2).sum(1), epsilon)
    return math.sqrt(groups.shape[1]) * norms.sum()


def _smooth_root(square: Tensor, epsilon: float) -> Tensor:
    """√(s + ε²) − ε, to rounding where s is far below ε² too: the difference has no digits there.

    Its derivatives are those of the root, to which the quotient's would add rounding.
    """
    root = torch.sqrt(square + epsilon**2)
    value = (square / (root + epsilon)).detach()
    return value + (root - root.detach())


def _grid_distance(weight: Tensor, *, largest: int) -> Tensor:
    scale = weight.abs().amax() / largest
    # Where all are zero they lie on any grid.
    steps = torch.round(weight.detach() / scale.detach().clamp_min(torch.finfo(scale.dtype).tiny))
    return ((weight - steps * scale) ** 2).sum()


def _check_positive(name: str, value: float) -> None:
    if not (0 < value < math.inf and 0 < value * value < math.inf):
        raise InputError(f"{name}={value}; use a positive number whose square is one too")
