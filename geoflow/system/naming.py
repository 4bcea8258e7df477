"""One of several things by its name, with options: ``NAME[:option=value,…]``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from geoflow.errors import InputError


def named(text: str, words: Collection[str] = ()) -> tuple[str, dict[str, Any]]:
    """Read a name and its options, numbers all but those that are ``words``.

    Raises
    ------
    InputError
        An option that is no number, or comes twice.
    """
    name, colon, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        option, _, value = part.partition("=")
        number: float | str | None
        try:
            number = value if option in words and value else float(value)
        except ValueError:
            number = None
        if number is None or not option or option in options:
            raise InputError(f"{text!r}: use NAME[:option=value,…], each value a number")
        options[option] = number
    return name, options
