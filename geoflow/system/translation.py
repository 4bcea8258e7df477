"""Errors of libraries and of the operating system, turned into geoflow's own at one border."""

from __future__ import annotations

import errno
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from geoflow.errors import ArchiveError, DamageError, GeoflowError, InputError, NumericalError

# What libraries raise where a file is not what it says it is, or cannot be read at all.
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)

# And where a file cannot be written, or cannot hold what is to be written.
UNWRITABLE = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
)

# Bytes that are free, with which a disk is full for the smallest file of netCDF.
LITTLE = 2**14

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

# Characters of what a library says.
LONGEST = 200

NOT_FINITE = re.compile(r"\b(nans?|infs?|infinit\w+|(non-?)?finite|domain error)\b", re.IGNORECASE)


def reason(error: BaseException) -> str:
    """Return what the system or a library says of an error, as one short line.

    Its type, where it says nothing. Which file the system speaks of is for the caller to say.
    """
    if isinstance(error, DamageError) and error.__cause__:
        return reason(error.__cause__)
    # Of a name that is looked for, Python says the name alone.
    if isinstance(error, KeyError) and error.args and str(error.args[0]).isidentifier():
        return f"there is no {error}"
    said = error.strerror if isinstance(error, OSError) else None
    return _line(error, said or str(error)) or type(error).__name__


def kind_and_reason(error: BaseException) -> str:
    """Return the type of an error in code that is not geoflow's and what it says, as one line."""
    kind, said = type(error).__name__, _line(error, str(error))
    return f"{kind}: {said}" if said else kind


def _line(error: BaseException, said: str) -> str:
    # Some begin with an empty one.
    line = next(filter(None, (line.strip() for line in said.splitlines())), "")
    # What geoflow says is one line, with a remedy at its end.
    return line if isinstance(error, GeoflowError) else line[:LONGEST]


@contextmanager
def reading(path: str | Path, wanted: str = "a readable netCDF-4 file") -> Iterator[None]:
    """Say which file it is that cannot be read, and why.

    Parameters
    ----------
    path : str or Path
        The file.
    wanted : str
        What it is not.

    Raises
    ------
    ArchiveError
        A library or the system fails at it; errors of geoflow pass as they are.
    """
    try:
        yield
    except GeoflowError:
        raise
    except UnicodeEncodeError as error:
        raise _unnameable(path, error) from None
    except UNREADABLE as error:
        raise ArchiveError(f"{path} is not {wanted} ({reason(error)})") from None


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say which file it is that cannot be written, why, and what to do.

    Raises
    ------
    ArchiveError
        A library or the system fails at it; errors of geoflow pass as they are.
    """
    try:
        yield
    except GeoflowError:
        raise
    except UnicodeEncodeError as error:
        raise _unnameable(path, error) from None
    except UNWRITABLE as error:
        if _is_full(error, Path(path)):
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise ArchiveError(
            f"writing {path} failed ({reason(error)}); {_remedy(error, Path(path))}"
        ) from error


def _unnameable(path: str | Path, error: UnicodeEncodeError) -> ArchiveError:
    return ArchiveError(unnameable(path, error.encoding))


def unnameable(path: object, encoding: str) -> str:
    """What to say of a name that a library of C gets in an encoding without its characters."""
    return (
        f"{path} has a name that the locale's encoding, {encoding}, does not have; set "
        "PYTHONUTF8=1 or a UTF-8 locale, or rename it"
    )


@contextmanager
def importing(package: str) -> Iterator[None]:
    """Say what cannot be loaded, where it is not there or chokes on its own settings.

    Raises
    ------
    InputError
        Importing fails; errors of geoflow pass as they are.
    """
    try:
        yield
    except GeoflowError:
        raise
    # Whatever a package raises while it reads its settings.
    except Exception as error:
        raise InputError(
            f"{package} cannot be loaded ({kind_and_reason(error)}); look at its "
            "installation, and at its settings in files and in the environment"
        ) from error


@contextmanager
def numerics(where: str = "") -> Iterator[None]:
    """Tell numbers that cannot be worked with from errors of programming.

    Parameters
    ----------
    where : str
        What is done, for the message: " in the step from flow time 2".

    Raises
    ------
    NumericalError
        A decomposition failed, a number overflowed, was divided by zero or is not finite.
    """
    try:
        yield
    except GeoflowError:
        raise
    except (
        torch.linalg.LinAlgError,  # type: ignore[attr-defined]
        np.linalg.LinAlgError,
        ArithmeticError,
    ) as error:
        raise _unusable(error, where) from error
    except ValueError as error:
        # Python, NumPy and SciPy have no type of their own for it.
        if not NOT_FINITE.search(str(error)):
            raise
        raise _unusable(error, where) from error


def _unusable(error: Exception, where: str) -> NumericalError:
    return NumericalError(
        f"numbers that cannot be worked with{where} ({reason(error)}); use float64, or an L and an "
        "R that are finite with their gradients"
    )


def _is_full(error: Exception, path: Path) -> bool:
    """Whether it is a full disk that a library says may not be written.

    The netCDF library says so of each file that HDF5 cannot make.
    """
    if not (isinstance(error, OSError) and error.errno in FORBIDDEN):
        return False
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return False
    return free < LITTLE and os.access(path.parent, os.W_OK)


def _remedy(error: Exception, path: Path) -> str:
    if isinstance(error, MemoryError):
        return "free memory"
    number = error.errno if isinstance(error, OSError) else None
    limit = _largest_file()
    if number == errno.EFBIG and limit:
        return f"no file may have more than {limit}; raise that"
    if number in FULL:
        return "free space or choose another"
    if number in FORBIDDEN:
        return "choose another"
    if number == errno.ENOENT:
        return "its folder was removed or renamed; make it again or choose another"
    if isinstance(error, ValueError | TypeError | AttributeError | OverflowError):
        return "leave out what such a file cannot hold"
    known = [f"no file may have more than {limit}"] if limit else []
    with suppress(OSError):
        free = shutil.disk_usage(path.parent).free / 2**20
        known.insert(0, f"{free:,.0f} MiB are free there")
    remedy = "raise that or choose another" if limit else "choose another"
    said = " and ".join(known)
    return f"{said}; {remedy} if that is too little" if said else remedy


def _largest_file() -> str:
    """What a file of this process may grow to, where the system was told to limit that."""
    try:
        # Of systems that know such limits.
        import resource
    except ImportError:
        return ""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return "" if most == resource.RLIM_INFINITY else f"{most:,} bytes (ulimit -f)"
