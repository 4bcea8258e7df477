"""What a network gives on some examples at a time, without gradient: the memory is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoflow.problems import alone, arithmetic, data
from geoflow.problems.data import Tree

# Examples whose outputs are computed at once.
OUTPUTS_AT_ONCE = 500


def as_arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a network is called: ``*inputs`` of a tuple, ``**inputs`` of a dictionary."""
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def outputs(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tree,
    batch_size: int = OUTPUTS_AT_ONCE,
) -> Tensor:
    """Evaluate a network without gradient, some examples at a time to bound the memory.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    parameters : mapping of str to Tensor
        In place of the module's own.
    inputs : Tensor, shape (N, …), or a tuple or dict of such
        Of the parameters' dtype, on their device.
    batch_size : int
        Examples at a time.

    Returns
    -------
    Tensor, shape (N, …)
    """
    return torch.cat(list(output_chunks(module, parameters, inputs, batch_size)))


def output_chunks(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tree,
    batch_size: int = OUTPUTS_AT_ONCE,
) -> Iterator[Tree]:
    """What :func:`outputs` puts together, chunk by chunk, whatever tree of tensors it is."""
    n = data.length(inputs)
    held = {name: tensor.detach() for name, tensor in parameters.items()}
    device = next(t.device for _, t in data.leaves(inputs, ""))

    @alone.in_turn
    def found(start: int) -> Tree:
        arguments, keywords = as_arguments(data.chunk(inputs, start, batch_size))
        # The network may take derivatives itself.
        with torch.enable_grad(), arithmetic.exact(device), alone.lock_of(module).held():
            return functional_call(module, held, arguments, keywords)

    for start in range(0, n, batch_size):
        yield data.mapped(found(start), lambda tensor: tensor.detach())
