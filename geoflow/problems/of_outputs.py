"""A loss as a function of outputs alone, to the digits of float64 where it takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from geoflow.problems import data, modules
from geoflow.problems.data import Tree
from geoflow.problems.widened import WIDER, widening

LossFn = Callable[[Any, Any], Tensor]

# Outputs of float32 that differ by so small a part are the same to whatever computes in float32.
_UNRESOLVED = 2.0**-36


class OfOutputs:
    """A loss of outputs and targets, neither of which it can change.

    Parameters
    ----------
    loss_fn : callable
        ``loss_fn(outputs, targets)`` → scalar.
    wide : bool
        Whether all that it computes is computed in float64.

    Attributes
    ----------
    loss_fn : callable
        As given.
    """

    def __init__(self, loss_fn: LossFn, *, wide: bool = False) -> None:
        self.loss_fn, self._wide = loss_fn, wide

    def __call__(self, outputs: Tree, targets: Tree) -> Tensor:
        """The loss, without a graph that leads to the outputs."""
        with self._digits(outputs):
            return self._evaluated(outputs, targets).detach()

    def value_and_gradient(
        self, outputs: Tree, targets: Tree, variables: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss, and its gradient in what the outputs are made of: zero where it has no part.

        Parameters
        ----------
        outputs, targets
            See the class.
        variables : sequence of Tensor
            Leaves of a graph that the outputs are in.
        """
        with torch.enable_grad(), self._digits(outputs):
            value = self._evaluated(outputs, targets)
            if not value.requires_grad:
                return value, [torch.zeros_like(v) for v in variables]
            found = torch.autograd.grad(
                value, list(variables), allow_unused=True, materialize_grads=True
            )
        return value.detach(), list(found)

    def widened(self, outputs: Tree, targets: Tree) -> OfOutputs | None:
        """The same in float64; None where it computes in fewer digits all the same.

        Parameters
        ----------
        outputs, targets
            Some that it has another value than zero on, to try.
        """
        wide = OfOutputs(self.loss_fn, wide=True)
        try:
            value = wide(outputs, targets)
            beside = wide(data.mapped(outputs, _a_little_more), targets)
        # Whatever the user's code, a device without float64 or too little memory says of it.
        except Exception:
            return None
        # NumPy may have computed in float32 in between.
        resolved = value.dtype == torch.float64 and bool(value != beside)
        return wide if resolved and bool(torch.isfinite(value)) else None

    def on_cpu(self) -> OfOutputs:
        """The same for outputs on the CPU, where what it holds itself can be there."""
        function = self.loss_fn
        if isinstance(function, nn.Module):
            function = modules.duplicate(function, "loss_fn").cpu()
        return OfOutputs(function, wide=self._wide)

    def _evaluated(self, outputs: Tree, targets: Tree) -> Tensor:
        def copied(tensor: Tensor) -> Tensor:
            wanted = WIDER.get(tensor.dtype, tensor.dtype) if self._wide else tensor.dtype
            return tensor.to(wanted, copy=True)

        # Of targets the containers alone: a loss that writes into them is refused elsewhere.
        return self.loss_fn(data.mapped(outputs, copied), data.mapped(targets, lambda t: t))

    def _digits(self, outputs: Tree) -> AbstractContextManager[Any]:
        device = next((t.device.type for _, t in data.leaves(outputs, "")), "cpu")
        return widening(device) if self._wide else nullcontext()


class MeanAndSum(NamedTuple):
    """A mean loss, and the same as a sum, where it has a ``reduction``."""

    mean: OfOutputs
    summed: OfOutputs | None

    def in_float64(self, outputs: Tree, targets: Tree) -> MeanAndSum | None:
        """Both in float64; None where that cannot be.

        Parameters
        ----------
        outputs, targets
            Some that they have another value than zero on, to try.
        """
        if self.mean(outputs, targets).dtype == torch.float64:
            return self
        mean = self.mean.widened(outputs, targets)
        summed = None if self.summed is None else self.summed.widened(outputs, targets)
        if mean is None or (summed is None) != (self.summed is None):
            return None
        return MeanAndSum(mean, summed)

    def on_cpu(self) -> MeanAndSum:
        """Both for outputs on the CPU."""
        return MeanAndSum(self.mean.on_cpu(), None if self.summed is None else self.summed.on_cpu())


def _a_little_more(outputs: Tensor) -> Tensor:
    dtype = WIDER.get(outputs.dtype, outputs.dtype)
    return outputs.to(dtype) * (1 + _UNRESOLVED) if dtype in WIDER.values() else outputs
