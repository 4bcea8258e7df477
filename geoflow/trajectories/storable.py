"""What a trajectory file can hold: found out before the first step, not after the last."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from geoflow.errors import InputError
from geoflow.system.translation import reason
from geoflow.trajectories import schema

# Bytes in UTF-8: a limit of the netCDF library for names, geoflow's own for texts, which it keeps
# to when it reads.
LONGEST_NAME = 255
LONGEST_TEXT = 2**20

# Lists and mappings in each other: provenance of one's own has some, and readers have an end.
DEEPEST = 100

# Names of the file's own, beside its variables: dimensions, and the group that a walk goes on from.
RESERVED = ("step", "snapshot", "parameter", "tensor", "constraint", "checkpoint")


def check_name(name: object, what: str, taken: Iterable[str] = ()) -> None:
    """Refuse the name of a variable that a file could not hold, or not under this name.

    Parameters
    ----------
    name : object
        The name.
    what : str
        The argument that it is from, for the message.
    taken : iterable of str
        Names that are used already.

    Raises
    ------
    InputError
        No text, no identifier, taken, too long, or not in Unicode's normal form C, in which
        netCDF stores it.
    """
    if not isinstance(name, str) or not name.isidentifier():
        shown = name if isinstance(name, str) else repr(name)
        raise InputError(
            f"{what}: {shown[:80]!a} is taken or not a name; choose another, of letters, digits "
            "and underscores"
        )
    if name in RESERVED or name in taken:
        raise InputError(f"{what}: {name!r} is taken or not a name; choose another")
    normal = unicodedata.normalize("NFC", name)
    if normal != name:
        raise InputError(f"{what}: {name!a} is not in Unicode's normal form C; use {normal!a}")
    if len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"{what}: {name[:20]!r}… is a name of {len(name.encode())} bytes; use at most "
            f"{LONGEST_NAME}"
        )


def check_text(text: object, what: str) -> None:
    """Refuse what a file could not hold as text, or would give back as another.

    Raises
    ------
    InputError
        No text; NUL or half a character in it; or too long.
    """
    if not isinstance(text, str):
        raise InputError(f"{what}={text!r}; use a text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InputError(f"{what}={text[:80]!a} is no Unicode text ({error.reason})") from None
    if "\0" in text:
        raise InputError(f"{what}={text[:80]!a} has a NUL in it; leave it out")
    if size > LONGEST_TEXT:
        raise InputError(f"{what} has {size:,} bytes; use at most {LONGEST_TEXT:,}")


def check_attributes(attributes: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuse global attributes, and names of tensors, that a file could not hold.

    Parameters
    ----------
    attributes : mapping
        All but how the walk ended.
    tensors : iterable of str
        Names of the parameter tensors.

    Raises
    ------
    InputError
        Names the first.
    """
    for name, value in attributes.items():
        value = value.item() if isinstance(value, np.number) else value
        kind = schema.ATTRIBUTES.get(name, str)
        if kind is str:
            what = "provenance, with the settings," if name == "config" else name
            check_text(value, what)
        elif isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
            raise InputError(f"{name}={value!r}; use a number")
        elif kind is int and not -1 <= value < 2**63:
            raise InputError(f"{name}={value}; use zero or a positive number below 2**63")
    for name in tensors:
        check_text(name, "the name of a parameter tensor")


def as_json(content: Mapping[str, Any], what: str) -> str:
    """Write settings as JSON that every program reads.

    Raises
    ------
    InputError
        Something in it is no text, number, list or mapping of those; or not finite; or they lie
        in each other deeper than what reads them goes.
    """
    try:
        text = json.dumps(content, sort_keys=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{what} cannot be kept as JSON ({reason(error)}); use texts, finite numbers, lists "
            "and mappings of those"
        ) from None
    if _is_deep(content):
        raise InputError(
            f"{what} cannot be kept: it is nested more than {DEEPEST} deep; flatten it, or keep it "
            "in a text"
        )
    return text


def _plain(value: Any) -> Any:
    """A number of NumPy's as Python's own."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        return value.item()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def depth_defects(attributes: Mapping[str, Any]) -> list[str]:
    """Say where the settings in global attributes are nested deeper than is read, in one line."""
    deep = _is_deep(json.loads(attributes["config"]))
    return [f"its config is nested more than {DEEPEST} deep"] if deep else []


def _is_deep(content: Any) -> bool:
    """Whether lists and mappings lie in each other more than :data:`DEEPEST` deep."""
    level = [content]
    for _ in range(DEEPEST):
        inner = [v.values() if isinstance(v, Mapping) else v for v in level]
        level = [v for values in inner for v in values if isinstance(v, Mapping | list | tuple)]
        if not level:
            return False
    return True


def storable(text: str) -> str:
    """Return a text as a file can hold it: a message at a walk's end must not lose the walk."""
    text = text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
    return text if len(text) <= 2_000 else text[:2_000] + "…"
