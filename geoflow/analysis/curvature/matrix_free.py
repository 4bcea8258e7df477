"""Extreme eigenvalues, spectral density and trace of an operator, from its products alone."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from geoflow.analysis.curvature.costs import (
    before_writing,
    is_small,
    is_written_out,
    krylov_size,
    to_rank,
)
from geoflow.analysis.curvature.density import SpectralDensity, widening
from geoflow.analysis.curvature.lanczos import arpack, largest_beside, tridiagonal
from geoflow.analysis.curvature.operators import Curvature
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.problems import arithmetic
from geoflow.problems.scaling import length, power_of_two
from geoflow.system import kinds
from geoflow.system.limits import OPERATIONS, check_work
from geoflow.system.memory import CPU, check_memory

Floats = NDArray[np.float64]

ENDS = ("largest", "smallest")
# Two for each part of Hutch++.
LEAST_PRODUCTS = 6


class Estimate(NamedTuple):
    """A number and the standard error of it."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at one end of a spectrum.

    Attributes
    ----------
    values : array of float64, shape (k,)
        From the end inwards, each in its rank, a multiple one as often as its multiplicity: NaN
        from the first on that did not converge, or before which another was seen to lie.
    residuals : array of float64, shape (k,)
        ‖Ax − μx‖ of each: an eigenvalue of A lies within this distance of μ.
    vectors : array of float64, shape (n, k)
        Unit eigenvectors, in the operator's coordinates.
    """

    values: Floats
    residuals: Floats
    vectors: Floats


@arithmetic.without_autocast()
def extreme_eigenvalues(
    operator: Curvature,
    k: int = 5,
    *,
    which: str = "largest",
    tol: float = 1e-10,
    max_products: int = 2000,
    seed: int = 0,
) -> Eigenpairs:
    """The k largest or smallest eigenvalues (by value, not by modulus), with their eigenvectors.

    ARPACK's implicitly restarted Lanczos iteration (Lehoucq, Sorensen & Yang 1998, ARPACK users'
    guide), through ``scipy.sparse.linalg.eigsh``.
    The largest are found as those of sI + A, with s near the root mean square eigenvalue, and the
    smallest as the largest of sI − A, with s near the largest eigenvalue, so that ``tol`` is
    relative to the size of the spectrum and not to a number that may be zero. Operators of size
    n ≤ max(2k + 1, 20) are written out by n products and solved densely, and so are those of up to
    three times that size, where ``max_products`` is n or more. So are those of n up to 2048 and
    ``max_products``, where not all k have converged after about n products, or where one is
    missing among them.

    From one vector the iteration finds one copy of a multiple eigenvalue, others only as rounding
    brings them in, and goes on to the next. So max(2k + 1, 20) further products look beside the k
    that have converged, where k is 2 or more, for one that lies farther out, and more where two of
    the k are equal. What they find is certain; that they find none is not, as where it lies in a
    crowd: then one may be missing.

    Parameters
    ----------
    operator : Curvature
        A.
    k : int
        Eigenvalues wanted.
    which : str
        ``"largest"`` or ``"smallest"``. Where the spectrum has outliers above and a dense bulk
        below, the smallest take far more products.
    tol : float
        Accuracy relative to the size of the spectrum, of whatever size: of the residual of μ, to
        |μ| and the root mean square eigenvalue together, and at the lower end to the distance of μ
        from the largest.
    max_products : int
        Give up after about this many products; those of a matrix that is written out come to them,
        and at the lower end those that find the largest. Of those that have converged by then, the
        first may be missing among them. So some 40, or a quarter as many again, look for the end of
        what is orthogonal to them, and the first that does not lie beyond that Ritz value and its
        residual is NaN, with all after it: this is as sure as convergence itself is, which a start
        without a part along an eigenvector deceives. Where all k have converged and two of them are
        equal, or one is found beside them, up to as many look on, until its place is known; those
        that it may precede are NaN, unless the matrix is written out.
    seed : int
        Of the starting vector.

    Raises
    ------
    InputError
        An argument that cannot be used, or more memory than there is.
    """
    _check_operator(operator)
    kinds.check_choice(which, ENDS, "which")
    seed, tol = check_seed(seed), checked_tol(tol)
    max_products = check_max_products(max_products)
    k, n = kinds.as_whole(k, "k"), operator.size
    _check_size(operator)
    if not 1 <= k <= n:
        raise InputError(f"k={k}; the operator has 1 to {n} eigenvalues")
    n_vectors = krylov_size(k)
    check_work(n * min(n, n_vectors) ** 2, OPERATIONS, f"k={k}", "operations")
    if is_small(n, k, max_products):
        # The matrix, its eigenvectors and what finding them takes.
        _check_memory(operator, 4 * n, f"{k} eigenvectors")
        return _pairs(operator, *_written_out(operator, k, which))
    # ARPACK's are on the CPU, wherever the operator is: a basis, four of work, and what it finds.
    _check_memory(operator, n_vectors + k + 4, f"{k} eigenvectors", CPU)
    start = np.random.default_rng(seed).standard_normal(n)
    image = operator(torch.from_numpy(start).to(operator.theta))
    if not image.any():
        # No random vector but that of a zero operator has no image; ARPACK refuses those.
        return _pairs(operator, np.zeros(k), np.eye(n, k))
    # To ARPACK no eigenvalue is smaller than ε^(2/3): where all are, it takes anything for them.
    size = length(image) / float(np.linalg.norm(start))
    scale = max(1.0, power_of_two(size, operator.theta.dtype))
    scaled = replace(operator, product=lambda v: scale * operator.product(v))
    arguments = (n_vectors, start, seed, before_writing(n, max_products))
    # Beyond what it is near, so that a multiple of the identity does not become zero.
    shift, sign = 1.1 * scale * size, 1.0
    if which == "smallest":
        top, _ = arpack(scaled, shift, sign, 1, 1e-2, *arguments)
        above = float(top[0]) - shift
        shift, sign = (above + 0.1 * abs(above) if np.isfinite(above) else 0.0), -1.0
    values, vectors = arpack(scaled, shift, sign, k, tol, *arguments)
    written = is_written_out(n, max_products)
    if not written or np.isfinite(values).all():
        found = _pairs(operator, sign * (values - shift) / scale, vectors)
        least = max(tol, 10 * torch.finfo(operator.theta.dtype).eps)
        close = least * float(np.nanmax(abs(values), initial=0.0)) / scale
        found = _in_their_ranks(scaled, scale, found, sign, close, max_products, seed)
        if not written or np.isfinite(found.values).all():
            return found
    values, vectors = _written_out(scaled, k, which)
    return _pairs(operator, values / scale, vectors)


@arithmetic.without_autocast()
def spectral_density(
    operator: Curvature, *, n_probes: int = 8, n_steps: int = 64, seed: int = 0
) -> SpectralDensity:
    """Spectral density by stochastic Lanczos quadrature: n_probes · n_steps products.

    Ubaru, Chen & Saad (2017, SIAM J. Matrix Anal. Appl. 38), algorithm 1; for networks see
    Ghorbani, Krishnan & Xiao (2019, ICML).

    Each probe is a random direction: of few vectors of signs two may agree that the others would
    not, with an error of zero. Lanczos vectors are orthogonalised against all before
    them, twice: otherwise converged eigenvalues come back as ghosts.

    Parameters
    ----------
    operator : Curvature
        A.
    n_probes : int
        At least 2; the error falls with its square root, and is wide of fewer than 8.
    n_steps : int
        Lanczos steps for each; no more than n are made.
    seed : int
        Of the probes.

    Raises
    ------
    InputError
        An argument that cannot be used, or more memory than there is.
    """
    _check_operator(operator)
    n_probes = kinds.as_whole(n_probes, "n_probes", 2)
    n_steps = kinds.as_whole(n_steps, "n_steps", 1)
    _check_size(operator)
    n_steps = min(n_steps, operator.size)
    _check_memory(operator, n_steps + 2, f"n_steps={n_steps}")
    check_memory(16 * n_probes * n_steps, f"the nodes of n_probes={n_probes}", "ask for fewer")
    # Each vector against all before it, twice.
    operations = 4 * operator.size * n_steps**2 * n_probes
    named = f"n_probes={n_probes}, n_steps={n_steps}"
    check_work(operations, OPERATIONS, named, "operations")
    nodes, weights = np.full((n_probes, n_steps), np.nan), np.zeros((n_probes, n_steps))
    rng = np.random.default_rng(check_seed(seed))
    for probe in range(n_probes):
        diagonal, off_diagonal = tridiagonal(operator, _normal(rng, operator), n_steps)
        values, vectors = eigh_tridiagonal(diagonal, off_diagonal)
        nodes[probe, : len(values)] = values
        weights[probe, : len(values)] = vectors[0] ** 2 / (vectors[0] ** 2).sum()
    return SpectralDensity(nodes, weights, operator.size)


@arithmetic.without_autocast()
def trace(operator: Curvature, *, n_products: int = 60, seed: int = 0) -> Estimate:
    """Trace by Hutch++ (Meyer, Musco, Musco & Woodruff 2021, SOSA, algorithm 1).

    A third of the products each for the sketch, for the part of the trace in its range, which is
    exact, and for a Hutchinson estimate of the rest, B. Probes z are Gaussian: zᵀBz has the
    variance 2‖B‖² in the Frobenius norm, and ‖Bz‖² the mean ‖B‖², which gives the standard error
    from the same products. The spread of a few zᵀBz would not: those of signs are often equal. Of
    fewer than 7 probes (21 products) the error is widened, of 2 by a factor of 2.3, since where B
    has one direction or two, ‖Bz‖² may be small by chance in all of them, and zᵀBz with it
    (:func:`~geoflow.analysis.curvature.density.widening`). The error is zero where the sketch holds
    all of R^n.

    Parameters
    ----------
    operator : Curvature
        A.
    n_products : int
        At least 6.
    seed : int
        Of the probes.

    Raises
    ------
    InputError
        An argument that cannot be used, or more memory than there is.
    """
    _check_operator(operator)
    n_products = kinds.as_whole(n_products, "n_products", LEAST_PRODUCTS)
    _check_size(operator)
    n, third = operator.size, n_products // 3
    _check_memory(operator, 3 * min(third, n), f"n_products={n_products}")
    rng = np.random.default_rng(check_seed(seed))
    sketch = torch.stack([operator(_normal(rng, operator)) for _ in range(min(third, n))], dim=1)
    basis = torch.linalg.qr(sketch).Q
    exact = sum(float(torch.dot(q, operator(q))) for q in basis.T)
    if basis.shape[1] == n:
        return Estimate(exact, 0.0)
    rest, squares = [], []
    scale = power_of_two(float(sketch.abs().max()), sketch.dtype)
    for _ in range(third):
        probe = _normal(rng, operator)
        probe = probe - basis @ (basis.T @ probe)
        image = operator(probe)
        image = image - basis @ (basis.T @ image)
        rest.append(float(torch.dot(probe, image)))
        # Whose squares may be less than a float holds, and an error of zero would be none.
        image = image * scale
        squares.append(float(torch.dot(image, image)))
    error = widening(third) * math.sqrt(2 * float(np.mean(squares)) / third) / scale
    return Estimate(exact + float(np.mean(rest)), error)


def check_max_products(max_products: int) -> int:
    """Return a budget of at least a product.

    Raises
    ------
    InputError
        It is no whole number, zero or negative.
    """
    max_products = kinds.as_whole(max_products, "max_products")
    if max_products < 1:
        raise InputError(f"max_products={max_products}; use a positive number such as 1000")
    return max_products


def checked_tol(tol: float) -> float:
    """Return a relative accuracy that eigenvalues can be asked for.

    Raises
    ------
    InputError
        It is no number from 0 to 1.
    """
    tol = kinds.as_number(tol, "tol")
    if not 0 <= tol < 1:
        raise InputError(f"tol={tol:g}; use a number from 0 to 1 such as 1e-6")
    return tol


def _written_out(operator: Curvature, k: int, which: str) -> tuple[Floats, Floats]:
    """The k eigenvalues at an end, from there inwards, and eigenvectors, by n products."""
    values, vectors = np.linalg.eigh(operator.dense())
    order = slice(None, k) if which == "smallest" else slice(None, -k - 1, -1)
    return values[order], vectors[:, order]


def _in_their_ranks(
    scaled: Curvature,
    scale: float,
    found: Eigenpairs,
    sign: float,
    close: float,
    max_products: int,
    seed: int,
) -> Eigenpairs:
    """Eigenpairs with NaN from the first on that one which is not among them may precede."""
    k, m = len(found.values), int(np.isfinite(found.values).sum())
    # Of a single one no copy is missed.
    if m == 0 or k == 1:
        return found
    # What is closer than the tolerance, or a residual, cannot be told apart, nor put into order.
    inner = sign * found.values + np.maximum(found.residuals, close)
    looks = _looks(scaled.size, k, m, max_products)
    # Of a multiple eigenvalue more copies may be left than rounding has brought in.
    multiple = bool((np.diff(sign * found.values) >= -close).any())
    for beyond, error in largest_beside(scaled, sign, found.vectors[:, :m], looks, seed):
        # What lies beyond surely: no Ritz value is larger than the largest eigenvalue.
        missing = bool((inner < beyond / scale).any())
        placed = error / scale <= close or (missing and is_written_out(scaled.size, max_products))
        if placed or not (missing or multiple):
            break
    if m == k and not missing:
        return found
    # One that is missing lies as far out as its residual allows.
    sure = inner >= (beyond + error) / scale
    last = int(np.logical_and.accumulate(sure).sum())
    values, residuals, vectors = found.values.copy(), found.residuals.copy(), found.vectors.copy()
    values[last:], residuals[last:], vectors[:, last:] = np.nan, np.nan, np.nan
    return Eigenpairs(values, residuals, vectors)


def _looks(n: int, k: int, m: int, max_products: int) -> list[int]:
    """Numbers of products after which to look for what is missing beside m of k eigenpairs.

    Where all converged, few tell whether one is, as a rule, and its place takes more.
    """
    few, most = min(krylov_size(k), n - m), min(to_rank(n, k, max_products), n - m)
    if m < k:
        return [most]
    doubled = (few * 2**i for i in itertools.count())
    return [*itertools.takewhile(most.__gt__, doubled), most]


def _pairs(operator: Curvature, values: Floats, vectors: Floats) -> Eigenpairs:
    residuals = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if np.isfinite(value):
            x = torch.from_numpy(vectors[:, i].copy()).to(operator.theta)
            residuals[i] = length(operator(x) - float(value) * x)
    return Eigenpairs(values.copy(), residuals, vectors.copy())


def _check_operator(operator: Curvature) -> None:
    give = "one of loss_hessian, gauss_newton or tangent_hessian"
    kinds.check_kind(operator, Curvature, "operator", give)


def _check_size(operator: Curvature) -> None:
    """Refuse an operator on nothing."""
    if not operator.size:
        raise InputError(
            f"operator {operator.name!r}: there are no tangent directions, so no eigenvalues; "
            "leave it out, or take more tensors"
        )


def _normal(rng: np.random.Generator, operator: Curvature) -> Tensor:
    # Drawn by numpy on the CPU, so that every dtype and device has the same.
    probe = torch.from_numpy(rng.standard_normal(operator.size))
    return probe.to(dtype=operator.theta.dtype, device=operator.theta.device)


def _check_memory(
    operator: Curvature, n_vectors: int, argument: str, device: torch.device | None = None
) -> None:
    """Refuse what would not fit on a device, by default the operator's, before it starts."""
    needed = n_vectors * operator.size * operator.theta.element_size()
    what = f"{argument}: vectors of {operator.size:,} numbers"
    check_memory(needed, what, "ask for fewer", device or operator.theta.device)
