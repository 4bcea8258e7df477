"""The path norm: over the paths through a network, by one forward pass of its squared weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import ThetaFunction
from geoflow.manifold.regularizers.named import Make, needs_problem, regularizer
from geoflow.problems import alone, data
from geoflow.problems.modules import DROPOUTS, computes_as, duplicate
from geoflow.problems.parts import BatchParts, ModulePart
from geoflow.problems.protocol import ProblemLike
from geoflow.system.translation import reason

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

    An ``nn.Sequential`` of dense layers, convolutions, ReLU, leaky ReLU or tanh, average pooling,
    dropout and flattening has one. Others are refused: subclasses with a forward pass of their own,
    layers with hooks or parametrizations, pooling whose divisor is not the same everywhere.

    An input has the shape of an example of the problem. One made by ``Problem.from_batches`` does
    not say what of a batch the network is called with: its network has a dense layer first, and
    an input is one vector that this takes.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.

    Raises
    ------
    InputError
        Where a flow is made: a problem without a network, or a network that has no path norm.
    """

    def make(problem: ProblemLike | None) -> ThetaFunction:
        if problem is None:
            raise needs_problem("regularizer 'path_norm'", "it is of a network's layers")
        # A function of θ alone: over several processes, and of batches, it is the same in each.
        parts = getattr(problem, "_parts", None)
        part = parts[0] if isinstance(parts, tuple) else parts
        if isinstance(part, BatchParts):
            linear = _linear(part.bound.module)
            ones = problem.theta0.new_ones(1, _first_dense(part.bound.module).in_features)
        elif isinstance(part, ModulePart):
            linear = _linear(part.module)
            ones = _one_example(part).to(problem.dtype)
        else:
            raise InputError(
                "regularizer 'path_norm': the problem has no network, over whose layers paths go; "
                "make it with Problem.from_module or Problem.from_batches"
            )
        weights = dict(linear.named_parameters())
        fixed = {n: t**2 for n, t in part.fixed.items() if n in weights}
        unflatten = problem.unflatten

        def norm(theta: Tensor) -> Tensor:
            squared = {n: t**2 for n, t in unflatten(theta).items()}
            with alone.lock_of(linear).held():
                return functional_call(linear, {**fixed, **squared}, (ones,)).sum()

        if isinstance(part, BatchParts):
            _check_shape(norm, problem.theta0)
        return ThetaFunction(norm)

    return make


def _one_example(part: ModulePart) -> Tensor:
    found = [tensor for _, tensor in data.leaves(part.inputs, "")]
    if len(found) != 1:
        raise InputError("regularizer 'path_norm': the network's input is no single tensor")
    return torch.ones_like(found[0][:1])


def _first_dense(module: nn.Module) -> nn.Linear:
    """The layer that says how long an input is."""
    without = (*AS_THEY_ARE, *ACTIVATIONS, *DROPOUTS)
    first = next((layer for layer in module.modules() if not isinstance(layer, without)), None)
    if not isinstance(first, nn.Linear):
        raise _no_shape(f"its first layer ({type(first).__name__}) does not tell it")
    return first


def _check_shape(norm: Callable[[Tensor], Tensor], theta: Tensor) -> None:
    """Refuse a network that takes more than one vector, as each of a sequence that it flattens."""
    try:
        norm(theta)
    except RuntimeError as error:
        raise _no_shape(
            f"a layer does not take what one vector becomes ({reason(error)})"
        ) from None


def _no_shape(why: str) -> InputError:
    return InputError(
        f"regularizer 'path_norm': of the inputs of a network in Problem.from_batches no shape is "
        f"known, and {why}; make the problem with Problem.from_module"
    )


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
        if computes_as(child, (*ACTIVATIONS, *DROPOUTS)):
            _replace(linear, name, nn.Identity())
        elif computes_as(child, AVERAGES) and _is_even(child):
            _replace(linear, name, _SquaredAverage(child))
        elif not computes_as(child, (*WEIGHTED, *AS_THEY_ARE)):
            raise InputError(
                f"regularizer 'path_norm': {name or 'the network'} is a {type(child).__name__}; it "
                "is defined of an nn.Sequential of PyTorch's dense layers and convolutions with "
                "ReLU or tanh between them, dropout, and average pooling of as many everywhere; "
                "none with hooks or a forward pass of its own"
            )
    return linear


def _is_even(pool: Any) -> bool:
    """Whether it divides by the same number everywhere."""
    counts_padding = pool.count_include_pad or not np.any(pool.padding)
    return bool(getattr(pool, "divisor_override", None) or (counts_padding and not pool.ceil_mode))


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(module.get_submodule(parent), own, new)
