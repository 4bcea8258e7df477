"""Past points of a walk, and the backward differentiation formulas over them.

The formulas have variable coefficients: the derivative at the new time is that of the polynomial
through the points as they are, at whatever times. So a step may be cut short at a wanted time, and
a point may be moved by re-projection, without anything to convert: the points are the history.

To it comes the term of the numerical differentiation formulas of Shampine & Reichelt (SIAM J. Sci.
Comput. 18, 1997, section 2.1), a part κγₖ of the difference between the new point and its
prediction, which takes a quarter off the error at orders 1 to 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]

MAX_ORDER = 5
# κγₖ by order k, γₖ = 1 + 1/2 + … + 1/k.
KAPPA_GAMMA = (
    0.0,
    -0.1850,
    -1 / 9 * (3 / 2),
    -0.0823 * (11 / 6),
    -0.0415 * (25 / 12),
    0.0,
)
# Points nearer to one another than this part of the coming step are thinned out: through two that
# all but coincide a polynomial carries their errors far.
NEAREST = 0.3


@dataclass(frozen=True)
class Formula:
    """A formula of order k over one step: y = ``predicted`` + c (f(y) − ``slope``).

    Attributes
    ----------
    start : Tensor, shape (P,)
        Where the step begins.
    predicted, slope : Tensor, shape (P,)
        Value and derivative, at the new time, of the polynomial of degree k through the last
        k + 1 points.
    c : float
        Step over leading coefficient, in flow time.
    error_constant : float
        Error that is carried on from the new point, over its difference from ``predicted``.
    """

    start: Tensor
    predicted: Tensor
    slope: Tensor
    c: float
    error_constant: float


@dataclass(frozen=True)
class History:
    """The latest points, the newest first.

    Attributes
    ----------
    points : Tensor, shape (n, P)
        θ at each.
    ages : ndarray, shape (n,)
        Flow time since each; 0 for the newest.
    """

    points: Tensor
    ages: Vector

    def __len__(self) -> int:
        return len(self.ages)

    def formula(self, order: int, step: float, velocity: Tensor) -> Formula:
        """Make the formula of an order below ``len(self)``; of order 1 from a lone point.

        Parameters
        ----------
        order : int
            k, from 1 to 5.
        step : float
            h, in flow time.
        velocity : Tensor, shape (P,)
            dθ/dt at the newest point, by which a lone point predicts.
        """
        if len(self) == 1:
            predicted = torch.add(self.points[0], velocity, alpha=step)
            return Formula(self.points[0], predicted, velocity, step, 0.5)
        past = self.ages[: order + 1] + step
        values, slopes = lagrange(-past, 0.0)
        both = torch.from_numpy(np.stack([values, slopes])).to(self.points)
        predicted, slope = both @ self.points[: order + 1]
        leading, constant = _constants(order, step, past)
        return Formula(self.points[0], predicted, slope, step / leading, constant)

    def at(self, age: float, order: int) -> Tensor:
        """θ at an earlier time, shape (P,), by the polynomial through the latest points."""
        n = min(order + 1, len(self))
        values, _ = lagrange(-self.ages[:n], -age)
        return torch.from_numpy(values).to(self.points) @ self.points[:n]

    def through(self, point: Tensor, step: float, order: int) -> History:
        """The points that a formula of this order has gone through, the new one first."""
        n = min(order + 1, len(self))
        ages = np.concatenate([[0.0], self.ages[:n] + step])
        return History(torch.cat([point[None], self.points[:n]]), ages)

    def errors(self, orders: Sequence[int], point: Tensor, step: float) -> dict[int, float]:
        """Error, in units of θ, that each order would have carried on from a step to ``point``."""
        found = {}
        for order in orders:
            if 1 <= order <= MAX_ORDER and order < len(self):
                past = self.ages[: order + 1] + step
                values, _ = lagrange(-past, 0.0)
                weights = torch.from_numpy(values).to(self.points)
                difference = point - weights @ self.points[: order + 1]
                constant = _constants(order, step, past)[1]
                found[order] = constant * float(torch.linalg.vector_norm(difference))
        return found

    def extended(self, point: Tensor, step: float, following: float) -> History:
        """Add a point, and drop what the coming step has no use for."""
        times = np.concatenate([[0.0], self.ages + step])
        kept, last = [0], 0.0
        for i in range(1, len(times)):
            if times[i] - last >= NEAREST * following * (1 - 1e-9) and len(kept) <= MAX_ORDER:
                kept.append(i)
                last = times[i]
        if len(kept) == 1:
            # Whatever its distance: without a second point there is no formula.
            kept.append(len(times) - 1)
        rows = [point if i == 0 else self.points[i - 1] for i in kept]
        return History(torch.stack(rows), times[kept])


def lagrange(nodes: Vector, at: float) -> tuple[Vector, Vector]:
    """Weights of values at nodes in their polynomial's value and derivative at a time."""
    n = len(nodes)
    values, slopes = np.empty(n), np.empty(n)
    for i in range(n):
        others = np.delete(nodes, i)
        scaled = (at - others) / (nodes[i] - others)
        values[i] = scaled.prod()
        slopes[i] = sum(np.delete(scaled, j).prod() / (nodes[i] - others[j]) for j in range(n - 1))
    return values, slopes


def _constants(order: int, step: float, past: Vector) -> tuple[float, float]:
    """Leading coefficient, and the error constant of :class:`Formula`.

    The polynomials through the new point and through the k + 1 before it differ by a multiple of
    ∏(t − tₙ₋ⱼ), j < k, which gives both. The new point itself is off by the constant over the
    leading coefficient; but it is a part of the next formulas, and what becomes of its error there
    is the leading coefficient times as much: the constant of a multistep method is that of its
    formula with unit coefficients of f (Hairer, Nørsett & Wanner, Solving ODEs I, section III.2).
    """
    correction = KAPPA_GAMMA[order]
    leading = float(sum(step / past[:order])) - correction
    return leading, abs(step / float(past[order]) + correction)
