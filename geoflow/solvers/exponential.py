"""Riemannian exponential Rosenbrock method with a third-order correction.

At θₙ the flow is linearised on the tangent space, f(θ) ≈ f − A(θ − θₙ), and the linear part is
integrated exactly in a Krylov space, however stiff it is. The pair is exprb32 of Hochbruck,
Ostermann & Schweitzer (SIAM J. Numer. Anal. 47, 2009), carried over to the manifold by
retraction and by projection onto the first tangent space:

    θ̂ = retract(θₙ + h φ₁(−hA) f),     D = Πₙ f(θ̂) − (f − A(θ̂ − θₙ)),
    θₙ₊₁ = retract(θ̂ + E),             E = 2h φ₃(−hA) D.

E is the error estimate of the second-order step, and is added to it. In stiff directions
E → A⁻¹D is one Newton step onto the slow manifold: it takes away what would spoil the angle. What
it leaves, since A has changed along the step, is relaxed in a small Krylov space at θₙ₊₁.

A retraction starts from the osculating quadric, whose curvature the Krylov space knows: that
saves gradients, and it keeps Newton's corrections, which are not along the first normal, too small
to shift θ̂ along the first tangent space beyond third order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError
from geoflow.manifold.flows import FlowState, RegularizingFlow
from geoflow.solvers.base import (
    LINEARIZATION,
    ONE_CONSTRAINT,
    REGULARIZER,
    Carry,
    StepResult,
    Tolerance,
)
from geoflow.solvers.control import check_step, clip_step
from geoflow.solvers.krylov import KrylovSpace, Vector, phi1, phi3

SAFETY, SHRINK, GROW = 0.9, 0.3, 3.0

MAX_VECTORS = 40
# Defect of the Krylov approximation: h·‖residual‖ in units of the error allowed, and ‖residual‖
# over ‖f‖, without which a loose tolerance would let θ leave the slow manifold. What is left of
# it is part of D, and so of the correction.
KRYLOV_DEFECT, KRYLOV_LEFTOVER = 3.0, 0.2
# Correction that is left out, in units of the error allowed.
CORRECTION_RESOLVED = 0.1

# The predictor need not be on the level set more closely than this, relative to the level.
PREDICTOR_LEVEL_RTOL = 1e-2
# Far from the level set Newton only divides the residual by four: a shorter step is cheaper.
NEWTON_ITERATIONS = 6

# Velocity left over after a step against the velocity the linear model predicts: relaxed above
# the first, to the second, held against the step size above the third, rejected above the fourth
# where it makes the walk worse than it was.
LEFTOVER_RELAXED, LEFTOVER_GOAL, LEFTOVER_WANTED, LEFTOVER_MAX = 0.3, 0.2, 0.8, 1.0
RELAXATION_VECTORS = 3
# A fall of the angle from its maximum that the linear model does not predict.
MAX_ANGLE_FALL = 4.5
# Below this part of ‖∇R‖ a tangent velocity is as good as none: an angle of 179.9°.
NEGLIGIBLE = 2e-3


@dataclass(frozen=True)
class Attempt:
    """One try at a step of given size.

    Attributes
    ----------
    state : FlowState
        Where it ended, on the level set.
    error : float
        Estimate of the second-order step's error over the error allowed.
    expected, leftover : Tensor, shape (P,)
        Tangent velocity that the linear model predicts there, and what the true one has beside it.
    floor : float
        Tangent velocity that is as good as none.
    """

    state: FlowState
    error: float
    expected: Tensor
    leftover: Tensor
    floor: float

    @property
    def goal(self) -> float:
        """Velocity against which the leftover counts."""
        return max(_norm(self.expected), self.floor)

    @property
    def leftover_ratio(self) -> float:
        """Leftover over what it counts against."""
        return _norm(self.leftover) / self.goal


class Exponential:
    """Riemannian exponential Rosenbrock method, third order; see the module's text."""

    name = "exponential"
    order = 3
    needs: tuple[str, ...] = (LINEARIZATION, REGULARIZER, ONE_CONSTRAINT)

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments: none."""
        return {}

    def init(self, flow: RegularizingFlow, state: FlowState, tolerance: Tolerance) -> Carry:
        """Start with a step about as long as the error allowed."""
        speed = max(state.tangent_norm, torch.finfo(state.theta.dtype).tiny)
        return {"step_size": min(tolerance.scale(state.theta) / speed, 1.0), "best_angle": 0.0}

    def step(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        carry: Carry,
        tolerance: Tolerance,
        max_time: float,
    ) -> StepResult:
        """Make one accepted step; the Krylov space serves rejected attempts too."""
        wanted = float(carry["step_size"])
        best = float(carry["best_angle"])
        step = asked = clip_step(wanted, max_time)
        negligible = torch.finfo(state.theta.dtype).eps * _norm(state.regularizer_gradient)
        if state.tangent_norm <= negligible:
            return StepResult(state, dict(carry), step, 0.0, 0, 0)
        space = KrylovSpace(flow.linearization(state))
        space.add(state.velocity)
        retraction = _Retraction(flow)
        n_rejected = 0
        while True:
            step = self._resolve(space, state, step, tolerance)
            try:
                attempt = self.attempt(retraction, space, state, step, tolerance)
                if attempt.error <= 1 and attempt.leftover_ratio > LEFTOVER_RELAXED:
                    attempt = _relax(retraction, attempt, step)
                factor = self._judge(attempt, state, best, tolerance)
                cause = "the local error stays above the tolerance"
            except (ConvergenceError, CriticalPointError) as error:
                factor = -SHRINK
                cause = str(error)
            if factor > 0:
                break
            n_rejected += 1
            step *= abs(factor)
            check_step(step, state, cause)
        following = step * (min(factor, 1.0) if n_rejected else factor)
        if step == asked < wanted:
            # A step cut short by max_time says little about how long a step could be.
            following = max(following, wanted)
        return StepResult(
            state=attempt.state,
            carry={"step_size": following, "best_angle": max(best, attempt.state.angle)},
            time=step,
            error_estimate=attempt.error,
            n_rejected=n_rejected,
            n_reprojection=retraction.iterations,
        )

    def _resolve(
        self, space: KrylovSpace, state: FlowState, step: float, tolerance: Tolerance
    ) -> float:
        """Grow the space until it resolves a step; return the step it can resolve."""
        while True:
            allowed = min(
                KRYLOV_DEFECT * tolerance.scale(state.theta) / step,
                KRYLOV_LEFTOVER * state.tangent_norm,
            )
            moved = _predict(space, state, step)
            following = space.following()
            beta = _norm(following)
            defect = beta * abs(moved[-1])
            if defect <= allowed or beta <= 1e-14 * abs(space.matrix).max():
                return step
            if len(space) >= MAX_VECTORS:
                step *= 0.7
            else:
                space.add(following)

    def attempt(
        self,
        retraction: _Retraction,
        space: KrylovSpace,
        state: FlowState,
        step: float,
        tolerance: Tolerance,
    ) -> Attempt:
        """Try one step of a given size in a Krylov space that resolves it.

        Raises
        ------
        ConvergenceError, CriticalPointError
            Re-projection fails.
        """
        tangent = space.operator.tangent
        scale = tolerance.scale(state.theta)
        y = _predict(space, state, step)
        start = np.zeros(len(space))
        start[0] = state.tangent_norm
        # Without the defect of the Krylov space, which so becomes part of D.
        linear = space.combine(start - space.matrix @ y)
        predictor = retraction.predict(space, state, y, scale)
        difference = tangent(predictor.velocity) - linear
        n = len(space)
        z = _correct_in(space, difference, step, scale)
        size = float(np.linalg.norm(z))
        try:
            end = retraction(space, predictor, z, 10 * size + float(np.linalg.norm(y)))
            expected = linear + difference - space.image(z)
        finally:
            # The next attempt goes on with the Krylov vectors alone.
            space.truncate(n)
        return Attempt(
            state=end,
            error=size / scale,
            expected=expected,
            leftover=tangent(end.velocity) - expected,
            floor=NEGLIGIBLE * _norm(state.regularizer_gradient),
        )

    def _judge(
        self, attempt: Attempt, state: FlowState, best: float, tolerance: Tolerance
    ) -> float:
        """Return the factor for the next step size; negative where the attempt is rejected."""
        end, leftover = attempt.state, attempt.leftover_ratio
        pull = _norm(state.regularizer_gradient)
        worse = end.tangent_norm > max(1.5 * state.tangent_norm, 0.05 * pull)
        falls = best > 150 and best - end.angle > MAX_ANGLE_FALL
        rises = end.regularizer - state.regularizer > tolerance.scale(state.theta) * pull
        trouble = max(attempt.error, leftover / LEFTOVER_WANTED)
        factor = SAFETY * max(trouble, 1e-4) ** (-1 / 3)
        rejected = (
            not attempt.error <= 1
            or (worse and leftover > LEFTOVER_MAX)
            or (falls and leftover > LEFTOVER_GOAL)
            or rises
        )
        if rejected:
            return -max(0.2, min(0.7, factor)) if math.isfinite(factor) else -0.2
        return min(max(factor, SHRINK), GROW)


class _Retraction:
    """Retractions of one step, Newton's iterations counted, failed ones too."""

    def __init__(self, flow: RegularizingFlow) -> None:
        self.flow = flow
        self.iterations = 0

    def __call__(
        self,
        space: KrylovSpace,
        state: FlowState,
        y: Vector,
        furthest: float,
        rtol: float | None = None,
    ) -> FlowState:
        """Move by V y from a state, then along its normal onto the level set.

        Newton's method starts where L(θ) + g·Vy + yᵀ(VᵀHV)y/2, H = ∇²L, predicts the level set,
        and fails where it moves the point further than ``furthest``.
        """
        move = space.combine(y)
        residual = self.flow.level_set.residual(state.loss) + float(torch.dot(state.gradient, move))
        residual += float(y @ space.loss_matrix @ y) / 2
        start = state.theta + move - state.gradient * (residual / state.gradient_norm**2)
        try:
            end, projection = self.flow.project(
                start,
                max_displacement=furthest,
                max_iterations=NEWTON_ITERATIONS,
                rtol=rtol,
            )
        except ConvergenceError as error:
            self.iterations += error.iterations
            raise
        self.iterations += projection.iterations
        return end

    def predict(self, space: KrylovSpace, state: FlowState, y: Vector, scale: float) -> FlowState:
        """Retract the predictor as closely as a fraction of the error allowed."""
        level_set = self.flow.level_set
        wanted = 0.3 * scale * state.gradient_norm / abs(level_set.level)
        rtol = min(max(wanted, level_set.level_rtol), PREDICTOR_LEVEL_RTOL)
        furthest = 2 * float(np.linalg.norm(y))
        return self(space, state, y, furthest, max(rtol, level_set.level_rtol))


def _predict(space: KrylovSpace, state: FlowState, step: float) -> Vector:
    """Coefficients of h φ₁(−hA) f."""
    start = np.zeros(len(space))
    start[0] = state.tangent_norm
    return space.apply(lambda a: step * phi1(-step * a), start)


def _correct(space: KrylovSpace, difference: Tensor, step: float) -> Vector:
    """Coefficients of 2h φ₃(−hA) D."""
    return space.apply(lambda a: 2 * step * phi3(-step * a), space.coefficients(difference))


def _correct_in(space: KrylovSpace, difference: Tensor, step: float, scale: float) -> Vector:
    """Coefficients of E, in a space that takes in what of D is outside where that matters."""
    outside = space.rest(difference)
    # Without any curvature E would be h D/3.
    if step * _norm(outside) / 3 > CORRECTION_RESOLVED * scale:
        space.add(outside)
    return _correct(space, difference, step)


def _relax(retraction: _Retraction, attempt: Attempt, step: float) -> Attempt:
    """Take the stiff part of the leftover velocity away, by the curvature where the step ended."""
    end = attempt.state
    space = KrylovSpace(retraction.flow.linearization(end))
    leftover = space.operator.tangent(attempt.leftover)
    following = leftover
    while True:
        space.add(following)
        y = _correct(space, leftover, step)
        # All of the leftover is in the first vector; the image has a part outside.
        following = space.rest(space.image(y))
        if len(space) >= RELAXATION_VECTORS:
            break
        if _norm(following) <= LEFTOVER_GOAL * attempt.goal:
            break
    try:
        relaxed = retraction(space, end, y, 10 * float(np.linalg.norm(y)))
    except ConvergenceError:
        return attempt
    expected = attempt.expected + attempt.leftover - space.image(y)
    # In one chart, that of the step's end: the velocities here differ by little else.
    left = space.operator.tangent(relaxed.velocity - end.velocity) + space.image(y)
    better = Attempt(relaxed, attempt.error, expected, left, attempt.floor)
    return better if better.leftover_ratio < attempt.leftover_ratio else attempt


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))
