"""The normal space of a level set at one point, through the Gram factor of the gradients."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf, dtrtri
from torch import Tensor

from geoflow.errors import CriticalPointError
from geoflow.problems.scaling import in_range, scale_of

Numbers = NDArray[np.float64]

# Below so many units of rounding the smallest eigenvalue of the Gram matrix of unit normals is
# rounding alone. The sines between each and those before it may be large where it is that small.
UNITS_OF_ROUNDING = 100

# Of N at a time a basis is made of.
BASIS_COLUMNS = 2**16

NO_NORMAL = (
    "the loss gradient is zero: the level set is not a manifold there; start elsewhere or choose "
    "another level"
)


class Split(NamedTuple):
    """A vector v against the normal space.

    Attributes
    ----------
    part : Tensor, shape (P,)
        The part of v in the space, −Σ λᵢ gᵢ.
    multipliers : ndarray, shape (n,)
        λ: v + Σ λᵢ gᵢ is tangent.
    component : float
        Length of ``part``, negative where all λᵢ are positive: where v points down all constraints.
    """

    part: Tensor
    multipliers: Numbers
    component: float


class NormalSpace(Protocol):
    """The span of n constraints' gradients at one point."""

    @property
    def norms(self) -> Numbers:
        """Norms of the gradients, shape (n,)."""

    def split(self, v: Tensor) -> Split:
        """Part of v, shape (P,), in the space."""

    def multipliers(self, v: Tensor) -> Numbers:
        """λ, shape (n,), of that split."""

    def step(self, residuals: Numbers) -> Tensor:
        """Shortest step, shape (P,), along which the constraints rise by ``residuals`` at first."""

    def distance(self, residuals: Numbers) -> float:
        """Length of that step."""

    def write_basis(self, out: Tensor) -> None:
        """Write an orthonormal basis of the space into ``out``, shape (n, P), of any dtype."""

    def along_basis(self, residuals: Numbers) -> Numbers:
        """What that step has of each vector of the basis, shape (n,)."""


class Normal:
    """The normal of a single constraint: the Gram matrix is the number g·g.

    Parameters
    ----------
    gradient : Tensor, shape (P,)
        g.
    """

    def __init__(self, gradient: Tensor) -> None:
        self.gradient = gradient

    @cached_property
    def square(self) -> Tensor:
        """g·g, a scalar tensor."""
        return torch.dot(self.gradient, self.gradient)

    @cached_property
    def norms(self) -> Numbers:
        """‖g‖, shape (1,)."""
        return np.array([math.sqrt(float(self.square))])

    def split(self, v: Tensor) -> Split:
        """Part g (g·v)/(g·g), multiplier −(v·g)/(g·g).

        Raises
        ------
        CriticalPointError
            g is zero.
        """
        if not self.norms[0]:
            raise CriticalPointError(NO_NORMAL)
        dot = torch.dot(v, self.gradient)
        component = float(dot) / float(self.norms[0])
        part = self.gradient * (dot / self.square)
        return Split(part, -component / self.norms, component)

    def multipliers(self, v: Tensor) -> Numbers:
        """Multiplier −(v·g)/(g·g), of g ≠ 0."""
        return -float(torch.dot(v, self.gradient)) / self.norms / self.norms

    def step(self, residuals: Numbers) -> Tensor:
        """Newton's step, g r/(g·g).

        Raises
        ------
        CriticalPointError
            g is zero.
        """
        return self.gradient * (float(residuals[0]) / self._norm() ** 2)

    def distance(self, residuals: Numbers) -> float:
        """|r|/‖g‖.

        Raises
        ------
        CriticalPointError
            g is zero.
        """
        return abs(float(residuals[0])) / self._norm()

    def write_basis(self, out: Tensor) -> None:
        """Write g/‖g‖ into ``out``, shape (1, P)."""
        norms = torch.from_numpy(np.array(self.norms)).to(self.gradient)
        torch.div(self.gradient[None], norms[:, None], out=out)

    def along_basis(self, residuals: Numbers) -> Numbers:
        """r/‖g‖, shape (1,)."""
        return residuals / self.norms

    def _norm(self) -> float:
        norm = float(torch.linalg.vector_norm(self.gradient))
        if not norm:
            raise CriticalPointError(NO_NORMAL)
        return norm


class Normals:
    """The normals of n ≥ 2 constraints: G = NNᵀ by its Cholesky factor, scaled to unit normals.

    Parameters
    ----------
    gradients : Tensor, shape (n, P)
        N.
    gram : ndarray, shape (n, n)
        G, rounded to N's dtype.

    Raises
    ------
    CriticalPointError
        The gradients are linearly dependent to rounding, so the constraints are no manifold here.
    """

    def __init__(self, gradients: Tensor, gram: Numbers) -> None:
        self.gradients = gradients
        self.norms: Numbers = np.sqrt(gram.diagonal())
        eps = torch.finfo(gradients.dtype).eps
        smallest = UNITS_OF_ROUNDING * eps
        with np.errstate(divide="ignore", invalid="ignore"):
            scaled = gram / np.outer(self.norms, self.norms)
        try:
            self.factor: NDArray[np.floating] = np.linalg.cholesky(scaled)
            independent = _exceeds(scaled, self.factor, smallest)
        except np.linalg.LinAlgError:
            independent = False
        if not independent:
            raise CriticalPointError(
                f"the gradients of the {len(gram)} constraints are linearly dependent to rounding"
                f"{_rank(scaled, smallest)}: the level set is not a manifold there; start "
                "elsewhere, choose other levels, or leave one out"
            )

    def split(self, v: Tensor) -> Split:
        """Part Nᵀ G⁻¹ N v, multipliers −G⁻¹ N v."""
        multipliers = self.multipliers(v)
        part = self._combine(-multipliers)
        length = float(torch.linalg.vector_norm(part))
        return Split(part, multipliers, -length if (multipliers > 0).all() else length)

    def multipliers(self, v: Tensor) -> Numbers:
        """Multipliers −G⁻¹ N v."""
        found = self._solve(self._along(v))
        # The Gram matrix has the square of the normals' condition: what it leaves is taken once
        # more.
        return -(found + self._solve(self._along(v - self._combine(found))))

    def step(self, residuals: Numbers) -> Tensor:
        """Newton's step, Nᵀ G⁻¹ r."""
        return self._combine(self._solve(residuals))

    def distance(self, residuals: Numbers) -> float:
        """√(rᵀ G⁻¹ r)."""
        return float(np.linalg.norm(self._half(residuals)))

    def write_basis(self, out: Tensor) -> None:
        """Write F⁻¹N into ``out``, with F the Cholesky factor of G = FFᵀ: orthonormal rows.

        Made in the dtype of N: of normals that are nearly dependent each alone, rounded to a
        narrower one, tells next to nothing.
        """
        inverse = self._half(np.diag(np.ones(len(self.norms))))
        weights = torch.from_numpy(inverse).to(self.gradients)
        # Some columns at a time: all of them would be another N.
        pairs = (t.split(BASIS_COLUMNS, 1) for t in (out, self.gradients))
        for target, columns in zip(*pairs, strict=True):
            target.copy_(weights @ columns)

    def along_basis(self, residuals: Numbers) -> Numbers:
        """F⁻¹r, shape (n,)."""
        return self._half(residuals)

    def _solve(self, right: Numbers) -> Numbers:
        half = self._half(right)
        found: Numbers = solve_triangular(self.factor, half, trans=1, lower=True) / self.norms
        return found

    def _half(self, right: Numbers) -> Numbers:
        scaled = (right.T / self.norms).T
        half: Numbers = solve_triangular(self.factor, scaled, lower=True, check_finite=False)
        return half

    @cached_property
    def _rows(self) -> NDArray[np.floating] | None:
        return _rows(self.gradients)

    def _along(self, v: Tensor) -> Numbers:
        """N v."""
        if self._rows is None:
            return _numpy(self.gradients @ v)
        return (self._rows @ v.numpy()).astype(np.float64)

    def _combine(self, coefficients: Numbers) -> Tensor:
        """Nᵀ times the coefficients."""
        if self._rows is None:
            return torch.from_numpy(coefficients).to(self.gradients) @ self.gradients
        return torch.from_numpy(coefficients.astype(self._rows.dtype) @ self._rows)


class Scaled:
    """The normal space of gradients whose own squares leave their dtype's range.

    Parameters
    ----------
    scales : ndarray, shape (n,)
        Powers of two.
    space : NormalSpace
        That of the gradients times these.
    """

    def __init__(self, scales: Numbers, space: NormalSpace) -> None:
        self.scales = scales
        self.space = space

    @property
    def norms(self) -> Numbers:
        """Norms of the gradients, shape (n,)."""
        return self.space.norms / self.scales

    def split(self, v: Tensor) -> Split:
        """Part of v in the space, which scales have no share in; multipliers of the gradients."""
        found = self.space.split(v)
        return found._replace(multipliers=found.multipliers * self.scales)

    def multipliers(self, v: Tensor) -> Numbers:
        """λ, shape (n,), of that split."""
        return self.space.multipliers(v) * self.scales

    def step(self, residuals: Numbers) -> Tensor:
        """Newton's step."""
        return self.space.step(residuals * self.scales)

    def distance(self, residuals: Numbers) -> float:
        """Its length."""
        return self.space.distance(residuals * self.scales)

    def write_basis(self, out: Tensor) -> None:
        """Write the basis, which scales have no share in."""
        self.space.write_basis(out)

    def along_basis(self, residuals: Numbers) -> Numbers:
        """What Newton's step has of it."""
        return self.space.along_basis(residuals * self.scales)


def normal_space(gradients: Tensor) -> NormalSpace:
    """Return the normal space of one gradient (P,) or of several, (n, P).

    Raises
    ------
    CriticalPointError
        Several are linearly dependent to rounding.
    """
    dtype = gradients.dtype
    if gradients.ndim == 1:
        normal = Normal(gradients)
        if in_range(float(normal.norms[0]), dtype):
            return normal
        scales = np.array([scale_of(gradients)])
        return normal if scales[0] == 1 else Scaled(scales, Normal(gradients * scales[0]))
    gram = _gram(gradients)
    if all(in_range(norm, dtype) for norm in np.sqrt(gram.diagonal())):
        return Normals(gradients, gram)
    scales = np.array([scale_of(row) for row in gradients])
    scaled = gradients * torch.from_numpy(scales).to(gradients)[:, None]
    return Scaled(scales, Normals(scaled, _gram(scaled)))


class Tangent(NamedTuple):
    """What of a vector v is along the level set, and what is not.

    Attributes
    ----------
    normal : Split
        v against the normal space.
    back : Tensor, shape (P,)
        −Πv.
    length : float
        ‖Πv‖.
    """

    normal: Split
    back: Tensor
    length: float


def tangent(v: Tensor, space: NormalSpace) -> Tangent:
    """Divide v, shape (P,), between the level set and its normals, of whatever scale it is."""
    found = _tangent(v, space)
    # The length of v, about; that itself would be another pass over it.
    if in_range(max(abs(found.normal.component), found.length), v.dtype):
        return found
    scale = scale_of(v)
    if scale == 1:
        return found
    (part, multipliers, component), back, norm = _tangent(v * scale, space)
    normal = Split(part / scale, multipliers / scale, component / scale)
    return Tangent(normal, back / scale, norm / scale)


def _tangent(v: Tensor, space: NormalSpace) -> Tangent:
    normal = space.split(v)
    back = normal.part - v
    return Tangent(normal, back, float(torch.linalg.vector_norm(back)))


# On a CPU by NumPy, which reads N once for a product with a vector, and knows that the Gram matrix
# is symmetric: twice as fast as torch here.


def _rows(gradients: Tensor) -> NDArray[np.floating] | None:
    return gradients.numpy() if gradients.device.type == "cpu" else None


def _gram(gradients: Tensor) -> Numbers:
    rows = _rows(gradients)
    if rows is None:
        return _numpy(gradients @ gradients.T)
    with np.errstate(over="ignore"):
        return (rows @ rows.T).astype(np.float64)


def _exceeds(gram: Numbers, factor: NDArray[np.floating], smallest: float) -> bool:
    """Whether all eigenvalues of a matrix, of which this is the Cholesky factor, are above that."""
    inverse = dtrtri(factor, lower=1)[0]
    # By the sum of all 1/λ, which is soon made and most often enough.
    with np.errstate(over="ignore", invalid="ignore"):
        bound = 1 / float((inverse**2).sum())
    return bound > smallest or float(np.linalg.eigvalsh(gram)[0]) > smallest


def _rank(gram: Numbers, smallest: float) -> str:
    """Say how many are independent, and which the others are, by pivoting in Cholesky's method."""
    if not np.isfinite(gram).all():
        return " (one is zero or not finite)"
    rank = int((np.linalg.eigvalsh(gram) > smallest).sum())
    pivots = dpstrf(gram, tol=smallest)[1]
    others = sorted(int(i) - 1 for i in pivots[rank:])
    shown = ", ".join(map(str, others[:5])) + ", …" * (len(others) > 5)
    return f" (rank {rank}: beside the others nothing is added by constraint {shown})"


def _numpy(tensor: Tensor) -> Numbers:
    return tensor.to("cpu", torch.float64).numpy()
