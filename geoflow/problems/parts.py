"""A network's mean loss over its data as a sum of parts, each a function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class LossPart(NamedTuple):
    """One additive part of the loss: ``weight * loss(parameters)``.

    Where it is the loss of a network's outputs, ``loss(parameters)`` is
    ``loss_of_outputs(outputs(parameters))``.
    """

    weight: float
    loss: Callable[[Parameters], Tensor]
    outputs: Callable[[Parameters], Tensor] | None = None
    loss_of_outputs: Callable[[Tensor], Tensor] | None = None


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
        Their weighted sum is the mean loss.
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

        def outputs(parameters: Parameters) -> Tensor:
            return functional_call(module, {**frozen, **parameters}, (x,))

        def loss_of_outputs(values: Tensor) -> Tensor:
            return loss_fn(values, y)

        def loss(parameters: Parameters) -> Tensor:
            return loss_of_outputs(outputs(parameters))

        return LossPart(len(x) / n, loss, outputs, loss_of_outputs)

    parts = tuple(part(start) for start in range(0, n, size))
    shape = parts[0].loss(trainable).shape
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
