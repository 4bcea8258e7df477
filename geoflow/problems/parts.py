"""A network's mean loss over its data as a sum of parts, each a function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoflow.errors import InputError

Parameters = dict[str, Tensor]

# Examples whose outputs are computed at once, without gradient.
OUTPUTS_AT_ONCE = 500


class TensorSpec(NamedTuple):
    """Where one parameter tensor lies in the flat vector."""

    name: str
    offset: int
    shape: tuple[int, ...]


# The sum of the losses of some examples, and their weight: scalars both.
Weighted = tuple[Tensor, Tensor]


class LossPart(NamedTuple):
    """One additive part of the loss; L = Σ sums / Σ weights over all parts.

    Parameters
    ----------
    loss : callable
        Parameters → (sum of losses, weight). The weight does not depend on the parameters.
    outputs : callable, optional
        Parameters → the network's outputs, where the loss is one of those.
    loss_of_outputs : callable, optional
        Outputs → (sum of losses, weight): ``loss(p)`` is ``loss_of_outputs(outputs(p))``.
    """

    loss: Callable[[Parameters], Weighted]
    outputs: Callable[[Parameters], Tensor] | None = None
    loss_of_outputs: Callable[[Tensor], Weighted] | None = None


def add_up(
    contributions: Iterable[tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Add up what the parts of a loss give: sums and weights, each for itself.

    A problem over several processes adds up theirs in the same way before it divides.

    Parameters
    ----------
    contributions : iterable
        (tensors, weight) of each part: of its sum of losses, say, and of that sum's gradient.

    Returns
    -------
    tuple of Tensor
        Sums over the parts: in float64 where there are several, whatever the network's dtype, so
        that their number costs no digits.
    Tensor
        Sum of the weights.
    """
    remaining = iter(contributions)
    sums, weight = next(remaining)
    for n, (tensors, more) in enumerate(remaining):
        if n == 0:
            sums = tuple(t.to(_widest(t.device), copy=True) for t in sums)
        sums = tuple(total.add_(t) for total, t in zip(sums, tensors, strict=True))
        weight = weight + more
    return sums, weight


def _widest(device: torch.device) -> torch.dtype:
    # Apple's processors have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def parts_of_module(
    module: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    batch_size: int | None,
) -> tuple[tuple[LossPart, ...], Tensor, tuple[TensorSpec, ...]]:
    """Divide the loss of a module into parts of ``batch_size`` examples.

    Parameters
    ----------
    module, loss_fn, inputs, targets, batch_size
        See :meth:`geoflow.Problem.from_module`; of one dtype and on one device.

    Returns
    -------
    tuple of LossPart
        L is the mean loss, weighted by the number of examples.
    Tensor, shape (P,)
        The trainable parameters, flat.
    tuple of TensorSpec
        Where each lies.

    Raises
    ------
    InputError
        No trainable parameter, or a loss that is no scalar.
    """
    trainable = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    if not trainable:
        raise InputError("module has no trainable parameter; set requires_grad=True on some")
    frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    frozen.update(module.named_buffers())
    tensors, offset = [], 0
    for name, value in trainable.items():
        tensors.append(TensorSpec(name, offset, tuple(value.shape)))
        offset += value.numel()
    theta0 = torch.cat([p.reshape(-1) for p in trainable.values()])

    n = len(inputs)
    size = n if batch_size is None else batch_size

    def part(start: int) -> LossPart:
        x, y = inputs[start : start + size], targets[start : start + size]
        # Of all examples, so that the mean of a whole is not changed by rounding.
        weight = theta0.new_tensor(len(x) / n)

        def outputs(parameters: Parameters) -> Tensor:
            return functional_call(module, {**frozen, **parameters}, (x,))

        def loss_of_outputs(values: Tensor) -> Weighted:
            return loss_fn(values, y) * weight, weight

        def loss(parameters: Parameters) -> Weighted:
            return loss_of_outputs(outputs(parameters))

        return LossPart(loss, outputs, loss_of_outputs)

    parts = tuple(part(start) for start in range(0, n, size))
    shape = parts[0].loss(trainable)[0].shape
    if shape != ():
        raise InputError(
            f"loss_fn returned shape {tuple(shape)}; it must return a scalar mean "
            "(reduction='mean')"
        )
    return parts, theta0, tuple(tensors)


def outputs(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    batch_size: int = OUTPUTS_AT_ONCE,
) -> Tensor:
    """Evaluate a network without gradient, some examples at a time to bound the memory.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    parameters : mapping of str to Tensor
        In place of the module's own.
    inputs : Tensor, shape (N, …)
        Of the parameters' dtype, on their device.
    batch_size : int
        Examples at a time.

    Returns
    -------
    Tensor, shape (N, …)
    """
    with torch.no_grad():
        parts = [functional_call(module, dict(parameters), (x,)) for x in inputs.split(batch_size)]
    return torch.cat(parts)
