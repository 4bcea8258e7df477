"""A loss over data as a sum of batches, each a function of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoflow.errors import InputError
from geoflow.problems import data
from geoflow.problems.data import Tree

Parameters = dict[str, Tensor]

# Examples whose outputs are computed at once, without gradient.
OUTPUTS_AT_ONCE = 500


class TensorSpec(NamedTuple):
    """Where one parameter tensor lies in the flat vector."""

    name: str
    offset: int
    shape: tuple[int, ...]


class LossPart:
    """The loss of one batch: a sum of losses, and what it weighs in the mean.

    L(θ) = Σ sums / Σ weights over the parts. Weights do not depend on θ.
    """

    def sum_and_weight(self, parameters: Parameters) -> tuple[Tensor, float]:
        """Sum of the batch's losses, a scalar, and its weight."""
        raise InputError(f"{type(self).__name__} gives no loss")


@dataclass(frozen=True)
class FunctionPart(LossPart):
    """A loss that is a function of flat θ."""

    function: Callable[[Tensor], Tensor]

    def sum_and_weight(self, parameters: Parameters) -> tuple[Tensor, float]:
        """The function's value."""
        return self.function(parameters["theta"]), 1.0


@dataclass(frozen=True)
class ModulePart(LossPart):
    """A loss of a network's outputs on some examples.

    Attributes
    ----------
    module : torch.nn.Module
        Called with the parameters in place of its own.
    fixed : mapping of str to Tensor
        Parameters and buffers that do not move.
    inputs, targets
        The examples: a tensor, or a tuple or dict of tensors.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` → scalar.
    scale, weight : float
        The part is ``scale * loss_fn(…)``, weighing ``weight``.
    """

    module: nn.Module
    fixed: Mapping[str, Tensor]
    inputs: Tree
    targets: Tree
    loss_fn: Callable[[Any, Any], Tensor]
    scale: float = 1.0
    weight: float = 1.0

    def outputs(self, parameters: Parameters) -> Any:
        """What the network gives on the examples."""
        arguments, keywords = as_arguments(self.inputs)
        return functional_call(self.module, {**self.fixed, **parameters}, arguments, keywords)

    def sum_of_outputs(self, outputs: Any) -> Tensor:
        """The part's sum, as a function of the outputs."""
        value = self.loss_fn(outputs, self.targets)
        return value if self.scale == 1.0 else self.scale * value

    def sum_and_weight(self, parameters: Parameters) -> tuple[Tensor, float]:
        """Sum of the losses of the examples."""
        return self.sum_of_outputs(self.outputs(parameters)), self.weight


class Bound(nn.Module):
    """A module and a function of it, as one module whose parameters can be replaced."""

    def __init__(self, module: nn.Module, batch_loss: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module, self.batch_loss = module, batch_loss

    def forward(self, batch: Any) -> Any:
        """Apply the function to the module and a batch."""
        return self.batch_loss(self.module, batch)


@dataclass(frozen=True)
class BatchPart(LossPart):
    """What a user's function says of a module on one batch."""

    bound: Bound
    fixed: Mapping[str, Tensor]
    batch: Tree

    def sum_and_weight(self, parameters: Parameters) -> tuple[Tensor, float]:
        """Sum of the batch's losses, and their weight.

        Raises
        ------
        InputError
            The function gave something else.
        """
        named = {f"module.{n}": t for n, t in {**self.fixed, **parameters}.items()}
        found = functional_call(self.bound, named, (self.batch,))
        if not (isinstance(found, tuple | list) and len(found) == 2):
            raise InputError(
                f"batch_loss returned a {type(found).__name__}; return (sum of losses, weight)"
            )
        total, weight = found
        if not (isinstance(total, Tensor) and total.shape == ()):
            shape = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
            raise InputError(f"batch_loss returned a sum of {shape}; it must be a scalar tensor")
        return total, float(weight)


@dataclass(frozen=True)
class BatchParts(Iterable[LossPart]):
    """Parts made of batches as they are read, so that no more than one is in memory.

    Attributes
    ----------
    batches : iterable
        Gives the same batches in the same order whenever it is iterated.
    """

    bound: Bound
    fixed: Mapping[str, Tensor]
    batches: Iterable[Any]
    dtype: torch.dtype
    device: torch.device

    def __iter__(self) -> Iterator[LossPart]:
        for batch in self.batches:
            yield BatchPart(self.bound, self.fixed, data.convert(batch, self.dtype, self.device))

    def __len__(self) -> int:
        return sum(1 for _ in self.batches)


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
    n = data.length(inputs)
    held = {name: tensor.detach() for name, tensor in parameters.items()}
    parts = []
    for start in range(0, n, batch_size):
        chunk = data.mapped(inputs, lambda x, s=start: x[s : s + batch_size])
        arguments, keywords = as_arguments(chunk)
        parts.append(functional_call(module, held, arguments, keywords).detach())
    return torch.cat(parts)
