"""Folders beside files, in each of which only one process at a time writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from geoflow.errors import ArchiveError
from geoflow.system import files, interrupts
from geoflow.system.translation import reason

LOCK = "lock"


class Lock:
    """Only one process at a time writes to an archive; the lock ends with the process.

    Parameters
    ----------
    folder : Path
        Made where it is not there.
    first : str, optional
        The file without which the folder is nothing to go on from, whatever is left in it. None: it
        never is.
    own : sequence of str
        Patterns of the names of all else that is written there: nothing else is ever removed.

    Raises
    ------
    ArchiveError
        Another process has it, the folder cannot be written, or a link has its name.
    """

    def __init__(
        self, folder: Path, first: str | None, own: Sequence[str] = ("*.npz", "*.nc")
    ) -> None:
        self.folder, self.first = folder, first
        self.own = (*([first] if first else []), f"*{files.UNFINISHED}", *own)
        self._lock = FileLock(folder / LOCK)
        try:
            # Were it interrupted, nobody would know of the folder that it has made.
            with interrupts.put_off():
                self._take()
        except BaseException:
            self.release()
            with suppress(OSError):
                folder.rmdir()
            raise

    def _take(self) -> None:
        while True:
            try:
                self.folder.mkdir(exist_ok=True)
                if self.folder.is_symlink():
                    raise ArchiveError(
                        f"{self.folder} is a link; remove it, or choose another name"
                    )
                self._lock.acquire(blocking=False)
                return
            except FileNotFoundError:
                # Its holder has just finished, and taken the folder away.
                if not self.folder.parent.is_dir():
                    raise ArchiveError(f"{self.folder.parent} does not exist") from None
            except Timeout:
                raise ArchiveError(
                    f"{self.folder} is in use by another process; wait for it to end, or end it"
                ) from None
            except OSError as error:
                raise ArchiveError(
                    f"{self.folder} cannot be written ({reason(error)}); free space or choose "
                    "another"
                ) from None

    def release(self) -> None:
        """Let others write; a folder that is nothing to go on from goes."""
        # Mostly after Ctrl-C, which may come again.
        with interrupts.put_off():
            if self._lock.is_locked and not self._is_begun():
                self.remove()
            self._lock.release()

    def clear(self, keep: Iterable[str] = ()) -> None:
        """Remove what is written in the folder but those named, and ``first`` first of all."""
        kept = {LOCK, *keep}
        if self.first and self.first not in kept:
            (self.folder / self.first).unlink(missing_ok=True)
            files.sync(self.folder)
        for file in self.folder.iterdir():
            if file.name not in kept and any(fnmatchcase(file.name, own) for own in self.own):
                file.unlink()

    def remove(self) -> None:
        """Remove the folder, unless there is something of somebody else's in it, and release."""
        with interrupts.put_off():
            # What may be left without its first file disturbs nobody.
            with suppress(OSError):
                self.clear()
                (self.folder / LOCK).unlink(missing_ok=True)
                self.folder.rmdir()
            self._lock.release()

    def _is_begun(self) -> bool:
        return self.first is not None and os.path.lexists(self.folder / self.first)


def remove_left(folder: Path, first: str, own: Sequence[str] = ("*.npz", "*.nc")) -> None:
    """Remove such a folder that is nothing to go on from: its process died while it removed it.

    Parameters
    ----------
    folder, first, own
        As of :class:`Lock`. One without its first file, with which nobody is at work.
    """
    if files.is_folder(folder) and not os.path.lexists(folder / first):
        with suppress(ArchiveError):
            Lock(folder, first, own).release()


@contextmanager
def replacing(
    path: Path,
    *,
    ending: str = files.UNFINISHED,
    follow: bool = True,
    overwrite: bool = True,
) -> Iterator[Path]:
    """Write a file as :func:`geoflow.system.files.replacing` does; what a kill leaves is found.

    Until it is whole it lies in a folder beside it, ``.NAME.new``, which whoever writes a file of
    this name next clears. Where the folder cannot be had, as where two processes write the same
    file, it lies beside it by itself.

    Parameters
    ----------
    path : Path
        The file.
    ending : str
        Of the other name, for libraries that go by it.
    follow : bool
        Replace what a link stands for, as for a name that the user gave. False: the link.
    overwrite : bool
        Replace what has the name. False: it was free, and where another process has taken it by the
        time that the file is whole, that is kept under another name.

    Yields
    ------
    Path
        The other name: an empty file, to be written in place.

    Raises
    ------
    InputError, StorageError, OSError
        See :func:`geoflow.system.files.replacing`.
    """
    target = files.resolved(path) if follow else path
    free = None if overwrite else partial(files.is_free, path)
    lock = None
    with suppress(ArchiveError):
        lock = Lock(target.with_name(f".{target.name}.new"), None, [f".*{ending}"])
    try:
        if lock:
            lock.clear()
        folder = lock.folder if lock else None
        whole = files.replacing(path, folder=folder, ending=ending, follow=follow, free=free)
        with whole as temporary:
            yield temporary
    finally:
        if lock:
            lock.release()
