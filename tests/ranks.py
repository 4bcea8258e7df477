"""A function in several processes that are joined by gloo."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIMEOUT = 120


def start(
    function: Callable[..., Any], n: int, folder: Path, *arguments: Any
) -> tuple[list[Any], Any]:
    """Start ``function(rank, *arguments)`` in n processes; return them and what they put into."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    store = folder / f"store-{os.urandom(4).hex()}"
    found = [
        context.Process(target=_work, args=(rank, n, store, queue, function, arguments))
        for rank in range(n)
    ]
    for process in found:
        process.start()
    return found, queue


def run(function: Callable[..., Any], n: int, folder: Path, *arguments: Any) -> list[Any]:
    """What each process returns, in the order of their ranks."""
    found, queue = start(function, n, folder, *arguments)
    results = dict(queue.get(timeout=TIMEOUT) for _ in found)
    for process in found:
        process.join(TIMEOUT)
    return [results[rank] for rank in range(n)]


def _work(
    rank: int, n: int, store: Path, queue: Any, function: Callable[..., Any], arguments: Any
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=n)
    try:
        result = function(rank, *arguments)
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    queue.put((rank, result))
    queue.close()
    queue.join_thread()
    dist.destroy_process_group()
