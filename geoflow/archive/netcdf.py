"""netCDF-4 files: written whole or not at all, their claims checked before they are read."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from geoflow.archive import parts
from geoflow.errors import ArchiveError, InputError

# zlib makes of a byte at most this many.
LARGEST_RATIO = 1032

LONGEST_TEXT = 2**20

UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    MemoryError,
)


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make sure a file can be written before hours are spent on its content.

    Raises
    ------
    InputError
        The folder is not there or cannot be written, or the file is there already.
    """
    path = Path(path)
    folder = path.parent
    try:
        if not folder.is_dir():
            raise InputError(f"{path}: the folder {folder} does not exist; create it first")
        if path.is_dir():
            raise InputError(f"{path} is a folder; name a file")
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; choose another name, or --force to replace it")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another") from None
    return path


def save_dataset(
    ds: xr.Dataset,
    path: str | Path,
    *,
    overwrite: bool = False,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write a dataset that is no trajectory to a netCDF-4 file, whole or not at all.

    Parameters
    ----------
    ds : xarray.Dataset
        Text is stored as characters, which readers return as text all the same.
    path : str or Path
        The file.
    overwrite : bool
        Replace it where it exists.
    encoding : mapping, optional
        As for :meth:`xarray.Dataset.to_netcdf`.

    Raises
    ------
    InputError
        See :func:`check_target`.
    ArchiveError
        Writing failed; ``path`` is as it was.
    """
    path = check_target(path, overwrite=overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        ds.to_netcdf(temporary, engine="netcdf4", encoding=text_encoding(ds) | dict(encoding or {}))
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"writing {path} failed ({error}); free space or choose another") from (
            error
        )
    finally:
        temporary.unlink(missing_ok=True)


def expand(files: Sequence[str | Path]) -> list[Path]:
    """Name every file once, a folder standing for the .nc files in it.

    Raises
    ------
    InputError
        There are none.
    ArchiveError
        A folder without any.
    """
    paths: list[Path] = []
    for path in map(Path, files):
        inside = sorted(path.glob("*.nc")) if path.is_dir() else [path]
        if not inside:
            raise ArchiveError(f"{path} has no .nc file; name a folder of a sweep, or files")
        paths += inside
    if not paths:
        raise InputError("files=[]; name at least one")
    return list(dict.fromkeys(paths))


def text_encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Store text as characters, which readers return as text all the same."""
    return {str(n): {"dtype": "S1"} for n, v in ds.variables.items() if v.dtype.kind in "OUT"}


def existing(path: str | Path) -> Path:
    """Return the path of a trajectory that is there.

    Raises
    ------
    ArchiveError
        It is not, or not yet.
    """
    path = Path(path)
    if path.is_file():
        return path
    if parts.is_resumable(path):
        raise ArchiveError(f"{path} is not finished; `geoflow resume {path}` goes on with it")
    raise ArchiveError(f"{path} is not a file; name a trajectory written by geoflow")


def open_analysis(path: str | Path, kind: str | None = None) -> xr.Dataset:
    """Open lazily what an analysis has written with :func:`save_dataset`.

    Parameters
    ----------
    path : str or Path
        The file.
    kind : str, optional
        What it must be, the dataset's attribute ``kind``. None: any.

    Raises
    ------
    ArchiveError
        There is no such file, or it is of another kind.
    """
    path = existing(path)
    try:
        ds = xr.open_dataset(path, engine="netcdf4", decode_times=False)
    except UNREADABLE as error:
        raise ArchiveError(f"{path} is not a readable netCDF-4 file ({reason(error)})") from None
    found = ds.attrs.get("kind")
    if not isinstance(found, str) or kind not in (None, found):
        ds.close()
        what = f"of the kind {found!r}" if found else "no analysis of geoflow"
        wanted = "a file that geoflow wrote" if kind is None else f"one of the kind {kind!r}"
        raise ArchiveError(f"{path} is {what}; give {wanted}")
    return ds


def reason(error: BaseException) -> str:
    """Return what a library says of what it could not read, as one short line."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def lies(path: Path) -> list[str]:
    """Find what a file declares and cannot hold, before anything is read from it.

    Raises
    ------
    OSError
        It is no netCDF-4 file.
    """
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        groups = [file, *file.groups.values()]
        variables = [variable for group in groups for variable in group.variables.values()]
        owners: list[Any] = [*groups, *variables]
        for name, value in ((n, o.getncattr(n)) for o in owners for n in o.ncattrs()):
            if (len(value) if isinstance(value, str) else np.size(value)) > LONGEST_TEXT:
                return [f"attribute {name[:40]!r} is too long"]
        declared = sum(math.prod(v.shape) * getattr(v.dtype, "itemsize", 1) for v in variables)
    if declared > LARGEST_RATIO * path.stat().st_size:
        return [f"its variables declare {declared:.3g} bytes, more than the file can hold"]
    return []
