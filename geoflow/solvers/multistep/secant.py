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
from scipy.linalg.lapack import dtrtrs
from torch import Tensor

from geoflow.errors import ArchiveError
from geoflow.solvers.base import Carry
from geoflow.solvers.carried import called, check_numbers, check_tensor
from geoflow.solvers.multistep.directions import (
    LEAST_CURVATURE,
    Directions,
    Matrix,
    Vector,
    numbers,
)
from geoflow.solvers.multistep.images import Read as Read
from geoflow.solvers.multistep.images import Solved as Solved

# Pairs a block: one is copied when a pair is added, the others are shared with earlier carries.
BLOCK = 8
# Blocks that are kept as pairs, whole ones; with the one that is filled there are up to as many
# and one.
BLOCKS = 2
# Part of the curvatures known that are less than A is taken to have beside them.
SOFTER = 0.4


def resolved(s: Tensor, theta: Tensor) -> float:
    """‖s‖ of a step to θ; 0 where gradients at both ends differ by little but their rounding."""
    size = float(torch.linalg.vector_norm(s))
    floor = torch.finfo(s.dtype).eps ** 0.7 * float(torch.linalg.vector_norm(theta))
    return 0.0 if size <= floor else size


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

    @staticmethod
    def taken_up(carry: Carry, theta: Tensor) -> Carry:
        """What the carry of a checkpoint holds of it, rows where θ is and numbers on the CPU.

        Raises
        ------
        ArchiveError
            Something is of another shape or dtype, not finite, or missing beside the others.
        """
        products = carry.get("pair_products")
        # Of the first step there is nothing.
        n = len(products) if isinstance(products, Tensor) and products.ndim else 0
        if n % 2:
            raise ArchiveError(f"{called('pair_products')} is of no pairs")
        names = [f"pairs_{i}" for i in range(-(-n // (2 * BLOCK)))]
        beyond = {f"pairs_{len(names)}"} | ({"directions"} if products is None else set())
        if left := sorted(beyond & carry.keys()):
            raise ArchiveError(f"{called(left[0])} has no products in pair_products")
        rows, numbers = dict[str, Tensor](), dict[str, Tensor]()
        for i, name in enumerate(names):
            used = min(n - 2 * BLOCK * i, 2 * BLOCK)
            block = carry.get(name)
            # Earlier versions kept the rows of the last one too that nothing was in yet.
            if isinstance(block, Tensor) and block.shape[:1] == (2 * BLOCK,):
                carry = {**carry, name: block[:used]}
            rows[name] = check_tensor(carry, name, (used, theta.numel()), torch.float32)
        if products is not None:
            numbers["pair_products"] = check_tensor(carry, "pair_products", (n, n), torch.float64)
        # Earlier versions have images as they are, and no directions.
        check_numbers(carry, "pair_unit", optional=True)
        if "directions" in carry:
            found = check_tensor(carry, "directions", (None, theta.numel()), torch.float32)
            rows["directions"], k = found, len(found)
            for name, shape in ("direction_curvatures", (k,)), ("direction_products", (k, n)):
                numbers[name] = check_tensor(carry, name, shape, torch.float64)
        at_theta = {name: block.to(theta.device) for name, block in rows.items()}
        return {**at_theta, **{name: value.cpu() for name, value in numbers.items()}}

    def pack(self) -> Carry:
        """What a carry holds of it."""
        self._products_with(None)
        blocks: Carry = {f"pairs_{i}": block for i, block in enumerate(self._in_use())}
        carry: Carry = {**blocks, "pair_products": torch.from_numpy(self.products)}
        carry["pair_unit"] = torch.tensor(self.unit, dtype=torch.float64, device="cpu")
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
        return self.solved(self.read(vectors, c), c).combined(np.eye(len(vectors)))

    def read(self, vectors: Tensor, c: float) -> Read:
        """Scalar products of vectors, shape (n, P), with all that is known for a ``c`` like this.

        It is what costs.
        """
        while len(self) >= (BLOCKS + 1) * BLOCK:
            self._give_up_oldest(c * (self.unit or 1.0))
        return Read(vectors, *self._products_with(vectors.to(torch.float32)))

    def solved(self, read: Read, c: float, *, bulk: float | None = None) -> Solved:
        """As :meth:`inverse`, the images not made yet: what is needed of them may be one sum.

        Parameters
        ----------
        read : Read
            What it is applied to.
        c : float
            In flow time.
        bulk : float, optional
            Curvature that A is taken to have beside all that is known. None: what so many of the
            known are below.
        """
        c *= self.unit or 1.0
        vectors, inner, on_directions, among = read
        rows = np.arange(0, len(self.products), 2)
        base = 1 / (1 + c * (self._bulk() if bulk is None else bulk))
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
        alpha = dtrtrs(upper, on_s)[0] if len(rows) else on_s
        through = gains * (on_directions - across @ alpha)
        begun = base * (on_y - yy @ alpha) + across.T @ through
        right = np.diag(sy)[:, None] * alpha - begun
        gain = dtrtrs(upper, right, trans=1)[0] if len(rows) else right
        coefficients = np.zeros((len(self.products), len(vectors)))
        coefficients[rows], coefficients[rows + 1] = gain - base * alpha, -base * c * alpha
        products = base * among + inner.T @ coefficients + on_directions.T @ through
        of_rows = np.concatenate([coefficients, through])
        return Solved(vectors, self._all_rows(), base, of_rows, products)

    def length(self, read: Read, parts: Vector) -> float:
        """Length of a sum of the vectors read and of all rows, by their scalar products.

        Parameters
        ----------
        read : Read
            The vectors.
        parts : ndarray, shape (n + number of rows,)
            Of the vectors, then of the rows; see
            :meth:`geoflow.solvers.multistep.images.Solved.parts`.
        """
        _, inner, on_directions, among = read
        v, of_pairs, of_directions = np.split(
            parts, np.cumsum([len(among), len(self.products)]).tolist()
        )
        squared = v @ among @ v + of_directions @ of_directions
        squared += of_pairs @ (self.products @ of_pairs + 2 * self.across.T @ of_directions)
        squared += 2 * (of_pairs @ inner + of_directions @ on_directions) @ v
        return math.sqrt(max(float(squared), 0.0))

    def _known(self) -> Vector:
        """Curvatures of pairs and directions, in units of the images."""
        of_directions = np.zeros(0) if self.directions is None else self.directions.curvatures
        return np.concatenate([np.diag(self.products, 1)[::2], of_directions])

    def _bulk(self) -> float:
        """Curvature that so many of all known are below; not negative, and 0 before there are any.

        It is never that of the first pairs alone: a walk becomes less stiff.
        """
        if not len(known := np.sort(self._known())):
            return 0.0
        # np.quantile does the same in thirty times the time, at every correction.
        below, part = divmod(SOFTER * (len(known) - 1), 1)
        lower, upper = known[int(below)], known[math.ceil(below + part)]
        found = (
            lower + (upper - lower) * part if part < 0.5 else upper - (upper - lower) * (1 - part)
        )
        return max(0.0, float(found))

    @property
    def stiffest(self) -> float:
        """Largest curvature known, 0 before there is one."""
        return float(self._known().max(initial=0.0)) * self.unit

    def _give_up_oldest(self, c: float) -> None:
        """Make directions of the oldest block of pairs."""
        self._products_with(None)
        n, (oldest, *self.blocks) = 2 * BLOCK, self.blocks
        before = self.directions or Directions(oldest[:0], np.zeros(0))
        # The scale at which curvatures matter; without one, that of the images.
        scale = c if c > 0 else 1.0
        across = self.across[:, :n] if self.directions else np.zeros((0, n))
        self.directions, weights = before.with_pairs(
            oldest, across, self.products[:n, :n], scale, self._bulk(), self.limit
        )
        beside = np.concatenate([self.across[:, n:], self.products[:n, n:]])
        self.products, self.across = self.products[n:, n:], weights @ beside

    def _all_rows(self) -> list[Tensor]:
        """All rows, blocks and then directions."""
        return [*self._in_use(), *([] if self.directions is None else [self.directions.rows])]

    def _products_with(self, vectors: Tensor | None) -> tuple[Matrix, Matrix, Matrix]:
        """Scalar products with vectors: of all rows, of all directions, and among themselves.

        Those with the rows just added are taken too.
        """
        n, n_new, n_directions = len(self.products), 2 * len(self._new), len(self.across)
        right = [*self._new, *([] if vectors is None else [vectors])]
        if not right:
            return np.zeros((n, 0)), np.zeros((n_directions, 0)), np.zeros((0, 0))
        # Rows are read once for all of these: from memory, they are what it costs.
        given = torch.cat(right) if len(right) > 1 else right[0]
        found = numbers(torch.cat([given @ rows.T for rows in [*self._all_rows(), given]], 1).T)
        on_directions = found[n + n_new : n + n_new + n_directions]
        if n_new:
            grown = np.empty((n + n_new, n + n_new))
            grown[:n, :n] = self.products
            grown[:, n:] = found[: n + n_new, :n_new]
            grown[n:, :n] = found[:n, :n_new].T
            self.products, self._new = grown, []
            self.across = np.concatenate([self.across, on_directions[:, :n_new]], 1)
        among = found[n + n_new + n_directions + n_new :, n_new:]
        return found[: n + n_new, n_new:], on_directions[:, n_new:], among
