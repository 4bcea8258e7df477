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

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

# Less than this part of the identity I + cA is taken to be nowhere.
LEAST_CURVATURE = 0.05
# A direction is one where I + cA is larger or smaller than beside them by more than this factor.
# Others were so beside what was there before: they would stand for curvature that is gone.
DISTINCT = 1.5
# Vectors that depend on the others but for this part, squared: it is rounding of single precision.
DEPENDENT = 1e-5
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
        across: Matrix,
        products: Matrix,
        c: float,
        bulk: float,
        limit: int,
    ) -> tuple[Directions, Matrix]:
        """What the BFGS updates of I + cA by pairs make of it.

        Parameters
        ----------
        block : Tensor of float32, shape (2n, P)
            s and As in turn.
        across : ndarray, shape (k, 2n)
            Scalar products of the directions with them.
        products : ndarray, shape (2n, 2n)
            And among themselves.
        c : float
            In flow time.
        bulk : float
            b.
        limit : int
            Directions that are kept at most.

        Returns
        -------
        Directions
            With these pairs.
        ndarray, shape (…, k + 2n)
            What each is made of: of the directions before, and of the block.
        """
        k, n = len(self.curvatures), len(self.curvatures) + len(block)
        gram = np.empty((n, n))
        gram[:k, :k] = numbers(self.rows @ self.rows.T)
        gram[:k, k:], gram[k:, :k], gram[k:, k:] = across, across.T, products
        # All is done in an orthonormal basis of what they span; an image may vanish.
        norms = np.sqrt(np.diag(gram))
        scale = np.divide(1, norms, out=np.zeros(n), where=norms > VANISHING)
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
        ratio = np.maximum(eigenvalues, LEAST_CURVATURE) / beside
        distinct = np.flatnonzero(abs(np.log(ratio)) > math.log(DISTINCT))
        kept = distinct[np.argsort(-abs(eigenvalues - beside)[distinct], kind="stable")][:limit]
        made_of = (to_basis @ vectors[:, kept]).T
        weights = torch.from_numpy(made_of).to(block)
        directions = (weights[:, k:] @ block).addmm_(weights[:, :k], self.rows)
        return Directions(directions, (eigenvalues[kept] - 1) / c), made_of


def numbers(products: Tensor) -> Matrix:
    """Scalar products, to be worked with on the CPU."""
    found: Matrix = products.to("cpu", torch.float64).numpy()
    return found
