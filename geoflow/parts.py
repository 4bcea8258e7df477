"""The folder beside an archive in which a walk is streamed: whole files, and a lock.

A part is a NumPy ``.npz``: arrays under names, each with a CRC-32, never a pickle. It gets its
name once it is on the disk, so that a part that is there is complete.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from geoflow.errors import ArchiveError

UNFINISHED = ".tmp"
LOCK = "lock"
CHECKPOINT = "checkpoint.npz"


def folder_beside(path: Path) -> Path:
    """Return the folder in which the walk that will be ``path`` is streamed."""
    return path.with_name(f".{path.name}.parts")


def is_resumable(path: Path) -> bool:
    """Whether an unfinished walk is streamed beside this file."""
    return (folder_beside(path) / CHECKPOINT).exists()


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a part; only :func:`sync` of its folder makes the name itself durable.

    Raises
    ------
    OSError
        The disk is full or fails; what had the name before is as it was.
    """
    temporary = path.with_name(path.name + UNFINISHED)
    try:
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read a part, or some of its arrays; each is checked against its CRC-32.

    Raises
    ------
    ArchiveError
        It is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in (file.files if names is None else names)}
    except FileNotFoundError:
        raise ArchiveError(f"{path} is missing; run again") from None
    except (OSError, ValueError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ArchiveError(f"{path} is damaged ({error}); run again") from None


class Lock:
    """Only one process at a time writes to an archive; the lock ends with the process.

    Raises
    ------
    ArchiveError
        Another process has it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / LOCK)
        while True:
            try:
                folder.mkdir(exist_ok=True)
                self._lock.acquire(blocking=False)
                return
            except FileNotFoundError:
                # Its holder has just finished, and taken the folder away.
                if not folder.parent.is_dir():
                    raise ArchiveError(f"{folder.parent} does not exist") from None
            except Timeout:
                raise ArchiveError(
                    f"{folder} is in use by another process; wait for it to end, or end it"
                ) from None
            except OSError as error:
                raise ArchiveError(
                    f"{folder} cannot be written ({error.strerror}); free space or choose another"
                ) from None

    def release(self) -> None:
        """Let others write."""
        self._lock.release()

    def clear(self, keep: Iterable[str] = ()) -> None:
        """Remove every file of the folder but those named, and the checkpoint first of all.

        Without its checkpoint a folder is nothing to resume from, whatever is left in it.
        """
        kept = {LOCK, *keep}
        if CHECKPOINT not in kept:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)
            sync(self.folder)
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink()

    def remove(self) -> None:
        """Remove the folder, and release."""
        # What may be left without a checkpoint disturbs nobody.
        with suppress(OSError):
            self.clear()
            shutil.rmtree(self.folder)
        self.release()
