"""One thread at a time in what evaluations share: a network into which θ is put, a function.

``torch.func.functional_call`` puts tensors into the one module that all evaluations have, for the
time of a forward pass; a second thread would compute with them, and a module or a function of a
user's may keep what it has computed as well. So a forward pass is made alone. Backward passes read
no module, and go on beside it; so does everything of another problem.

Locks are those of the objects, and are not kept in them: what is pickled, copied or forked has its
own. They are taken again by the thread that has them, as where a loss evaluates another problem.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

# By the number of an object, with a reference to it: it may be one that cannot be hashed.
_LOCKS: dict[int, tuple[weakref.ref[Any], threading.RLock]] = {}
# Of all objects that cannot be referred to weakly.
_OTHERS = threading.RLock()
_MAKING = threading.Lock()


def lock_of(shared: Any) -> threading.RLock:
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
    with _MAKING:
        found = _LOCKS.get(key)
        if found is not None and found[0]() is shared:
            return found[1]

        def gone(reference: weakref.ref[Any]) -> None:
            # Its number may be another's by now.
            if _LOCKS.get(key, (None,))[0] is reference:
                del _LOCKS[key]

        try:
            _LOCKS[key] = weakref.ref(shared, gone), threading.RLock()
        except TypeError:
            return _OTHERS
        return _LOCKS[key][1]


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Have no evaluation in a module, nor in one that it holds: it has its own tensors."""
    with ExitStack() as stack:
        for child in module.modules():
            if id(child) in _LOCKS:
                stack.enter_context(lock_of(child))
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

    def __call__(self, *arguments: Any) -> Any:
        """Its value."""
        # A method is a new object each time that it is asked for.
        owner = getattr(self.function, "__self__", None)
        with lock_of(self.function if owner is None else owner):
            return self.function(*arguments)


def _renew() -> None:
    """In a forked process: the threads that held them are not there to release them."""
    global _MAKING, _OTHERS
    _LOCKS.clear()
    _MAKING, _OTHERS = threading.Lock(), threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
