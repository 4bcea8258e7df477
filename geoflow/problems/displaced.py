"""A user's own parameters elsewhere for one evaluation: what changes with them uses them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geoflow.problems import alone, nearby
from geoflow.system import interrupts


def in_place() -> AbstractContextManager[None]:
    """Have no user's parameters elsewhere: for whatever copies or sets them in some thread."""
    return alone.lock_of(elsewhere).held()


def has_part(
    parameters: Iterable[nn.Parameter], evaluate: Callable[[], Tensor], value: Tensor
) -> bool:
    """Whether parameters have a part in a value, in its graph or out of it: one evaluation.

    Parameters
    ----------
    parameters : iterable of torch.nn.Parameter
        A user's. They have other values while the function is evaluated, and then the very same
        again; nothing else of them changes.
    evaluate : callable
        Gives the value anew.
    value : Tensor
        What it has given.
    """
    parameters = list(parameters)
    if not parameters or _same(evaluate, value, parameters):
        return False
    # One that differs from one evaluation to the next says nothing of them.
    return _same(evaluate, value, [])


def _same(evaluate: Callable[[], Tensor], value: Tensor, displaced: list[nn.Parameter]) -> bool:
    @alone.in_turn
    def evaluated() -> Tensor:
        with elsewhere(displaced):
            return evaluate().detach()

    try:
        found = evaluated()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    # A value that was there before is missing, whatever a user's code raises where it is.
    except Exception:
        return False
    return torch.equal(found, value.detach())


@contextmanager
def elsewhere(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Have parameters at other values for a while, of about the same size.

    They are written in place, so that views, copies without a memory of their own and NumPy see it
    too. Where that memory is not PyTorch's alone, as of a mapped file, which may be read-only, or
    one that processes share, it is not touched: they are given another.
    """
    generator = torch.Generator().manual_seed(0)
    held: list[tuple[nn.Parameter, Tensor, Tensor | None]] = []
    with in_place():
        try:
            for parameter in parameters:
                data = parameter.data
                if _has_values(data):
                    held.append((parameter, data, data.clone() if _is_alone(data) else None))
            for parameter, data, before in held:
                other = nearby.displaced(data, generator)
                if before is None:
                    parameter.data = other
                else:
                    data.copy_(other)
            yield
        finally:
            with interrupts.put_off():
                for parameter, data, before in held:
                    if before is None:
                        parameter.data = data
                    else:
                        data.copy_(before)


def _has_values(data: Tensor) -> bool:
    # What a library has made of tensors may write elsewhere.
    plain = type(data) is Tensor and data.layout == torch.strided and not data.is_meta
    return plain and data.is_floating_point() and data.numel() > 0


def _is_alone(data: Tensor) -> bool:
    """Whether a tensor is in memory of this process alone that can be written to."""
    storage: Any = data.untyped_storage()
    # All memory of a GPU could be shared, and says so.
    if data.device.type == "cpu" and storage.is_shared():
        return False
    # Of memory that it has not taken, or has given to NumPy once, PyTorch knows no more.
    return bool(storage.resizable()) or _is_anonymous(storage.data_ptr())


def _is_anonymous(address: int) -> bool:
    """Whether Linux says that memory is a process's own, and of no file; False elsewhere."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    for line in lines:
        extent, mode, _, _, inode, *_ = line.split(maxsplit=5)
        start, end = (int(bound, 16) for bound in extent.split("-"))
        if start <= address < end:
            # What processes share has an inode, though it be of no file.
            return mode.startswith("rw") and inode == "0"
    return False
