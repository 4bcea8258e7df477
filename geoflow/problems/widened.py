"""A function of float32 numbers evaluated in float64, by the same code on the same data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

Evaluation = Callable[[Tensor], tuple[Tensor, Tensor]]

# What a number of fewer digits becomes.
WIDER = {
    torch.float32: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}
HALF = (torch.bfloat16, torch.float16, torch.complex32)
_NARROWER = {torch.float64: torch.float32, torch.complex128: torch.complex64}


class Either:
    """A function of float32 numbers that takes θ in float64 too, and then computes in it.

    Whatever is computed is converted operation by operation: weights and data of a network, tensors
    that a loss makes, ``.float()``, ``.half()`` and ``torch.autocast``. Every tensor says that it
    is float32, so what looks at dtypes does as it always does. Nothing is copied for longer than it
    is used. NumPy computes as it is told to.

    Parameters
    ----------
    of : callable
        Dtype of θ → function of θ.

    Attributes
    ----------
    fewer_digits : bool
        Whether in float64 it has asked for fewer than those of float32.
    """

    def __init__(self, of: Callable[[torch.dtype], Evaluation]) -> None:
        self._of = cache(of)
        self.fewer_digits = False

    def __call__(self, theta: Tensor, /) -> tuple[Tensor, Tensor]:
        """What the function gives at θ."""
        function = self._of(theta.dtype)
        if theta.dtype != torch.float64:
            return function(theta)
        with widening(theta.device.type) as asked_for_fewer:
            found = function(theta)
        self.fewer_digits |= asked_for_fewer()
        return found


@contextmanager
def widening(device_type: str) -> Iterator[Callable[[], bool]]:
    """Have all that is computed in here computed in float64, as :class:`Either` says.

    It gives what says whether fewer digits than those of float32 have been asked for.
    """
    operations, saying = _Widening(), _SayingFloat32(device_type)
    with operations, saying:
        yield lambda: operations.fewer_digits or saying.autocast


class _Widening(TorchDispatchMode):
    """Gives every operation its numbers in float64."""

    fewer_digits = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        schema = func._schema.arguments
        written = {a.name for a in schema if a.alias_info and a.alias_info.is_write}
        # What is written into stays the tensor that it is.
        named = zip([a.name for a in schema], args, strict=False)
        args = tuple(a if name in written else tree_map(_widened, a) for name, a in named)
        kwargs = {n: a if n in written else tree_map(_widened, a) for n, a in kwargs.items()}
        dtype = kwargs.get("dtype")
        self.fewer_digits = self.fewer_digits or dtype in HALF
        # A generator's numbers in float32 are others than those in float64.
        if dtype in WIDER and any(isinstance(a, Tensor | list) for a in args):
            kwargs["dtype"] = WIDER[dtype]
        found = func(*args, **kwargs)
        return found if written else tree_map(_widened, found)


class _SayingFloat32(TorchFunctionMode):
    """Has tensors say that they are of the dtype that they would be without."""

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type, self.autocast = device_type, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Of float64 it makes nothing.
        self.autocast = self.autocast or torch.is_autocast_enabled(self.device_type)
        found = func(*args, **(kwargs or {}))
        return _NARROWER.get(found, found) if func == _DTYPE else found


_DTYPE = torch.Tensor.dtype.__get__  # type: ignore[attr-defined]


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in WIDER:
        return value.to(WIDER[value.dtype])
    return value
