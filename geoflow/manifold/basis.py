"""Vectors that are added one by one, in memory that grows with them."""

from __future__ import annotations

import torch
from torch import Tensor

# Vectors a block. A CPU takes memory as it is written, a GPU as it is asked for.
BLOCK = 8


class Basis:
    """Vectors as rows of blocks, kept in a dtype of their own.

    To grow by copying would hold all of them twice. Products are in the dtype that is kept: where
    that is float32 they read half the memory, to seven digits.

    Parameters
    ----------
    like : Tensor, shape (P,)
        Of what shape, dtype and device vectors are given and taken.
    dtype : torch.dtype
        In which they are kept.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._size, self._outside, self._dtype = like.numel(), like.dtype, dtype
        self._device = like.device
        self._blocks: list[Tensor] = []
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> Tensor:
        """The i-th vector, rounded as it is kept."""
        return self._blocks[i // BLOCK][i % BLOCK].to(self._outside)

    def append(self, vector: Tensor, scale: float) -> None:
        """Keep ``scale`` times a vector."""
        if self._n == BLOCK * len(self._blocks):
            block = torch.empty((BLOCK, self._size), dtype=self._dtype, device=self._device)
            self._blocks.append(block)
        row = self._blocks[-1][self._n % BLOCK]
        if self._dtype == self._outside:
            torch.mul(vector, scale, out=row)
        else:
            row.copy_(vector * scale)
        self._n += 1

    def rows(self, n: int) -> Tensor:
        """The first n vectors as one matrix, shape (n, P), copied."""
        return torch.cat(self._first(n)).to(self._outside)

    def inner(self, vector: Tensor, n: int) -> Tensor:
        """Scalar products of the first n vectors with another, shape (n,)."""
        given = vector.to(self._dtype)
        found = [block @ given for block in self._first(n)]
        return (found[0] if len(found) == 1 else torch.cat(found)).to(self._outside)

    def combined(self, coefficients: Tensor) -> Tensor:
        """Σ cᵢ vᵢ of as many vectors as there are coefficients, shape (P,)."""
        given = coefficients.to(self._dtype)
        first, *others = self._first(len(given))
        total = given[:BLOCK] @ first
        for i, block in enumerate(others, 1):
            total.addmv_(block.T, given[BLOCK * i : BLOCK * i + len(block)])
        return total.to(self._outside)

    def _first(self, n: int) -> list[Tensor]:
        full, rest = divmod(n, BLOCK)
        blocks = self._blocks[:full]
        return [*blocks, self._blocks[full][:rest]] if rest else blocks
