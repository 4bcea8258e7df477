"""The folder beside an archive in which a walk is streamed: whole files, and a lock.

A part is a NumPy ``.npz``: arrays under names, each with a CRC-32, never a pickle. It gets its
name once it is on the disk, so that a part that is there is complete.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import ArchiveError, InputError
from geoflow.system import files, translation

# What a walk that is not finished goes on from.
CHECKPOINT = "checkpoint.npz"
# Names of the parts beside it.
OWN = ("theta-*.npz", "steps-*.npz")


def folder_beside(path: Path) -> Path:
    """Return the folder in which the walk that will be ``path`` is streamed, links resolved."""
    path = files.resolved(path)
    return path.with_name(f".{path.name}.parts")


def is_resumable(path: Path) -> bool:
    """Whether an unfinished walk is streamed beside this file."""
    # Whatever it is: what is no file is said to be none where it is read.
    return os.path.lexists(folder_beside(path) / CHECKPOINT)


def check_free(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make sure a file can be written, and takes no place of a walk that is streamed beside it.

    Raises
    ------
    InputError
        See :func:`geoflow.system.files.check_target`; or an unfinished walk is streamed there,
        which would take the file's place when it is gone on with.
    """
    path = files.check_target(path, overwrite=overwrite)
    if is_resumable(path):
        raise InputError(
            f"{path}: an unfinished walk is streamed beside it, in {folder_beside(path)}; go on "
            "with that one (geoflow resume), remove the folder, or choose another name"
        )
    return path


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a part; it is on the disk, and its name too, when this returns.

    Raises
    ------
    OSError
        The disk is full or fails; what had the name before is as it was.
    """
    # Which NumPy would write too, by pickle; `allow_pickle` it takes from 2.2 on.
    if objects := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise ValueError(f"{objects[0]} is an array of objects")
    with files.replacing(path, follow=False) as temporary, open(temporary, "wb") as file:
        columns: dict[str, Any] = dict(arrays)
        np.savez(file, **columns)


def read(path: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read a part, or some of its arrays; each is checked against its CRC-32.

    Raises
    ------
    ArchiveError
        It is missing or damaged, lies elsewhere, or holds more than its size says.
    """
    if not path.exists():
        raise ArchiveError(f"{path} is missing; run again")
    with translation.reading(path, "a whole part of a walk, run again"):
        return _read(path, names)


def check(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    wanted: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
) -> None:
    """Refuse a part whose arrays are not what they are to be, but for the order of their bytes.

    Parameters
    ----------
    path : Path
        The part.
    arrays : mapping of str to ndarray
        What :func:`read` gave of it.
    wanted : mapping of str to tuple
        Shape and dtype that each is to have.

    Raises
    ------
    ArchiveError
        One is missing, or of another shape or dtype.
    """
    for name, (shape, dtype) in wanted.items():
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype.newbyteorder("=") != dtype:
            has = "is missing" if found is None else f"is {found.dtype} of shape {found.shape}"
            raise ArchiveError(
                f"{path} is not a whole part of a walk, run again ({str(name)[:40]!a} {has}, not "
                f"{dtype} of shape {shape})"
            )


def _read(path: Path, names: Iterable[str] | None) -> dict[str, NDArray[Any]]:
    status = path.lstat()
    if path.parent.is_symlink() or not stat.S_ISREG(status.st_mode):
        raise ValueError("it is a link or no regular file")
    # Opened here: where it is no archive, NumPy leaves open what it has opened.
    with open(path, "rb") as content, np.load(content, allow_pickle=False) as file:
        # As they are written: arrays one after the other, none of them compressed.
        entries = file.zip.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        if sum(entry.file_size for entry in entries) > status.st_size:
            raise ValueError("it declares more bytes than it has")
        # With NumPy before 2.2 earlier versions wrote one more, of the name of an option.
        there = [name for name in file.files if name != "allow_pickle"]
        return {name: file[name] for name in (there if names is None else names)}
