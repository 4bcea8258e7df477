"""One thread at a time in what evaluations share: a network into which θ is put, a function.

``torch.func.functional_call`` puts tensors into the one module that all evaluations have, for the
time of a forward pass; a second thread would compute with them, and a module or a function of a
user's may keep what it has computed as well. So a forward pass is made alone. Backward passes read
no module, and go on beside it; so does everything of another problem. One lock for all would part
them, and a function that waits for another thread's evaluation would wait for ever.

Locks are those of the objects, and are not kept in them: what is pickled, copied or forked has its
own. The thread that has one may take it again, as for the outputs inside of a sum of losses, and
others beside it, as where a loss evaluates another problem. In what order is a user's choice, so
two threads may each want what the other has. The one that would close the ring does not wait: by
:class:`DeadWait` it leaves what it is in and gives back the locks, and :func:`in_turn`, round
whatever holds one, evaluates again when the other has gone on. What is of θ has the same value
then.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from torch import nn

Found = TypeVar("Found")
Given = ParamSpec("Given")


class DeadWait(BaseException):
    """Threads each want what another holds: no error, and nobody's ``except Exception`` takes it.

    Attributes
    ----------
    lock : Lock
        The one that was not waited for.
    """

    def __init__(self, lock: Lock) -> None:
        super().__init__()
        self.lock = lock


class Lock:
    """A lock that its thread may take again, and that nobody waits for in vain."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._holder: int | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have it inside the block.

        Raises
        ------
        DeadWait
            Whoever has it waits, by however many others, for this thread.
        """
        thread = threading.get_ident()
        before = self._holder if self._holder == thread else None
        try:
            if before is None:
                self._ask(thread)
            with self._lock:
                # In this order: none is seen to wait for what it has.
                _WAITING.pop(thread, None)
                self._holder = thread
                try:
                    yield
                finally:
                    self._holder = before
        finally:
            _WAITING.pop(thread, None)

    def _ask(self, thread: int) -> None:
        # One at a time: the last of a ring sees all others wait.
        with _CHANGING:
            lock: Lock | None = self
            while lock is not None and lock._holder is not None:
                if lock._holder == thread:
                    raise DeadWait(self)
                lock = _WAITING.get(lock._holder)
            _WAITING[thread] = self


def in_turn(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Have a function called again where another thread had to go first.

    Parameters
    ----------
    function : callable
        Takes locks, and has given them back when it fails.
    """

    @functools.wraps(function)
    def called(*arguments: Given.args, **keywords: Given.kwargs) -> Found:
        while True:
            try:
                return function(*arguments, **keywords)
            except DeadWait as dead:
                lock = dead.lock
            # The other may want what is held further out: it is given back there, then.
            with lock.held():
                pass

    return called


# By the number of an object, with a reference to it: it may be one that cannot be hashed.
_LOCKS: dict[int, tuple[weakref.ref[Any], Lock]] = {}
# Of all objects that cannot be referred to weakly.
_OTHERS = Lock()
# Which one a thread waits for.
_WAITING: dict[int, Lock] = {}
_CHANGING = threading.Lock()


def lock_of(shared: Any) -> Lock:
    """The lock of an object, the same as long as that is there.

    Parameters
    ----------
    shared : object
        A module, or whatever else evaluations of several threads have in common.
    """
    key = id(shared)
    found = _LOCKS.get(key)
    if found is not None and found[0]() is shared:
        return found[1]
    with _CHANGING:
        found = _LOCKS.get(key)
        if found is not None and found[0]() is shared:
            return found[1]

        def gone(reference: weakref.ref[Any]) -> None:
            # Its number may be another's by now.
            if _LOCKS.get(key, (None,))[0] is reference:
                del _LOCKS[key]

        try:
            _LOCKS[key] = weakref.ref(shared, gone), Lock()
        except TypeError:
            return _OTHERS
        return _LOCKS[key][1]


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Have no evaluation in a module, nor in one that it holds: it has its own tensors."""

    @in_turn
    def all_of_them() -> ExitStack:
        with ExitStack() as stack:
            for child in module.modules():
                if id(child) in _LOCKS:
                    stack.enter_context(lock_of(child).held())
            return stack.pop_all()

    with all_of_them():
        yield


@dataclass(frozen=True)
class Alone:
    """A user's function, evaluated by one thread at a time.

    It may put θ into a module by ``torch.func.functional_call`` itself.

    Attributes
    ----------
    function : callable
        As it was given.
    """

    function: Callable[..., Any]

    @in_turn
    def __call__(self, *arguments: Any) -> Any:
        """Its value."""
        # A method is a new object each time that it is asked for, and others of its owner's may
        # use the same module.
        owner = getattr(self.function, "__self__", None)
        with lock_of(self.function if owner is None else owner).held():
            return self.function(*arguments)


def _renew() -> None:
    """In a forked process: the threads that held them are not there to release them."""
    global _CHANGING, _OTHERS
    _LOCKS.clear()
    _WAITING.clear()
    _CHANGING, _OTHERS = threading.Lock(), Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
