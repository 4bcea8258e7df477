"""From one network to another: units aligned, and the loss along a straight line or a curve.

A walk from A towards B at constant loss goes down
:func:`distance_to <geoflow.manifold.regularizers.norms.distance_to>` of B aligned to A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geoflow.analysis.networks.layers import layers_of
from geoflow.analysis.networks.symmetry import nearest_copy
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.problems import arithmetic
from geoflow.problems.checks import check_like
from geoflow.problems.modules import moving_parameters
from geoflow.problems.protocol import ProblemLike, check_problem
from geoflow.system import kinds

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """A quadratic Bézier curve in θ, φ(t) = (1 − t)²a + 2t(1 − t)m + t²b for 0 ≤ t ≤ 1.

    With the middle point m = (a + b)/2 it is the straight line (1 − t)a + tb, as
    :func:`straight` makes it.

    Attributes
    ----------
    start, middle, end : Tensor, shape (P,)
        a, m and b.
    """

    start: Tensor
    middle: Tensor
    end: Tensor

    def __call__(self, t: float) -> Tensor:
        """φ(t), shape (P,)."""
        return (1 - t) ** 2 * self.start + 2 * t * (1 - t) * self.middle + t**2 * self.end


@dataclass(frozen=True)
class Barrier:
    """The loss along a curve, from :func:`barrier`.

    Attributes
    ----------
    t : array, shape (n,)
        From 0 to 1, evenly.
    losses : array, shape (n,)
        L(φ(t)).
    """

    t: Floats
    losses: Floats

    @property
    def height(self) -> float:
        """The largest L(φ(t)) − (1 − t)L(a) − tL(b) over t, from 0 on, in units of the loss.

        The barrier of Entezari et al. (2022, ICLR, definition 1) and of Ainsworth et al. (2023).
        """
        between = (1 - self.t) * self.losses[0] + self.t * self.losses[-1]
        return float(np.max(self.losses - between))


@arithmetic.without_autocast()
def align(
    module: nn.Module,
    theta: Tensor,
    target: Tensor,
    *,
    parameters: str | Sequence[str] | None = None,
) -> Tensor:
    """The same network as θ, its units in the order, and of the signs, nearest to a target.

    Weight matching (Ainsworth, Hayase & Srinivasa 2023, ICLR, algorithm 1), layer by layer a linear
    assignment; with tanh it chooses signs too. With one hidden layer the nearest copy of all, and
    with more one that no single layer's reordering brings nearer; see :func:`nearest_copy
    <geoflow.analysis.networks.symmetry.nearest_copy>`.

    Parameters
    ----------
    module : torch.nn.Module
        The network of both: an ``nn.Sequential`` of dense layers and convolutions; see
        :func:`layers_of <geoflow.analysis.networks.layers.layers_of>`.
    theta, target : Tensor, shape (P,)
        Two points of its parameter space, such as the ends of two trainings.
    parameters : str or sequence of str, optional
        Patterns of the names of those that θ holds, as ``Problem.from_module`` takes them.

    Returns
    -------
    Tensor, shape (P,)
        Of θ's dtype and device. Its entries are those of θ, in another order and with other signs.

    Raises
    ------
    InputError
        A network whose symmetries are not known, or points that are not of its parameters.
    """
    layers = layers_of(module, parameters)
    for name, point in (("theta", theta), ("target", target)):
        kinds.check_kind(point, Tensor, name, "a flat tensor of the module's parameters")
    n_parameters = sum(p.numel() for p in moving_parameters(module, parameters).values())
    for name, point in (("theta", theta), ("target", target)):
        usable = point.shape == (n_parameters,) and not point.is_complex()
        if not usable or not torch.isfinite(point).all():
            raise InputError(
                f"{name} has the shape {tuple(point.shape)}; give a flat tensor of finite numbers, "
                f"real ones, one for each of the module's {n_parameters} parameters, or "
                "parameters=… with the names of those that it holds"
            )
    here, there = (p.detach().cpu().to(torch.float64).numpy() for p in (theta, target))
    return torch.from_numpy(nearest_copy(layers, there, here).theta).to(theta)


def straight(start: Tensor, end: Tensor) -> Curve:
    """The straight line between two points, each of shape (P,), as a :class:`Curve`.

    Raises
    ------
    InputError
        They are no tensors, not of one shape, dtype and device, or not finite.
    """
    kinds.check_kind(start, Tensor, "start", "a flat torch.Tensor")
    check_like(end, start, "end")
    for name, point in (("start", start), ("end", end)):
        if not torch.isfinite(point).all():
            raise InputError(f"{name} has non-finite values; give a point of finite numbers")
    return Curve(start, (start + end) / 2, end)


@arithmetic.without_autocast()
def bezier(
    problem: ProblemLike,
    start: Tensor,
    end: Tensor,
    *,
    evaluations: int = 1000,
    learning_rate: float = 1e-2,
    seed: int = 0,
) -> Curve:
    """A curve of low loss between two points, trained through its middle point.

    Garipov et al. (2018, NeurIPS, section 4): the mean of L over the curve, over t drawn evenly
    from 0 to 1, goes down in the middle point, by Adam from that of the straight line. Its rate
    falls to zero along half a cosine.

    Parameters
    ----------
    problem : ProblemLike
        L, one loss.
    start, end : Tensor, shape (P,)
        The ends of the curve, which stay.
    evaluations : int
        Gradients of L, one a step.
    learning_rate : float
        Of Adam at first.
    seed : int
        Of the t of all steps.

    Raises
    ------
    InputError
        Points that are not the problem's, several losses, or an argument that is not positive.
    """
    check_problem(problem)
    for name, point in (("start", start), ("end", end)):
        check_like(point, problem.theta0, name)
    _check_one(problem)
    evaluations = kinds.as_whole(evaluations, "evaluations")
    if evaluations < 1:
        raise InputError(f"evaluations={evaluations}; use a positive whole number")
    learning_rate = kinds.as_number(learning_rate, "learning_rate")
    if not 0 < learning_rate < np.inf:
        raise InputError(f"learning_rate={learning_rate}; use a positive number such as 0.01")
    drawn = np.random.default_rng(check_seed(seed))
    middle = straight(start, end).middle.clone().requires_grad_()
    adam = torch.optim.Adam([middle], lr=learning_rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, evaluations)
    for t in drawn.uniform(size=evaluations):
        with torch.no_grad():
            _, gradient = problem.value_and_gradient(Curve(start, middle, end)(t))
        middle.grad = 2 * t * (1 - t) * gradient
        adam.step()
        falling.step()
    return Curve(start, middle.detach(), end)


@arithmetic.without_autocast()
def barrier(problem: ProblemLike, curve: Curve, *, points: int = 51) -> Barrier:
    """The loss along a curve, and how far it rises above the line between its ends' losses.

    Parameters
    ----------
    problem : ProblemLike
        L, one loss; no gradient of it is evaluated.
    curve : Curve
        From :func:`straight` or :func:`bezier`.
    points : int
        How many, evenly in t, both ends among them.

    Raises
    ------
    InputError
        Several losses, a curve that is not of the problem's parameters, or fewer than 3 points.
    """
    check_problem(problem)
    kinds.check_kind(curve, Curve, "curve", "what straight or bezier returned")
    check_like(curve.start, problem.theta0, "curve: its start")
    _check_one(problem)
    points = kinds.as_whole(points, "points")
    if points < 3:
        raise InputError(f"points={points}; use 3 or more")
    t = np.linspace(0, 1, points)
    with torch.no_grad():
        losses = np.array([float(problem.loss(curve(float(at)))) for at in t])
    return Barrier(t, losses)


def _check_one(problem: ProblemLike) -> None:
    if problem.loss(problem.theta0).ndim:
        raise InputError(
            "problem: it is several losses; give the one whose barrier is meant, as by_class was "
            "made from"
        )
