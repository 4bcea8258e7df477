"""A Krylov space of the tangent-space Hessian, and φ-functions of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import StepSizeError
from geoflow.manifold.basis import Basis
from geoflow.manifold.linearization import TangentHessian

Vector = NDArray[np.float64]

MAX_VECTORS = 40
CANCELLED, INVARIANT = 0.1, 1e-13
# Of an image by differences, the part along vectors whose own images have none along it.
ASYMMETRIC = 1e-4


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
    once a Ritz value has converged, which the outliers of A do at once. So does a pass over all of
    them alone, threefold from one to the next; the recurrence and then the pass keeps it to
    rounding. For large P reading V is what that costs, so it is read as seldom as can be.

    Beside a kink of ∇L a difference of gradients may reach over it, and what differences then make
    of A is as large as the jump over the length of the difference, and not symmetric. That is seen
    by the images, and the space begun anew with products, in which A is that of one side.

    Parameters
    ----------
    operator : TangentHessian
        A.
    start : Tensor, shape (P,)
        First direction, tangent and not zero; its image is evaluated at once, one gradient.
    radius : float
        Curvature to expect: that of the step before, or zero.
    dtype : torch.dtype, optional
        In which V is kept. None: that of ``start``.

    Attributes
    ----------
    matrix, loss_matrix : ndarray, shape (m + 1, m + 1)
        VᵀAV and Vᵀ∇²L V.
    """

    def __init__(
        self,
        operator: TangentHessian,
        start: Tensor,
        radius: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.operator, self._expected = operator, radius
        self._dtype = dtype or start.dtype
        self._begin(start / _norm(start))

    def _begin(self, first: Tensor) -> None:
        """A space of one vector, and its image."""
        self.radius = self._expected
        self._basis = Basis(first, self._dtype)
        self._basis.append(first, 1.0)
        self.matrix: Vector = np.zeros((1, 1))
        self.loss_matrix: Vector = np.zeros((1, 1))
        self.add()

    def __len__(self) -> int:
        """Vectors whose images have been evaluated, m."""
        return len(self.matrix) - 1

    @property
    def vectors(self) -> Tensor:
        """V, the vectors as rows, shape (m + 1, P)."""
        return self._basis.rows(len(self) + 1)

    def add(self) -> None:
        """Evaluate the last vector's image, which gives the next vector: one gradient."""
        n = len(self) + 1
        last = self._basis[n - 1]
        image, loss_image = self._images(last)
        # By the recurrence first: the coefficients of the pass over all vectors are small then, and
        # what it leaves is no larger than rounding.
        along, size_of_image = torch.dot(last, image), _norm(image)
        rest = image.addcmul_(along, last, value=-1)
        before = float(self.matrix[-1, -2]) if n > 1 else 0.0
        if before:
            rest.sub_(self._basis[n - 2], alpha=before)
        beside = self._basis.inner(rest, n)
        rest = self._orthogonal(rest, beside)
        column, loss_column, (along, size, beta, coupling) = _numbers(
            beside,
            self._basis.inner(loss_image, n),
            torch.stack([along, size_of_image, _norm(rest), torch.dot(rest, loss_image)]),
        )
        if self.operator.by_differences and abs(column[:-1]).max(initial=0.0) > ASYMMETRIC * size:
            self.operator.by_differences = False
            self._begin(self._basis[0])
            return
        column[:-2] = 0.0
        column[-2:] += [before, along][-n:]
        _check_finite(size)
        if beta <= INVARIANT * float(np.linalg.norm(column)):
            beta = 0.0
        # Where the space is invariant, zero stands for a vector.
        scale = 1 / beta if beta else 0.0
        self._basis.append(rest, scale)
        self.radius = max(self.radius, float(column[-1]), beta)
        guess = np.zeros(n + 1)
        guess[-2:] = beta, self.radius
        self.matrix = bordered(bordered(self.matrix[:-1, :-1], column), guess)
        # Of the loss alone, coupled to the vectors before the last by ∇²R only.
        guess = np.zeros(n + 1)
        guess[-2:] = coupling * scale, loss_column[-1]
        self.loss_matrix = bordered(bordered(self.loss_matrix[:-1, :-1], loss_column), guess)

    def combine(self, coefficients: Vector) -> Tensor:
        """V y, of as many vectors as there are coefficients."""
        like = self.operator.state.theta
        given = torch.from_numpy(coefficients).to(like.device, like.dtype, non_blocking=True)
        return self._basis.combined(given)

    def split(self, v: Tensor) -> tuple[Vector, Tensor, float]:
        """Coefficients of v in the m evaluated vectors, what is orthogonal to them, its norm."""
        projected = self._basis.inner(v, len(self))
        rest = self._orthogonal(v, projected)
        coefficients, (size, left) = _numbers(projected, torch.stack([_norm(v), _norm(rest)]))
        if left < CANCELLED * size:
            rest = self._orthogonal(rest, self._basis.inner(rest, len(self)))
            left = float(_norm(rest))
        if left <= INVARIANT * size:
            # Rounding, which points anywhere; along the normal too.
            return coefficients, rest.zero_(), 0.0
        return coefficients, rest, left

    def coefficients(self, v: Tensor, unit: Tensor) -> Vector:
        """Coefficients of v in the m evaluated vectors and along a unit one beside them."""
        return np.concatenate(_numbers(self._basis.inner(v, len(self)), torch.dot(unit, v)))

    def beside(self, unit: Tensor) -> tuple[Vector, Vector]:
        """VᵀAV and Vᵀ∇²L V of the m evaluated vectors and a unit one beside them: one gradient."""
        images, n = self._images(unit), len(self)
        found = _numbers(
            *(t for i in images for t in (self._basis.inner(i, n), torch.dot(unit, i)))
        )
        _check_finite(*(c for column in found for c in column))
        blocks = self.matrix[:-1, :-1], self.loss_matrix[:-1, :-1]
        matrix, loss_matrix = (
            bordered(block, np.append(*found[2 * i : 2 * i + 2])) for i, block in enumerate(blocks)
        )
        return matrix, loss_matrix

    def _images(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        if len(self.operator.state.values) == 1:
            return self.operator(unit)
        # The quadrics of several constraints are not one matrix; nothing is made of them.
        image = self.operator.image(unit)
        return image, torch.zeros_like(image)

    def _orthogonal(self, v: Tensor, coefficients: Tensor) -> Tensor:
        return self.operator.tangent(v - self._basis.combined(coefficients))


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


def _norm(v: Tensor) -> Tensor:
    return torch.linalg.vector_norm(v)


def _numbers(*found: Tensor) -> list[Vector]:
    """What a device has found, in one transfer: each of them waits for all that it has to do."""
    whole = torch.cat([t.reshape(-1) for t in found]).to("cpu", torch.float64).numpy()
    return np.split(whole, np.cumsum([t.numel() for t in found])[:-1])


def _check_finite(*numbers: float) -> None:
    if not np.isfinite(numbers).all():
        raise StepSizeError("a Hessian product is not finite; choose another level")
