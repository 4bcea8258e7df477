"""A mean loss over all examples divided into chunks whose sum it is, exactly."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import checks, data, modules
from geoflow.problems.data import Tree
from geoflow.problems.dependence import nearby
from geoflow.problems.parts import LossPart, ModulePart, Parameters
from geoflow.system.translation import reason

LossFn = Callable[[Any, Any], Tensor]


# Sums of losses whose examples are evaluated together and apart differ by this at the most: what a
# level is kept to, and a network may compute some of it in float32.
TOGETHER_RTOL = {torch.float64: 1e-6, torch.float32: 1e-4}


def divided(
    whole: ModulePart,
    batch_size: int | None,
    parameters: Parameters,
    fresh: LossFn | None = None,
) -> tuple[LossPart, ...]:
    """Divide a loss over all examples into parts of ``batch_size``.

    A loss with a ``reduction``, as PyTorch's own have, is summed in the chunks and divided by what
    the mean divides by: class weights and ignored targets are counted as the mean counts them. Of
    any other loss a chunk weighs as many examples as it has. Both are compared with the loss of
    all examples, at the parameters given and at others near them, where that is finite; and there
    each two chunks are evaluated as one: that is not their sum where examples act on each other in
    the network.

    Parameters
    ----------
    whole : ModulePart
        The mean loss of all examples.
    batch_size : int, optional
        None: one part.
    parameters : dict of str to Tensor
        Where to compare.
    fresh : callable, optional
        A copy of the loss that has not been evaluated yet. None: the loss itself.

    Raises
    ------
    InputError
        The loss of all examples is no such sum, or has no value on some of them.
    """
    if batch_size is None or batch_size >= data.length(whole.inputs):
        return (whole,)
    with checks.explained(next(iter(parameters.values())).dtype, batch_size=batch_size):
        return _chunks(whole, batch_size, parameters, whole.loss_fn if fresh is None else fresh)


def weighed(part: ModulePart, parameters: Parameters) -> ModulePart:
    """The loss of all examples as the sum that a chunk of them is, with the weight of a chunk.

    Beside parts that hold other examples it then counts as ``divided`` makes it count.

    Raises
    ------
    InputError
        The loss is no such sum.
    """
    return _chunks(part, data.length(part.inputs), parameters, part.loss_fn)[0]


def _chunks(
    whole: ModulePart, batch_size: int, parameters: Parameters, fresh: LossFn
) -> tuple[ModulePart, ...]:
    n = data.length(whole.inputs)
    summed = _summed(whole.loss_fn)
    parts = tuple(_some(whole, summed, s, s + batch_size) for s in range(0, n, batch_size))
    # The network is evaluated chunk by chunk, and the loss on all outputs at once: no more memory
    # is needed than later.
    points = [(parameters, *_evaluated(parts, parameters)), *_beside(parts, parameters)]
    means = [float(whole.loss_fn(outputs, whole.targets).detach()) for _, outputs, _ in points]
    # A loss that is not finite at the parameters given is refused by a message of its own.
    found = [
        (*point, mean) for point, mean in zip(points, means, strict=True) if math.isfinite(mean)
    ]
    if summed is not None:
        # A loss of zero does not tell what it is divided by.
        weights = [float(summed(o, whole.targets)) / mean for _, o, _, mean in found if mean]
        weight = weights[0] if weights else float(n)
        parts = tuple(replace(p, weight=weight * p.weight / n) for p in parts)
    for _, outputs, _, mean in found:
        _check_mean(parts, outputs, mean, batch_size)
    for at, _, sums, _ in found[-1:]:
        _check_alone(replace(whole, loss_fn=fresh), parts, sums, at, batch_size)
    return parts


def _some(whole: ModulePart, summed: LossFn | None, start: int, end: int) -> ModulePart:
    """The sum of losses of some of the examples, weighing as many as they are."""
    x, y = (data.chunk(tree, start, end - start) for tree in (whole.inputs, whole.targets))
    n = float(data.length(x))
    if summed is None:
        return replace(whole, inputs=x, targets=y, scale=n, weight=n)
    return replace(whole, inputs=x, targets=y, loss_fn=summed, weight=n)


def _summed(loss_fn: LossFn) -> LossFn | None:
    """The same loss with ``reduction='sum'``, where it has that option and is a mean."""
    if isinstance(loss_fn, nn.Module):
        # What a scripted one does was fixed with its code.
        scripted = isinstance(loss_fn, torch.jit.ScriptModule)
        if scripted or getattr(loss_fn, "reduction", None) != "mean":
            return None
        summed = modules.duplicate(loss_fn, "loss_fn")
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


def _evaluated(parts: tuple[ModulePart, ...], parameters: Parameters) -> tuple[Tree, list[float]]:
    """The outputs of all examples, and each part's sum of losses."""
    outputs, sums = [], []
    for part in parts:
        found = part.outputs(parameters)
        # Right after the outputs: a loss may use what a hook has kept of them.
        sums.append(float(part.sum_of_outputs(found).detach()))
        outputs.append(data.mapped(found, lambda t: t.detach()))
    return joined(outputs), sums


def _beside(
    parts: tuple[ModulePart, ...], parameters: Parameters
) -> list[tuple[Parameters, Tree, list[float]]]:
    """Other parameters and what is found there; nothing where the loss is not defined there."""
    near = nearby(parameters)
    try:
        return [(near, *_evaluated(parts, near))]
    except (GeoflowError, torch.OutOfMemoryError, MemoryError):
        raise
    # As a Cholesky factorisation fails, or a distribution, of a variance below zero.
    except (ArithmeticError, RuntimeError, ValueError):
        return []


def joined(found: list[Tree]) -> Tree:
    """Put chunks together again.

    Raises
    ------
    InputError
        They do not fit each other, or there is something else than tensors in them.
    """
    try:
        return _joined(found)
    except (GeoflowError, torch.OutOfMemoryError):
        raise
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        said = reason(error)
        raise InputError(
            f"module: its outputs cannot be joined over chunks ({said}), as those padded to the "
            "longest of a chunk, or with the examples not in their first dimension; use "
            "batch_size=None, or Problem.from_batches"
        ) from None


def _joined(found: list[Tree]) -> Tree:
    first = found[0]
    if isinstance(first, Tensor):
        if not first.ndim:
            raise InputError(
                "module: its outputs hold a number of all examples, which has no part in each "
                "chunk; use batch_size=None, or Problem.from_batches"
            )
        return torch.cat(found)
    if isinstance(first, Mapping):
        return data.with_items(first, {k: _joined([f[k] for f in found]) for k in first})
    if isinstance(first, tuple | list):
        each = zip(*found, strict=True)
        return data.with_values(first, [_joined(list(values)) for values in each])
    if data.is_record(first):
        fields = [data.fields_of(f) for f in found]
        return data.with_fields(first, {k: _joined([f[k] for f in fields]) for k in fields[0]})
    if all(f is None for f in found):
        return None
    raise InputError(
        f"module: its outputs hold a {type(first).__name__}, which cannot be joined over chunks; "
        "use batch_size=None, or Problem.from_batches"
    )


def _check_mean(parts: tuple[ModulePart, ...], outputs: Tree, mean: float, batch_size: int) -> None:
    start, sums, weight = 0, [], sum(part.weight for part in parts)
    for part in parts:
        size = data.length(part.inputs)
        sums.append(float(part.sum_of_outputs(data.chunk(outputs, start, size))))
        start += size
    found = sum(sums) / weight
    # Losses of either sign may cancel, up to their rounding.
    scale = max(abs(mean), sum(map(abs, sums)) / abs(weight))
    dtype = next(iter(data.leaves(outputs, "")))[1].dtype
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else 1e-7
    if not abs(found - mean) <= 1e3 * eps * scale:
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


def _check_alone(
    whole: ModulePart,
    parts: tuple[ModulePart, ...],
    sums: list[float],
    at: Parameters,
    batch_size: int,
) -> None:
    """Compare the sum of two chunks with that of their examples as one, or of one with its halves.

    Without a graph two chunks at once take no more memory than one with it.
    """
    summed = _summed(whole.loss_fn)

    def evaluated(start: int, end: int) -> float:
        return float(_some(whole, summed, start, end).sum_and_weight(at)[0].detach())

    ends = list(accumulate((data.length(part.inputs) for part in parts), initial=0))
    compared: list[tuple[tuple[float, ...], tuple[tuple[int, int], ...]]]
    if len(parts) == 1:
        halves = (0, ends[1] // 2), (ends[1] // 2, ends[1])
        compared = [((sums[0],), halves)] if ends[1] > 1 else []
    else:
        # Of an odd number the last but one is in two pairs.
        firsts = sorted({*range(0, len(parts) - 1, 2), len(parts) - 2})
        compared = [((sums[i], sums[i + 1]), ((ends[i], ends[i + 2]),)) for i in firsts]
    rtol = TOGETHER_RTOL[next(iter(at.values())).dtype]
    for known, cuts in compared:
        found = [evaluated(*cut) for cut in cuts]
        size = max(sum(map(abs, known)), sum(map(abs, found)))
        differ = abs(sum(known) - sum(found)) > rtol * size
        # What is random is refused by a message of its own.
        if differ and found == [evaluated(*cut) for cut in cuts]:
            together, apart = (found, known) if len(cuts) == 1 else (known, found)
            where = "module" if len(parts) == 1 else f"batch_size={batch_size}"
            raise InputError(
                f"{where}: the losses of some examples add up to {sum(together):.6g} in one chunk "
                f"and {sum(apart):.6g} in two, so they act on each other (batch statistics, "
                "attention or a recurrent layer without batch_first=True, a sum over the batch), "
                "or the loss keeps something of the first; use batch_size=None, or change that"
            )
