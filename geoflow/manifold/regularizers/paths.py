"""The path norm: over the paths through a network, by one forward pass of its squared weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import ThetaFunction
from geoflow.manifold.regularizers.named import Make, regularizer
from geoflow.problems.modules import computes_as, duplicate
from geoflow.problems.parts import module_parts
from geoflow.problems.protocol import ProblemLike

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh)
AS_THEY_ARE = (nn.Flatten, nn.Identity, nn.Sequential)


@regularizer
def path_norm() -> Make:
    """R(θ) = Σ over paths of Π w²: of all paths from an input or a bias to an output.

    The squared ℓ₂ path norm of Neyshabur, Salakhutdinov & Srebro (2015, "Path-SGD", NIPS): the sum
    of the outputs for an input of ones, with squared weights and biases and without activations. In
    a network of ReLUs it does not change where a unit's incoming weights are multiplied and its
    outgoing ones divided by the same number; it is a function of the weights with tanh too. Average
    pooling of k numbers is k weights of 1/k, or of 1 over its divisor. A function of θ alone: it
    costs no gradient.

    An ``nn.Sequential`` of dense layers, convolutions, ReLU, leaky ReLU or tanh, average pooling
    and flattening has one. Others are refused: subclasses with a forward pass of their own, layers
    with hooks or parametrizations, pooling whose divisor is not the same everywhere.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    """

    def make(problem: ProblemLike | None) -> ThetaFunction:
        part = module_parts(problem, "the path norm")[0]
        assert problem is not None, "a problem has parts"
        if not isinstance(part.inputs, Tensor):
            raise InputError("regularizer 'path_norm': the network's input is no single tensor")
        linear = _linear(part.module)
        ones = torch.ones_like(part.inputs[:1], dtype=problem.dtype)
        weights = dict(linear.named_parameters())
        fixed = {n: t**2 for n, t in part.fixed.items() if n in weights}
        unflatten = problem.unflatten

        def norm(theta: Tensor) -> Tensor:
            squared = {n: t**2 for n, t in unflatten(theta).items()}
            return functional_call(linear, {**fixed, **squared}, (ones,)).sum()

        return ThetaFunction(norm)

    return make


class _SquaredAverage(nn.Module):
    """Average pooling with its weights 1/k squared, the same for all that it pools."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        size, n = pool.kernel_size, {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}[type(pool)]
        sizes = size if isinstance(size, tuple) else (size,) * n
        self.pool, self.k = pool, getattr(pool, "divisor_override", None) or math.prod(sizes)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) / self.k


def _linear(module: nn.Module) -> nn.Module:
    """Copy a network without its activations.

    Raises
    ------
    InputError
        It has another kind of layer.
    """
    linear = duplicate(module)
    for name, child in list(linear.named_modules(remove_duplicate=False)):
        if computes_as(child, ACTIVATIONS):
            _replace(linear, name, nn.Identity())
        elif computes_as(child, AVERAGES) and _is_even(child):
            _replace(linear, name, _SquaredAverage(child))
        elif not computes_as(child, (*WEIGHTED, *AS_THEY_ARE)):
            raise InputError(
                f"regularizer 'path_norm': {name or 'the network'} is a {type(child).__name__}; it "
                "is defined of an nn.Sequential of PyTorch's dense layers and convolutions with "
                "ReLU or tanh between them, and average pooling of as many everywhere; none with "
                "hooks or a forward pass of its own"
            )
    return linear


def _is_even(pool: Any) -> bool:
    """Whether it divides by the same number everywhere."""
    counts_padding = pool.count_include_pad or not np.any(pool.padding)
    return bool(getattr(pool, "divisor_override", None) or (counts_padding and not pool.ceil_mode))


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, new)
