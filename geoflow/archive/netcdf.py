"""netCDF-4 files: written whole or not at all, their claims checked before they are read."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from geoflow.archive import parts
from geoflow.errors import ArchiveError, InputError
from geoflow.system import files, translation
from geoflow.system.files import is_folder

# zlib makes of a byte at most this many.
LARGEST_RATIO = 1032

LONGEST_TEXT = 2**20


class Lock:
    """Only one thread at a time in the netCDF and HDF5 libraries, which crash otherwise.

    Reentrant, as xarray takes it once more for what is read while something is written. Datasets
    opened here carry it along, to other processes too, where it is theirs.
    """

    _lock = threading.RLock()

    def acquire(self, blocking: bool = True) -> bool:
        """Take it; False where it cannot be had at once and ``blocking`` is not wanted."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Let another thread have it."""
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *details: object) -> None:
        self._lock.release()


LOCK = Lock()


def open_lazily(path: Path, group: str | None = None) -> xr.Dataset:
    """Open any netCDF-4 file; every later reading of it takes the lock.

    Nothing is decoded as a date: a file may say of anything that it is one.
    """
    with LOCK:
        return xr.open_dataset(path, engine="netcdf4", group=group, decode_times=False, lock=LOCK)


@contextmanager
def opened(path: Path) -> Iterator[netCDF4.Dataset]:
    """Hold the lock and a file as the netCDF library itself shows it."""
    with LOCK, netCDF4.Dataset(path) as file:
        yield file


def write(
    ds: xr.Dataset,
    path: Path,
    encoding: Mapping[str, Mapping[str, Any]],
    group: str | None = None,
) -> None:
    """Write a file in place, or a group of it; Dask's arrays block by block."""
    # Imported here, as importing it takes longer than all of geoflow.
    import dask

    # One block after the other: the threads of Dask would read ahead of the writing, and wait for
    # the lock that is held here.
    with LOCK, dask.config.set(scheduler="synchronous"):
        ds.to_netcdf(
            path, mode="a" if group else "w", group=group, engine="netcdf4", encoding=encoding
        )


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
        See :func:`geoflow.system.files.check_target`.
    ArchiveError
        Writing failed; ``path`` is as it was.
    """
    path = files.check_target(path, overwrite=overwrite)
    with translation.writing(path), files.replacing(path) as temporary:
        write(ds, temporary, text_encoding(ds) | dict(encoding or {}))


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
        inside = sorted(path.glob("*.nc")) if is_folder(path) else [path]
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
    if files.is_file(path):
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
    with translation.reading(path):
        ds = open_lazily(path)
    found = ds.attrs.get("kind")
    if not isinstance(found, str) or kind not in (None, found):
        ds.close()
        what = f"of the kind {found!r}" if found else "no analysis of geoflow"
        wanted = "a file that geoflow wrote" if kind is None else f"one of the kind {kind!r}"
        raise ArchiveError(f"{path} is {what}; give {wanted}")
    return ds


def lies(path: Path) -> list[str]:
    """Find what a file declares and cannot hold, before anything is read from it.

    Raises
    ------
    OSError
        It is no netCDF-4 file.
    """
    with opened(path) as file:
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
