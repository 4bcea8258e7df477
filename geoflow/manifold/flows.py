"""Vector fields on the level set, and the state of a walk at one point of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, grad_and_value, vjp

from geoflow.errors import InputError
from geoflow.manifold.level_set import MAX_ITERATIONS, LevelSet, Projection


@dataclass(frozen=True)
class FlowState:
    """Everything the flow knows at one θ; made by :class:`RegularizingFlow`.

    Attributes
    ----------
    theta, gradient, regularizer_gradient, velocity : Tensor, shape (P,)
        θ, ∇L, ∇R and the flow's velocity −Π∇R.
    loss, regularizer : float
        L(θ) and R(θ).
    multiplier : float
        Lagrange multiplier λ.
    gradient_norm, tangent_norm : float
        ‖∇L‖ and ‖Π∇R‖.
    angle : float
        Angle between ∇R and ∇L in degrees; 180 at a KKT point of min R s.t. L = c.
    """

    theta: Tensor
    loss: float
    gradient: Tensor
    regularizer: float
    regularizer_gradient: Tensor
    velocity: Tensor
    multiplier: float
    gradient_norm: float
    tangent_norm: float
    angle: float


class RegularizingFlow:
    """dθ/dt = −(I − g gᵀ/(g·g)) ∇R(θ): down R, along the level set of L.

    Parameters
    ----------
    level_set : LevelSet
        M, with its problem.
    regularizer : callable
        R: Tensor (P,) → scalar Tensor, differentiable by ``torch.func``.

    Raises
    ------
    InputError
        R is not a finite scalar at ``theta0``.
    """

    def __init__(self, level_set: LevelSet, regularizer: Callable[[Tensor], Tensor]) -> None:
        self.level_set = level_set
        self.problem = level_set.problem
        self.regularizer = regularizer
        value = regularizer(self.problem.theta0)
        if value.shape != () or not torch.isfinite(value):
            raise InputError(
                f"regularizer gave {value.tolist()} at theta0; it must return a finite scalar"
            )

    @property
    def regularizer_name(self) -> str:
        """Name of R in archives."""
        return getattr(self.regularizer, "__name__", type(self.regularizer).__name__)

    def state(self, theta: Tensor, loss: Tensor | float, gradient: Tensor) -> FlowState:
        """Complete L and ∇L at θ to a state; costs R and ∇R, no evaluation of L."""
        r_gradient, r_value = grad_and_value(self.regularizer)(theta)
        r_gradient = r_gradient.detach()
        gg = torch.dot(gradient, gradient)
        rg = torch.dot(r_gradient, gradient)
        velocity = gradient * (rg / gg) - r_gradient
        norm = math.sqrt(float(gg))
        tangent_norm = float(torch.linalg.vector_norm(velocity))
        normal = float(rg) / norm
        return FlowState(
            theta=theta,
            loss=float(loss),
            gradient=gradient,
            regularizer=float(r_value),
            regularizer_gradient=r_gradient,
            velocity=velocity,
            multiplier=-normal / norm,
            gradient_norm=norm,
            tangent_norm=tangent_norm,
            # atan2, not arccos: near 180° float32 resolves an arccos to 0.02° only.
            angle=math.degrees(math.atan2(tangent_norm, normal)),
        )

    def evaluate(self, theta: Tensor) -> FlowState:
        """State at θ as it is, on the level set or not: one gradient."""
        return self.state(theta, *self.problem.value_and_gradient(theta))

    def project(
        self,
        theta: Tensor,
        *,
        evaluated: tuple[Tensor | float, Tensor] | None = None,
        max_displacement: float = math.inf,
        max_iterations: int = MAX_ITERATIONS,
        rtol: float | None = None,
    ) -> tuple[FlowState, Projection]:
        """State at the re-projection of θ; see :meth:`geoflow.LevelSet.project`."""
        projection = self.level_set.project(
            theta,
            evaluated=evaluated,
            max_displacement=max_displacement,
            max_iterations=max_iterations,
            rtol=rtol,
        )
        return self.state(projection.theta, projection.loss, projection.gradient), projection

    def regularizer_hessian(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        """∇²R(θ), as a function of a vector (P,) that returns its product (P,).

        Reverse over reverse, ∇²R being symmetric: ∇R is evaluated once for all products. Costs no
        evaluation of L.
        """
        product = vjp(grad(self.regularizer), theta)[1]
        return lambda v: product(v)[0].detach()
