"""Riemannian exponential Rosenbrock method with a third-order correction.

At θₙ the flow is linearised on the tangent space, f(θ) ≈ f − A(θ − θₙ), and the linear part is
integrated exactly, however stiff it is. The pair is exprb32 of Hochbruck, Ostermann & Schweitzer
(SIAM J. Numer. Anal. 47, 2009), carried over to the manifold by retraction and by projection onto
the first tangent space:

    θ̂ = retract(θₙ + h φ₁(−hA) f + sₙ),   D = Πₙ f(θ̂) − (f − A(θ̂ − θₙ)),
    θₙ₊₁ = retract(θ̂ + E),                 E = 2h φ₃(−hA) D,

where sₙ is what the step before has owed.

**Order.** In the chart x = Πₙ(θ − θₙ) the flow is ẋ = f − Ax + N(x), N(x(t)) = D (t/h)² + O(h³).
2h φ₃(−hA) D is what such an N adds by t = h: θₙ₊₁ is of third order, and E, which is O(h³),
estimates the error of the second-order step θ̂. In stiff directions E → A⁻¹D, one Newton step onto
the slow manifold: it takes away what would spoil the angle.

**What a step owes.** Where the flow is stiff θ̂ is off the slow manifold, and the stiff force there,
which turns with the tangent space, is more than what is soft in D. Stiff directions forget what
that adds; along the soft ones each step is off by about its estimate, to the same side as the last,
which came to 230 rtol in all. The velocity at the end is known anyway, and of D there the change,

    D' − D = Πₙ (f(θₙ₊₁) − f(θ̂)) + A(θₙ₊₁ − θ̂),     sₙ₊₁ = e^(−hA) 2h φ₃(−hA)(D' − D),

costs one reading of the vectors. The step is off by this without e^(−hA), which takes away what
stiff directions will have forgotten by the next end. The next step begins with it. Where nothing
is stiff it is O(h⁵), and changes neither the order nor the error.

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

import math
from typing import Any

from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.basis import BLOCK
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.dtypes import DTYPES
from geoflow.solvers.base import (
    LINEARIZATION,
    REGULARIZER,
    Carry,
    StepResult,
    Tolerance,
    check_descent,
    norm,
)
from geoflow.solvers.carried import check_numbers, check_tensor
from geoflow.solvers.control import (
    TOO_FAR,
    TOO_INACCURATE,
    check_step,
    clip_step,
    first_step,
)
from geoflow.solvers.exponential_step import Attempts
from geoflow.solvers.krylov import MAX_VECTORS
from geoflow.solvers.nearing import nearer, unresolved
from geoflow.system.described import Described
from geoflow.system.kinds import as_whole, check_choice

# Of θ's size beside the Krylov vectors.
OTHER_VECTORS = 13

SAFETY, SHRINK, GROW = 0.9, 0.2, 3.0
# While none has been as long as its error allows, a step may also grow up to this part of ‖θ‖ at
# once: longer ones failed to come back to the level set. An error below the least says no more.
SHORT, LEAST_ERROR = 3e-3, 1e-12

# Far from the level set Newton only divides the residual by four: a shorter step is cheaper.
AFTER_FAILURE = 0.3

# A step off the slow manifold raises the tangent velocity, where θ is within the tolerance still:
# by how much it may, from no less than this part of ‖∇R‖, and the step after that.
VELOCITY_GROWTH, VELOCITY_FLOOR, AFTER_GROWTH = 1.3, 0.05, 0.6


class Exponential(Described):
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
        max_vectors = as_whole(max_vectors, "max_vectors")
        if max_vectors < 2:
            raise InputError(f"max_vectors={max_vectors!r}; use a whole number from 2 on")
        if basis is not None:
            check_choice(basis, DTYPES, "basis")
        self.max_vectors, self.basis = max_vectors, basis
        # The Krylov space; the normal, the predictor's state, the correction, what is owed, and
        # temporaries.
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
        check_descent(self, state)
        step = first_step(state, tolerance.scale(state.theta))
        return {"step_size": step, "radius": 0.0, "starting": True}

    def taken_up(self, carry: Carry, theta: Tensor) -> Carry:
        """A carry out of a checkpoint, with what is owed where θ is.

        Raises
        ------
        ArchiveError
            Names the first entry that cannot have been carried.
        """
        check_numbers(carry, "step_size", least=math.ulp(0.0))
        # Archives of earlier versions have no radius, and nothing owed.
        check_numbers(carry, "radius", "starting", least=-math.inf, optional=True)
        if "owed" not in carry:
            return carry
        owed = check_tensor(carry, "owed", (theta.numel(),), theta.dtype)
        return {**carry, "owed": owed.to(theta.device)}

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
        # Of earlier versions there is no radius, and nothing owed.
        radius = float(carry.get("radius", 0.0))
        owed = carry.get("owed")
        assert owed is None or isinstance(owed, Tensor), "owed is a tensor"
        basis = DTYPES.get(self.basis or "")

        def attempts_from(state: FlowState) -> Attempts:
            return Attempts(flow, state, tolerance, radius, self.max_vectors, basis, owed)

        attempts = attempts_from(state)
        floor = VELOCITY_FLOOR * norm(state.regularizer_gradient)
        starting = bool(carry.get("starting", False))
        n_rejected = n_newton = 0
        held_up = ""
        while True:
            step = attempts.resolve(step)
            try:
                end, error = attempts.attempt(step)
                most = GROW
                if starting:
                    most = max(GROW, SHORT * norm(state.theta) / (step * state.tangent_norm))
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
            check_step(step, state, held_up if held_up and cause == TOO_INACCURATE else cause)
            # A step comes back to the level set from where it began, however short it is: where
            # that is as far as the step is long, velocities at its ends differ as in a long one.
            length = step * state.tangent_norm
            near, iterations = nearer(flow, state, length)
            n_newton += iterations
            if near is not state:
                n_newton += attempts.n_newton
                state, attempts = near, attempts_from(near)
            held_up = held_up or unresolved(flow, state, length)
        following = step * (min(factor, 1.0) if n_rejected else factor)
        if step == asked < wanted:
            # A step cut short by max_time says little about how long a step could be.
            following = max(following, wanted)
        return StepResult(
            state=end,
            carry={
                "step_size": following,
                "radius": attempts.radius,
                "owed": attempts.owes(step, end),
                "starting": starting and not n_rejected and factor > GROW,
            },
            time=step,
            error_estimate=error,
            n_rejected=n_rejected,
            n_reprojection=n_newton + attempts.n_newton,
            interpolant=attempts.interpolant(step, end),
        )
