"""Gradients and second derivatives of functions of named tensors, in reverse mode.

Reverse mode takes all that PyTorch's own ``backward`` takes: inner derivatives, checkpointing,
functions without ``setup_context``. Second derivatives are reverse mode twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from geoflow.errors import InputError
from geoflow.problems import data

Tensors = dict[str, Tensor]
# Value and weight; the weight has no part in the derivatives.
Weighted = tuple[Tensor, Tensor]
Scalar = Callable[[Tensors], Weighted]
Result = TypeVar("Result")


def value_and_gradient(
    function: Scalar, at: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, Tensors]:
    """Value, weight and gradient; zero in the tensors that the value has no part in.

    Raises
    ------
    InputError
        The value has no derivative in any of the tensors.
    """
    variables = _variables(at)
    with torch.enable_grad():
        value, weight = function(variables)
        found = torch.autograd.grad(
            _derivable(value), list(variables.values()), allow_unused=True
        )
    if all(gradient is None for gradient in found):
        raise _underivable()
    gradients = {
        name: torch.zeros_like(at[name]) if gradient is None else gradient
        for name, gradient in zip(variables, found, strict=True)
    }
    return value.detach(), weight, gradients


def hessian_product(
    function: Scalar, at: Mapping[str, Tensor], v: Mapping[str, Tensor]
) -> tuple[Tensors, Tensor]:
    """∇²f v, the gradient of ∇f·v, and the weight.

    Raises
    ------
    InputError
        The function has no second derivative.
    """
    variables = _variables(at)
    with torch.enable_grad(), twice_differentiable():
        value, weight = function(variables)
        products = _hessian_product(
            _derivable(value), list(variables.values()), [v[n] for n in variables]
        )
    return dict(zip(variables, products, strict=True)), weight


def gauss_newton_product(
    outputs: Callable[[Tensors], Any],
    loss: Callable[[Any], Weighted],
    at: Mapping[str, Tensor],
    v: Mapping[str, Tensor],
) -> tuple[Tensors, Tensor]:
    """JᵀHJv and the weight, with J the Jacobian of the outputs and H the Hessian of a loss of them.

    Jv is the derivative of Jᵀu·v in u, which asks for reverse mode alone.

    Raises
    ------
    InputError
        The loss has no second derivative in the outputs, or they none in the tensors.
    """
    variables = _variables(at)
    inputs = list(variables.values())
    with torch.enable_grad(), twice_differentiable():
        tree = outputs(variables)
        given = [t for _, t in data.leaves(tree, "") if t.requires_grad]
        if not given:
            _derivable(torch.zeros(()))
        u = [torch.zeros_like(t, requires_grad=True) for t in given]
        pulled = second(lambda: _gradients(given, inputs, u, create_graph=True))
        moved = _gradients(pulled, u, [v[n] for n in variables], retain_graph=True)
        values = iter([t.detach().requires_grad_() for t in given])
        points: list[Tensor] = []

        def leaf(tensor: Tensor) -> Tensor:
            if not tensor.requires_grad:
                return tensor
            points.append(next(values))
            return points[-1]

        value, weight = loss(data.mapped(tree, leaf))
        curved = _hessian_product(_derivable(value), points, moved)
        products = _gradients(given, inputs, curved)
    return dict(zip(variables, products, strict=True)), weight


def _variables(at: Mapping[str, Tensor]) -> Tensors:
    return {n: t.detach().requires_grad_() for n, t in at.items()}


def _derivable(value: Tensor) -> Tensor:
    if value.is_complex():
        raise InputError(f"loss: it is {value.dtype}; return a real scalar tensor")
    if not value.requires_grad:
        raise _underivable()
    return value


def _underivable() -> InputError:
    return InputError(
        "loss: it has no derivative in θ, so something in it leaves the graph (detach, item, "
        "NumPy, vector_to_parameters), or it is of another module than the one given; compute it "
        "from its argument alone, a module's by torch.func.functional_call"
    )


def _hessian_product(value: Tensor, at: list[Tensor], v: list[Tensor]) -> list[Tensor]:
    gradients = second(lambda: _gradients([value], at, None, create_graph=True))
    kept = [(g, w) for g, w in zip(gradients, v, strict=True) if g.requires_grad]
    if not kept:
        return [torch.zeros_like(t) for t in at]
    return second(lambda: _gradients([g for g, _ in kept], at, [w for _, w in kept]))


def _gradients(
    of: list[Tensor], at: list[Tensor], along: list[Tensor] | None, **options: bool
) -> list[Tensor]:
    return list(
        torch.autograd.grad(of, at, along, allow_unused=True, materialize_grads=True, **options)
    )


def second(compute: Callable[[], Result], name: str = "loss") -> Result:
    """Say of a missing formula what it means; memory that runs out is another matter.

    Raises
    ------
    InputError
        What is computed has no second derivative.
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if "memory" in str(error):
            raise
        raise InputError(
            f"{name}: it has no second derivative ({str(error).splitlines()[0]})"
        ) from None


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention and recurrent layers by those of PyTorch's kernels that have second derivatives."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
