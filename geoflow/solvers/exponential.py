"""Riemannian exponential Rosenbrock method with a third-order correction.

At θₙ the flow is linearised on the tangent space, f(θ) ≈ f − A(θ − θₙ), and the linear part is
integrated exactly, however stiff it is. The pair is exprb32 of Hochbruck, Ostermann & Schweitzer
(SIAM J. Numer. Anal. 47, 2009), carried over to the manifold by retraction and by projection onto
the first tangent space:

    θ̂ = retract(θₙ + h φ₁(−hA) f),     D = Πₙ f(θ̂) − (f − A(θ̂ − θₙ)),
    θₙ₊₁ = retract(θ̂ + E),             E = 2h φ₃(−hA) D.

**Order.** In the chart x = Πₙ(θ − θₙ) the flow is ẋ = f − Ax + N(x), N(x(t)) = D (t/h)² + O(h³).
2h φ₃(−hA) D is what such an N adds by t = h: θₙ₊₁ is of third order, and E, which is O(h³),
estimates the error of the second-order step θ̂. In stiff directions E → A⁻¹D, one Newton step onto
the slow manifold: it takes away what would spoil the angle.

**Krylov space.** φ₁ is taken in the m vectors of a Krylov space whose images have been evaluated,
and in the one that follows them, after Saad's corrected scheme (SIAM J. Numer. Anal. 29, 1992): of
the projected matrix, its row is β beside the diagonal, the norm of what it was made from, and ρ, a
guess, on it. The residual (Av − βvₘ − ρv) yₘ₊₁, v the next vector, grows as t² or faster for every
m ≥ 1. It is part of D and so of E, and the method keeps its order with any number of vectors; how
many there are is a matter of cost. They are as many as keep (β + ρ)|yₘ₊₁|, about what the residual
may be, small against the error allowed and against ‖f‖. φ₃ is taken in the m vectors and the part
of D outside them, whose image is evaluated.

**Retraction.** Newton's method along the normal starts from the osculating quadric, whose curvature
the Krylov space knows: that saves gradients, and it keeps Newton's corrections, which are not along
the first normal, too small to shift θ̂ along the first tangent space beyond third order. Of several
constraints no single quadric is known: the residuals at the end of the move are evaluated.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.several import values
from geoflow.solvers.base import (
    LINEARIZATION,
    REGULARIZER,
    Carry,
    Interpolant,
    StepResult,
    Tolerance,
)
from geoflow.solvers.basis import BLOCK
from geoflow.solvers.control import (
    TOO_FAR,
    TOO_INACCURATE,
    check_step,
    clip_step,
    first_step,
)
from geoflow.solvers.krylov import (
    MAX_VECTORS,
    KrylovSpace,
    Vector,
    apply,
    bordered,
    phi1,
    phi3,
)

# Of θ's size beside the Krylov vectors.
OTHER_VECTORS = 12

SAFETY, SHRINK, GROW = 0.9, 0.2, 3.0
# While none has been as long as its error allows, a step may also grow up to this part of ‖θ‖ at
# once: longer ones failed to come back to the level set. An error below the least says no more.
SHORT, LEAST_ERROR = 3e-3, 1e-12

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
AFTER_FAILURE = 0.3

# A step off the slow manifold raises the tangent velocity, where θ is within the tolerance still:
# by how much it may, from no less than this part of ‖∇R‖, and the step after that.
VELOCITY_GROWTH, VELOCITY_FLOOR, AFTER_GROWTH = 1.3, 0.05, 0.6


class Exponential:
    """Riemannian exponential Rosenbrock method, third order; see the module's text.

    Parameters
    ----------
    max_vectors : int
        Krylov vectors at the most: where they do not resolve a step, it is made shorter. Each is
        as much memory as one θ.
    basis : str, optional
        ``"float32"`` keeps the Krylov vectors in half the memory, for tolerances down to 10⁻⁵.
        None: in the dtype of the walk.

    Raises
    ------
    InputError
        ``max_vectors`` is below 2, or ``basis`` no dtype.
    """

    name = "exponential"
    order = 3
    dense = True
    needs: tuple[str, ...] = (LINEARIZATION, REGULARIZER)

    def __init__(self, *, max_vectors: int = MAX_VECTORS, basis: str | None = None) -> None:
        if not (isinstance(max_vectors, int) and max_vectors >= 2):
            raise InputError(f"max_vectors={max_vectors!r}; use a whole number from 2 on")
        if basis not in (None, *DTYPES):
            raise InputError(f"basis={basis!r}; use float32 or float64")
        self.max_vectors, self.basis = max_vectors, basis
        # The Krylov space; the normal, the predictor's state, the correction and temporaries.
        self.vectors = max_vectors + 1 + OTHER_VECTORS

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments that are not the usual ones."""
        return {
            **({"max_vectors": self.max_vectors} if self.max_vectors != MAX_VECTORS else {}),
            **({"basis": self.basis} if self.basis else {}),
        }

    def itemsize(self, theta: Tensor) -> int:
        """Bytes of a number in a Krylov vector."""
        return DTYPES[self.basis].itemsize if self.basis else theta.element_size()

    def bytes_at(self, theta: Tensor) -> int:
        """Bytes of all vectors at the most: on a GPU the Krylov vectors take whole blocks."""
        rows = self.max_vectors + 1
        if theta.device.type != "cpu":
            rows = BLOCK * -(-rows // BLOCK)
        others = OTHER_VECTORS * theta.element_size()
        return theta.numel() * (rows * self.itemsize(theta) + others)

    def init(self, flow: RegularizingFlow, state: FlowState, tolerance: Tolerance) -> Carry:
        """Start with a step about as long as the error allowed."""
        step = first_step(state, tolerance.scale(state.theta))
        return {"step_size": step, "radius": 0.0, "starting": True}

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
        step = asked = clip_step(wanted, max_time)
        # Archives of earlier versions have no radius.
        radius = float(carry.get("radius", 0.0))
        attempts = _Attempts(
            flow, state, tolerance, radius, self.max_vectors, DTYPES.get(self.basis or "")
        )
        floor = VELOCITY_FLOOR * _norm(state.regularizer_gradient)
        starting = bool(carry.get("starting", False))
        n_rejected = 0
        while True:
            step = attempts.resolve(step)
            try:
                end, error = attempts.attempt(step)
                most = GROW
                if starting:
                    most = max(GROW, SHORT * _norm(state.theta) / (step * state.tangent_norm))
                factor = min(max(SAFETY * max(error, LEAST_ERROR) ** (-1 / 3), SHRINK), most)
                grows = end.tangent_norm > VELOCITY_GROWTH * max(state.tangent_norm, floor)
                if error <= 1 and not grows:
                    break
                factor = min(factor, AFTER_GROWTH) if grows else factor
                cause = TOO_INACCURATE
            except TOO_FAR as failure:
                factor = AFTER_FAILURE
                cause = str(failure)
            n_rejected += 1
            step *= factor
            check_step(step, state, cause)
        following = step * (min(factor, 1.0) if n_rejected else factor)
        if step == asked < wanted:
            # A step cut short by max_time says little about how long a step could be.
            following = max(following, wanted)
        return StepResult(
            state=end,
            carry={
                "step_size": following,
                "radius": attempts.radius,
                "starting": starting and not n_rejected and factor > GROW,
            },
            time=step,
            error_estimate=error,
            n_rejected=n_rejected,
            n_reprojection=attempts.n_newton,
            interpolant=attempts.interpolant(step, end),
        )


@dataclass(frozen=True)
class _Correction:
    """D: its coefficients in the Krylov space and beside it, the unit vector there, and A."""

    unit: Tensor
    split: Vector
    matrix: Vector


class _Attempts:
    """Attempts at one step: its Krylov space, and Newton's iterations, failed ones too."""

    def __init__(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        tolerance: Tolerance,
        radius: float,
        max_vectors: int = MAX_VECTORS,
        basis: torch.dtype | None = None,
    ) -> None:
        self.flow, self.state = flow, state
        self.allowed = tolerance.scale(state.theta)
        self.unresolved = self.allowed * min(tolerance.rtol / MANY_STEPS, 1.0) ** 0.5
        self.single = len(state.values) == 1
        self.max_vectors = max_vectors
        self.space = KrylovSpace(flow.linearization(state), state.velocity, radius, basis)
        self.radius = 0.0
        self.n_newton = 0
        self.correction: _Correction

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
            if len(space) >= self.max_vectors or not np.isfinite(y).all():
                step *= 0.7
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
        predictor = self._retract(
            self.state, space.combine(y), float(y @ space.loss_matrix @ y), 2 * length, self._rtol()
        )
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
        self.correction = _Correction(unit, split, matrix)
        z = self.corrected(step, step)
        self.radius = float(np.linalg.eigvalsh(matrix)[-1])
        corrected = float(np.linalg.norm(z))
        move = space.combine(z[:-1]).add_(unit, alpha=z[-1])
        end = self._retract(predictor, move, float(z @ loss_matrix @ z), 10 * corrected + length)
        return end, corrected / self.allowed

    def corrected(self, time: float, step: float) -> Vector:
        """Coefficients of 2t³/h² φ₃(−tA) D, what D (t/h)² has added by a time within the step."""
        size = 2 * time * (time / step) ** 2
        split, matrix = self.correction.split, self.correction.matrix
        return apply(lambda a: size * phi3(-time * a), matrix, split)

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
            distance = _norm(shift)
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


def _norm(v: Tensor) -> float:
    return float(torch.linalg.vector_norm(v))
