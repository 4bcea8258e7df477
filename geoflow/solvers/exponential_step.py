"""Attempts at one step of the exponential method, and what an accepted one leaves to the next.

The method and its symbols are those of :mod:`geoflow.solvers.exponential`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.several import values
from geoflow.solvers.base import Interpolant, Tolerance, norm
from geoflow.solvers.control import check_step
from geoflow.solvers.krylov import (
    MAX_VECTORS,
    KrylovSpace,
    Vector,
    apply,
    bordered,
    phi1,
    phi3,
)

# The Krylov residual, h times it in units of the error allowed, and in units of ‖f‖, without which
# a loose tolerance would let θ leave the slow manifold.
KRYLOV_DEFECT, KRYLOV_LEFTOVER = 3.0, 0.2
# Correction outside the Krylov space whose curvature is not worth a gradient, in units of the
# error allowed.
CORRECTION_RESOLVED = 0.1
# What these two leave is no smaller in a shorter step, as the rest of a step's error is. From this
# rtol down they fall as √rtol, and their sum over rtol^(−1/3) as many steps stays the smaller part.
MANY_STEPS = 1e-4

# The predictor need not be closer to the level set than this, in units of the error allowed, nor
# may it be further, relative to the level.
PREDICTOR_DISTANCE, PREDICTOR_LEVEL_RTOL = 0.3, 1e-2
# Far from the level set Newton only divides the residual by four: a shorter step is cheaper.
NEWTON_ITERATIONS = 6

NOT_FINITE = "the linear flow over an exponential step is not finite"


@dataclass(frozen=True)
class Correction:
    """D: its coefficients in the Krylov space and beside it, the unit vector there, and A.

    And the velocity f(θ̂) that it is made from.
    """

    unit: Tensor
    split: Vector
    matrix: Vector
    velocity: Tensor


class Attempts:
    """Attempts at one step: its Krylov space, and Newton's iterations, failed ones too."""

    def __init__(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        tolerance: Tolerance,
        radius: float,
        max_vectors: int = MAX_VECTORS,
        basis: torch.dtype | None = None,
        owed: Tensor | None = None,
    ) -> None:
        self.flow, self.state = flow, state
        self.allowed = tolerance.scale(state.theta)
        self.unresolved = self.allowed * min(tolerance.rtol / MANY_STEPS, 1.0) ** 0.5
        self.single = len(state.values) == 1
        self.max_vectors, self.owed = max_vectors, owed
        self.space = KrylovSpace(flow.linearization(state), state.velocity, radius, basis)
        self.radius = 0.0
        self.n_newton = 0
        self.correction: Correction

    def resolve(self, step: float) -> float:
        """Grow the space until it resolves a step; return the step it can resolve."""
        space = self.space
        while True:
            limit = min(
                KRYLOV_DEFECT * self.unresolved / step, KRYLOV_LEFTOVER * self.state.tangent_norm
            )
            beta, rho = space.matrix[-1, -2:]
            y = self.predict(step)
            # Negative curvature makes y, or this product, overflow at a step that is far too long.
            if float(beta + rho) * float(abs(y[-1])) <= limit:
                return step
            finite = bool(np.isfinite(y).all())
            if len(space) >= self.max_vectors or not finite:
                step *= 0.7
                if not finite:
                    # However short: a number in the space or the step itself is none.
                    check_step(step if math.isfinite(step) else 0.0, self.state, NOT_FINITE)
            else:
                space.add()

    def predict(self, step: float) -> Vector:
        """Coefficients of h φ₁(−hA) f."""
        velocity = self._velocity()
        return apply(lambda a: step * phi1(-step * a), self.space.matrix, velocity)

    def attempt(self, step: float) -> tuple[FlowState, float]:
        """Try one step; return where it ends and its error over the error allowed.

        Raises
        ------
        ConvergenceError, CriticalPointError
            Re-projection fails.
        """
        space = self.space
        y = self.predict(step)
        length = float(np.linalg.norm(y))
        move, furthest = space.combine(y), 2 * length
        if self.owed is not None:
            move.add_(space.operator.tangent(self.owed))
            furthest += 2 * norm(self.owed)
        curvature = float(y @ space.loss_matrix @ y)
        predictor = self._retract(self.state, move, curvature, furthest, self._rtol())
        linear = space.combine(self._velocity() - space.matrix @ y)
        inside, outside, size = space.split(space.operator.tangent(predictor.velocity) - linear)
        unit = outside / (size or 1.0)
        if step * size / 3 > CORRECTION_RESOLVED * self.unresolved:
            matrix, loss_matrix = space.beside(unit)
        else:
            column = np.zeros(len(inside) + 1)
            loss_matrix = bordered(space.loss_matrix[:-1, :-1], column)
            column[-1] = space.radius
            matrix = bordered(space.matrix[:-1, :-1], column)
        split = np.append(inside, size)
        self.correction = Correction(unit, split, matrix, predictor.velocity)
        z = self.corrected(step, step)
        self.radius = float(np.linalg.eigvalsh(matrix)[-1])
        corrected = float(np.linalg.norm(z))
        # Negative curvature makes it overflow at a step that is far too long; a number that the
        # dtype does not hold, torch refuses to multiply by.
        if not corrected < torch.finfo(predictor.theta.dtype).max:
            raise ConvergenceError(
                "the correction of an exponential step is not finite",
                iterations=0,
                residual=float(self.flow.level_set.residuals(predictor.values)[0]),
                reason="diverged",
            )
        move = self._combined(z)
        end = self._retract(predictor, move, float(z @ loss_matrix @ z), 10 * corrected + length)
        return end, corrected / self.allowed

    def corrected(self, time: float, step: float) -> Vector:
        """Coefficients of 2t³/h² φ₃(−tA) D, what D (t/h)² has added by a time within the step."""
        size = 2 * time * (time / step) ** 2
        split, matrix = self.correction.split, self.correction.matrix
        return apply(lambda a: size * phi3(-time * a), matrix, split)

    def owes(self, step: float, end: FlowState) -> Tensor:
        """What the step that was accepted is off by, of which e^(−hA) will be left by the next end.

        What is outside the space and ``unit`` is not known well enough to be told from a stiff
        direction, and stays.
        """
        correction = self.correction
        changed = self.space.coefficients(end.velocity - correction.velocity, correction.unit)
        changed += correction.matrix @ self.corrected(step, step)

        def owed(a: Vector) -> Vector:
            return 2 * step * phi3(-step * a) * np.exp(-step * np.maximum(a, 0.0))

        return self._combined(apply(owed, correction.matrix, changed))

    def _combined(self, coefficients: Vector) -> Tensor:
        """Of the evaluated vectors and the unit vector beside them."""
        inside, beside = coefficients[:-1], coefficients[-1]
        return self.space.combine(inside).add_(self.correction.unit, alpha=beside)

    def interpolant(self, step: float, end: FlowState) -> Interpolant:
        """θ within the step that was accepted, of third order however stiff the flow.

        The step's own φ-functions at a part of its time, and the quadric's shift along the normal;
        what re-projection added to that at the end grows as the cube of the distance. Of several
        constraints no quadric is known, and it grows as the square.
        """

        def flat(time: float) -> tuple[Tensor, float]:
            y, z = self.predict(time), self.corrected(time, step)
            moved = y.copy()
            moved[: len(z) - 1] += z[:-1]
            shift = self.space.combine(moved).add_(self.correction.unit, alpha=z[-1])
            distance = norm(shift)
            curvature = float(moved @ self.space.loss_matrix @ moved)
            if self.single:
                shift.add_(self.state.gradient, alpha=-curvature / 2 / self.state.gradient_norm**2)
            return shift.add_(self.state.theta), distance

        @functools.cache
        def left_at_end() -> tuple[Tensor, float]:
            at_end, furthest = flat(step)
            return end.theta - at_end, furthest

        def at(time: float) -> Tensor:
            left, furthest = left_at_end()
            theta, distance = flat(time)
            power = 3 if self.single else 2
            return theta.add_(left, alpha=(distance / furthest) ** power if furthest else 0.0)

        return at

    def _velocity(self) -> Vector:
        velocity = np.zeros(len(self.space) + 1)
        velocity[0] = self.state.tangent_norm
        return velocity

    def _rtol(self) -> float:
        """How close to the level set the predictor is to be, relative to the level."""
        level_set = self.flow.level_set
        steepest = float((self.state.gradient_norms / level_set.scales).min())
        wanted = PREDICTOR_DISTANCE * self.allowed * steepest
        return max(min(wanted, PREDICTOR_LEVEL_RTOL), level_set.level_rtol)

    def _retract(
        self,
        state: FlowState,
        move: Tensor,
        curvature: float,
        furthest: float,
        rtol: float | None = None,
    ) -> FlowState:
        """Move from a state, then along its normal onto the level set.

        Newton's method starts where L(θ) + g·move + moveᵀ∇²L move/2, the last from ``curvature``,
        predicts the level set, and fails where it moves the point further than ``furthest``. Of
        several constraints the residuals there are evaluated, and taken away along the normals of
        the state: what is left for Newton's corrections is too small to shift the point.
        """
        if not self.single:
            start = state.theta + move
            residuals = self.flow.level_set.residuals(values(self.flow.problem, start))
            if not np.isfinite(residuals).all():
                raise ConvergenceError(
                    "a loss is not finite at a trial point",
                    iterations=0,
                    residual=float(residuals[0]),
                    reason="diverged",
                )
            start = start - state.normals.step(residuals)
            return self._project(start, furthest, rtol)
        known = self.flow.level_set.residual(state.loss) + curvature / 2
        residual = torch.dot(state.gradient, move) + known
        start = (state.theta + move).sub_(state.gradient * (residual / state.gradient_norm**2))
        return self._project(start, furthest, rtol)

    def _project(self, start: Tensor, furthest: float, rtol: float | None) -> FlowState:
        """Newton's method along the normals, its iterations counted."""
        try:
            end, projection = self.flow.project(
                start, max_displacement=furthest, max_iterations=NEWTON_ITERATIONS, rtol=rtol
            )
        except ConvergenceError as error:
            self.n_newton += error.iterations
            raise
        self.n_newton += projection.iterations
        return end
