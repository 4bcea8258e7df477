"""Round a fold: the branch of KKT points followed along its own arc, not along the level.

The points with Π∇R = 0 make up a curve in θ, along which L and λ are functions of the arc. Where L
has a maximum or minimum on it, the branch folds, and no point of it lies beyond on L = c. Steps d
of Newton's iteration, by :mod:`geoflow.paths.bordering`, are either orthogonal to the curve's
tangent t, t·d = 0 (pseudo-arclength, Keller 1977, Numerical solution of bifurcation and nonlinear
eigenvalue problems), or to a level, g·d = c − L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.linearization import TangentHessian
from geoflow.paths.bordering import Blocks, direction_in
from geoflow.paths.corrector import residual_of
from geoflow.paths.learned import Bearing, Learned
from geoflow.paths.tangent_solver import oblique_normal

# Arc length of strides, in ‖θ‖: the first, the most and the least; their growth.
FIRST, FURTHEST, SHORTEST, GROW, SHRINK = 0.02, 0.1, 1e-6, 1.6, 0.4
# Cosine between the tangents before and after a stride: it is made shorter below the first, and
# the next no longer below the second.
TURNED, STRAIGHT = 0.85, 0.98
# Newton's iterations at most in a stride, and those that let the next be longer.
ITERATIONS, QUICK = 12, 4
# Slope of L along the arc, in ‖g‖, at which a fold is found; strides of the search for it.
LEVEL_SLOPE, SEARCHES = 1e-3, 12
# Points at most from which a level that was passed is sought.
LANDINGS = 4
# A stride after which ‖Π∇R‖/‖∇R‖ is above this is not corrected.
LOST = 0.8


@dataclass(frozen=True)
class OnArc:
    """A point of the branch, and how the branch goes there.

    Attributes
    ----------
    state : FlowState
        There.
    direction : Tensor, shape (P,)
        Unit tangent of the branch, in the sense in which it is followed.
    """

    state: FlowState
    direction: Tensor

    @property
    def slope(self) -> float:
        """Change of L along the arc, in units of ‖g‖."""
        state = self.state
        return float(torch.dot(state.gradient, self.direction)) / state.gradient_norm


class Arc:
    """Makes strides along a branch.

    Parameters
    ----------
    flow : RegularizingFlow
        Evaluates; its level does not matter.
    memory : Learned
        What is known; takes in what is learned.
    limit : float
        ‖Π∇R‖/‖∇R‖ of the points.
    """

    def __init__(self, flow: RegularizingFlow, memory: Learned, limit: float) -> None:
        self.flow, self.memory, self.limit = flow, memory, limit
        self.count = 0

    def start(self, state: FlowState, rising: float) -> OnArc:
        """At a point before the fold, towards it.

        Parameters
        ----------
        state : FlowState
            A minimum of R on its level set.
        rising : float
            1 to follow the branch upwards in L, −1 downwards.
        """
        operator = TangentHessian(self.flow, state)
        guess = oblique_normal(operator, self.memory.curvature, 0.0) * rising
        for _ in range(2):
            at = self._tangent(state, guess / torch.linalg.vector_norm(guess))
            guess = at.direction
        return at if at.slope * rising >= 0 else OnArc(state, -at.direction)

    def stride(self, at: OnArc, bearing: Bearing) -> tuple[OnArc, Bearing]:
        """Make the next stride, as long as it converges.

        Raises
        ------
        ConvergenceError
            None is short enough.
        """
        size = float(torch.linalg.vector_norm(at.state.theta))
        length = bearing.stride
        while length > SHORTEST * size:
            found = self._strides(at, length)
            if found is not None:
                after, iterations, cosine = found
                longer = GROW if iterations <= QUICK and cosine > STRAIGHT else 1.0
                following = min(length * longer, FURTHEST * size)
                return after, Bearing(after.direction, following, bearing.rising)
            length *= SHRINK
        raise ConvergenceError(
            f"along its arc the branch is lost at L = {at.state.loss:.6g}",
            iterations=self.count,
            residual=residual_of(at.state),
            reason="kkt",
        )

    def _strides(self, at: OnArc, length: float) -> tuple[OnArc, int, float] | None:
        ahead = at.state.theta + length * at.direction
        try:
            state = self.flow.evaluate(ahead)
            state, iterations = self._newton(state, at.direction, lambda state: (None, 0.0))
            after = self._tangent(state, at.direction)
        except ConvergenceError:
            return None
        cosine = float(torch.dot(at.direction, after.direction))
        chord = state.theta - at.state.theta
        along = float(torch.dot(chord, at.direction) / torch.linalg.vector_norm(chord))
        if state.multiplier <= 0 or min(cosine, along) < TURNED:
            return None
        return after, iterations, cosine

    def onto(self, level: float, before: OnArc, after: OnArc) -> OnArc:
        """The point on a level that a stride has passed, from where it ended or from nearer.

        Raises
        ------
        ConvergenceError
            It is not reached.
        """
        chord = after.state.theta - before.state.theta
        low, high = 0.0, float(torch.dot(chord, before.direction))
        gap_low, gap_high = before.state.loss - level, after.state.loss - level
        near = after
        for _ in range(LANDINGS):
            try:
                return self._onto(level, near)
            except ConvergenceError as error:
                failure = error
            # A shorter stride, which is held to the branch as every other, ends nearer to it.
            part = gap_low / (gap_low - gap_high)
            middle = low + min(max(part, 0.1), 0.9) * (high - low)
            nearer = self._strides(before, middle)
            if nearer is None:
                break
            near = nearer[0]
            gap = near.state.loss - level
            if gap * gap_low > 0:
                low, gap_low = middle, gap
            else:
                high, gap_high = middle, gap
        raise ConvergenceError(
            f"L = {level:.6g} is not reached from L = {near.state.loss:.6g}: {failure}",
            iterations=failure.iterations,
            residual=failure.residual,
            reason="kkt",
        )

    def _onto(self, level: float, near: OnArc) -> OnArc:
        gap = level - near.state.loss
        slope = near.slope * near.state.gradient_norm
        ahead = near.state.theta
        if slope and abs(gap / slope) < FURTHEST * float(torch.linalg.vector_norm(ahead)):
            ahead = ahead + (gap / slope) * near.direction
        state = self.flow.evaluate(ahead)
        tolerance = self.flow.level_set.level_rtol * abs(level)
        state, _ = self._newton(
            state, near.direction, lambda state: (level - state.loss, tolerance)
        )
        there = self._tangent(state, near.direction)
        if float(torch.dot(there.direction, near.direction)) < TURNED:
            raise ConvergenceError(
                "Newton's iteration leads off the branch",
                iterations=self.count,
                residual=residual_of(state),
                reason="kkt",
            )
        return there

    def fold(self, before: OnArc, after: OnArc) -> OnArc:
        """The point between two at which L neither rises nor falls.

        Raises
        ------
        ConvergenceError
            It is not found.
        """
        first, sign = before, math.copysign(1.0, before.slope)
        chord = after.state.theta - before.state.theta
        low, high = 0.0, float(torch.dot(chord, before.direction))
        slope_low, slope_high = before.slope * sign, after.slope * sign
        found = before if slope_low < -slope_high else after
        for _ in range(SEARCHES):
            if abs(found.slope) <= LEVEL_SLOPE:
                break
            part = slope_low / (slope_low - slope_high)
            middle = low + min(max(part, 0.1), 0.9) * (high - low)
            tried = self._strides(first, middle)
            if tried is None:
                raise ConvergenceError(
                    f"the fold near L = {found.state.loss:.6g} is not found",
                    iterations=self.count,
                    residual=residual_of(found.state),
                    reason="kkt",
                )
            found = tried[0]
            slope = found.slope * sign
            if slope > 0:
                low, slope_low = middle, slope
            else:
                high, slope_high = middle, slope
        return found

    def _newton(
        self,
        state: FlowState,
        direction: Tensor,
        gap: Callable[[FlowState], tuple[float | None, float]],
    ) -> tuple[FlowState, int]:
        """Newton's iteration onto the branch.

        ``gap`` says how far L is to go and to what tolerance; None: the steps are orthogonal to
        ``direction`` instead.
        """
        before = math.inf
        for iteration in range(ITERATIONS):
            wanted, tolerance = gap(state)
            residual = residual_of(state)
            if residual <= self.limit and (wanted is None or abs(wanted) <= tolerance):
                return state, iteration
            if residual > max(LOST, before) or state.multiplier <= 0:
                break
            before = residual
            self.count += 1
            blocks = Blocks(self.flow, state, direction, self.memory, state.velocity)
            normal, other = direction_in(blocks, direction)
            row = (normal, other, 0.0) if wanted is None else (state.gradient_norm, 0.0, wanted)
            state = self.flow.evaluate(state.theta + blocks.step(row))
        raise ConvergenceError(
            "Newton's iteration onto the branch does not converge",
            iterations=ITERATIONS,
            residual=residual_of(state),
            reason="kkt",
        )

    def _tangent(self, state: FlowState, direction: Tensor) -> OnArc:
        blocks = Blocks(self.flow, state, direction, self.memory, None)
        tangent = blocks.tangent()
        tangent = tangent / torch.linalg.vector_norm(tangent)
        if float(torch.dot(tangent, direction)) < 0:
            tangent = -tangent
        return OnArc(state, tangent)


def strides_to(before: OnArc, after: OnArc, levels: Sequence[float], length: float) -> float:
    """Strides to what comes first, a fold or a level, if each were as long as it may be.

    A fold is expected where the slope of L along the arc vanishes if it goes on as from one point
    to the next: it is linear in the arc near a fold.

    Parameters
    ----------
    before, after : OnArc
        Ends of a stride.
    levels : sequence of float
        Those that lie ahead.
    length : float
        Of the next stride, in θ.

    Returns
    -------
    float
        inf where nothing lies ahead.
    """
    size = float(torch.linalg.vector_norm(after.state.theta))
    made = float(torch.linalg.vector_norm(after.state.theta - before.state.theta))
    slope, flattens = abs(after.slope), abs(before.slope) - abs(after.slope)
    steepness = slope * after.state.gradient_norm
    left = math.inf
    if steepness > 0:
        left = min((abs(c - after.state.loss) / steepness for c in levels), default=math.inf)
    if flattens > 0:
        left = min(left, slope / flattens * made)
    strides, furthest = 0, FURTHEST * size
    while left > 0 and length < furthest:
        left, length, strides = left - length, length * GROW, strides + 1
    return strides + max(math.ceil(left / furthest), 0) if math.isfinite(left) else math.inf
