"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from geoflow.errors import ArchiveError, InputError, StorageError
from geoflow.system import kinds
from geoflow.system.translation import reason, unnameable

UNFINISHED = ".tmp"

# What the system says of a folder that it cannot sync, however sound the disk is.
NOT_SYNCED = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

# Bytes; 255 are a name's limit nearly everywhere, and folders beside a file have longer names.
LONGEST_NAME = 240


def file_named(path: str | Path, name: str = "path") -> Path:
    """The name of a file as a Path, which would make the present folder of an empty one.

    Raises
    ------
    InputError
        It is empty or blank, or no name of a file.
    """
    found = kinds.as_path(path, name)
    if not os.fspath(path).strip():
        raise InputError(f"{os.fspath(path)!r} names no file; give its name")
    return found


def folder_named(path: str | Path, name: str) -> Path:
    """The name of a folder as a Path, which would make the present one of an empty one.

    Raises
    ------
    InputError
        It is empty or blank, or no name.
    """
    kinds.check_kind(path, str | os.PathLike, name, "the name of a folder, a str or Path")
    if not os.fspath(path).strip():
        raise InputError(
            f"{name}={os.fspath(path)!r} names no folder; give its name, '.' for the present one"
        )
    return kinds.as_path(path, name)


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make sure a file can be written before hours are spent on its content.

    Parameters
    ----------
    path : str or Path
        The file.
    overwrite : bool
        Replace it where it exists.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    InputError
        The path is empty or blank, its folder is not there or cannot be written, the name is too
        long or not UTF-8, the file is there already, or what is there is no regular file;
        ``overwrite`` is neither True nor False.
    """
    path = file_named(path)
    # What stands for False elsewhere, such as "no", would have the file replaced.
    kinds.check_switch(overwrite, "overwrite")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError(
            f"{path.name[:20]}… is a name of {len(os.fsencode(path.name))} bytes; use at most "
            f"{LONGEST_NAME}"
        )
    folder = path.parent
    try:
        check_encoding(path)
        folder = resolved(path).parent
        if not folder.is_dir():
            named = folder if path.is_symlink() else path.parent
            raise InputError(f"{path}: the folder {named} does not exist; create it first")
        if is_regular(path) and not overwrite:
            raise InputError(
                f"{path} exists; choose another name, or replace it (--force, overwrite=True)"
            )
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a link that leads to no file; choose another") from None
        raise InputError(f"{folder} cannot be written ({reason(error)}); choose another") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is no name of a file ({reason(error)})") from None
    return path


def check_apart(path: str | Path, inputs: Iterable[str | Path], name: str = "--out") -> None:
    """Refuse to write what is made of files over one of them, whatever is to be replaced.

    Parameters
    ----------
    path : str or Path
        The file to be written, there or not yet.
    inputs : iterable of str or Path
        Those that it is made of.
    name : str
        Of the argument that names ``path``.

    Raises
    ------
    InputError
        Both are one file, by this name or another.
    """
    for given in inputs:
        try:
            same = is_file(path) and os.path.samefile(path, given)
        except (OSError, ValueError):  # what is not there is the same as nothing
            continue
        if same:
            raise InputError(f"{name} {path}: it is made of this file; choose another name")


def check_encoding(path: Path) -> None:
    """Refuse a name that libraries cannot write to, though the system can.

    Raises
    ------
    InputError
        The name, its links followed, or that of a folder it is in, is not UTF-8.
    """
    try:
        whole = str(resolved(path))
    except (OSError, ValueError):  # no file can be named so: whoever writes it says that
        return
    for name in (str(path), whole):
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            found, encoding = os.fsencode(name), sys.getfilesystemencoding()
            with suppress(UnicodeDecodeError):
                # It is UTF-8, and Python was told that names are something else.
                raise InputError(unnameable(found.decode("utf-8"), encoding)) from None
            raise InputError(f"{name!a} is not UTF-8; choose another name or folder") from None


def check_folder(path: str | Path) -> None:
    """Make sure that files can be written into a folder, or that it can be made; nothing is.

    Raises
    ------
    InputError
        There is something else than a folder, or it cannot be written or made.
    """
    try:
        with tempfile.TemporaryFile(dir=_there(resolved(Path(path)))):
            pass
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be written ({reason(error)}); name another folder"
        ) from None


def _there(folder: Path) -> Path:
    """Return the folder, or the one that is there to make it in."""
    while True:
        try:
            os.stat(folder)
        except FileNotFoundError:
            folder = folder.parent
        else:
            return folder


def resolved(path: Path) -> Path:
    """Return the file that a name stands for, all links followed; it need not be there."""
    return Path(os.path.realpath(path))


def is_file(path: str | Path) -> bool:
    """Whether a regular file is there; what no file can be named by is none."""
    return os.path.isfile(path)


# Bytes that a file may grow by while it is read.
SPARE = 2**12


def content(path: Path, largest: int) -> bytes:
    """Read a regular file whole.

    Parameters
    ----------
    path : Path
        The file.
    largest : int
        Bytes that it may have.

    Raises
    ------
    ValueError
        It is no regular file, from which might come bytes without an end, or none; or longer.
    OSError
        The system cannot read it.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise ValueError("it is no regular file")
    with open(path, "rb") as file:
        # As much is reserved as is asked for.
        size = os.fstat(file.fileno()).st_size
        found = file.read(min(size + SPARE, largest + 1))
    if len(found) > largest:
        raise ValueError(f"it has more than {largest:,} bytes")
    return found


def is_folder(path: str | Path) -> bool:
    """Whether a folder is there; what no folder can be named by is none."""
    return os.path.isdir(path)


def is_regular(path: Path, *, follow: bool = True) -> bool:
    """Whether a file is there that can be replaced.

    Parameters
    ----------
    path : Path
        The file.
    follow : bool
        Ask of what a link stands for. False: of the link, which can be replaced itself.

    Raises
    ------
    InputError
        A folder, a device, a pipe or a socket is there.
    """
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise InputError(f"{path} is a folder; name a file")
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise InputError(f"{path} is a device, a pipe or a socket; name a regular file")
    return True


def is_free(path: Path) -> bool:
    """Whether nothing has a name, links followed."""
    return not os.path.lexists(resolved(path))


def free_beside(path: Path) -> Path:
    """Make an empty file beside another, of a name that was free: ``walk-2.nc`` for ``walk.nc``.

    Raises
    ------
    OSError
        The disk does not take it.
    """
    number = 2
    while True:
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
        with suppress(FileExistsError):
            os.close(os.open(found, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            return found
        number += 1


def taken(path: Path, beside: Path) -> StorageError:
    """What to say where another file has got the name of a result while that was made."""
    return StorageError(
        f"{path} was not there when this began, and is now: it stays as it is, and the result is "
        f"in {beside}"
    )


@contextmanager
def replacing(
    path: Path,
    *,
    folder: Path | None = None,
    ending: str = UNFINISHED,
    follow: bool = True,
    free: Callable[[], bool] | None = None,
) -> Iterator[Path]:
    """Write a file under another name; it gets its own once it is whole and on the disk.

    The other name is random and made exclusively, so that nothing planted there is written to.
    Where the block ends with an error, what had the file's name before is as it was.

    Parameters
    ----------
    path : Path
        The file; it gets the mode of the one that it replaces, or that of a new one.
    folder : Path, optional
        Holds it until it is whole; on the same file system. None: where the file will be.
    ending : str
        Of the other name, for libraries that go by it.
    follow : bool
        Replace what a link stands for, as for a name that the user gave. False: the link.
    free : callable, optional
        Asked once the file is whole: whether it may have its name by now, which another process may
        have given to a file of its own. What it raises leaves nothing of what was written; where it
        says no, that is kept beside, under a name that is free. None: it may.

    Yields
    ------
    Path
        The other name: an empty file, to be written in place.

    Raises
    ------
    InputError
        A folder, a device, a pipe or a socket has the name.
    StorageError
        The name is no longer free, and the file is kept under another.
    OSError
        The disk does not take it.
    ArchiveError
        Another process exchanged the other name; or the file is there, and its name may not last.
    """
    is_regular(path, follow=follow)
    target = resolved(path) if follow else path
    name = f".{target.name[:40]}.{secrets.token_hex(8)}{ending}"
    temporary = (folder or target.parent) / name
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        try:
            mode = _mode(target)
            if mode is not None:
                # While it is written, as private as what it replaces.
                os.fchmod(descriptor, mode | stat.S_IRUSR | stat.S_IWUSR)
            yield temporary
            if not os.path.samestat(os.fstat(descriptor), os.lstat(temporary)):
                raise ArchiveError(
                    f"writing {path} failed: another process exchanged {temporary} meanwhile"
                )
            if mode is not None:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if free is not None and not free():
            beside = free_beside(target)
            os.replace(temporary, beside)
            raise taken(path, beside)
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    try:
        sync(target.parent)
    except OSError as error:
        # It has been replaced already: an error in words of its own.
        raise ArchiveError(
            f"{path} is written, but may be lost if the machine stops: its folder cannot be synced "
            f"({reason(error)}); look at the disk"
        ) from error


def _mode(path: Path) -> int | None:
    """Who may read and write a file that is there; None where there is none of its own."""
    try:
        found = os.lstat(path).st_mode
    except OSError:
        return None
    return found & 0o777 if stat.S_ISREG(found) else None


def sync(folder: Path) -> None:
    """Make the names in a folder as durable as the files, where the system can.

    Raises
    ------
    OSError
        The disk fails. Not where the folder may not be read, or its file system does not do this.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NOT_SYNCED:
            raise
