"""A Krylov space of the tangent-space Hessian, and φ-functions of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.flows import FlowState, RegularizingFlow

Vector = NDArray[np.float64]


def phi1(z: Vector) -> Vector:
    """φ₁(z) = (eᶻ − 1)/z, for either sign of z."""
    safe = np.where(z == 0, 1.0, z)
    return np.where(np.abs(z) < 1e-6, 1 + z / 2, np.expm1(z) / safe)


def phi3(z: Vector) -> Vector:
    """φ₃(z) = (eᶻ − 1 − z − z²/2)/z³, for either sign of z."""
    safe = np.where(np.abs(z) < 0.05, 1.0, z)
    closed = (np.expm1(z) - z - z * z / 2) / safe**3
    series = 1 / 6 + z / 24 + z**2 / 120 + z**3 / 720 + z**4 / 5040 + z**5 / 40320
    return np.where(np.abs(z) < 0.05, series, closed)


class TangentHessian:
    """A = Π(∇²R + λ∇²L)Π at one state, applied by differences of gradients.

    A difference costs one gradient where the exact product, forward over reverse, counts two.
    Its error in float64, below 10⁻⁶ of the spectral radius, is far below what a Krylov
    approximation of φ is asked for.

    Parameters
    ----------
    flow : RegularizingFlow
        Gives ∇L and ∇²R.
    state : FlowState
        Where A is taken.
    """

    def __init__(self, flow: RegularizingFlow, state: FlowState) -> None:
        self.flow, self.state = flow, state
        self.normal = state.gradient / state.gradient_norm
        size = max(float(torch.linalg.vector_norm(state.theta)), 1.0)
        self.difference = torch.finfo(state.theta.dtype).eps ** (4 / 9) * size

    def tangent(self, v: Tensor) -> Tensor:
        """Π v."""
        return v - self.normal * torch.dot(self.normal, v)

    def __call__(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """A and ∇²L times a unit tangent vector, both of shape (P,): one gradient."""
        state = self.state
        _, ahead = self.flow.problem.value_and_gradient(state.theta + self.difference * unit)
        loss = (ahead - state.gradient) / self.difference
        regularizer = self.flow.regularizer_hvp(state.theta, unit)
        return self.tangent(regularizer + state.multiplier * loss), loss


class KrylovSpace:
    """Orthonormal vectors V, their images AV, VᵀAV, and Vᵀ∇²L V.

    Vectors are orthogonalised against all before them, twice: Lanczos' short recurrence loses
    orthogonality once a Ritz value has converged, which the outliers of A do at once. A copy
    shares what it has in common with the original.
    """

    def __init__(self, operator: TangentHessian) -> None:
        self.operator = operator
        self.vectors: list[Tensor] = []
        self.images: list[Tensor] = []
        self.matrix: Vector = np.zeros((0, 0))
        self.loss_matrix: Vector = np.zeros((0, 0))

    def copy(self) -> KrylovSpace:
        """Return a space that can grow without changing this one."""
        other = KrylovSpace(self.operator)
        other.vectors, other.images = list(self.vectors), list(self.images)
        other.matrix, other.loss_matrix = self.matrix, self.loss_matrix
        return other

    def __len__(self) -> int:
        return len(self.vectors)

    def add(self, direction: Tensor) -> None:
        """Add a direction orthogonal to the space: one gradient."""
        vector = direction / torch.linalg.vector_norm(direction)
        image, loss_image = self.operator(vector)
        self.vectors.append(vector)
        self.images.append(image)
        self.matrix = _bordered(self.matrix, self.coefficients(image))
        self.loss_matrix = _bordered(self.loss_matrix, self.coefficients(loss_image))

    def coefficients(self, v: Tensor) -> Vector:
        """Vᵀ v."""
        return np.array([float(torch.dot(u, v)) for u in self.vectors])

    def rest(self, v: Tensor) -> Tensor:
        """Part of a vector orthogonal to the space."""
        for _ in range(2):
            v = v - self.combine(self.coefficients(v))
        return self.operator.tangent(v)

    def combine(self, coefficients: Vector) -> Tensor:
        """V y."""
        return _combine(self.vectors, coefficients)

    def image(self, coefficients: Vector) -> Tensor:
        """A V y."""
        return _combine(self.images, coefficients)

    def apply(self, function: Callable[[Vector], Vector], coefficients: Vector) -> Vector:
        """Compute f(VᵀAV) y, f taken of the eigenvalues."""
        values, vectors = np.linalg.eigh(self.matrix)
        result: Vector = vectors @ (function(values) * (vectors.T @ coefficients))
        return result


def _bordered(matrix: Vector, column: Vector) -> Vector:
    """Return a symmetric matrix, larger by one, its last column given."""
    grown = np.empty((len(column), len(column)))
    grown[:-1, :-1] = matrix
    grown[-1, :] = grown[:, -1] = column
    return grown


def _combine(vectors: list[Tensor], coefficients: Vector) -> Tensor:
    result = torch.zeros_like(vectors[0])
    for vector, y in zip(vectors, coefficients, strict=True):
        result.add_(vector, alpha=float(y))
    return result
