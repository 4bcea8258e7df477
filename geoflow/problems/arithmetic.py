"""Arithmetic in the dtype that a problem names, and the same at every evaluation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

# PyTorch's settings are those of the whole process: the first of several threads makes them, and
# the last gives them back.
_LOCK = threading.Lock()
_inside = 0
_given_back = ExitStack()


@contextmanager
def exact() -> Iterator[None]:
    """Evaluate in full precision and in one order.

    PyTorch lets cuDNN convolve float32 numbers in TensorFloat-32, of 10 bits, and choose algorithms
    that add in any order; ``torch.set_float32_matmul_precision`` lets products of matrices do the
    like, on CPUs too. A level kept to 10⁻⁶ wants neither.
    """
    global _inside
    with _LOCK:
        _inside += 1
        if _inside == 1:
            _given_back.enter_context(_settings())
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                _given_back.close()


@contextmanager
def _settings() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn
    try:
        with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
