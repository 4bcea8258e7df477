"""Riemannian exponential Rosenbrock method with a third-order correction.

At θₙ the flow is linearised on the tangent space, f(θ) ≈ f − A(θ − θₙ), and the linear part is
integrated exactly in a Krylov space, however stiff it is. The pair is exprb32 of Hochbruck,
Ostermann & Schweitzer (SIAM J. Numer. Anal. 47, 2009), carried over to the manifold by
retraction and by projection onto the first tangent space:

    θ̂ = retract(θₙ + h φ₁(−hA) f),     D = Πₙ f(θ̂) − (f − A(θ̂ − θₙ)),
    θₙ₊₁ = retract(θ̂ + E),             E = 2h φ₃(−hA) D.

E is the error estimate of the second-order step, and is added to it. In stiff directions
E → A⁻¹D is one Newton step onto the slow manifold: it takes away what would spoil the angle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError
from geoflow.flows import FlowState, RegularizingFlow
from geoflow.solvers.base import Carry, StepResult, Tolerance
from geoflow.solvers.control import check_step, clip_step
from geoflow.solvers.krylov import KrylovSpace, TangentHessian, phi1, phi3

SAFETY, SHRINK, GROW = 0.9, 0.3, 3.0

MAX_VECTORS = 40
# Defect of the Krylov approximation, h·‖residual‖, in units of the error allowed. What is left
# of it is part of D, and so of the correction.
KRYLOV_DEFECT = 3.0
CORRECTION_VECTORS = 2
MAX_CORRECTIONS = 3
# A tangential shift by re-projection is taken back where it is above the error allowed.
SHIFT_RESOLVED = 1.0

# The predictor need not be on the level set more closely than this, relative to the level.
PREDICTOR_LEVEL_RTOL = 1e-2

# Velocity left over after a step against the velocity the linear model predicts: corrected
# further above the first, held against the step size above the second, rejected above the third
# where it makes the walk worse than it was.
LEFTOVER_CORRECTED, LEFTOVER_WANTED, LEFTOVER_MAX = 0.15, 0.8, 1.0
CONTRACTION = 0.5
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
    leftover : float
        Velocity the linear model does not account for, over that which it predicts.
    """

    state: FlowState
    error: float
    leftover: float


class Exponential:
    """Riemannian exponential Rosenbrock method, third order; see the module's text."""

    name = "exponential"
    order = 3

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
        step = clip_step(wanted, max_time)
        negligible = torch.finfo(state.theta.dtype).eps * float(
            torch.linalg.vector_norm(state.regularizer_gradient)
        )
        if state.tangent_norm <= negligible:
            return StepResult(state, dict(carry), step, 0.0, 0, 0)
        space = KrylovSpace(TangentHessian(flow, state))
        space.add(state.velocity)
        newton = _Newton(flow)
        n_rejected = 0
        while True:
            size = self._resolve(space, state, step, tolerance)
            clipped = size == step < wanted
            step = size
            try:
                attempt = self.attempt(newton, space, state, step, tolerance)
                factor = self._judge(attempt, state, best, tolerance)
            except (ConvergenceError, CriticalPointError) as error:
                factor, attempt = -SHRINK, None
                cause = str(error)
            if attempt is not None and factor > 0:
                break
            n_rejected += 1
            step *= abs(factor)
            if attempt is not None:
                cause = "the local error stays above the tolerance"
            check_step(step, state, cause)
        following = step * (min(factor, 1.0) if n_rejected else factor)
        if clipped:
            following = max(following, wanted)
        return StepResult(
            state=attempt.state,
            carry={"step_size": following, "best_angle": max(best, attempt.state.angle)},
            time=step,
            error_estimate=attempt.error,
            n_rejected=n_rejected,
            n_reprojection=newton.iterations,
        )

    def _resolve(
        self, space: KrylovSpace, state: FlowState, step: float, tolerance: Tolerance
    ) -> float:
        """Grow the space until it resolves a step; return the step it can resolve."""
        allowed = KRYLOV_DEFECT * tolerance.scale(state.theta)
        while True:
            moved = _predict(space, state, step)
            following = space.rest(space.images[-1])
            beta = float(torch.linalg.vector_norm(following))
            if step * beta * abs(moved[-1]) <= allowed or beta <= 1e-14 * abs(space.matrix).max():
                return step
            if len(space) >= MAX_VECTORS:
                step *= 0.7
            else:
                space.add(following)

    def attempt(
        self,
        newton: _Newton,
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
        move = space.combine(y)
        length = float(torch.linalg.vector_norm(move))
        predictor = newton.predictor(state.theta + move, state, scale, length)
        space = space.copy()
        # Newton's corrections also shift θ̂ along the first tangent space, by O(h³).
        shift = tangent(predictor.theta - state.theta) - move
        unseen = space.rest(shift)
        if _norm(unseen) > SHIFT_RESOLVED * scale:
            space.add(unseen)
        inside = space.coefficients(shift)
        shift = space.combine(inside)
        difference = tangent(predictor.velocity) - linear + space.image(inside)
        y = _grow_for(space, difference, step, scale)
        correction = space.combine(y) - shift
        size = _norm(correction + shift)
        expected = linear + difference - space.image(y)
        end = newton.project(predictor.theta + correction, 10 * size + length)
        leftover = tangent(end.velocity) - expected
        contraction = _ratio(_norm(leftover), _norm(difference))
        if contraction < CONTRACTION:
            end, leftover, expected = _correct_further(newton, space, end, leftover, expected, step)
        elif size <= scale and predictor.angle > end.angle:
            # A changed so much that its correction misleads: keep the better of the two.
            other = newton.project(predictor.theta, length)
            if other.angle > end.angle:
                end, leftover = other, tangent(other.velocity) - linear
        floor = NEGLIGIBLE * _norm(state.regularizer_gradient)
        return Attempt(end, size / scale, _norm(leftover) / max(_norm(expected), floor))

    def _judge(
        self, attempt: Attempt, state: FlowState, best: float, tolerance: Tolerance
    ) -> float:
        """Return the factor for the next step size; negative where the attempt is rejected."""
        end = attempt.state
        pull = _norm(state.regularizer_gradient)
        worse = end.tangent_norm > max(1.5 * state.tangent_norm, 0.05 * pull)
        falls = best > 150 and best - end.angle > MAX_ANGLE_FALL
        rises = end.regularizer - state.regularizer > tolerance.scale(state.theta) * pull
        trouble = max(attempt.error, attempt.leftover / LEFTOVER_WANTED)
        factor = SAFETY * max(trouble, 1e-4) ** (-1 / 3)
        rejected = (
            not attempt.error <= 1
            or (worse and attempt.leftover > LEFTOVER_MAX)
            or (falls and attempt.leftover > 0.2)
            or rises
        )
        if rejected:
            return -max(0.2, min(0.7, factor)) if math.isfinite(factor) else -0.2
        return min(max(factor, SHRINK), GROW)


class _Newton:
    """Re-projections of one step, their iterations counted, failed ones too."""

    def __init__(self, flow: RegularizingFlow) -> None:
        self.flow = flow
        self.iterations = 0

    def project(self, theta: Tensor, furthest: float, rtol: float | None = None) -> FlowState:
        try:
            state, projection = self.flow.project(theta, max_displacement=furthest, rtol=rtol)
        except ConvergenceError as error:
            self.iterations += error.iterations
            raise
        self.iterations += projection.iterations
        return state

    def predictor(
        self, theta: Tensor, start: FlowState, scale: float, furthest: float
    ) -> FlowState:
        """Project the predictor as closely as a fraction of the error allowed."""
        level_set = self.flow.level_set
        wanted = 0.3 * scale * start.gradient_norm / abs(level_set.level)
        rtol = min(max(wanted, level_set.level_rtol), PREDICTOR_LEVEL_RTOL)
        return self.project(theta, furthest, max(rtol, level_set.level_rtol))


def _predict(space: KrylovSpace, state: FlowState, step: float) -> Any:
    """Coefficients of h φ₁(−hA) f."""
    start = np.zeros(len(space))
    start[0] = state.tangent_norm
    return space.apply(lambda a: step * phi1(-step * a), start)


def _grow_for(space: KrylovSpace, difference: Tensor, step: float, scale: float) -> Any:
    """Coefficients of 2h φ₃(−hA) D, in a space that has grown to hold D where that matters."""
    following, added = space.rest(difference), 0
    while True:
        y = space.apply(lambda a: 2 * step * phi3(-step * a), space.coefficients(difference))
        size = _norm(following)
        missing = step * size / 3 if not added else step * size * abs(y[-1])
        if missing <= 0.1 * scale or added >= CORRECTION_VECTORS:
            return y
        # An exhausted space: what is left is rounding.
        if size <= 1e-14 * max(_norm(difference), abs(space.matrix).max()):
            return y
        space.add(following)
        added += 1
        following = space.rest(space.images[-1])


def _correct_further(
    newton: _Newton,
    space: KrylovSpace,
    end: FlowState,
    leftover: Tensor,
    expected: Tensor,
    step: float,
) -> tuple[FlowState, Tensor, Tensor]:
    """Simplified Newton onto the slow manifold: no new Krylov vector, one or two gradients."""
    tangent = space.operator.tangent
    floor = NEGLIGIBLE * _norm(end.regularizer_gradient)
    for _ in range(MAX_CORRECTIONS):
        size = _norm(leftover)
        inside = space.coefficients(leftover)
        if size <= LEFTOVER_CORRECTED * max(_norm(expected), floor):
            break
        if float(np.linalg.norm(inside)) < 0.7 * size:
            break
        y = space.apply(lambda a: 2 * step * phi3(-step * a), inside)
        correction = space.combine(y)
        try:
            trial = newton.project(end.theta + correction, 10 * _norm(correction) + 1e-6)
        except ConvergenceError:
            break
        goal = expected + leftover - space.image(y)
        left = tangent(trial.velocity) - goal
        if _norm(left) > 0.8 * size:
            break
        end, leftover, expected = trial, left, goal
    return end, leftover, expected


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
