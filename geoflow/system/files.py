"""Files that are there whole or not at all, and locks on the folders they are in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from geoflow.errors import ArchiveError

UNFINISHED = ".tmp"

LOCK = "lock"


def sync(folder: Path) -> None:
    """Make the names in a folder as durable as the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Lock:
    """Only one process at a time writes to an archive; the lock ends with the process.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    first : str
        The file without which the folder is nothing to go on from, whatever is left in it.

    Raises
    ------
    ArchiveError
        Another process has it, or the folder cannot be written.
    """

    def __init__(self, folder: Path, first: str) -> None:
        self.folder, self.first = folder, first
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
        """Remove every file of the folder but those named, and ``first`` first of all."""
        kept = {LOCK, *keep}
        if self.first not in kept:
            (self.folder / self.first).unlink(missing_ok=True)
            sync(self.folder)
        for file in self.folder.iterdir():
            if file.name not in kept:
                file.unlink()

    def remove(self) -> None:
        """Remove the folder, and release."""
        # What may be left without its first file disturbs nobody.
        with suppress(OSError):
            self.clear()
            shutil.rmtree(self.folder)
        self.release()
