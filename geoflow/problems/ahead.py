"""Batches on their way to a GPU while it computes on those before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from geoflow.problems import data
from geoflow.problems.data import Tree

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


def moved(batches: Iterable[Tree], dtype: torch.dtype, device: torch.device) -> Iterator[Tree]:
    """Batches in a dtype and on a device, in their order, with the same bits wherever that is.

    To a GPU a batch is copied from pinned memory on a stream of its own before the one ahead of it
    is handed out. Computing on a batch is queued and not waited for, so that the next one is read
    and copied meanwhile; two are on the device at a time. Elsewhere there is nothing to overlap.
    """
    if device.type != "cuda":
        return (data.convert(batch, dtype, device) for batch in batches)
    stream = torch.cuda.Stream(device)
    return one_ahead(batches, partial(_sent, stream, dtype, device), partial(_arrived, device))


def one_ahead(items: Iterable[A], start: Callable[[A], B], finish: Callable[[B], C]) -> Iterator[C]:
    """Each item started and finished, in order; the next is started before one is given."""
    ahead: list[B] = []
    for item in items:
        ahead.append(start(item))
        if len(ahead) > 1:
            yield finish(ahead.pop(0))
    for started in ahead:
        yield finish(started)


def _sent(
    stream: torch.cuda.Stream, dtype: torch.dtype, device: torch.device, batch: Tree
) -> tuple[Tree, torch.cuda.Event]:
    """A batch that is being copied, and the event of its being there."""

    def send(tensor: Tensor) -> Tensor:
        plain = tensor.layout == torch.strided and not tensor.is_cuda
        pinned = tensor.pin_memory() if plain else tensor
        return pinned.to(device, non_blocking=True)

    if any(tensor.is_cuda for _, tensor in data.leaves(batch, "")):
        # It may still be in the making.
        stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        # The dtype is changed there: less is copied, and float64 is made of float32 exactly.
        found = data.convert(data.mapped(batch, send), dtype, device)
        return found, stream.record_event()


def _arrived(device: torch.device, sent: tuple[Tree, torch.cuda.Event]) -> Tree:
    """A batch that what is queued from now on may use."""
    batch, there = sent
    current = torch.cuda.current_stream(device)
    current.wait_event(there)
    for _, tensor in data.leaves(batch, ""):
        for one in data.stored(tensor):
            # Its memory serves others only after what is queued here.
            one.record_stream(current)
    return batch
