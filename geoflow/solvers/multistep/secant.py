"""Curvature learned from the points evaluated: a limited-memory inverse of I + cA.

Each correction s of an implicit step tells, by two gradients that are there anyway, the image As.
Pairs of the last corrections make up a BFGS approximation of A, whose inverse is applied as
Nocedal's two loops do (Math. Comp. 35, 1980), in the products of the pairs among themselves
alone (Chen, Wang & Zhou, NeurIPS 2014). As A is kept and not I + cA, the pairs serve steps
of any size: a sequence of systems is preconditioned by the ones before it (Morales & Nocedal,
SIAM J. Optim. 10, 2000). A secant update asks the newest pairs to be right and no others, so that
images of vectors gone by, which spoil a projection onto them, do no harm here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor

from geoflow.solvers.base import Carry

Matrix = NDArray[np.float64]

# Pairs a block: one is copied when a pair is added, the others are shared with earlier carries.
BLOCK = 8
# A pair says nothing on an inverse where sᵀ(I + cA)s is less than this part of sᵀs.
LEAST_CURVATURE = 0.05
# Part of the pairs with less curvature than A is taken to have beside them.
SOFTER = 0.25


class SecantPairs:
    """Pairs (s, As) of unit s: the newest ``limit`` of them, and up to a block more.

    They only make the iteration that uses them short, and so are kept in single precision. What
    costs is to read them: that is done once for all scalar products of an iteration.

    Parameters
    ----------
    limit : int
        Pairs that are kept at least, once there are so many.
    blocks : list of Tensor, each of shape (2·8, P)
        s and As in turn, the oldest first; the last block may be filled in part.
    products : ndarray, shape (n, n)
        Scalar products of the rows in use.
    """

    def __init__(self, limit: int, blocks: list[Tensor], products: Matrix) -> None:
        self.limit, self.blocks, self.products = limit, blocks, products
        self._own = False
        self._new: list[Tensor] = []

    @classmethod
    def unpack(cls, carry: Carry, limit: int) -> SecantPairs:
        """Make it again from a carry, which later additions leave as it is."""
        products = carry.get("pair_products")
        blocks: list[Tensor] = []
        while isinstance(block := carry.get(f"pairs_{len(blocks)}"), Tensor):
            blocks.append(block)
        square = products.cpu().numpy() if isinstance(products, Tensor) else np.zeros((0, 0))
        return cls(limit, blocks, square)

    def pack(self) -> Carry:
        """What a carry holds of it."""
        self._products_with([])
        blocks: Carry = {f"pairs_{i}": block for i, block in enumerate(self.blocks)}
        return {**blocks, "pair_products": torch.from_numpy(self.products)}

    def __len__(self) -> int:
        return (len(self.products) + len(self._new)) // 2

    def add(self, s: Tensor, image: Tensor) -> None:
        """Take in a pair of unit s."""
        row = 2 * len(self) % (2 * BLOCK)
        if row == 0:
            if len(self) >= self.limit + BLOCK:
                self._products_with([])
                self.blocks = self.blocks[1:]
                self.products = self.products[2 * BLOCK :, 2 * BLOCK :]
            block = s.new_zeros((2 * BLOCK, s.numel()), dtype=torch.float32)
            self.blocks = [*self.blocks, block]
        elif not self._own:
            self.blocks = [*self.blocks[:-1], self.blocks[-1].clone()]
        self._own = True
        block = self.blocks[-1]
        block[row], block[row + 1] = s, image
        self._new += [block[row], block[row + 1]]

    def inverse(self, vectors: Tensor, c: float, bulk: float) -> Tensor:
        """Apply the inverse of I + cA to the rows of ``vectors``, shape (n, P).

        Parameters
        ----------
        c : float
            In flow time.
        bulk : float
            What A is before there are pairs, and at least.
        """
        inner = self._products_with(list(vectors))
        rows = np.arange(0, len(self.products), 2)
        if len(rows):
            curvatures = self.products[rows, rows + 1]
            bulk = max(bulk, float(np.quantile(curvatures, SOFTER)))
        base = 1 / (1 + c * bulk)
        rows = rows[1 + c * self.products[rows, rows + 1] > LEAST_CURVATURE]
        if not len(rows):
            return base * vectors
        ss, sw, ww = (
            self.products[np.ix_(rows + i, rows + j)] for i, j in ((0, 0), (0, 1), (1, 1))
        )
        # y = s + c·As.
        sy, yy = ss + c * sw, ss + c * (sw + sw.T) + c * c * ww
        on_s, on_y = inner[rows], inner[rows] + c * inner[rows + 1]
        # Nocedal's two loops are two triangular systems.
        upper = np.triu(sy)
        alpha = solve_triangular(upper, on_s)
        right = np.diag(sy)[:, None] * alpha - base * (on_y - yy @ alpha)
        gain = solve_triangular(upper, right, trans="T")
        coefficients = np.zeros((len(self.blocks) * 2 * BLOCK, len(vectors)))
        coefficients[rows], coefficients[rows + 1] = gain - base * alpha, -base * c * alpha
        weights = torch.from_numpy(coefficients.T).to(vectors.device, torch.float32)
        moved = weights[:, : 2 * BLOCK] @ self.blocks[0]
        for i, block in enumerate(self.blocks[1:], 1):
            moved.addmm_(weights[:, 2 * BLOCK * i : 2 * BLOCK * (i + 1)], block)
        return torch.add(moved.to(vectors.dtype), vectors, alpha=base)

    def _products_with(self, vectors: list[Tensor]) -> Matrix:
        """Scalar products of all rows with vectors, shape (rows, n), and with rows just added."""
        n, n_new = len(self.products), len(self._new)
        if not n + n_new or not n_new + len(vectors):
            return np.zeros((n, len(vectors)))
        rows = torch.stack([*self._new, *(v.to(torch.float32) for v in vectors)])
        # In this order the product of a few rows with a block is three times faster.
        inner = torch.cat([rows @ block.T for block in self.blocks], 1)
        found: Matrix = inner[:, : n + n_new].T.to("cpu", torch.float64).numpy()
        if n_new:
            grown = np.empty((n + n_new, n + n_new))
            grown[:n, :n] = self.products
            grown[:, n:] = found[:, :n_new]
            grown[n:, :n] = found[:n, :n_new].T
            self.products, self._new = grown, []
        return found[:, n_new:]
