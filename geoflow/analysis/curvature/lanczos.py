"""Lanczos iterations: ARPACK's with restarts, a plain one, and one beside known vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from geoflow.analysis.curvature.operators import Curvature
from geoflow.errors import InputError
from geoflow.manifold.lanczos import lanczos
from geoflow.problems.scaling import length
from geoflow.system.threads import one_blas_thread
from geoflow.system.translation import reason

Floats = NDArray[np.float64]


def arpack(
    operator: Curvature,
    shift: float,
    sign: float,
    k: int,
    tol: float,
    n_vectors: int,
    start: Floats,
    seed: int,
    max_products: int,
) -> tuple[Floats, Floats]:
    """The k largest eigenvalues of shift·I + A, or of shift·I − A, falling; and eigenvectors.

    Parameters
    ----------
    operator : Curvature
        A.
    shift, sign : float
        The shift, and 1 or −1 before A.
    k, n_vectors : int
        Eigenvalues wanted, and vectors of the basis.
    tol : float
        Relative accuracy.
    start : array, shape (n,)
        What the first basis starts from.
    seed : int
        Of a vector in its place, where that has no part outside an invariant space.
    max_products : int
        Give up after about this many products.

    Returns
    -------
    values, vectors : array of float64, shapes (k,) and (n, k)
        Those that converged, NaN after them. Between them others may be missing: where ARPACK
        gives up, it does not say which.

    Raises
    ------
    InputError
        ARPACK fails.
    """
    theta = operator.theta
    dtype = np.float64 if theta.dtype == torch.float64 else np.float32

    def product(x: NDArray[np.floating]) -> NDArray[np.floating]:
        v = torch.as_tensor(x.reshape(-1), dtype=theta.dtype, device=theta.device)
        result: NDArray[np.floating] = (shift * v + sign * operator(v)).cpu().numpy()
        return result

    linear = LinearOperator((operator.size, operator.size), matvec=product, dtype=dtype)
    # A restart keeps k vectors and makes the others anew.
    restarts = max(1, math.ceil(max_products / (n_vectors - k)))
    try:
        with one_blas_thread():
            values, vectors = eigsh(
                linear,
                k,
                which="LA",
                v0=start.astype(dtype),
                ncv=n_vectors,
                maxiter=restarts,
                tol=max(tol, float(np.finfo(dtype).eps)),
                rng=np.random.default_rng(seed),
            )
    except ArpackNoConvergence as error:
        values, vectors = error.eigenvalues, error.eigenvectors
    except ArpackError as error:
        raise InputError(
            f"operator {operator.name!r}: ARPACK failed ({reason(error)}); try another seed"
        ) from None
    order = np.argsort(values)[::-1]
    full_values, full_vectors = np.full(k, np.nan), np.full((operator.size, k), np.nan)
    full_values[: len(order)] = values[order]
    full_vectors[:, : len(order)] = vectors[:, order]
    return full_values, full_vectors


def tridiagonal(operator: Curvature, start: Tensor, n_steps: int) -> tuple[Floats, Floats]:
    """Diagonal and off-diagonal of Lanczos' tridiagonal matrix, fully re-orthogonalised.

    Parameters
    ----------
    operator : Curvature
        A.
    start : Tensor, shape (n,)
        Spans the first vector of the basis.
    n_steps : int
        Steps; fewer are made where the space is invariant before.
    """
    diagonal: list[float] = []
    beside: list[float] = []
    for alpha, beta, _ in itertools.islice(lanczos(operator, start), n_steps):
        # The length of the last image, by its parts.
        image = math.hypot(alpha, beta, *beside[-1:])
        diagonal.append(alpha)
        beside.append(beta)
        # Nothing but rounding is left: the space is invariant.
        if beta <= 10 * torch.finfo(start.dtype).eps * max(image, *map(abs, diagonal)):
            break
    return np.array(diagonal), np.array(beside[:-1])


def largest_beside(
    operator: Curvature, sign: float, known: Floats, looks: Sequence[int], seed: int
) -> Iterator[tuple[float, float]]:
    """The largest Ritz value of ±A orthogonal to known vectors, and its residual's norm.

    Lanczos' three-term recurrence without re-orthogonalisation: copies of what has converged come
    back, but the largest is no larger for it (Paige 1980, Linear Algebra Appl. 34, 235).

    Parameters
    ----------
    operator : Curvature
        A.
    sign : float
        1 or −1 before A.
    known : array, shape (n, m)
        Orthonormal; eigenvectors of A, nearly.
    looks : sequence of int
        The numbers of products after which both are given, rising.
    seed : int
        Of the vector that it starts from, which is none that ARPACK started from.

    Yields
    ------
    value, residual : float
        After each of these numbers; once and for the last time where nothing is left before.
    """
    like = operator.theta
    away = torch.as_tensor(known.copy(), dtype=like.dtype, device=like.device)

    def beside(x: Tensor) -> Tensor:
        return x - away @ (away.T @ x)

    random = np.random.default_rng([seed, 1]).standard_normal(operator.size)
    # Twice: what rounding leaves of the known ones would grow.
    v = beside(beside(torch.from_numpy(random).to(like)))
    v, before, coupling = v / length(v), torch.zeros_like(v), 0.0
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    for step in range(1, looks[-1] + 1):
        image = sign * operator(v)
        diagonal.append(float(torch.dot(v, image)))
        image = beside(beside(image - diagonal[-1] * v - coupling * before))
        coupling = length(image)
        off_diagonal.append(coupling)
        scale = max(coupling, *map(abs, diagonal))
        ends = coupling <= 10 * torch.finfo(like.dtype).eps * scale
        if ends or step in looks:
            values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(off_diagonal[:-1]))
            yield float(values[-1]), coupling * abs(float(vectors[-1, -1]))
        if ends:
            return
        v, before = image / coupling, v
