"""What a function can come to by itself: what it closes over, its globals, and what these hold."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

# Objects that are looked at, at the most: what lies behind more is not known.
MOST = 20_000

# Classes of these are not looked into: they are no user's, and their globals reach far.
_LIBRARIES = ("builtins", "torch", "numpy", "collections", "functools", "typing", "geoflow")

Found = nn.Module | Tensor | np.ndarray


def reachable(function: Callable[..., Any]) -> Iterator[Found]:
    """Modules, tensors and arrays that a function may use without being given them.

    What it makes up while it runs is not among them, as what it reads from a file or out of the
    frames of its callers.

    Parameters
    ----------
    function : callable
        Any; it is not called.
    """
    seen: dict[int, Any] = {}
    waiting: list[Any] = [function]
    while waiting and len(seen) < MOST:
        one = waiting.pop()
        if id(one) in seen:
            continue
        # Kept, so that no other is given its number.
        seen[id(one)] = one
        if isinstance(one, nn.Module | Tensor | np.ndarray):
            yield one
        if not isinstance(one, Tensor | np.ndarray):
            waiting += _held(one)


def _held(one: Any) -> list[Any]:
    """What an object holds."""
    if one is None or isinstance(one, str | bytes | int | float | complex | ModuleType | CodeType):
        return []
    if isinstance(one, FunctionType):
        return _of_function(one)
    if isinstance(one, MethodType):
        return [one.__self__, one.__func__]
    if isinstance(one, functools.partial):
        return [one.func, *one.args, *one.keywords.values()]
    if isinstance(one, staticmethod | classmethod):
        return [one.__func__]
    if isinstance(one, property):
        return [one.fget]
    if isinstance(one, Mapping):
        return list(one.values())
    if isinstance(one, list | tuple | set | frozenset):
        return list(one)
    if isinstance(one, type):
        return list(vars(one).values()) if _is_users(one) else []
    return [*getattr(one, "__dict__", {}).values(), *filter(_is_users, type(one).__mro__)]


def _is_users(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in _LIBRARIES


def _of_function(function: FunctionType) -> list[Any]:
    held = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    held += vars(function).values()
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not filled yet
            continue
    names = set(_names(function.__code__))
    there = [function.__globals__[name] for name in names if name in function.__globals__]
    held += there
    # Of a module what the function names.
    for one in there:
        if isinstance(one, ModuleType) and one.__name__.partition(".")[0] not in _LIBRARIES:
            held += [vars(one)[name] for name in names if name in vars(one)]
    return held


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
