"""The state of a walk at one point of the level set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from geoflow.manifold.normals import NormalSpace, Numbers
from geoflow.manifold.values import Evaluated, only
from geoflow.problems.scaling import length


@dataclass(frozen=True)
class FlowState:
    """Everything the flow knows at one θ; made by :class:`~geoflow.RegularizingFlow`.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        The point.
    regularizer_gradient, velocity : Tensor, shape (P,)
        ∇R and the flow's velocity −Π∇R.
    values : ndarray, shape (n,)
        L(θ) of each constraint.
    gradients : Tensor, shape (P,), or (n, P) for n > 1 constraints
        ∇L(θ).
    gradient_norms : ndarray, shape (n,)
        ‖∇L‖.
    regularizer : float
        R(θ).
    multipliers : ndarray, shape (n,)
        Lagrange multipliers λ.
    tangent_norm : float
        ‖Π∇R‖.
    angle : float
        Angle between ∇R and ∇L in degrees; 180 at a KKT point of min R s.t. L = c with λ > 0. For
        several constraints, between ∇R and its part in the normal space, that part turned round
        where all λᵢ > 0: 180 at a KKT point of min R s.t. Lᵢ ≤ cᵢ; below 90 where a multiplier is
        not positive, so that R falls to first order by leaving that constraint inwards.
    normals : NormalSpace
        The span of the gradients.
    """

    theta: Tensor
    values: Numbers
    gradients: Tensor
    gradient_norms: Numbers
    regularizer: float
    regularizer_gradient: Tensor
    velocity: Tensor
    multipliers: Numbers
    tangent_norm: float
    angle: float
    normals: NormalSpace = field(repr=False, compare=False)

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.9g}" for value in self.values)
        return (
            f"FlowState({self.theta.numel():,} parameters, L = {values}, "
            f"R = {self.regularizer:.9g}, angle {self.angle:.3f}°)"
        )

    @property
    def loss(self) -> float:
        """L(θ), of a single constraint."""
        return float(only(self.values, "values"))

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (P,), of a single constraint."""
        only(self.values, "gradients")
        return self.gradients

    @property
    def gradient_norm(self) -> float:
        """‖∇L‖, of a single constraint."""
        return float(only(self.gradient_norms, "gradient_norms"))

    @property
    def multiplier(self) -> float:
        """Lagrange multiplier λ, of a single constraint."""
        return float(only(self.multipliers, "multipliers"))

    @property
    def kkt_residual(self) -> float:
        """‖Π∇R‖/‖∇R‖, the sine of the angle: 0 at every KKT point of min R s.t. L = c."""
        # Of an angle near 180 degrees the sine has lost its digits.
        norm = length(self.regularizer_gradient)
        return self.tangent_norm / norm if norm else 0.0

    @property
    def time_scale(self) -> float:
        """2‖θ‖/‖∇R‖, a flow time: 1 where R = ‖θ‖², and as much longer as R is less."""
        tiny = torch.finfo(self.theta.dtype).tiny
        # From θ = 0 a walk could not start in no time; a pull whose square vanishes says nothing.
        theta = max(float(torch.linalg.vector_norm(self.theta)), tiny**0.25)
        pull = max(float(torch.linalg.vector_norm(self.regularizer_gradient)), tiny**0.5)
        return 2 * theta / pull

    @property
    def flat(self) -> Tensor:
        """θ: the state is nothing else."""
        return self.theta

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """θ by its name."""
        return {"theta": self.theta}

    @property
    def evaluated(self) -> Evaluated:
        """L and ∇L, as :meth:`geoflow.LevelSet.project` takes them."""
        return (
            self.loss if len(self.values) == 1 else torch.from_numpy(self.values)
        ), self.gradients
