"""Derivatives that a function takes in θ itself by ``torch.autograd.grad``, for its value alone.

It wants a θ that is in a graph, and a value alone is evaluated at one that is not. Whether a
function needs that is decided once, by its first evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

REMEDY = (
    "take derivatives in parameters by torch.func.grad and torch.func.functional_call, or in the "
    "batch_loss of Problem.from_batches"
)


def is_missing(error: BaseException) -> bool:
    """Whether PyTorch says that what is differentiated, or in what, is in no graph."""
    said = str(error)
    # A list of the parameters that require a gradient has none, and "cannot be empty".
    missing = "does not require grad" in said or "`inputs` argument to `grad()`" in said
    return isinstance(error, RuntimeError) and missing


def value(function: Callable[[Tensor], Any], theta: Tensor) -> Any:
    """Value at a θ of the function's own, in a graph where it asks for that."""
    try:
        return function(theta.detach().clone())
    except RuntimeError as error:
        if not is_missing(error):
            raise
    return OfTheta(function)(theta)


@dataclass(frozen=True)
class OfTheta:
    """A function of flat θ that differentiates in it.

    Attributes
    ----------
    function : callable
        As it was given.
    """

    function: Callable[[Tensor], Any]

    def __call__(self, theta: Tensor) -> Any:
        """Its value; without a graph where θ has none."""
        if theta.requires_grad and torch.is_grad_enabled():
            return self.function(theta)
        with torch.enable_grad():
            found = self.function(theta.detach().clone().requires_grad_())
        return found.detach() if isinstance(found, Tensor) else found


@dataclass(frozen=True)
class OfModule:
    """A ``batch_loss`` that differentiates in the parameters of the module that it is given.

    Attributes
    ----------
    batch_loss : callable
        As it was given.
    moving : collection of str
        Names of those that are θ.
    """

    batch_loss: Callable[[nn.Module, Any], Any]
    moving: Collection[str]

    def __call__(self, module: nn.Module, batch: Any) -> Any:
        """What it gives, in a graph of the parameters where these are in none."""
        held = dict(module.named_parameters())
        if any(held[name].requires_grad for name in self.moving):
            return self.batch_loss(module, batch)
        own = {f"module.{n}": held[n].detach().requires_grad_() for n in self.moving}
        with torch.enable_grad():
            return functional_call(_Called(module, self.batch_loss), own, (batch,))


class _Called(nn.Module):
    def __init__(self, module: nn.Module, function: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, batch: Any) -> Any:
        return self.function(self.module, batch)
