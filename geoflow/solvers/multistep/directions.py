"""Eigenvectors of the curvature, made of pairs gone by.

Pairs (s, As) say what A is where the iteration has been. The oldest are given up for what the
updates by them have made of A, as an eigendecomposition of it: a number of times the identity and
the directions in which it is something else, the farthest from it kept (in the spirit of Nyström
preconditioners, Frangella, Tropp & Udell, SIAM J. Matrix Anal. Appl. 44, 2023, but of the matrix
that BFGS updates give, which is symmetric and positive where images of different points are not).
A direction takes half the memory of a pair and is read half as often, and holds the common part of
many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Less than this part of the identity I + cA is taken to be nowhere.
LEAST_CURVATURE = 0.05
# Vectors that depend on the others but for this part, squared: it is rounding of single precision.
DEPENDENT = 1e-5
# Columns at a time, few enough that a core's own cache holds them.
CHUNK = 4096
# An image this short is none: its inverse is still a number of single precision.
VANISHING = 1e-30


@dataclass(frozen=True)
class Directions:
    """A as b·I but in some directions: b·I + Uᵀ diag(λ − b) U, whatever b is.

    Attributes
    ----------
    rows : Tensor of float32, shape (k, P)
        U, orthonormal to about its rounding.
    curvatures : ndarray, shape (k,)
        λ.
    """

    rows: Tensor
    curvatures: Vector

    def eigenvalues(self, c: float) -> Vector:
        """Those of I + cA in these directions, shape (k,)."""
        return np.maximum(1 + c * self.curvatures, LEAST_CURVATURE)

    def with_pairs(
        self,
        block: Tensor,
        products: Matrix,
        across: Matrix,
        *,
        c: float,
        bulk: float,
        limit: int,
    ) -> tuple[Directions, Matrix]:
        """What the BFGS updates of I + cA by pairs make of it; of what its rows are combinations.

        Parameters
        ----------
        block : Tensor of float32, shape (2n, P)
            s and As in turn.
        products : ndarray, shape (2n, 2n)
            Their scalar products.
        across : ndarray, shape (k, 2n)
            Those of the directions with them.
        c : float
            In flow time.
        bulk : float
            b.
        limit : int
            Directions that are kept at most.

        Returns
        -------
        directions : Directions
            The new ones.
        weights : ndarray, shape (…, k + 2n)
            Each of them as a combination of the former ones and the block.
        """
        k = len(self.curvatures)
        gram = np.block([[numbers(self.rows @ self.rows.T), across], [across.T, products]])
        # All is done in an orthonormal basis of what they span; an image may vanish.
        norms = np.sqrt(np.diag(gram))
        scale = np.divide(1, norms, out=np.zeros(len(gram)), where=norms > VANISHING)
        sizes, vectors = np.linalg.eigh(gram * scale[:, None] * scale)
        independent = sizes > DEPENDENT * sizes[-1]
        to_basis = scale[:, None] * vectors[:, independent] / np.sqrt(sizes[independent])
        rows = gram @ to_basis
        beside = 1 + c * bulk
        matrix = rows[:k].T @ ((self.eigenvalues(c) - beside)[:, None] * rows[:k])
        matrix += beside * np.eye(len(matrix))
        for s, image in zip(rows[k::2], rows[k + 1 :: 2], strict=True):
            y = s + c * image
            if s @ y > LEAST_CURVATURE:
                changed = matrix @ s
                matrix += np.outer(y, y) / (s @ y) - np.outer(changed, changed) / (s @ changed)
        eigenvalues, vectors = np.linalg.eigh(matrix)
        kept = np.argsort(-abs(eigenvalues - beside), kind="stable")[:limit]
        combined = (to_basis @ vectors[:, kept]).T
        weights = torch.from_numpy(combined).to(block)
        directions = (weights[:, k:] @ block).addmm_(weights[:, :k], self.rows)
        return Directions(directions, (eigenvalues[kept] - 1) / c), combined


def inner(rows: Tensor, vectors: Tensor) -> Tensor:
    """Scalar products of rows with a few vectors, shape (n, k).

    On a CPU the product of a few rows by as many columns as θ has takes twice the time that reading
    them takes, but not in pieces, which are added up in double precision.
    """
    size = rows.shape[1]
    whole = size - size % CHUNK
    if rows.device.type != "cpu" or not whole:
        return rows @ vectors.T
    pieces = (m[:, :whole].unflatten(1, (-1, CHUNK)).transpose(0, 1) for m in (vectors, rows))
    left, right = pieces
    # In this order, the few rows first, it is faster by half.
    found = (left @ right.mT).double().sum(0).T
    if whole < size:
        found += rows[:, whole:] @ vectors[:, whole:].T
    return found


def numbers(products: Tensor) -> Matrix:
    """Scalar products, to be worked with on the CPU."""
    found: Matrix = products.to("cpu", torch.float64).numpy()
    return found
