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
from torch import Tensor

from geoflow.solvers.base import Carry

Matrix = NDArray[np.float64]

# A pair says nothing on an inverse where sᵀ(I + cA)s is less than this part of sᵀs.
LEAST_CURVATURE = 0.05


class SecantPairs:
    """Pairs (s, As) of unit s, the newest ``limit`` of them.

    They only make the iteration that uses them short, and so are kept in single precision.

    Parameters
    ----------
    rows : Tensor, shape (2·limit, P)
        s in the first half, As in the second.
    products : ndarray, shape (2·limit, 2·limit)
        Scalar products of the rows.
    n_added : int
        Pairs ever added; the k-th lies in row k modulo ``limit``.
    """

    def __init__(self, rows: Tensor, products: Matrix, n_added: int) -> None:
        self.rows, self.products, self.n_added = rows, products, n_added

    @classmethod
    def empty(cls, limit: int, like: Tensor) -> SecantPairs:
        """No pairs yet, and room for ``limit``, of vectors like the one given."""
        rows = like.new_zeros((2 * limit, like.numel()), dtype=torch.float32)
        return cls(rows, np.zeros((2 * limit, 2 * limit)), 0)

    @property
    def limit(self) -> int:
        """Most pairs kept."""
        return len(self.rows) // 2

    def pack(self) -> Carry:
        """What a carry holds of it."""
        return {
            "pairs": self.rows,
            "pair_products": torch.from_numpy(self.products),
            "n_pairs": self.n_added,
        }

    @classmethod
    def unpack(cls, carry: Carry) -> SecantPairs:
        """Make it again from a carry, which later changes leave as it is."""
        rows, products, n_added = carry["pairs"], carry["pair_products"], carry["n_pairs"]
        assert isinstance(rows, Tensor), "pairs are a tensor"
        assert isinstance(products, Tensor), "products of pairs are a tensor"
        return cls(rows.clone(), products.cpu().numpy().copy(), int(n_added))

    def add(self, s: Tensor, image: Tensor) -> None:
        """Take in a pair, in place of the oldest where there is no more room."""
        limit, row = self.limit, self.n_added % self.limit
        scale = 1 / torch.linalg.vector_norm(s)
        self.rows[row], self.rows[limit + row] = s * scale, image * scale
        both = [row, limit + row]
        products = (self.rows @ self.rows[both].T).to("cpu", torch.float64).numpy()
        self.products[:, both] = products
        self.products[both] = products.T
        self.n_added += 1

    def inverse(self, vectors: Tensor, c: float, bulk: float) -> Tensor:
        """Apply the inverse of I + cA to the columns of ``vectors``, shape (P, n).

        Parameters
        ----------
        c : float
            In flow time.
        bulk : float
            What A is where no pair tells.
        """
        base = 1 / (1 + c * bulk)
        limit = self.limit
        oldest = max(self.n_added - limit, 0)
        s = np.arange(oldest, self.n_added) % limit
        s = s[1 + c * self.products[s, limit + s] > LEAST_CURVATURE]
        if not len(s):
            return base * vectors
        w = limit + s
        single = vectors.to(self.rows.dtype)
        inner = (self.rows @ single).to("cpu", torch.float64).numpy()
        ss, sw, ww = (self.products[np.ix_(a, b)] for a, b in ((s, s), (s, w), (w, w)))
        # y = s + c·As.
        sy, yy = ss + c * sw, ss + c * (sw + sw.T) + c * c * ww
        on_s, on_y = inner[s], inner[s] + c * inner[w]
        n = len(s)
        rho = 1 / np.diag(sy)
        alpha, gain = np.zeros_like(on_s), np.zeros_like(on_s)
        for i in reversed(range(n)):
            alpha[i] = rho[i] * (on_s[i] - sy[i, i + 1 :] @ alpha[i + 1 :])
        for i in range(n):
            on_rest = base * (on_y[i] - yy[i] @ alpha) + sy[:i, i] @ gain[:i]
            gain[i] = alpha[i] - rho[i] * on_rest
        coefficients = np.zeros_like(inner)
        coefficients[s], coefficients[w] = gain - base * alpha, -base * c * alpha
        return base * vectors + (self.rows.T @ torch.from_numpy(coefficients).to(self.rows)).to(
            vectors.dtype
        )
