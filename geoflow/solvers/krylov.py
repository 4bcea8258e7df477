"""A Krylov space of the tangent-space Hessian, and φ-functions of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import StepSizeError
from geoflow.manifold.linearization import TangentHessian

Vector = NDArray[np.float64]

MAX_VECTORS = 40
FIRST_ROWS = MAX_VECTORS + 1
CANCELLED, INVARIANT = 0.1, 1e-13


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


class KrylovSpace:
    """Orthonormal vectors V from Lanczos' process on A, and VᵀAV.

    The image of one vector gives the next, so that the last of the m + 1 vectors is known before
    its own image is. In VᵀAV its row is known but for the diagonal entry, for which the largest
    curvature seen stands in: too small a one would let a stiff direction grow, and one too large
    only leaves the direction to the correction.

    Vectors are orthogonalised against all before them: the short recurrence loses orthogonality
    once a Ritz value has converged, which the outliers of A do at once. For large P reading V is
    what that costs, so it is read as seldom as can be.

    Parameters
    ----------
    operator : TangentHessian
        A.
    start : Tensor, shape (P,)
        First direction, tangent and not zero; its image is evaluated at once, one gradient.
    radius : float
        Curvature to expect: that of the step before, or zero.

    Attributes
    ----------
    matrix, loss_matrix : ndarray, shape (m + 1, m + 1)
        VᵀAV and Vᵀ∇²L V.
    """

    def __init__(self, operator: TangentHessian, start: Tensor, radius: float = 0.0) -> None:
        self.operator, self.radius = operator, radius
        # Rows of one array, so that a product with all of V is one call. Room for all is asked for
        # at once, and a CPU takes it as it is written: to grow by copying would hold V twice.
        self._vectors = start.new_empty((FIRST_ROWS, start.numel()))
        self._vectors[0] = start / torch.linalg.vector_norm(start)
        self.matrix: Vector = np.zeros((1, 1))
        self.loss_matrix: Vector = np.zeros((1, 1))
        self.add()

    def __len__(self) -> int:
        """Vectors whose images have been evaluated, m."""
        return len(self.matrix) - 1

    @property
    def vectors(self) -> Tensor:
        """V, the vectors as rows, shape (m + 1, P)."""
        return self._vectors[: len(self) + 1]

    def add(self) -> None:
        """Evaluate the last vector's image, which gives the next vector: one gradient."""
        n = len(self) + 1
        image, loss_image = self._images(self._vectors[n - 1])
        column, loss_column = self.column(n, image), self.column(n, loss_image)
        rest = self._orthogonal(image, column)
        beta = float(torch.linalg.vector_norm(rest))
        if beta <= INVARIANT * float(np.linalg.norm(column)):
            beta = 0.0
        if n == len(self._vectors):
            self._vectors = torch.cat([self._vectors, torch.empty_like(self._vectors)])
        # Where the space is invariant, zero stands for a vector.
        following = torch.mul(rest, 1 / beta if beta else 0.0, out=self._vectors[n])
        self.radius = max(self.radius, float(column[-1]), beta)
        guess = np.zeros(n + 1)
        guess[-2:] = beta, self.radius
        self.matrix = bordered(bordered(self.matrix[:-1, :-1], column), guess)
        # Of the loss alone, coupled to the vectors before the last by ∇²R only.
        guess = np.zeros(n + 1)
        guess[-2:] = float(torch.dot(following, loss_image)), loss_column[-1]
        self.loss_matrix = bordered(bordered(self.loss_matrix[:-1, :-1], loss_column), guess)

    def column(self, n: int, v: Tensor) -> Vector:
        """First ``n`` coefficients of Vᵀ v."""
        return _numpy(self._vectors[:n] @ v)

    def combine(self, coefficients: Vector) -> Tensor:
        """V y, of as many vectors as there are coefficients."""
        vectors = self._vectors[: len(coefficients)]
        return torch.from_numpy(coefficients).to(vectors) @ vectors

    def split(self, v: Tensor) -> tuple[Vector, Tensor]:
        """Coefficients of v in the m evaluated vectors, and what is orthogonal to them."""
        coefficients = self.column(len(self), v)
        return coefficients, self._orthogonal(v, coefficients)

    def beside(self, unit: Tensor) -> tuple[Vector, Vector]:
        """VᵀAV and Vᵀ∇²L V of the m evaluated vectors and a unit one beside them: one gradient."""
        blocks = self.matrix[:-1, :-1], self.loss_matrix[:-1, :-1]
        matrix, loss_matrix = (
            bordered(block, np.append(self.column(len(self), image), float(torch.dot(unit, image))))
            for block, image in zip(blocks, self._images(unit), strict=True)
        )
        return matrix, loss_matrix

    def _images(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.operator.state.values) == 1:
            image, loss_image = self.operator(unit)
        else:
            # The quadrics of several constraints are not one matrix; nothing is made of them.
            image = self.operator.image(unit)
            loss_image = torch.zeros_like(image)
        if not torch.isfinite(image).all():
            raise StepSizeError("a Hessian product is not finite; choose another level")
        return image, loss_image

    def _orthogonal(self, v: Tensor, coefficients: Vector) -> Tensor:
        rest = v - self.combine(coefficients)
        # Once more where much has cancelled: what is left has its digits from rounding.
        if torch.linalg.vector_norm(rest) < CANCELLED * torch.linalg.vector_norm(v):
            rest = rest - self.combine(self.column(len(coefficients), rest))
        return self.operator.tangent(rest)


def apply(function: Callable[[Vector], Vector], matrix: Vector, coefficients: Vector) -> Vector:
    """Compute f(T) y of a symmetric T, f taken of the eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    with np.errstate(over="ignore", invalid="ignore"):
        result: Vector = vectors @ (function(values) * (vectors.T @ coefficients))
    return result


def bordered(matrix: Vector, column: Vector) -> Vector:
    """Return a symmetric matrix, larger by one, its last column given."""
    grown = np.empty((len(column), len(column)))
    grown[:-1, :-1] = matrix
    grown[-1, :] = grown[:, -1] = column
    return grown


def _numpy(v: Tensor) -> Vector:
    return v.to("cpu", torch.float64).numpy()
