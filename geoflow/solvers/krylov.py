"""A Krylov space of the tangent-space Hessian, and φ-functions of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.manifold.linearization import TangentHessian

Vector = NDArray[np.float64]

FIRST_ROWS = 32
CANCELLED = 0.1


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
    """Orthonormal vectors V, their images AV, VᵀAV, and Vᵀ∇²L V.

    Vectors are orthogonalised against all before them: Lanczos' short recurrence loses
    orthogonality once a Ritz value has converged, which the outliers of A do at once. For large P
    reading V is what that costs, so it is read as seldom as can be.

    Attributes
    ----------
    matrix, loss_matrix : ndarray, shape (m, m)
        VᵀAV and Vᵀ∇²L V.
    """

    def __init__(self, operator: TangentHessian) -> None:
        self.operator = operator
        # Rows of one array, which grows by doubling: a product with all of V is then one call.
        shape = (FIRST_ROWS, operator.state.theta.numel())
        self._vectors = operator.state.theta.new_empty(shape)
        self._images = torch.empty_like(self._vectors)
        self.matrix: Vector = np.zeros((0, 0))
        self.loss_matrix: Vector = np.zeros((0, 0))

    def __len__(self) -> int:
        return len(self.matrix)

    def add(self, direction: Tensor) -> None:
        """Add a direction orthogonal to the space: one gradient."""
        vector = direction / torch.linalg.vector_norm(direction)
        image, loss_image = self.operator(vector)
        n = len(self)
        if n == len(self._vectors):
            self._vectors = torch.cat([self._vectors, torch.empty_like(self._vectors)])
            self._images = torch.cat([self._images, torch.empty_like(self._images)])
        self._vectors[n], self._images[n] = vector, image
        basis = self._vectors[: n + 1]
        self.matrix = _bordered(self.matrix, _numpy(basis @ image))
        self.loss_matrix = _bordered(self.loss_matrix, _numpy(basis @ loss_image))

    def truncate(self, n: int) -> None:
        """Go back to the first ``n`` vectors."""
        self.matrix, self.loss_matrix = self.matrix[:n, :n], self.loss_matrix[:n, :n]

    @property
    def vectors(self) -> Tensor:
        """V, the vectors as rows, shape (m, P)."""
        return self._vectors[: len(self)]

    @property
    def images(self) -> Tensor:
        """AV, the images as rows, shape (m, P)."""
        return self._images[: len(self)]

    def coefficients(self, v: Tensor) -> Vector:
        """Vᵀ v."""
        return _numpy(self.vectors @ v)

    def following(self) -> Tensor:
        """Part of the last image orthogonal to the space: the next Krylov vector, not yet unit."""
        return self._orthogonal(self.images[-1], self.matrix[:, -1])

    def rest(self, v: Tensor) -> Tensor:
        """Part of a vector orthogonal to the space."""
        return self._orthogonal(v, self.coefficients(v))

    def _orthogonal(self, v: Tensor, coefficients: Vector) -> Tensor:
        rest = v - self.combine(coefficients)
        # Once more where much has cancelled: what is left has its digits from rounding.
        if torch.linalg.vector_norm(rest) < CANCELLED * torch.linalg.vector_norm(v):
            rest = rest - self.combine(self.coefficients(rest))
        return self.operator.tangent(rest)

    def combine(self, coefficients: Vector) -> Tensor:
        """V y."""
        return self._row(coefficients) @ self.vectors

    def image(self, coefficients: Vector) -> Tensor:
        """A V y."""
        return self._row(coefficients) @ self.images

    def _row(self, coefficients: Vector) -> Tensor:
        return torch.from_numpy(coefficients).to(self._vectors)

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


def _numpy(v: Tensor) -> Vector:
    return v.to("cpu", torch.float64).numpy()
