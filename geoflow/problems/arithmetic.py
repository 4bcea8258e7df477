"""Arithmetic in the dtype that a problem names, and the same at every evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch.utils import deterministic

from geoflow.system.process import Setting

# Kinds of devices that geoflow computes on, each with an autocast of its own: PyTorch 2.4 has none
# for Apple's, and asking for it is an error there.
_AUTOCAST = tuple(kind for kind in ("cpu", "cuda", "mps") if torch.amp.is_autocast_available(kind))


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Evaluate in full precision, and in one order.

    PyTorch lets cuDNN convolve float32 numbers in TensorFloat-32, of 10 bits, and
    ``torch.set_float32_matmul_precision`` lets products of matrices do the like, on CPUs too; on
    GPUs some operations add in whatever order their threads come; ``torch.autocast`` multiplies in
    bfloat16; and where no gradient is asked for, attention takes a fast path that leaves padding
    out, so that a loss and the loss beside its gradient would be two numbers. A level kept to 10⁻⁶
    and a walk that resumes to the bit want none of it.
    """
    order = _ONE_ORDER() if device.type == "cuda" else nullcontext()
    # The last is a setting of each thread for itself.
    with _FULL_PRECISION(), order, without_autocast():
        yield


@contextmanager
def without_autocast() -> Iterator[None]:
    """Leave ``torch.autocast``, whose bfloat16 would be in the algebra beside a loss as well.

    As a decorator it is on whatever computes with θ from the outside: walks, flows, analyses. What
    is called in there, an observable or an R of one's own, is computed as it would be outside.
    """
    with ExitStack() as stack:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _full_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn, attention = torch.backends.cudnn, torch.backends.mha
    fast = attention.get_fastpath_enabled()
    attention.set_fastpath_enabled(False)
    # Whether cuDNN is used at all is set for second derivatives, by others.
    flags = cudnn.set_flags(None, False, 10, True, False)
    try:
        yield
    finally:
        cudnn.set_flags(None, *flags[1:])
        torch.set_float32_matmul_precision(before)
        attention.set_fastpath_enabled(fast)


@contextmanager
def _one_order() -> Iterator[None]:
    enabled = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # An operation that knows no such order may be of no effect on L: two evaluations tell.
    torch.use_deterministic_algorithms(True, warn_only=warns or not enabled)
    # Of every new tensor, for nothing.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


_FULL_PRECISION, _ONE_ORDER = Setting(_full_precision), Setting(_one_order)
