"""The last line of a trajectory file: the SHA-256 of all that stands before it.

HDF5 reads up to the end it noted itself, so that a line after it disturbs no reader. netCDF's own
Fletcher checksums guard the values in every reader; the seal guards every byte.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from geoflow.system import files, translation

PREFIX = b"\ngeoflow-sha256:"
LENGTH = len(PREFIX) + 64 + 1

# That identify a file.
END_BYTES = 4096


# What is said of one that the system does not let be read.
READABLE = "a file that can be read"


def append(path: Path) -> None:
    """Seal a finished file."""
    digest = _digest(path, path.stat().st_size)
    with open(path, "ab") as file:
        file.write(PREFIX + digest + b"\n")


MISSING = "its seal is missing: it was cut, or written anew by another program"
BROKEN = "its bytes are not those that were written: the SHA-256 in its seal differs"


def defect(path: Path) -> str | None:
    """Return ``MISSING``, ``BROKEN``, or None where nothing is wrong.

    Raises
    ------
    ArchiveError
        The system does not let it be read.
    """
    with translation.reading(path, READABLE):
        line = of(path)
        if not line:
            return MISSING
        if line[len(PREFIX) : -1] != _digest(path, path.stat().st_size - LENGTH):
            return BROKEN
        return None


def of(path: Path) -> bytes:
    """Return the seal of a file, whether it is broken or not; empty where there is none.

    Raises
    ------
    OSError
        The system does not let it be read.
    """
    size = path.stat().st_size - LENGTH
    with open(path, "rb") as file:
        file.seek(max(size, 0))
        line = file.read()
    sealed = size > 0 and line.startswith(PREFIX) and line.endswith(b"\n")
    return line if sealed else b""


def identity(path: Path) -> str:
    """Tell a file from others that may get its name: its length, and a hash of its end.

    A file of geoflow ends with its seal, and so with the hash of all of it. Empty where there is
    no file.

    Raises
    ------
    ArchiveError
        The system does not let it be read.
    """
    if not files.is_file(path):
        return ""
    with translation.reading(path, READABLE), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - END_BYTES, 0))
        return f"{size}:{hashlib.sha256(file.read()).hexdigest()}"


def _digest(path: Path, size: int) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while size > 0 and (block := file.read(min(size, 2**20))):
            digest.update(block)
            size -= len(block)
    return digest.hexdigest().encode()
