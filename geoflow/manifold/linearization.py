"""The linear part of a regularising flow on the tangent space of its level set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from geoflow.manifold.flows import FlowState, RegularizingFlow


class TangentHessian:
    """A = Π(∇²R + λ∇²L)Π at one state, applied by differences of gradients.

    A difference costs one gradient where the exact product, forward over reverse, counts two.
    Its error in float64, below 10⁻⁶ of the spectral radius, is far below what a Krylov
    approximation of φ is asked for. With n > 1 constraints λ∇²L stands for Σ λᵢ∇²Lᵢ.

    Parameters
    ----------
    flow : RegularizingFlow
        Gives ∇L and ∇²R.
    state : FlowState
        Where A is taken.
    """

    def __init__(self, flow: RegularizingFlow, state: FlowState) -> None:
        self.flow, self.state = flow, state
        if len(state.values) == 1:
            self.normal = state.gradient / state.gradient_norm
        else:
            # Orthonormal rows: of the wide matrix of gradients, whose normals the state has found
            # to be independent.
            self.normal = torch.linalg.qr(state.gradients.T)[0].T.contiguous()
        self.regularizer_hessian = flow.regularizer_hessian(state.theta, state.regularizer_gradient)
        size = max(float(torch.linalg.vector_norm(state.theta)), 1.0)
        self.difference = torch.finfo(state.theta.dtype).eps ** (4 / 9) * size

    def tangent(self, v: Tensor) -> Tensor:
        """Π v."""
        if self.normal.ndim == 1:
            return torch.sub(v, self.normal, alpha=float(torch.dot(self.normal, v)))
        return v - (self.normal @ v) @ self.normal

    def __call__(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """A times a unit tangent vector, and ∇²L times it: one gradient a constraint.

        Returns
        -------
        Tensor, shape (P,)
        Tensor, shape (P,), or (n, P) for n > 1 constraints
        """
        state = self.state
        _, ahead = self.flow.problem.value_and_gradient(state.theta + self.difference * unit)
        loss = ahead.sub_(state.gradients).div_(self.difference)
        regularizer = self.regularizer_hessian(unit)
        if loss.ndim == 1:
            return self.tangent(regularizer.add(loss, alpha=state.multiplier)), loss
        return self.tangent(
            regularizer + torch.from_numpy(np.array(state.multipliers)).to(loss) @ loss
        ), loss
