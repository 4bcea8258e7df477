"""What does not fit into memory is refused before any work is done."""

from __future__ import annotations

import psutil

from geoflow.errors import InputError


def check_memory(needed: int, what: str, remedy: str) -> None:
    """Refuse what does not fit into memory.

    Parameters
    ----------
    needed : int
        Bytes.
    what, remedy : str
        What needs them, in the plural, and what to do about it.

    Raises
    ------
    InputError
        More bytes are needed than are available.
    """
    available = psutil.virtual_memory().available
    if needed > available:
        raise InputError(
            f"{what} need {needed / 2**30:.1f} GiB of memory and {available / 2**30:.1f} GiB are "
            f"available; {remedy}"
        )
