"""What is in objects of other kinds, as libraries for graphs and for detection make batches of."""

from __future__ import annotations

import hashlib
import io
import random
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What is data itself, and has no parts.
LEAVES = (Tensor, np.ndarray, np.generic, bool, int, float, complex, str, bytes, bytearray)

CONTAINERS = (Mapping, tuple, list, set, frozenset)

# What is none: code, and what has a state that no loss is of.
_NO_DATA = (
    type(None),
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.GeneratorType,
    weakref.ReferenceType,
    weakref.ProxyType,
    io.IOBase,
    nn.Module,
    torch.Generator,
    torch.device,
    torch.dtype,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
)

# Takes a leaf into a digest.
Leaf = Callable[["hashlib._Hash", Any], None]


def is_data(value: Any) -> bool:
    """Whether it may hold data: no code, and no generator of random numbers."""
    return not isinstance(value, _NO_DATA)


def parts(value: Any) -> list[tuple[str, Any]]:
    """What a container or an object holds, by name; nothing where that is not to be had.

    Of an object what a copy of it would be made of: its attributes, slots too, or what its class
    says itself. Nothing is pickled, or made of a pickle.
    """
    if isinstance(value, LEAVES) or not is_data(value):
        return []
    if isinstance(value, Mapping):
        return [(f"[{key!r}]" if _is_name(key) else "[…]", v) for key, v in value.items()]
    if isinstance(value, tuple | list):
        return [(f"[{i}]", v) for i, v in enumerate(value)]
    if isinstance(value, set | frozenset):
        # Texts have another order in another process.
        return [("[…]", v) for v in sorted(value, key=repr)]
    return _of_object(value)


def _is_name(key: Any) -> bool:
    """Whether a key is the same text in every process."""
    if isinstance(key, tuple):
        return all(map(_is_name, key))
    return isinstance(key, str | int | float | bytes)


def _of_object(value: Any) -> list[tuple[str, Any]]:
    try:
        reduced = value.__reduce_ex__(4)
    # A class may raise anything where it is not to be copied, and most of C have no copies.
    except Exception:
        return [(f".{name}", v) for name, v in _attributes(value).items()]
    if isinstance(reduced, str):
        return []
    _, arguments, state, items, pairs = (*reduced[:5], None, None, None)[:5]
    found = [(f"({i})", v) for i, v in enumerate(arguments) if is_data(v)]
    # Of an object with slots its attributes and those: a pair of dictionaries.
    for one in state if _is_of_slots(state) else (state,):
        if isinstance(one, dict) and all(isinstance(name, str) for name in one):
            found += [(f".{name}", v) for name, v in one.items()]
        elif one is not None:
            found.append(("", one))
    found += [(f"[{i}]", v) for i, v in enumerate(items or ())]
    return found + parts(dict(pairs or ()))


def _is_of_slots(state: Any) -> bool:
    pair = isinstance(state, tuple) and len(state) == 2
    return pair and all(isinstance(one, dict | None) for one in state)


def _attributes(value: Any) -> dict[str, Any]:
    slots: list[str] = []
    for kind in type(value).__mro__:
        there = vars(kind).get("__slots__", ())
        slots += [there] if isinstance(there, str) else list(there)
    found = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return found | getattr(value, "__dict__", {})


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """All data within, each with its place for error messages."""
    seen: dict[int, Any] = {}
    left = [(name, value)]
    while left:
        place, one = left.pop()
        if isinstance(one, LEAVES):
            yield place, one
        elif id(one) not in seen:
            # Kept, so that no other takes its number.
            seen[id(one)] = one
            left += [(f"{place}{where}", part) for where, part in reversed(parts(one))]


def first_object(value: Any) -> Any:
    """The first object of another kind in containers; None where they hold nothing."""
    left, seen = [value], set()
    while left:
        one = left.pop()
        if isinstance(one, CONTAINERS):
            # A list may hold itself.
            new = [] if id(one) in seen else [part for _, part in parts(one)]
            seen.add(id(one))
            left += reversed(new)
        elif is_data(one) and not isinstance(one, LEAVES):
            return one
    return None


def sha256(value: Any, leaf: Leaf) -> bytes:
    """Digest of all data within an object and of its places there.

    Objects that hold the same have the same one, whether or not they share some of it.
    """
    return _sha256(value, leaf, {})


def _sha256(value: Any, leaf: Leaf, known: dict[int, tuple[Any, bytes]]) -> bytes:
    digest = hashlib.sha256()
    if isinstance(value, LEAVES):
        leaf(digest, value)
        return digest.digest()
    if id(value) in known:
        return known[id(value)][1]
    # Where it comes again within itself. It is kept, so that no other takes its number.
    known[id(value)] = value, b"within itself"
    for where, part in parts(value):
        digest.update(f"{len(where)} {where}".encode("utf-8", "surrogatepass"))
        digest.update(_sha256(part, leaf, known))
    known[id(value)] = value, digest.digest()
    return digest.digest()
