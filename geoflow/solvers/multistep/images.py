"""Images of vectors under an inverse that are made last: what is needed of them may be one sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoflow.solvers.multistep.directions import Matrix, Vector


class Read(NamedTuple):
    """Vectors and their scalar products: with pairs, with directions, and among themselves.

    Attributes
    ----------
    vectors : Tensor, shape (n, P)
    inner : ndarray, shape (rows of pairs, n)
    on_directions : ndarray, shape (k, n)
    among : ndarray, shape (n, n)
    """

    vectors: Tensor
    inner: Matrix
    on_directions: Matrix
    among: Matrix


@dataclass(frozen=True)
class Solved:
    """The images of some vectors under an inverse, not yet made.

    Attributes
    ----------
    vectors : Tensor, shape (n, P)
        They themselves.
    rows : list of Tensor, each of shape (…, P)
        What their images are made of besides.
    base : float
        Part of a vector that is in its image as it is.
    coefficients : ndarray, shape (number of rows, n)
        Parts of the rows.
    products : ndarray, shape (n, n)
        Scalar products of the vectors with the images.
    """

    vectors: Tensor
    rows: list[Tensor]
    base: float
    coefficients: Matrix
    products: Matrix

    def parts(self, weights: Vector) -> Vector:
        """What the sum of the images by their weights, shape (n,), has of vectors and of rows."""
        return np.concatenate([self.base * weights, self.coefficients @ weights])

    def combined(self, weights: Matrix) -> Tensor:
        """Sums of the images by their weights, shape (m, n): shape (m, P)."""
        own = torch.from_numpy(self.base * weights).to(self.vectors)
        moved = torch.zeros(
            (len(weights), self.vectors.shape[1]), dtype=torch.float32, device=self.vectors.device
        )
        of_rows = torch.from_numpy(weights @ self.coefficients.T).to(moved)
        end = 0
        for block in self.rows:
            start, end = end, end + len(block)
            moved.addmm_(of_rows[:, start:end], block)
        return moved.to(self.vectors.dtype).addmm_(own, self.vectors)
