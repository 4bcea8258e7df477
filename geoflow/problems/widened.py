"""A function of float32 numbers evaluated in float64, by the same code on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

Result = TypeVar("Result")

# What a number of fewer digits becomes.
WIDER = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
_NARROWER = {torch.float64: torch.float32, torch.complex128: torch.complex64}


def either(function: Callable[[Tensor], Result]) -> Callable[[Tensor], Result]:
    """The same function of float32 numbers, which takes θ in float64 too and then computes in it.

    Whatever is computed is converted operation by operation: weights and data of a network, tensors
    that a loss makes, ``.float()``, ``.half()`` and ``torch.autocast``. Every tensor says that it
    is float32, so what looks at dtypes does as it always does. Nothing is copied for longer than it
    is used. NumPy computes as it is told to.
    """

    def evaluated(theta: Tensor) -> Result:
        if theta.dtype != torch.float64:
            return function(theta)
        with _Widening(), _SayingFloat32():
            return function(theta)

    return evaluated


class _Widening(TorchDispatchMode):
    """Gives every operation its numbers in float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = [a for a in func._schema.arguments if a.alias_info and a.alias_info.is_write]
        if written:
            names = {a.name for a in written}
            given = [a.name for a in func._schema.arguments[: len(args)]]
            args = [
                a if name in names else tree_map(_widened, a)
                for name, a in zip(given, args, strict=True)
            ]
            kwargs = {n: a if n in names else tree_map(_widened, a) for n, a in kwargs.items()}
            return func(*args, **kwargs)
        args, kwargs = tree_map(_widened, (tuple(args), kwargs))
        # Of what makes numbers, as a generator, those of float32 are others than those of float64.
        computed = any(isinstance(a, Tensor) for a in args) or any(
            isinstance(a, list) for a in args
        )
        if computed and kwargs.get("dtype") in WIDER:
            kwargs["dtype"] = WIDER[kwargs["dtype"]]
        return tree_map(_widened, func(*args, **kwargs))


class _SayingFloat32(TorchFunctionMode):
    """Has tensors say that they are of the dtype that they would be without."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        return _NARROWER.get(found, found) if func == _DTYPE else found


_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in WIDER:
        return value.to(WIDER[value.dtype])
    return value
