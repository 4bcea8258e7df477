"""A few of a loss's examples, for what is a question of how it is computed and not of which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from geoflow.problems import data, modules
from geoflow.problems.data import Tree
from geoflow.problems.parts import BatchParts, LossPart, ModulePart

# Examples of a chunk, and chunks or batches: enough for a gradient, whatever a GPU takes for float64.
EXAMPLES = 500
PARTS = 16


def some(
    parts: Iterable[LossPart], dtype: torch.dtype, examples: int | None = EXAMPLES
) -> Iterable[LossPart]:
    """The first examples of a loss in a dtype, with copies of its modules: what those keep is lost.

    Parameters
    ----------
    parts : iterable of LossPart
        Of the loss.
    dtype : torch.dtype
        Of the data.
    examples : int, optional
        Of each part; None for all.
    """
    if isinstance(parts, BatchParts):
        bound = modules.duplicate(parts.bound)
        return replace(parts, bound=bound, batches=_First(parts.batches, PARTS), dtype=dtype)
    memo: modules.Memo = {}
    return [_some_of(part, dtype, examples, memo) for part in islice(parts, PARTS)]


@dataclass(frozen=True)
class _First:
    batches: Iterable[Any]
    n: int

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.n)


def _some_of(
    part: LossPart, dtype: torch.dtype, examples: int | None, memo: modules.Memo
) -> LossPart:
    if not isinstance(part, ModulePart):
        return part
    size = data.length(part.inputs) if examples is None else examples

    def few(tree: Tree) -> Tree:
        return data.mapped(
            data.chunk(tree, 0, size), lambda t: data.convert(t, dtype, t.device).clone()
        )

    loss_fn = part.loss_fn
    return replace(
        part,
        module=modules.duplicate(part.module, memo=memo),
        loss_fn=modules.duplicate(loss_fn, memo=memo) if isinstance(loss_fn, nn.Module) else loss_fn,
        inputs=few(part.inputs),
        targets=few(part.targets),
    )
