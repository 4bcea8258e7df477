"""Curvature learned from the points evaluated: a limited-memory inverse of I + cA.

Each correction s of an implicit step tells, by two gradients that are there anyway, the image As.
Pairs of the last corrections make up a BFGS approximation of A, whose inverse is applied as
Nocedal's two loops do (Math. Comp. 35, 1980), in the products of the pairs among themselves
alone (Chen, Wang & Zhou, NeurIPS 2014). As A is kept and not I + cA, the pairs serve steps
of any size: a sequence of systems is preconditioned by the ones before it (Morales & Nocedal,
SIAM J. Optim. 10, 2000). A secant update asks the newest pairs to be right and no others, so that
images of vectors gone by, which spoil a projection onto them, do no harm here. What the two loops
begin with is the curvature of the pairs before, by its eigenvectors
(:mod:`geoflow.solvers.multistep.directions`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from torch import Tensor

from geoflow.solvers.base import Carry
from geoflow.solvers.multistep.directions import LEAST_CURVATURE, Directions, numbers

Matrix = NDArray[np.float64]

# Pairs a block: one is copied when a pair is added, the others are shared with earlier carries.
BLOCK = 8
# Blocks that are kept as pairs, whole ones; with the one that is filled there are up to as many
# and one.
BLOCKS = 2
# Part of the curvatures known that are less than A is taken to have beside them.
SOFTER = 0.4


class SecantPairs:
    """The newest pairs (s, As) of unit s, and the directions that those before them come to.

    They only make the iteration that uses them short, and so are kept in single precision. What
    costs is to read them: that is done once for all scalar products of an iteration.

    Parameters
    ----------
    limit : int
        Directions that are kept at most.
    blocks : list of Tensor, each of shape (2·8, P)
        s and As in turn, the oldest first; the last block may be filled in part.
    products : ndarray, shape (n, n)
        Scalar products of the rows in use.
    directions : Directions, optional
        What the pairs gone by come to, once there are some.
    across : ndarray, shape (k, n), optional
        Scalar products of the directions with the rows in use.
    unit : float
        What the images kept are in units of, a power of two; 0 until there is one. So single
        precision holds them whatever the units of R are.
    """

    def __init__(
        self,
        limit: int,
        blocks: list[Tensor],
        products: Matrix,
        directions: Directions | None = None,
        across: Matrix | None = None,
        unit: float = 0.0,
    ) -> None:
        self.limit, self.blocks, self.products = limit, blocks, products
        self.directions = directions
        self.across = np.zeros((0, len(products))) if across is None else across
        self.unit = unit
        self._own = False
        self._new: list[Tensor] = []

    @classmethod
    def unpack(cls, carry: Carry, limit: int) -> SecantPairs:
        """Make it again from a carry, which later additions leave as it is.

        Raises
        ------
        ValueError
            What it holds of directions does not fit together.
        """
        products = carry.get("pair_products")
        blocks: list[Tensor] = []
        while isinstance(block := carry.get(f"pairs_{len(blocks)}"), Tensor):
            blocks.append(block)
        square = products.cpu().numpy() if isinstance(products, Tensor) else np.zeros((0, 0))
        # Walks of earlier versions have no directions, and images as they are.
        unit = float(carry.get("pair_unit", 1.0 if blocks else 0.0))
        if "directions" not in carry:
            return cls(limit, blocks, square, unit=unit)
        rows, curvatures, across = (
            carry[name] for name in ("directions", "direction_curvatures", "direction_products")
        )
        if not (
            isinstance(rows, Tensor)
            and isinstance(curvatures, Tensor)
            and isinstance(across, Tensor)
            and across.shape == (len(rows), len(square))
            and curvatures.shape == (len(rows),)
        ):
            raise ValueError("directions, their curvatures and products do not fit together")
        directions = Directions(rows, curvatures.cpu().numpy())
        return cls(limit, blocks, square, directions, across.cpu().numpy(), unit)

    def pack(self) -> Carry:
        """What a carry holds of it."""
        self._products_with(None)
        blocks: Carry = {f"pairs_{i}": block for i, block in enumerate(self._in_use())}
        carry: Carry = {**blocks, "pair_products": torch.from_numpy(self.products)}
        carry["pair_unit"] = torch.tensor(self.unit, dtype=torch.float64)
        if self.directions is not None:
            carry["directions"] = self.directions.rows
            carry["direction_curvatures"] = torch.from_numpy(self.directions.curvatures)
            carry["direction_products"] = torch.from_numpy(self.across)
        return carry

    def __len__(self) -> int:
        return len(self.products) // 2 + len(self._new)

    def _in_use(self) -> list[Tensor]:
        """The blocks, the last without the rows that nothing is in yet."""
        if not self.blocks:
            return []
        *whole, last = self.blocks
        return [*whole, last[: 2 * len(self) - 2 * BLOCK * len(whole)]]

    def add(self, s: Tensor, image: Tensor) -> None:
        """Take in a pair of unit s."""
        if not self.unit:
            size = float(torch.linalg.vector_norm(image))
            self.unit = 2.0 ** round(math.log2(size)) if size else 0.0
        row = 2 * len(self) % (2 * BLOCK)
        if row == 0 or not self._own:
            block = s.new_empty((2 * BLOCK, s.numel()), dtype=torch.float32)
            whole = self.blocks
            if row:
                *whole, last = self.blocks
                block[:row] = last[:row]
            self.blocks = [*whole, block]
        self._own = True
        new = self.blocks[-1][row : row + 2]
        new[0] = s
        torch.div(image, self.unit or 1.0, out=new[1])
        self._new.append(new)

    def inverse(self, vectors: Tensor, c: float) -> Tensor:
        """Apply the inverse of I + cA to the rows of ``vectors``, shape (n, P).

        Parameters
        ----------
        c : float
            In flow time.
        """
        c *= self.unit or 1.0
        while len(self) >= (BLOCKS + 1) * BLOCK:
            self._give_up_oldest(c)
        inner, on_directions = self._products_with(vectors.to(torch.float32))
        rows = np.arange(0, len(self.products), 2)
        base = 1 / (1 + c * self._bulk())
        gains = np.zeros((0, 1))
        if self.directions is not None:
            gains = 1 / self.directions.eigenvalues(c)[:, None] - base
        rows = rows[1 + c * self.products[rows, rows + 1] > LEAST_CURVATURE]
        ss, sw, ww = (
            self.products[np.ix_(rows + i, rows + j)] for i, j in ((0, 0), (0, 1), (1, 1))
        )
        # y = s + c·As.
        sy, yy = ss + c * sw, ss + c * (sw + sw.T) + c * c * ww
        across = self.across[:, rows] + c * self.across[:, rows + 1]
        on_s, on_y = inner[rows], inner[rows] + c * inner[rows + 1]
        # Nocedal's two loops are two triangular systems.
        upper = np.triu(sy)
        alpha = solve_triangular(upper, on_s) if len(rows) else on_s
        through = gains * (on_directions - across @ alpha)
        begun = base * (on_y - yy @ alpha) + across.T @ through
        right = np.diag(sy)[:, None] * alpha - begun
        gain = solve_triangular(upper, right, trans="T") if len(rows) else right
        coefficients = np.zeros((len(self.blocks) * 2 * BLOCK, len(vectors)))
        coefficients[rows], coefficients[rows + 1] = gain - base * alpha, -base * c * alpha
        return self._combined(vectors, base, coefficients, through)

    def _combined(
        self, vectors: Tensor, base: float, of_blocks: Matrix, of_directions: Matrix
    ) -> Tensor:
        """``base`` times vectors, and the rows by their coefficients."""
        moved = torch.zeros_like(vectors, dtype=torch.float32)
        of_rows = torch.from_numpy(of_blocks.T).to(moved)
        for i, block in enumerate(self._in_use()):
            moved.addmm_(of_rows[:, 2 * BLOCK * i :][:, : len(block)], block)
        if self.directions is not None:
            moved.addmm_(torch.from_numpy(of_directions.T).to(moved), self.directions.rows)
        return moved.to(vectors.dtype).add_(vectors, alpha=base)

    def _bulk(self) -> float:
        """Curvature that so many of all known are below; not negative, and 0 before there are any.

        It is never that of the first pairs alone: a walk becomes less stiff.
        """
        of_directions = np.zeros(0) if self.directions is None else self.directions.curvatures
        known = np.concatenate([np.diag(self.products, 1)[::2], of_directions])
        return max(0.0, float(np.quantile(known, SOFTER))) if len(known) else 0.0

    def _give_up_oldest(self, c: float) -> None:
        """Make directions of the oldest block of pairs."""
        self._products_with(None)
        oldest, *self.blocks = self.blocks
        before = self.directions or Directions(oldest[:0], np.zeros(0))
        # The scale at which curvatures matter; without one, that of the images.
        scale = c if c > 0 else 1.0
        self.directions = before.with_pairs(oldest, scale, self._bulk(), self.limit)
        self.products = self.products[2 * BLOCK :, 2 * BLOCK :]
        found = torch.cat([self.directions.rows @ block.T for block in self._in_use()], 1)
        self.across = numbers(found)

    def _products_with(self, vectors: Tensor | None) -> tuple[Matrix, Matrix]:
        """Scalar products of all rows, and of all directions, with vectors; each of shape (…, n).

        Those with the rows just added are taken too.
        """
        n, n_new, n_directions = len(self.products), 2 * len(self._new), len(self.across)
        right = [*self._new, *([] if vectors is None else [vectors])]
        n_vectors = 0 if vectors is None else len(vectors)
        if not right or not n + n_new + n_directions:
            return np.zeros((n, n_vectors)), np.zeros((n_directions, n_vectors))
        left = self._in_use()
        if self.directions is not None:
            left.append(self.directions.rows)
        # In this order the product of a few rows with a block is three times faster, and two by
        # two as fast as of four that would have to be brought together.
        found = np.concatenate(
            [numbers(torch.cat([rows @ block.T for block in left], 1).T) for rows in right], 1
        )
        on_directions = found[len(found) - n_directions :]
        if n_new:
            grown = np.empty((n + n_new, n + n_new))
            grown[:n, :n] = self.products
            grown[:, n:] = found[: n + n_new, :n_new]
            grown[n:, :n] = found[:n, :n_new].T
            self.products, self._new = grown, []
            self.across = np.concatenate([self.across, on_directions[:, :n_new]], 1)
        return found[: n + n_new, n_new:], on_directions[:, n_new:]
