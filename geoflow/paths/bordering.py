"""Steps along a branch where A is singular along it, as at a fold: bordering by blocks.

At a fold A is singular along the curve's own tangent t, and sound across it. So a step
d = αn + βw + v is made of the unit normal n, the part w of t in the tangent space, and a rest v
orthogonal to both, where A stays positive definite, and conjugate gradients solve for v. What is
left are two equations for α and β: the part of A d = −Π∇R along w, and how far the step goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.linearization import TangentHessian, across, unit_normal
from geoflow.paths.learned import Learned
from geoflow.paths.tangent_solver import solve

# Each system is solved to this part of its right side.
FORCING = 0.03


class Blocks:
    """H d = b in the space orthogonal to n and w, and what is left of it along w.

    Parameters
    ----------
    direction : Tensor, shape (P,)
        About t.
    right : Tensor, optional
        b, tangent. None: zero, for the tangent of the branch.
    """

    def __init__(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        direction: Tensor,
        memory: Learned,
        right: Tensor | None,
    ) -> None:
        self.normal = unit_normal(state)
        other = across(direction, self.normal[None])
        if float(torch.linalg.vector_norm(other)) < 1e-6:
            # t is the normal: across it A is sound in any case.
            other = _axis_across(self.normal)
        other = across(other, self.normal[None])
        self.other = other / torch.linalg.vector_norm(other)
        operator = TangentHessian(flow, state, torch.stack([self.normal, self.other]))
        self.operator, self.curvature = operator, memory.curvature
        images = [self._image(unit) for unit in (self.normal, self.other)]
        # H n and H w: along w, and orthogonal to both.
        self.along = [float(torch.dot(self.other, image)) for image in images]
        self.images = [operator.tangent(image) for image in images]
        self.solutions = [self._solve(image) for image in self.images]
        self.rest, self.right = torch.zeros_like(state.theta), 0.0
        if right is not None:
            self.rest = self._solve(operator.tangent(right))
            self.right = float(torch.dot(self.other, right))

    def _image(self, unit: Tensor) -> Tensor:
        operator = self.operator
        _, of_loss = operator(unit)
        if bool(torch.isfinite(of_loss).all()):
            self.curvature.add(unit, of_loss)
        curved = operator.regularizer_hessian(unit)
        return torch.add(curved, of_loss, alpha=operator.state.multiplier)

    def _solve(self, right: Tensor) -> Tensor:
        size = float(torch.linalg.vector_norm(right))
        if size == 0:
            return right

        def enough(x: Tensor, left: Tensor) -> bool:
            return float(torch.linalg.vector_norm(left)) <= FORCING * size

        return solve(self.operator, self.curvature, right, shift=0.0, enough=enough).solution

    def _coefficients(self) -> tuple[float, float, float]:
        """Of α and β in the equation along w, and its right side."""
        on_w = self.images[1]
        of_normal = self.along[0] - float(torch.dot(on_w, self.solutions[0]))
        of_other = self.along[1] - float(torch.dot(on_w, self.solutions[1]))
        return of_normal, of_other, self.right - float(torch.dot(on_w, self.rest))

    def _made_of(self, alpha: float, beta: float) -> Tensor:
        of_normal, of_other = self.solutions
        return self.rest + alpha * (self.normal - of_normal) + beta * (self.other - of_other)

    def tangent(self) -> Tensor:
        """Of the branch: what changes Π∇R by nothing, to first order."""
        of_normal, of_other, _ = self._coefficients()
        return self._made_of(of_other, -of_normal)

    def step(self, row: Sequence[float]) -> Tensor:
        """The step with row[0]·α + row[1]·β = row[2].

        Raises
        ------
        ConvergenceError
            The two equations are one.
        """
        of_normal, of_other, right = self._coefficients()
        determinant = of_normal * row[1] - of_other * row[0]
        scale = math.hypot(of_normal, of_other) * math.hypot(row[0], row[1])
        if not abs(determinant) > 1e-12 * scale:
            raise ConvergenceError(
                "the branch has no single tangent here",
                iterations=0,
                residual=math.nan,
                reason="kkt",
            )
        alpha = (right * row[1] - of_other * row[2]) / determinant
        beta = (of_normal * row[2] - right * row[0]) / determinant
        return self._made_of(alpha, beta)


def direction_in(blocks: Blocks, direction: Tensor) -> tuple[float, float]:
    """Components of a direction along n and w."""
    return float(torch.dot(direction, blocks.normal)), float(torch.dot(direction, blocks.other))


def _axis_across(normal: Tensor) -> Tensor:
    """The coordinate axis that is farthest from a direction."""
    axis = torch.zeros_like(normal)
    axis[normal.abs().argmin()] = 1
    return axis
