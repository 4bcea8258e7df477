"""Bytes of tensors that a function holds at its peak."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(function: Callable[[], Any]) -> int:
    """Call a function; return the most bytes of new tensors alive at a time on their devices.

    Every operation's results are counted from when they are made to when they are freed, those of
    backward passes too; what an operation takes for itself while it runs is not.
    """
    live = _Live()
    with live:
        function()
    return live.peak


class _Live(TorchDispatchMode):
    """Counts the storages that operations make, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # What was there before is not the function's.
        for tensor in tree_leaves((args, kwargs)):
            self._take(tensor, new=False)
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            self._take(tensor, new=True)
        return found

    def _take(self, tensor: Any, *, new: bool) -> None:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self.held:
            return
        size = storage.nbytes() if new else 0

        def gone(_: Any) -> None:
            self.held.pop(key, None)
            self.now -= size

        self.held[key] = weakref.ref(storage, gone), size
        self.now += size
        self.peak = max(self.peak, self.now)
