"""A few of a loss's examples, for what is a question of how it is computed and not of which."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.problems import data, modules
from geoflow.problems.data import Tree
from geoflow.problems.parts import BatchParts, LossPart, ModulePart
from geoflow.problems.widened import Either, Evaluation

# Examples of a chunk, and chunks or batches: GPUs may take long for float64.
EXAMPLES = 500
PARTS = 16

# (θ, parts) → value and gradient of the parts.
Evaluate = Callable[[Tensor, Iterable[LossPart]], tuple[Tensor, Tensor]]


def in_either_dtype(evaluate: Evaluate, parts: Iterable[LossPart]) -> list[Either]:
    """A loss of float32 numbers that takes float64 too: of the first examples, and of all.

    Parameters
    ----------
    evaluate : callable
        See :data:`Evaluate`.
    parts : iterable of LossPart
        Of the loss.
    """

    def of(examples: int | None, dtype: torch.dtype) -> Evaluation:
        few = some(parts, dtype, examples)
        return lambda theta: evaluate(theta, few)

    return [Either(partial(of, examples)) for examples in (EXAMPLES, None)]


def some(parts: Iterable[LossPart], dtype: torch.dtype, examples: int | None) -> Iterable[LossPart]:
    """The first examples of a loss in a dtype, with copies of its modules: what those keep is lost.

    Parameters
    ----------
    parts : iterable of LossPart
        Of the loss.
    dtype : torch.dtype
        Of the data.
    examples : int, optional
        Of each of the first parts; None for all of all parts.
    """
    n = None if examples is None else PARTS
    if isinstance(parts, BatchParts):
        bound = modules.duplicate(parts.bound)
        return replace(parts, bound=bound, batches=_First(parts.batches, n), dtype=dtype)
    memo: modules.Memo = {}
    return [_some_of(part, dtype, examples, memo) for part in islice(parts, n)]


@dataclass(frozen=True)
class _First:
    batches: Iterable[Any]
    n: int | None

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.n)


def _some_of(
    part: LossPart, dtype: torch.dtype, examples: int | None, memo: modules.Memo
) -> LossPart:
    if not isinstance(part, ModulePart):
        return part
    n = data.length(part.inputs)
    size = n if examples is None else min(examples, n)

    def few(tree: Tree) -> Tree:
        return data.mapped(
            data.chunk(tree, 0, size), lambda t: data.converted(t, dtype, t.device).clone()
        )

    loss_fn = part.loss_fn
    # A mean times n weighs n as before. Of a sum fewer examples weigh less.
    is_sum = part.mean is not None and part.scale == 1.0
    return replace(
        part,
        module=modules.duplicate(part.module, memo=memo),
        loss_fn=modules.duplicate(loss_fn, memo=memo)
        if isinstance(loss_fn, nn.Module)
        else loss_fn,
        inputs=few(part.inputs),
        targets=few(part.targets),
        weight=part.weight * size / n if is_sum else part.weight,
    )
