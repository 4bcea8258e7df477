"""Gradients, second and third derivatives of functions of named tensors, in reverse mode.

Reverse mode takes all that PyTorch's own ``backward`` takes: inner derivatives, checkpointing,
functions without ``setup_context``. Second derivatives are reverse mode twice, third ones thrice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from geoflow.errors import InputError
from geoflow.problems.normalisation import WrittenOut
from geoflow.problems.weighted import Weighted as Weighted
from geoflow.system.process import Setting
from geoflow.system.translation import reason

Tensors = dict[str, Tensor]
# Value and weight; the weight has no part in the derivatives.
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
    variables = variables_of(at)
    with torch.enable_grad():
        value, weight = function(variables)
        found = torch.autograd.grad(derivable(value), list(variables.values()), allow_unused=True)
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
    variables = variables_of(at)
    with torch.enable_grad(), twice_differentiable():
        value, weight = function(variables)
        products = hessian_of(derivable(value), list(variables.values()), [v[n] for n in variables])
    return dict(zip(variables, products, strict=True)), weight


def third_product(
    function: Scalar, at: Mapping[str, Tensor], v: Mapping[str, Tensor]
) -> tuple[Tensors, Tensors, Tensor]:
    """∇²f v, ∇³f[v, v], which is the gradient of vᵀ∇²f v, and the weight.

    Raises
    ------
    InputError
        The function has no second derivative, or no third one.
    """
    variables = variables_of(at)
    leaves, along = list(variables.values()), [v[n] for n in variables]
    with torch.enable_grad(), twice_differentiable():
        with WrittenOut():
            value, weight = function(variables)
        products = hessian_of(derivable(value), leaves, along, create_graph=True)
        kept = [(p, w) for p, w in zip(products, along, strict=True) if p.requires_grad]
        # Of a quadratic function nothing is left to differentiate.
        slopes = [torch.zeros_like(t) for t in leaves]
        if kept:
            of, weights = [p for p, _ in kept], [w for _, w in kept]
            slopes = derived(lambda: gradients_of(of, leaves, weights), order="third")
    names = list(variables)
    return (
        dict(zip(names, [p.detach() for p in products], strict=True)),
        dict(zip(names, slopes, strict=True)),
        weight,
    )


def variables_of(at: Mapping[str, Tensor]) -> Tensors:
    """The same tensors as leaves of a graph."""
    return {n: t.detach().requires_grad_() for n, t in at.items()}


def derivable(value: Tensor) -> Tensor:
    """Return a loss that has a derivative.

    Raises
    ------
    InputError
        It has none, as inside ``torch.inference_mode()``, or is complex.
    """
    if value.is_complex():
        raise InputError(f"loss: it is {value.dtype}; return a real scalar tensor")
    if not value.requires_grad:
        check_derivatives("loss")
        raise _underivable()
    return value


def check_derivatives(of: str) -> None:
    """Refuse what is evaluated where nothing has a derivative.

    Raises
    ------
    InputError
        Names what is evaluated.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            f"{of}: inside torch.inference_mode() nothing has a derivative; leave it, or take "
            "torch.no_grad()"
        )


def _underivable() -> InputError:
    return InputError(
        "loss: it has no derivative in θ, so something in it leaves the graph (detach, item, "
        "NumPy, vector_to_parameters), or it is of another module than the one given; compute it "
        "from its argument alone, a module's by torch.func.functional_call"
    )


def hessian_of(
    value: Tensor, at: list[Tensor], v: list[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """The Hessian of a scalar in some leaves of its graph, times v; with a graph of its own.

    Raises
    ------
    InputError
        It has no second derivative.
    """
    gradients = derived(lambda: gradients_of([value], at, None, create_graph=True))
    kept = [(g, w) for g, w in zip(gradients, v, strict=True) if g.requires_grad]
    if not kept:
        return [torch.zeros_like(t) for t in at]
    of, along = [g for g, _ in kept], [w for _, w in kept]
    return derived(lambda: gradients_of(of, at, along, create_graph=create_graph))


def gradients_of(
    of: list[Tensor], at: list[Tensor], along: list[Tensor] | None, **options: bool
) -> list[Tensor]:
    """Derivatives, zero in those that have no part in what is differentiated."""
    return list(
        torch.autograd.grad(of, at, along, allow_unused=True, materialize_grads=True, **options)
    )


def derived(compute: Callable[[], Result], name: str = "loss", order: str = "second") -> Result:
    """Say of a missing formula what it means; memory that runs out is another matter.

    Raises
    ------
    InputError
        What is computed has no derivative of this order.
    """
    try:
        return compute()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if "memory" in str(error):
            raise
        raise InputError(f"{name}: it has no {order} derivative ({reason(error)})") from None


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Attention and recurrent layers by those of PyTorch's kernels that have second derivatives."""
    with _TWICE():
        yield


@contextmanager
def _kernels() -> Iterator[None]:
    # Not by cudnn.flags, which sets the precision as well.
    enabled = torch.backends.cudnn.enabled
    with sdpa_kernel(SDPBackend.MATH):
        torch._C._set_cudnn_enabled(False)
        try:
            yield
        finally:
            torch._C._set_cudnn_enabled(enabled)


_TWICE = Setting(_kernels)
