"""Settings of the whole process, which some of its threads want otherwise for a while."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class Setting:
    """A setting that holds while any thread is inside a block that asks for it.

    The first of them makes it, and the last gives back what was there. Were each to restore what it
    has found, the first that leaves would take it from those that are still inside, and the last
    would leave it as it is for good. Two of these must not set the same thing.

    Parameters
    ----------
    made : callable
        Gives a context in which it is set.
    """

    def __init__(self, made: Callable[[], AbstractContextManager[object]]) -> None:
        self._made, self._given_back = made, ExitStack()
        self._lock = threading.RLock()
        # How often each thread is inside.
        self._inside: dict[int, int] = {}
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self._forget_others,
            )

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Have it set inside the block, also within another or beside one of another thread."""
        thread = threading.get_ident()
        with self._lock:
            if not self._inside:
                self._given_back.enter_context(self._made())
            self._inside[thread] = self._inside.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._leave(thread, self._inside[thread] - 1)

    def _leave(self, thread: int, n: int) -> None:
        self._inside[thread] = n
        if not n:
            del self._inside[thread]
        if not self._inside:
            self._given_back.close()

    def _forget_others(self) -> None:
        """In a forked process there is one thread: those that the others were in have no end."""
        for thread in [*self._inside]:
            if thread != threading.get_ident():
                self._leave(thread, 0)
        self._lock.release()
