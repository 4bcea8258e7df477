"""A mean loss over all examples divided into chunks whose sum it is, exactly."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import checks, data, modules
from geoflow.problems.checks import Division
from geoflow.problems.data import Tree
from geoflow.problems.dependence import nearby
from geoflow.problems.joining import detached, joined
from geoflow.problems.parts import LossPart, ModulePart, Parameters

LossFn = Callable[[Any, Any], Tensor]


# Sums of losses whose examples are evaluated together and apart differ by this at the most: what a
# level is kept to, and a network may compute some of it in float32.
TOGETHER_RTOL = {torch.float64: 1e-6, torch.float32: 1e-4}


def divided(
    whole: ModulePart,
    batch_size: int | None,
    parameters: Parameters,
    fresh: LossFn | None = None,
    division: Division | None = None,
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
    division : Division, optional
        How messages speak of it. None: as of a ``batch_size`` that the user gave.

    Raises
    ------
    InputError
        The loss of all examples is no such sum, or has no value on some of them.
    """
    if batch_size is None or batch_size >= data.length(whole.inputs):
        return (whole,)
    division = division or Division.of(batch_size)
    with checks.explained(next(iter(parameters.values())).dtype, division=division):
        return _chunks(whole, division, parameters, whole.loss_fn if fresh is None else fresh)


def weighed(part: ModulePart, parameters: Parameters) -> ModulePart:
    """The loss of all examples as the sum that a chunk of them is, with the weight of a chunk.

    Beside parts that hold other examples it then counts as ``divided`` makes it count.

    Raises
    ------
    InputError
        The loss is no such sum.
    """
    all_of_them = Division(data.length(part.inputs), "whole=False", "one process")
    return _chunks(part, all_of_them, parameters, part.loss_fn)[0]


def _chunks(
    whole: ModulePart, division: Division, parameters: Parameters, fresh: LossFn
) -> tuple[ModulePart, ...]:
    n, batch_size = data.length(whole.inputs), division.size
    summed = sum_of(whole.loss_fn)
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
        _check_mean(parts, outputs, mean, division)
    for at, _, sums, _ in found[-1:]:
        _check_alone(replace(whole, loss_fn=fresh), parts, sums, at, division)
    return parts


def _some(whole: ModulePart, summed: LossFn | None, start: int, end: int) -> ModulePart:
    """The sum of losses of some of the examples, weighing as many as they are."""
    x, y = (data.chunk(tree, start, end - start) for tree in (whole.inputs, whole.targets))
    n = float(data.length(x))
    if summed is None:
        return replace(whole, inputs=x, targets=y, scale=n, weight=n, mean=whole.loss_fn)
    return replace(whole, inputs=x, targets=y, loss_fn=summed, weight=n, mean=whole.loss_fn)


def sum_of(mean: LossFn) -> LossFn | None:
    """The same loss with ``reduction='sum'``, where it has that option and is a mean."""
    if isinstance(mean, nn.Module):
        # What a scripted one does was fixed with its code.
        scripted = isinstance(mean, torch.jit.ScriptModule)
        if scripted or getattr(mean, "reduction", None) != "mean":
            return None
        summed = modules.duplicate(mean, "loss_fn")
        summed.__dict__["reduction"] = "sum"
        return summed
    try:
        option = inspect.signature(mean).parameters.get("reduction")
    except (TypeError, ValueError):
        return None
    if option is None or option.default != "mean":
        return None
    summed_function: LossFn = functools.partial(mean, **{"reduction": "sum"})
    return summed_function


def _evaluated(parts: tuple[ModulePart, ...], parameters: Parameters) -> tuple[Tree, list[float]]:
    """The outputs of all examples, and each part's sum of losses."""
    outputs, sums = [], []
    for part in parts:
        # Right after the outputs: a loss may use what a hook has kept of them.
        with part.lock:
            found = part.outputs(parameters)
            sums.append(float(part.sum_of_outputs(found).detach()))
        outputs.append(detached(found))
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


def _check_mean(
    parts: tuple[ModulePart, ...], outputs: Tree, mean: float, division: Division
) -> None:
    start, sums, weight = 0, [], sum(part.weight for part in parts)
    for part in parts:
        size = data.length(part.inputs)
        sums.append(float(part.sum_of_outputs(data.chunk(outputs, start, size))))
        start += size
    found = sum(sums) / weight
    # Losses of either sign may cancel, up to their rounding.
    scale = max(abs(mean), sum(map(abs, sums)) / abs(weight))
    # There may be nothing that the loss is a function of beside what a hook keeps.
    dtypes = [t.dtype for _, t in data.leaves(outputs, "")][:1]
    eps = torch.finfo(dtypes[0]).eps if dtypes and dtypes[0].is_floating_point else 1e-7
    if abs(found - mean) <= 1e3 * eps * scale:
        return
    as_given = [total / part.scale for total, part in zip(sums, parts, strict=True)]
    if abs(sum(as_given) - mean) <= 1e3 * eps * max(abs(mean), sum(map(abs, as_given))):
        raise adds_up(division.asked)
    if len(parts) == 1:
        raise InputError(
            f"loss_fn: its mean is {mean:.6g}, and its sum by its weight {found:.6g}, so it is "
            "no mean over examples; use Problem.from_batches, whose batch_loss gives each "
            "batch's sum and weight"
        )
    raise InputError(
        f"{division.asked}: the mean over chunks is {found:.6g} where the loss of all "
        f"examples is {mean:.6g}, so loss_fn is no mean over examples; use {division.instead}, or "
        "Problem.from_batches, whose batch_loss gives each batch's sum and weight"
    )


def adds_up(asked: str) -> InputError:
    """What to say of a loss that adds up over the examples."""
    return InputError(
        f"{asked}: loss_fn is a sum over the examples, no mean over examples; give the mean "
        "(reduction='mean', or divided by their number), which has the same level sets"
    )


def _check_alone(
    whole: ModulePart,
    parts: tuple[ModulePart, ...],
    sums: list[float],
    at: Parameters,
    division: Division,
) -> None:
    """Compare the sum of two chunks with that of their examples as one, or of one with its halves.

    Without a graph two chunks at once take no more memory than one with it.
    """
    summed = sum_of(whole.loss_fn)

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
            if len(parts) == 1 and summed is None:
                of_halves = sum(
                    f / (end - start) for f, (start, end) in zip(found, cuts, strict=True)
                )
                if abs(of_halves - known[0] / ends[1]) <= rtol * size / ends[1]:
                    raise adds_up(division.asked)
            together, apart = (found, known) if len(cuts) == 1 else (known, found)
            where = "module" if len(parts) == 1 else division.asked
            raise InputError(
                f"{where}: the losses of some examples add up to {sum(together):.6g} in one chunk "
                f"and {sum(apart):.6g} in two, so they act on each other (batch statistics, "
                "attention or a recurrent layer without batch_first=True, a sum over the batch), "
                f"or the loss keeps something of the first; use {division.instead}, or change that"
            )
