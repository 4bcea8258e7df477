"""A mean loss over all examples divided into chunks whose sum it is, exactly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import alone, checks, data, modules
from geoflow.problems.checks import Division
from geoflow.problems.data import Tree
from geoflow.problems.joining import detached, joined
from geoflow.problems.nearby import nearby
from geoflow.problems.neighbours import ROUNDING, Compared, Neighbours
from geoflow.problems.of_outputs import LossFn, MeanAndSum, OfOutputs
from geoflow.problems.parts import LossPart, ModulePart, Parameters

# Sums of losses whose examples are evaluated together and apart differ by this at the most: what a
# level is kept to, and a network may compute some of it in float32.
TOGETHER_RTOL = {torch.float64: 1e-6, torch.float32: 1e-4}


def divided(
    whole: ModulePart,
    batch_size: int | None,
    parameters: Parameters,
    fresh: ModulePart | None = None,
    division: Division | None = None,
) -> tuple[LossPart, ...]:
    """Divide a loss over all examples into parts of ``batch_size``.

    A loss with a ``reduction``, as PyTorch's own have, is summed in the chunks and divided by what
    the mean divides by: class weights and ignored targets are counted as the mean counts them. Of
    any other loss a chunk weighs as many examples as it has, and so it does where the option gives
    no sum over the chunks, as one that a loss hands on when it is made. Both are compared with the
    loss of all examples, at the parameters given and at others near them, where that is finite, in
    float64 where the loss takes it; and that of two chunks also at outputs far from there, where a
    loss with a threshold on the mean is none. Each two chunks are evaluated as one, too: that is
    not their sum where examples act on each other in the network.

    Parameters
    ----------
    whole : ModulePart
        The mean loss of all examples.
    batch_size : int, optional
        None: one part.
    parameters : dict of str to Tensor
        Where to compare.
    fresh : ModulePart, optional
        The same, of copies that have not been evaluated yet. None: ``whole`` itself.
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
        return _chunks(whole, division, parameters, fresh or whole, sum_of(whole.loss_fn))


def weighed(part: ModulePart, parameters: Parameters) -> ModulePart:
    """The loss of all examples as the sum that a chunk of them is, with the weight of a chunk.

    Beside parts that hold other examples it then counts as ``divided`` makes it count.

    Raises
    ------
    InputError
        The loss is no such sum.
    """
    all_of_them = Division(data.length(part.inputs), "whole=False", "one process")
    return _chunks(part, all_of_them, parameters, part, sum_of(part.loss_fn))[0]


def _chunks(
    whole: ModulePart,
    division: Division,
    parameters: Parameters,
    fresh: ModulePart,
    summed: LossFn | None,
) -> tuple[ModulePart, ...]:
    n, batch_size = data.length(whole.inputs), division.size
    parts = tuple(_some(whole, summed, s, s + batch_size) for s in range(0, n, batch_size))
    losses = MeanAndSum(OfOutputs(whole.loss_fn), None if summed is None else OfOutputs(summed))
    weight, last, pairs = None, None, None
    # The network is evaluated chunk by chunk, and the loss on all outputs at once: no more memory
    # is needed than later.
    for at, outputs, sums in _points(parts, parameters):
        mean = losses.mean(outputs, whole.targets)
        # A loss that is not finite at the parameters given is refused by a message of its own.
        if not torch.isfinite(mean):
            continue
        # A loss of zero does not tell what it is divided by.
        if losses.summed is not None and weight is None and mean:
            weight = float(losses.summed(outputs, whole.targets)) / float(mean)
            parts = tuple(replace(p, weight=weight * p.weight / n) for p in parts)
        try:
            _check_mean(parts, outputs, mean, division)
            pairs = pairs or Pairs(losses, whole, parts, outputs, sums, division)
            pairs.check(outputs)
        except InputError:
            if summed is None:
                raise
            break
        last = at, sums
        # The next are as many.
        del outputs
    else:
        if last is not None:
            _check_alone(fresh, parts, last[1], last[0], division, by_sums=summed is not None)
        return parts
    # The option gives no sum, or that of a part of the loss.
    return _chunks(whole, division, parameters, fresh, None)


def _points(
    parts: tuple[ModulePart, ...], parameters: Parameters
) -> Iterator[tuple[Parameters, Tree, list[float]]]:
    """Parameters, the outputs and each part's sum of losses there: those given, and others."""
    yield (parameters, *_evaluated(parts, parameters))
    yield from _beside(parts, parameters)


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


@alone.in_turn
def _evaluated(parts: tuple[ModulePart, ...], parameters: Parameters) -> tuple[Tree, list[float]]:
    """The outputs of all examples, and each part's sum of losses."""
    outputs, sums = [], []
    for part in parts:
        with part.lock:
            found = part.outputs(parameters)
            # Copies, since a loss may write into them.
            outputs.append(data.mapped(detached(found), torch.clone))
            # Right after the outputs: a loss may use what a hook has kept of them.
            sums.append(float(part.sum_of_outputs(found).detach()))
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
    parts: tuple[ModulePart, ...], outputs: Tree, mean: Tensor, division: Division
) -> None:
    start, sums, weight = 0, [], sum(part.weight for part in parts)
    for part in parts:
        size = data.length(part.inputs)
        own = data.mapped(data.chunk(outputs, start, size), torch.clone)
        sums.append(float(part.sum_of_outputs(own)))
        start += size
    found, whole = sum(sums) / weight, float(mean)
    # Losses of either sign may cancel, up to their rounding.
    scale = max(abs(whole), sum(map(abs, sums)) / abs(weight))
    rtol = rounding_of(mean)
    if abs(found - whole) <= rtol * scale:
        return
    as_given = [total / part.scale for total, part in zip(sums, parts, strict=True)]
    if abs(sum(as_given) - whole) <= rtol * max(abs(whole), sum(map(abs, as_given))):
        raise adds_up(division.asked)
    apart, together = told(found, whole)
    if len(parts) == 1:
        raise InputError(
            f"loss_fn: its mean is {together}, and its sum by its weight {apart}, so it is "
            "no mean over examples; use Problem.from_batches, whose batch_loss gives each "
            "batch's sum and weight"
        )
    raise no_mean(
        f"the mean over chunks is {apart} where the loss of all examples is {together}", division
    )


class Pairs:
    """Each two neighbouring chunks, or the halves of one.

    They are compared where the loss of all examples is not compared to the digits of float64, or
    there is one chunk only. That of one, and its neighbour, is compared where it is another.
    """

    def __init__(
        self,
        losses: MeanAndSum,
        whole: ModulePart,
        parts: tuple[ModulePart, ...],
        outputs: Tree,
        sums: list[float],
        division: Division,
    ) -> None:
        self._whole, self._division = whole, division
        ends = _ends(parts)
        highest = max(range(len(parts)), key=lambda i: abs(sums[i]))
        span = slice(ends[highest], ends[highest + 1])
        some = [data.mapped(tree, lambda t: t[span]) for tree in (outputs, whole.targets)]
        mean = losses.mean(*some)
        fine = losses.in_float64(*some)
        self._losses, self._rtol = fine or losses, ROUNDING if fine else rounding_of(mean)
        if fine is not None and fine is not losses:
            # What float32 does not resolve is none of its losses'.
            self._rtol = torch.finfo(mean.dtype).eps
        if len(parts) == 1:
            self._cuts = [(0, ends[1] // 2, ends[1])] if ends[1] > 1 else []
        else:
            self._cuts = list(zip(ends, ends[1:], ends[2:], strict=False))
        # The whole has been compared as well as they are.
        self._told = len(parts) > 1 and (fine is None or fine is losses)
        self._fine = fine is not None
        self._which = min(highest, len(self._cuts) - 1)
        self._first = self._which == highest
        self._moved: Neighbours | None = None

    def check(self, outputs: Tree) -> None:
        """Compare them.

        Parameters
        ----------
        outputs
            Of all examples: at θ0, where all are compared, and next at another θ.

        Raises
        ------
        InputError
            The loss of two is no mean of theirs.
        """
        for cut in [] if self._told or self._moved is not None else self._cuts:
            pair = self._pair(outputs, cut)
            found = pair.compared()
            if found is None or not found.differ(self._rtol):
                continue
            if not (self._fine and pair.differ_by_rounding(found)):
                raise self._refused(found, "")
        if not (self._fine and self._cuts):
            return
        pair = self._pair(outputs, self._cuts[self._which])
        if self._moved is None:
            self._moved = replace(pair, outputs=data.mapped(pair.outputs, torch.clone))
            return
        found = self._moved.elsewhere(pair.outputs, first=self._first)
        if found is not None:
            raise self._refused(found, " at some other outputs (a threshold on the mean)")

    def _pair(self, outputs: Tree, cut: tuple[int, int, int]) -> Neighbours:
        start, middle, end = cut
        some = data.chunk(outputs, start, end - start)
        targets = data.chunk(self._whole.targets, start, end - start)
        return Neighbours(self._losses, some, targets, (middle - start, end - middle))

    def _refused(self, found: Compared, where: str) -> InputError:
        if found.excess <= self._rtol:
            return adds_up(self._division.asked)
        apart, together = told(found.apart, found.together)
        return no_mean(
            f"the mean over two chunks is {apart} where the loss of their examples is "
            f"{together}{where}",
            self._division,
        )


def _ends(parts: tuple[ModulePart, ...]) -> list[int]:
    return list(accumulate((data.length(part.inputs) for part in parts), initial=0))


def rounding_of(loss: Tensor) -> float:
    """What losses that add up may differ by, as a part of them, in the dtype of one."""
    # It may be a whole number, which only tells that it is not differentiable.
    return 1e3 * torch.finfo(loss.dtype).eps if loss.dtype.is_floating_point else 1e-4


def told(first: float, second: float) -> tuple[str, str]:
    """Two numbers that differ, with as many digits as tell them apart."""
    for digits in (6, 9, 12):
        if f"{first:.{digits}g}" != f"{second:.{digits}g}":
            return f"{first:.{digits}g}", f"{second:.{digits}g}"
    return f"{first:.17g}", f"{second:.17g}"


def no_mean(what: str, division: Division) -> InputError:
    """What to say of a loss that is no mean over examples."""
    return InputError(
        f"{division.asked}: {what}, so loss_fn is no mean over examples; use {division.instead}, "
        "or Problem.from_batches, whose batch_loss gives each batch's sum and weight"
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
    *,
    by_sums: bool,
) -> None:
    """Compare the sum of two chunks with that of their examples as one, or of one with its halves.

    Without a graph two chunks at once take no more memory than one with it.
    """
    summed = sum_of(whole.loss_fn) if by_sums else None

    def evaluated(start: int, end: int) -> float:
        return float(_some(whole, summed, start, end).sum_and_weight(at)[0].detach())

    ends = _ends(parts)
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
