"""One flat vector and the tensors that it is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from geoflow.problems import arithmetic
from geoflow.problems.parts import LossPart, Parameters, TensorSpec


def apart(theta: Tensor, tensors: Sequence[TensorSpec], *, copied: bool = False) -> Parameters:
    """The tensors of a flat vector by name: views of it, or differentiable copies.

    Of a view the derivative of a derivative is one of a vector, at whatever place that has it; of a
    product by one it is a product again, in memory of its own.

    Parameters
    ----------
    theta : Tensor, shape (P,)
        The vector.
    tensors : sequence of TensorSpec
        What it is made of.
    copied : bool
        Each in memory of its own, as what is viewed as complex numbers must be: torch does that
        from even places on alone, and tensors begin at any.
    """
    views = {s.name: theta.narrow(0, s.offset, math.prod(s.shape)).view(s.shape) for s in tensors}
    return {name: view * 1 for name, view in views.items()} if copied else views


def together(tensors: Mapping[str, Tensor]) -> Tensor:
    """One flat vector of tensors in their order, without a graph."""
    return torch.cat([t.reshape(-1) for t in tensors.values()]).detach()


def views_as_complex(parts: Iterable[LossPart], parameters: Parameters) -> bool:
    """Whether a loss views numbers as complex, as Fourier layers do, by evaluating its first part.

    Copies for all would change the last bits of their losses: products of matrices are not the same
    at every place of memory.

    Parameters
    ----------
    parts : iterable of LossPart
        Of the loss.
    parameters : dict of str to Tensor
        Where to evaluate it, each in memory of its own.
    """
    device = next(iter(parameters.values())).device
    for part in parts:
        with _Watching() as watching, torch.enable_grad(), arithmetic.exact(device):
            part.sum_and_weight(parameters)
        return watching.seen
    return False


class _Watching(TorchDispatchMode):
    """Sees whether numbers are viewed as complex ones."""

    seen = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or func is torch.ops.aten.view_as_complex.default
        return func(*args, **(kwargs or {}))
