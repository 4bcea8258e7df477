"""One of several things by its name, with options: ``NAME[:option=value,…]``."""

from __future__ import annotations

from geoflow.errors import InputError


def named(text: str) -> tuple[str, dict[str, float]]:
    """Read a name and its options, numbers all.

    Raises
    ------
    InputError
        An option that is no number, or comes twice.
    """
    name, colon, rest = text.partition(":")
    options: dict[str, float] = {}
    for part in rest.split(",") if colon else []:
        option, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if number is None or not option or option in options:
            raise InputError(f"{text!r}: use NAME[:option=value,…], each value a number")
        options[option] = number
    return name, options
