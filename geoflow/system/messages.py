"""What is said on standard error, and text as a terminal may show it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def printable(text: object) -> str:
    """Return text on one line, without anything a terminal would obey.

    Names, messages and paths may come from a file that somebody else has made: control characters,
    escape codes, line ends and marks that turn the direction of writing become ``�``.
    """
    return "".join(c if c.isprintable() else "�" for c in str(text))


def note(text: object) -> None:
    """Write one line to standard error; where that takes none, nothing fails for it."""
    stream = sys.stderr
    if stream is None:
        return
    try:
        stream.write(printable(text) + "\n")
        stream.flush()
    except (OSError, ValueError):
        abandon(stream)


def open_standard_streams() -> None:
    """Let the null device stand for a standard stream that is closed.

    Else the next file that is opened, an archive perhaps, gets its number, and what a library of C
    says of an error is written into it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)


def abandon(stream: TextIO) -> None:
    """Let a stream that takes nothing end in the null device, so that Python's end is quiet."""
    # A stream of a test or a notebook has no descriptor.
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
