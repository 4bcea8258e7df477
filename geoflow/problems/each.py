"""A function of one example, or of one point, of many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.func import vmap

from geoflow.system.process import Setting


def each(
    function: Callable[..., Any], in_dims: Any = 0, chunk_size: int | None = None
) -> Callable[..., Any]:
    """``torch.func.vmap``, which here does not tell users to file issues on its own performance.

    Parameters
    ----------
    function, in_dims, chunk_size
        As ``torch.func.vmap`` takes them.
    """
    mapped = vmap(function, in_dims, chunk_size=chunk_size)

    def quiet(*arguments: Any) -> Any:
        with _WITHOUT_ADVICE():
            return mapped(*arguments)

    return quiet


@contextmanager
def _advice_off() -> Iterator[None]:
    """Leave out the warning that an operation has no batching rule, which nobody here can give it.

    A filter of warnings would make Python forget which others it has shown, at every evaluation.
    """
    turn = getattr(torch._C._functorch, "_set_vmap_fallback_warning_enabled", lambda enabled: None)
    turn(False)
    try:
        yield
    finally:
        turn(True)


_WITHOUT_ADVICE = Setting(_advice_off)
