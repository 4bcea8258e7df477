"""Ctrl-C, put off while something must be done whole or not at all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any


@contextmanager
def put_off() -> Iterator[None]:
    """Let Ctrl-C take effect only at the end of the block, also of one that raises."""
    before = signal.getsignal(signal.SIGINT)
    # Only the main thread is ever interrupted, and only its handlers can be replaced.
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    pressed: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *details: pressed.append(details))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            before(*pressed[0])


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Start what the block starts, threads and their processes, out of Ctrl-C's reach.

    A terminal sends it to all processes of a command; one that has just been started would say at
    length where it was interrupted.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Where a process starts it first, it lets Ctrl-C through again.
    resource_tracker.ensure_running()
    # What a thread blocks is inherited, and the handlers are not.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
