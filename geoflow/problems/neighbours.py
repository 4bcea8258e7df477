"""Two chunks side by side: whether the loss of both is the mean of theirs, of any outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from geoflow.problems import data
from geoflow.problems.data import Tree
from geoflow.problems.of_outputs import MeanAndSum
from geoflow.problems.widened import WIDER

# Along each path of outputs.
STEPS = 8
# As parts of Polyak's step, to where the loss is zero by its slope. Down twice: with almost twice
# that step a squared error falls to a 100th and a relu's zero is crossed, with one an absolute
# error falls as well. Up it doubles at least.
ALONG_THE_LOSS = (-1.8, -1.0, 1.8)
# Comparisons on all paths together, where outputs are so many numbers that each takes long.
FEW_COMPARISONS, NUMBERS = 12, 2**26
# A threshold shows by more than this part of the loss, and the rounding of outputs that no network
# gives by less.
CLEAR = 1e-5
# Where losses add up to rounding of float64 they do so within this part, as everywhere here.
ROUNDING = 1e3 * torch.finfo(torch.float64).eps

Points = list[Tensor]


class Compared(NamedTuple):
    """The mean loss of two chunks: of each for itself, and of both as one.

    Attributes
    ----------
    apart, together : float
        The two.
    size : float
        What rounding is a part of, since losses of either sign may cancel.
    excess : float
        The part by which what it is of both differs from the sum of what it is of each.
    """

    apart: float
    together: float
    size: float
    excess: float

    def differ(self, rtol: float, size: float = 0.0) -> bool:
        """Whether they do by more than a part of their size, or of a larger one."""
        return not abs(self.apart - self.together) <= rtol * max(self.size, size)


@dataclass(frozen=True)
class Neighbours:
    """Two chunks of the examples.

    Attributes
    ----------
    losses : MeanAndSum
        Chunks add up the sum; where there is none, means by their sizes.
    outputs, targets
        Of both, one after the other.
    sizes : tuple of int
        Examples of each.
    """

    losses: MeanAndSum
    outputs: Tree
    targets: Tree
    sizes: tuple[int, int]

    def compared(
        self, divisor: float | None = None, still: tuple[bool, float] | None = None
    ) -> Compared | None:
        """Compare the loss of both with that of each; None where it is not finite.

        Parameters
        ----------
        divisor : float, optional
            What the mean of both divides its sum by. None: what it is here.
        still : tuple of bool and float, optional
            Whether it is the first, and the total, of a chunk whose total is known.
        """
        n = sum(self.sizes)
        mean, summed = self.losses
        total = mean if summed is None else summed
        each = [
            still[1] if still and still[0] == first else float(total(*self._chunk(first)))
            for first in (True, False)
        ]
        together = float(mean(self.outputs, self.targets))
        sums = max(abs(together), sum(map(abs, each)))
        excess = abs(sum(each) - together) / sums if sums else 0.0
        if summed is None:
            weights = [size / n for size in self.sizes]
        else:
            divisor = divisor or self.divisor(together)
            weights = [1 / divisor] * 2 if divisor else [math.nan] * 2
        means = [w * value for w, value in zip(weights, each, strict=True)]
        if not (math.isfinite(together) and all(map(math.isfinite, means))):
            return None
        return Compared(sum(means), together, max(abs(together), sum(map(abs, means))), excess)

    def divisor(self, mean: float) -> float | None:
        """What the mean of both, as it is here, divides its sum by."""
        if self.losses.summed is None or not mean:
            return None
        return float(self.losses.summed(self.outputs, self.targets)) / mean

    def differ_by_rounding(self, found: Compared) -> bool:
        """Whether they differ as they do by the rounding of outputs of fewer digits than float64.

        Weights that add up to 1, say, then do so up to that: what comes of it grows with it.
        """
        generator = torch.Generator().manual_seed(0)

        def coarser(tensor: Tensor) -> Tensor:
            if tensor.dtype not in WIDER:
                return tensor
            noise = torch.randn(tensor.shape, generator=generator, device="cpu")
            wide = tensor.to(WIDER[tensor.dtype])
            return wide * (1 + 64 * torch.finfo(tensor.dtype).eps * noise.to(wide))

        off = abs(found.apart - found.together)
        for _ in range(3):
            rounded = data.mapped(self.outputs, coarser)
            beside = replace(self, outputs=rounded).compared()
            if beside is not None and abs(beside.apart - beside.together) > 4 * off:
                return True
        return False

    def elsewhere(self, near: Tree, *, first: bool) -> Compared | None:
        """Compare them where the loss of one chunk is another; None where they are never apart.

        A loss with a threshold on the mean, as flooding and ``clamp`` have, is a mean over chunks
        as long as all are on one side of it. So the outputs of one chunk are moved down and up the
        loss, up and down themselves, and apart. What of them θ does not move, as a mask, stays; and
        what a small step already makes another mean of is not followed: it holds for all outputs
        that a network gives, say of weights that add up to 1.

        Parameters
        ----------
        near
            The outputs of both at another θ.
        first : bool
            Whether those of the first chunk are moved.
        """
        device = next((t.device.type for _, t in data.leaves(near, "")), "cpu")
        if device != "cpu":
            # A GPU's process ends where a loss refuses outputs, as that of probabilities does.
            try:
                return self.on_cpu().elsewhere(data.mapped(near, Tensor.cpu), first=first)
            # What it closes over is on the GPU.
            except Exception:
                return None
        start = self.compared()
        if start is None or start.differ(ROUNDING):
            return None
        divisor = self.divisor(start.together)
        mean, summed = self.losses
        still = not first, float((summed or mean)(*self._chunk(not first)))
        paths = _Paths(self, near, first)
        left = iter(range(max(FEW_COMPARISONS, NUMBERS // max(paths.numbers, 1))))

        def at(points: Points) -> Compared | None:
            if next(left, None) is None:
                return None
            # Beyond what a network gives a loss may fail in any way.
            try:
                return replace(self, outputs=paths.tree(points)).compared(divisor, still)
            except Exception:
                return None

        for direction in paths.directions():
            found = _followed(direction, paths.start, at, start.size)
            if found is not None:
                return found
        return None

    def on_cpu(self) -> Neighbours:
        """The same on the CPU."""
        outputs, targets = (data.mapped(t, Tensor.cpu) for t in (self.outputs, self.targets))
        return Neighbours(self.losses.on_cpu(), outputs, targets, self.sizes)

    def _chunk(self, first: bool) -> tuple[Tree, Tree]:
        return self.chunk_of(self.outputs, first), self.chunk_of(self.targets, first)

    def chunk_of(self, tree: Tree, first: bool) -> Tree:
        """One of the two chunks of what is of both."""
        return data.chunk(tree, *((0, self.sizes[0]) if first else self.sizes))


# The next step from some points on; empty where there is none.
Direction = Callable[[Points], Points]


class _Paths:
    """Outputs of which one chunk moves: as the tensors that do, in float64."""

    def __init__(self, pair: Neighbours, near: Tree, first: bool) -> None:
        self._pair, self._first = pair, first
        leaves = [t for _, t in data.leaves(pair.outputs, "")]
        others = [t for _, t in data.leaves(near, "")]
        # What has another length is of no examples, and the loss does not use it.
        n = sum(pair.sizes)
        self._places = [i for i, t in enumerate(leaves) if t.is_floating_point() and len(t) == n]
        self._places = [i for i in self._places if leaves[i].numel()]
        self.start = [leaves[i].double() for i in self._places]
        self._moves = [self._rows(leaves[i] != others[i]) for i in self._places]
        self.numbers = sum(t.numel() for t in leaves)

    def _rows(self, moves: Tensor) -> Tensor:
        """Those of them that are in the chunk."""
        other = self._pair.chunk_of(moves, not self._first)
        other.zero_()
        return moves

    def tree(self, points: Points) -> Tree:
        """The outputs of both, with these in their places."""
        numbered, points_of = count(), dict(zip(self._places, points, strict=True))
        return data.mapped(self._pair.outputs, lambda t: points_of.get(next(numbered), t))

    def directions(self) -> Iterator[Direction]:
        """Steps from points on, for each path."""
        yield from map(self._along_the_loss, ALONG_THE_LOSS)
        spread = [float(t.std(correction=0)) or 1.0 for t in self.start]
        for sign in (-0.1, 0.1):
            ones = [torch.full_like(t, sign * s) for t, s in zip(self.start, spread, strict=True)]
            for base in (ones, [sign * t for t in self.start]):
                yield self._growing(base)

    def _along_the_loss(self, factor: float) -> Direction:
        """A part of Polyak's step from wherever it is."""

        def step(points: Points) -> Points:
            variables = [p.detach().requires_grad_() for p in points]
            chunk = self._pair.chunk_of(self.tree(variables), self._first)
            targets = self._pair.chunk_of(self._pair.targets, self._first)
            loss = self._pair.losses.mean
            try:
                value, gradient = loss.value_and_gradient(chunk, targets, variables)
            except Exception:
                return []
            gradient = [g * m for g, m in zip(gradient, self._moves, strict=True)]
            square = sum(float(g.square().sum()) for g in gradient)
            return [factor * abs(float(value)) / square * g for g in gradient] if square else []

        return step

    def _growing(self, base: Sequence[Tensor]) -> Direction:
        """Steps along one direction, each thrice as far from the start as the last."""

        def step(points: Points) -> Points:
            gone = zip(base, points, self.start, self._moves, strict=True)
            return [m * (b + 2 * (p - s)) for b, p, s, m in gone]

        return step


def _followed(
    direction: Direction, start: Points, at: Callable[[Points], Compared | None], size: float
) -> Compared | None:
    """What is found where a path parts the two."""

    def moved(points: Points, step: Points, by: float) -> Points:
        return [p + by * s for p, s in zip(points, step, strict=True)]

    points = start
    for number in range(STEPS):
        if not (step := direction(points)):
            return None
        if not number:
            beside = at(moved(points, step, 1e-3))
            if beside is None or beside.differ(ROUNDING, size):
                return None
        tried = (moved(points, step, by) for by in (1.0, 0.25, 0.06))
        points, found = next(((p, c) for p in tried if (c := at(p)) is not None), (points, None))
        if found is None:
            return None
        if found.differ(CLEAR, size):
            return found
    return None
