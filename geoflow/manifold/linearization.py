"""The linear part of a regularising flow on the tangent space of its level set."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from geoflow.manifold.apart import Apart
from geoflow.problems import arithmetic
from geoflow.problems.several import weighted_gradient

if TYPE_CHECKING:
    from geoflow.manifold.flow_state import FlowState
    from geoflow.manifold.flows import RegularizingFlow


# Of a step by which gradients are taken apart, over ‖θ‖: along a longer one ∇L bends.
LONGEST_DIFFERENCE = 1e-5


def difference_of(dtype: torch.dtype) -> float:
    """A step over ‖θ‖: the error of the formula, linear in it, is then as small as rounding."""
    return float(torch.finfo(dtype).eps ** (4 / 9))


def by_differences(dtype: torch.dtype) -> bool:
    """Whether a linearization in this dtype takes gradients apart, and asks for no products."""
    return difference_of(dtype) <= LONGEST_DIFFERENCE


def unit_normal(state: FlowState) -> Tensor:
    """∇L/‖∇L‖, shape (P,), of a single constraint."""
    return state.gradient / state.gradient_norm


def across(v: Tensor, normals: Tensor) -> Tensor:
    """The part of v, shape (P,), that is orthogonal to orthonormal rows, shape (m, P)."""
    if len(normals) == 1:
        (normal,) = normals
        return torch.addcmul(v, normal, torch.dot(normal, v), value=-1)
    return v - (normals @ v) @ normals


class TangentHessian:
    """A = Π(∇²R + λ∇²L)Π at one state, applied in float64 by differences of gradients.

    A difference costs one gradient where the exact product counts two. Its error in float64, below
    10⁻⁶ of the spectral radius, is far below what a Krylov approximation of φ is asked for; in
    float32 it is some 10⁻², which holds a walk to steps in which that part of the stiffness does
    nothing, so products there are the problem's own. With n > 1 constraints λ∇²L stands for
    Σ λᵢ∇²Lᵢ.

    Parameters
    ----------
    flow : RegularizingFlow
        Gives ∇L and ∇²R.
    state : FlowState
        Where A is taken.
    normals : Tensor, shape (m, P), optional
        Orthonormal: Π takes the parts along these rows away. None: along the unit normal, or
        normals, of the level set.

    Attributes
    ----------
    by_differences : bool
        Whether gradients are taken apart. Where A turns out not to be symmetric by them, as beside
        a kink of ∇L that a difference reaches over, set it to False: products follow.
    """

    def __init__(
        self, flow: RegularizingFlow, state: FlowState, normals: Tensor | None = None
    ) -> None:
        self.flow = flow
        self.state = state
        self.single: bool = len(state.values) == 1
        if self.single:
            self.normal: Tensor = unit_normal(state)
            normals = self.normal[None] if normals is None else normals
        # Those of several constraints are not orthonormal: their space projects by itself.
        self.normals = normals
        self.regularizer_hessian: Callable[[Tensor], Tensor] = flow.regularizer_hessian(
            state.theta, state.regularizer_gradient
        )
        self.apart = Apart(state.theta, difference_of(state.theta.dtype))
        self.by_differences: bool = by_differences(state.theta.dtype)

    @arithmetic.without_autocast()
    def tangent(self, v: Tensor) -> Tensor:
        """Π v."""
        if self.normals is None:
            return v - self.state.normals.split(v).part
        return across(v, self.normals)

    @arithmetic.without_autocast()
    def image(self, unit: Tensor) -> Tensor:
        """A times a unit tangent vector, shape (P,): one gradient a constraint, or one product.

        Of several constraints Σ λᵢ∇²Lᵢ is not taken apart, which problems that evaluate their
        losses together do in one backward pass.
        """
        state, problem = self.state, self.flow.problem
        if self.single or not self.by_differences:
            return self(unit)[0]

        def gradient(theta: Tensor) -> Tensor:
            return weighted_gradient(problem, theta, state.multipliers)

        curved = self.apart(gradient, self.pull, unit)
        return self.tangent(curved.add_(self.regularizer_hessian(unit)))

    @cached_property
    def pull(self) -> Tensor:
        """Σ λᵢ∇Lᵢ at the state, evaluated as :meth:`image` does it beside it."""
        multipliers = torch.from_numpy(np.array(self.state.multipliers))
        return multipliers.to(self.state.gradients) @ self.state.gradients

    @arithmetic.without_autocast()
    def __call__(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """A times a unit tangent vector, and ∇²L times it: one gradient a constraint, or product.

        Returns
        -------
        Tensor, shape (P,)
        Tensor, shape (P,), or (n, P) for n > 1 constraints
        """
        state, problem = self.state, self.flow.problem
        if self.by_differences:
            loss = self.apart(lambda at: problem.value_and_gradient(at)[1], state.gradients, unit)
        else:
            loss = problem.hvp(state.theta, unit)
        regularizer = self.regularizer_hessian(unit)
        if loss.ndim == 1:
            return self.tangent(regularizer.add(loss, alpha=state.multiplier)), loss
        return self.tangent(
            regularizer + torch.from_numpy(np.array(state.multipliers)).to(loss) @ loss
        ), loss
