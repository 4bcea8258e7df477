"""A mean loss over all examples divided into chunks whose sum it is, exactly."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems import checks, data
from geoflow.problems.data import Tree
from geoflow.problems.parts import LossPart, ModulePart, Parameters

LossFn = Callable[[Any, Any], Tensor]


def divided(
    module: nn.Module,
    fixed: Mapping[str, Tensor],
    loss_fn: LossFn,
    inputs: Tree,
    targets: Tree,
    batch_size: int | None,
    parameters: Parameters,
) -> tuple[LossPart, ...]:
    """Divide a loss over all examples into parts of ``batch_size``.

    A loss with a ``reduction``, as PyTorch's own have, is summed in the chunks and divided by what
    the mean divides by: class weights and ignored targets are counted as the mean counts them. Of
    any other loss a chunk weighs as many examples as it has. Both are compared with the loss of
    all examples, at the parameters given and at others near them.

    Parameters
    ----------
    module, fixed, loss_fn, inputs, targets
        See :class:`~geoflow.problems.parts.ModulePart`.
    batch_size : int, optional
        None: one part.
    parameters : dict of str to Tensor
        Where to compare.

    Raises
    ------
    InputError
        The loss of all examples is no such sum.
    """
    whole = ModulePart(module, fixed, inputs, targets, loss_fn)
    if batch_size is None or batch_size >= data.length(inputs):
        return (whole,)
    return _chunks(whole, batch_size, parameters)


def weighed(part: ModulePart, parameters: Parameters) -> ModulePart:
    """The loss of all examples as the sum that a chunk of them is, with the weight of a chunk.

    Beside parts that hold other examples it then counts as ``divided`` makes it count.

    Raises
    ------
    InputError
        The loss is no such sum.
    """
    return _chunks(part, data.length(part.inputs), parameters)[0]


def _chunks(whole: ModulePart, batch_size: int, parameters: Parameters) -> tuple[ModulePart, ...]:
    module, fixed, loss_fn = whole.module, whole.fixed, whole.loss_fn
    inputs, targets = whole.inputs, whole.targets
    n = data.length(inputs)
    chunks = [
        (data.chunk(inputs, s, batch_size), data.chunk(targets, s, batch_size))
        for s in range(0, n, batch_size)
    ]
    sizes = [data.length(x) for x, _ in chunks]
    summed = _summed(loss_fn)
    # The network is evaluated chunk by chunk, and the loss on all outputs at once: no more memory
    # is needed than later.
    found = [_outputs(whole, chunks, p) for p in (parameters, checks.nearby(parameters))]
    means = [float(loss_fn(o, targets)) for o in found]
    if summed is None:
        parts = tuple(
            ModulePart(module, fixed, x, y, loss_fn, float(size), float(size))
            for (x, y), size in zip(chunks, sizes, strict=True)
        )
    else:
        # A loss of zero does not tell what it is divided by.
        weights = [
            float(summed(o, targets)) / mean for o, mean in zip(found, means, strict=True) if mean
        ]
        weight = weights[0] if weights else float(n)
        parts = tuple(
            ModulePart(module, fixed, x, y, summed, 1.0, weight * size / n)
            for (x, y), size in zip(chunks, sizes, strict=True)
        )
    for outputs, mean in zip(found, means, strict=True):
        _check(parts, outputs, sizes, mean, batch_size)
    return parts


def _summed(loss_fn: LossFn) -> LossFn | None:
    """The same loss with ``reduction='sum'``, where it has that option and is a mean."""
    if isinstance(loss_fn, nn.Module):
        if getattr(loss_fn, "reduction", None) != "mean":
            return None
        summed = copy.deepcopy(loss_fn)
        summed.__dict__["reduction"] = "sum"
        return summed
    try:
        option = inspect.signature(loss_fn).parameters.get("reduction")
    except (TypeError, ValueError):
        return None
    if option is None or option.default != "mean":
        return None
    summed_function: LossFn = functools.partial(loss_fn, **{"reduction": "sum"})
    return summed_function


def _outputs(whole: ModulePart, chunks: list[tuple[Tree, Tree]], parameters: Parameters) -> Tree:
    found = [
        ModulePart(whole.module, whole.fixed, x, y, whole.loss_fn).outputs(parameters)
        for x, y in chunks
    ]
    return data.mapped(joined(found), lambda t: t.detach())


def joined(found: list[Tree]) -> Tree:
    """Put chunks together again.

    Raises
    ------
    InputError
        There is something else than tensors in them.
    """
    first = found[0]
    if isinstance(first, Tensor):
        return torch.cat(found)
    if isinstance(first, dict):
        return type(first)((k, joined([f[k] for f in found])) for k in first)
    if isinstance(first, tuple | list):
        return tuple(joined([f[i] for f in found]) for i in range(len(first)))
    raise InputError(
        f"module: its outputs hold a {type(first).__name__}, which cannot be joined over chunks; "
        "use batch_size=None, or Problem.from_batches"
    )


def _check(
    parts: tuple[ModulePart, ...], outputs: Tree, sizes: list[int], mean: float, batch_size: int
) -> None:
    start, total = 0, 0.0
    for part, size in zip(parts, sizes, strict=True):
        total += float(part.sum_of_outputs(data.chunk(outputs, start, size)))
        start += size
    found = total / sum(part.weight for part in parts)
    dtype = next(iter(data.leaves(outputs, "")))[1].dtype
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 1e-7
    if not abs(found - mean) <= 1e3 * eps * max(abs(mean), abs(found)):
        if len(parts) == 1:
            raise InputError(
                f"loss_fn: its mean is {mean:.6g}, and its sum by its weight {found:.6g}, so it is "
                "no mean over examples; use Problem.from_batches, whose batch_loss gives each "
                "batch's sum and weight"
            )
        raise InputError(
            f"batch_size={batch_size}: the mean over chunks is {found:.6g} where the loss of all "
            f"examples is {mean:.6g}, so loss_fn is no mean over examples; use batch_size=None, or "
            "Problem.from_batches, whose batch_loss gives each batch's sum and weight"
        )
