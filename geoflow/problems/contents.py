"""What is in objects of other kinds, as libraries for graphs and for detection make batches of."""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import itertools
import random
import types
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

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

# What a class has for all of its objects, in whose place an object may have data of its own.
_METHODS = (
    classmethod,
    staticmethod,
    functools.partialmethod,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)

# Where a batch comes from. One that knows it is not all of it.
_SOURCES = (Dataset, DataLoader, Sampler)

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
        items = [(f"[{key!r}]" if _is_name(key) else "[…]", v) for key, v in value.items()]
        return [*items, *((f".{name}", v) for name, v in beside(value).items())]
    if isinstance(value, tuple | list):
        items = [(f"[{i}]", v) for i, v in enumerate(value)]
        return [*items, *((f".{name}", v) for name, v in beside(value).items())]
    if isinstance(value, set | frozenset):
        # Texts have another order in another process; of objects a digest tells.
        return [("[…]", v) for v in sorted(value, key=repr)]
    found = _of_object(value)
    if isinstance(value, _SOURCES):
        return found
    return [(where, part) for where, part in found if not isinstance(part, _SOURCES)]


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
            found += [(f".{n}", v) for n, v in one.items() if not _is_cached(type(value), n)]
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
    return found | attributes(value)


def attributes(value: Any) -> dict[str, Any]:
    """What was given to an object by name, without what it has computed from that and kept."""
    held = getattr(value, "__dict__", {})
    return {name: v for name, v in held.items() if not _is_cached(type(value), name)}


def beside(value: Any, known: Collection[str] = ()) -> dict[str, Any]:
    """Data that a container or a record has as attributes, but for those that are known.

    A mapping that is no dictionary keeps there what it is made of.
    """
    if isinstance(value, CONTAINERS) and not isinstance(value, dict | tuple | list):
        return {}
    within = value.values() if isinstance(value, dict) else ()
    # As the outputs of `transformers` have their items twice.
    twice = {id(v) for v in within if isinstance(v, Tensor | np.ndarray)}
    return {
        name: v
        for name, v in attributes(value).items()
        if name not in known and id(v) not in twice and is_data(v) and not isinstance(v, _SOURCES)
    }


def _is_cached(kind: type, name: str) -> bool:
    """Whether an attribute is what a property has kept, as ``functools.cached_property`` does.

    It is there after the first use, and in its place is one that is asked only where it is not.
    """
    found = next((vars(of)[name] for of in kind.__mro__ if name in vars(of)), None)
    asked = hasattr(type(found), "__get__") and not hasattr(type(found), "__set__")
    return asked and not isinstance(found, _METHODS)


def copied(value: Any) -> Any:
    """An object that holds the same, to be written to; itself where there is no copy.

    Of one that gives something back at its end a copy would do so too early.
    """
    if isinstance(value, LEAVES) or not is_data(value) or hasattr(type(value), "__del__"):
        return value
    try:
        found = copy.copy(value)
    # As of locks; and a class may raise anything.
    except Exception:
        return value
    return found if type(found) is type(value) else value


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
        # A function or a module may well be what the examples are in.
        elif (is_data(one) or callable(one)) and not isinstance(one, LEAVES):
            return one
    return None


def first_difference(one: Any, other: Any, name: str, leaf: Leaf) -> tuple[str, Any] | None:
    """The first place where two hold other data, and what is there; None: they hold the same."""
    pairs = itertools.zip_longest(leaves(one, name), leaves(other, name))
    for here, there in pairs:
        if here is None or there is None or here[0] != there[0]:
            return here or there
        if sha256(here[1], leaf) != sha256(there[1], leaf):
            return here
    return None


class _Open:
    """A container or an object whose parts are being taken into its digest."""

    def __init__(self, value: Any) -> None:
        self.value, self.left = value, iter(parts(value))
        self.taken: list[bytes] = []

    def take(self, where: str, digest: bytes) -> None:
        self.taken.append(f"{len(where)} {where}".encode("utf-8", "surrogatepass") + digest)

    def digest(self) -> bytes:
        unordered = isinstance(self.value, set | frozenset)
        return hashlib.sha256(b"".join(sorted(self.taken) if unordered else self.taken)).digest()


def sha256(value: Any, leaf: Leaf) -> bytes:
    """Digest of all data within an object and of its places there.

    Objects that hold the same have the same one, whether or not they share some of it. Chains of
    objects may be longer than Python calls functions within each other.
    """
    if isinstance(value, LEAVES):
        return _of_leaf(value, leaf)
    # Each is kept, so that no other takes its number.
    known: dict[int, tuple[Any, bytes]] = {}
    inwards = [("", _Open(value))]
    while True:
        where, one = inwards[-1]
        # Where it comes again within itself.
        known.setdefault(id(one.value), (one.value, b"within itself"))
        for place, part in one.left:
            if isinstance(part, LEAVES):
                one.take(place, _of_leaf(part, leaf))
            elif id(part) in known:
                one.take(place, known[id(part)][1])
            else:
                inwards.append((place, _Open(part)))
                break
        else:
            inwards.pop()
            digest = one.digest()
            known[id(one.value)] = one.value, digest
            if not inwards:
                return digest
            inwards[-1][1].take(where, digest)


def _of_leaf(value: Any, leaf: Leaf) -> bytes:
    digest = hashlib.sha256()
    leaf(digest, value)
    return digest.digest()
