"""netCDF-4 files: written whole or not at all, their claims checked before they are read."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import netCDF4
import numpy as np
import xarray as xr
from xarray.backends.file_manager import CachingFileManager
from xarray.backends.netCDF4_ import NetCDF4ArrayWrapper, NetCDF4DataStore
from xarray.core.indexing import LazilyIndexedArray

from geoflow.archive import seal
from geoflow.archive.inputs import existing
from geoflow.archive.parts import check_free
from geoflow.errors import ArchiveError, DamageError
from geoflow.system import files, locks, scheduling, translation


class Checked(NamedTuple):
    """A regular file whose structure has been looked at, and what tells it from one in its place.

    Attributes
    ----------
    path : Path
        Links resolved.
    kept : tuple of int
        Its number in its file system, its bytes and when they were written, in nanoseconds. Not the
        file system's own number, which is another on each machine that shares it.
    sealed : bytes
        Its seal; empty where it has none.
    """

    path: Path
    kept: tuple[int, int, int]
    sealed: bytes

    @classmethod
    def of(cls, path: Path) -> Checked:
        """Take note of a file as it is now."""
        found = os.stat(path)
        kept = (found.st_ino, found.st_size, found.st_mtime_ns)
        return cls(path, kept, seal.of(path))

    def is_there(self) -> bool:
        """Whether its name still stands for it, or for a copy of the same bytes."""
        now = Checked.of(self.path)
        if now.kept == self.kept:
            return True
        return now.sealed == self.sealed and seal.defect(self.path) is None


# What text may be in, as a file's attribute _Encoding has it; geoflow writes the first.
ENCODINGS = ("utf-8", "utf8", "ascii", "us-ascii")

# Attributes of a variable by which readers change its values, and those that name values which
# they take for missing ones.
PACKED = ("scale_factor", "add_offset", "_Unsigned")
MISSING = ("_FillValue", "missing_value")


# Global attributes by which a file says what it is.
MARKS = ("geoflow_schema", "geoflow_path", "geoflow_baseline", "kind")


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


class _Values(NetCDF4ArrayWrapper):
    """Values of a variable, read when they are asked for; says which cannot be."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        try:
            return super().__getitem__(key)
        except translation.UNREADABLE as error:
            raise DamageError(
                f"{self.datastore._filename}: the values of {self.variable_name[:80]!a} cannot be "
                f"read ({translation.reason(error.__cause__ or error)})"
            ) from error


def _opened(file: Checked, **options: Any) -> netCDF4.Dataset:
    """Open a file as the netCDF library does, so long as it is the one that was looked at.

    xarray keeps some hundred files open. It closes those that were longest unused, and opens them
    again by their names, as another process does that is given what was opened in this one.

    Raises
    ------
    ValueError
        Another file has its name.
    """
    if not file.is_there():
        raise ValueError("it was replaced or changed since it was opened; open it again")
    return netCDF4.Dataset(file.path, **options)


class _Store(NetCDF4DataStore):
    """xarray's own, with values that say which cannot be read."""

    def open_store_variable(self, name: str, var: Any) -> Any:
        found = super().open_store_variable(name, var)
        values = LazilyIndexedArray(_Values(name, self))
        return xr.Variable(found.dims, values, found.attrs, found.encoding)


def checked(path: Path) -> Checked:
    """Look at a file's structure before the netCDF library does: the border of all that is read.

    It is taken for what it is, a file whose name is resolved here and once, whatever that name
    would mean to netCDF, and see :mod:`geoflow.archive.structure`.

    Raises
    ------
    ValueError, OSError, …
        It is no regular file, or cannot be read at the price of its size; see
        :data:`geoflow.system.translation.UNREADABLE`.
    """
    # Imported here, as importing h5py takes a tenth of a second and few commands open a file.
    from geoflow.archive import structure

    found = files.resolved(path)
    if not found.is_file():
        raise ValueError("it is no regular file")
    file = Checked.of(found)
    structure.check(found)
    return file


def open_lazily(file: Checked, group: str | None = None) -> xr.Dataset:
    """Open any netCDF-4 file; every later reading of it takes the lock.

    Nothing is decoded as a date: a file may say of anything that it is one. Numbers are read when
    they are asked for, and :class:`geoflow.errors.DamageError` says which cannot be, as where the
    file has been replaced meanwhile; text is read at once, so that what is no text is found here.

    Raises
    ------
    ValueError, OSError, …
        See :data:`geoflow.system.translation.UNREADABLE`. Its variables can be longer here than the
        file can hold: netCDF goes by their dimensions.
    """
    from geoflow.archive.structure import LARGEST_RATIO

    with LOCK:
        manager: CachingFileManager[Any] = CachingFileManager(_opened, file, mode="r", lock=LOCK)
        store = _Store(manager, group=group, mode="r", lock=LOCK)
        try:
            variables = store.ds.variables.values()
            declared = sum(math.prod(v.shape) * getattr(v.dtype, "itemsize", 1) for v in variables)
            if declared > LARGEST_RATIO * file.path.stat().st_size:
                raise ValueError(
                    f"its variables declare {declared:.3g} bytes, more than the file can hold"
                )
            for name, variable in store.ds.variables.items():
                _check_encoding(name, getattr(variable, "_Encoding", None))
            ds = xr.open_dataset(store, decode_times=False)
            for mark in MARKS:
                if not isinstance(ds.attrs.get(mark, ""), str):
                    raise ValueError(f"its attribute {mark} is no text")
            for variable in ds.variables.values():
                if variable.dtype.kind not in "fiu":
                    variable.load()
            return ds
        except BaseException:
            store.close()
            raise


def _check_encoding(name: str, encoding: object) -> None:
    """Refuse text in another encoding: some take a time that grows with the square of its length.

    Raises
    ------
    ValueError
        It is neither UTF-8 nor ASCII.
    """
    if encoding is not None and str(encoding).lower() not in ENCODINGS:
        raise ValueError(f"{name[:80]!a} is in {str(encoding)[:40]!a}, not in UTF-8")


@contextmanager
def opened(file: Checked) -> Iterator[netCDF4.Dataset]:
    """Hold the lock and a file as the netCDF library itself shows it."""
    with LOCK, _opened(file) as found:
        yield found


def load_ahead() -> None:
    """Load what :func:`write` needs, before hours are spent on what is to be written.

    Raises
    ------
    InputError
        Dask cannot be loaded, as where a file of its settings is damaged.
    """
    with translation.importing("dask"):
        import dask.array
        import dask.delayed  # noqa: F401


def write(
    ds: xr.Dataset,
    path: Path,
    encoding: Mapping[str, Mapping[str, Any]],
    group: str | None = None,
) -> None:
    """Write a file in place, or a group of it; Dask's arrays block by block.

    Raises
    ------
    Exception
        See :data:`geoflow.system.translation.UNWRITABLE`: what the disk or the library says, and of
        attributes that would have readers return something else than what is written.
    """
    _check_attributes(ds)
    with LOCK, scheduling.in_this_thread():
        # xarray would load text as well, to see how long it is, and warn of it.
        texts = [n for n, v in ds.variables.items() if v.chunks and v.dtype.kind == "O"]
        ds.assign({n: ds[n].compute() for n in texts}).to_netcdf(
            path, mode="a" if group else "w", group=group, engine="netcdf4", encoding=encoding
        )


def _check_attributes(ds: xr.Dataset) -> None:
    """Refuse attributes that readers act on: CF's of packed values, and a list of coordinates.

    Raises
    ------
    ValueError
        Names the first.
    """
    for name, variable in ds.variables.items():
        attributes = variable.attrs
        found = [each for each in PACKED if each in attributes]
        found += [n for n in MISSING if n in attributes and not _is_nan(variable, attributes[n])]
        # So xarray writes what is true or false.
        found += ["dtype"] if str(attributes.get("dtype")) == "bool" else []
        if found:
            raise ValueError(
                f"{str(name)[:80]!a} has the attribute {found[0]}, by which readers change its "
                "values"
            )
    if "coordinates" in ds.attrs and ds.coords.keys() - ds.dims:
        raise ValueError("the attribute 'coordinates' is the file's own list of them")


def _is_nan(variable: xr.Variable, value: object) -> bool:
    """Whether what stands for a missing value of a variable is NaN, which it is read as."""
    return variable.dtype.kind == "f" and isinstance(value, float | np.floating) and value != value


@contextmanager
def replacing(path: Path, whole: AbstractContextManager[Path]) -> Iterator[Path]:
    """Write a file under another name; it gets its own once it is whole, and can be opened.

    Parameters
    ----------
    path : Path
        The file.
    whole : context manager
        Gives the other name: :func:`geoflow.system.files.replacing`, or
        :func:`geoflow.system.locks.replacing`, of ``path``.

    Raises
    ------
    ArchiveError
        Writing failed, or what was written would be refused when it is opened; ``path`` is as it
        was.
    """
    with translation.writing(path), whole as temporary:
        yield temporary
        open_lazily(checked(temporary)).close()


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
        See :func:`geoflow.archive.parts.check_free`.
    ArchiveError
        Writing failed, or what was written would be refused when it is opened; ``path`` is as it
        was. A StorageError where another file got the name meanwhile, and this one is beside it.
    """
    path = check_free(path, overwrite=overwrite)
    with replacing(path, locks.replacing(path, overwrite=overwrite)) as temporary:
        write_analysis(ds, temporary, encoding)


def write_analysis(
    ds: xr.Dataset, path: Path, encoding: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write a dataset that is no trajectory in place; see :func:`save_dataset`.

    Parameters
    ----------
    ds : xarray.Dataset
        To be written.
    path : Path
        The file.
    encoding : mapping, optional
        Of its variables, as :meth:`xarray.Dataset.to_netcdf` takes it; text is stored as characters
        where it says nothing else.

    Raises
    ------
    Exception
        See :data:`geoflow.system.translation.UNWRITABLE`: what the disk or the library says.
    """
    # Text as characters, which readers return as text all the same.
    of_text = {str(n): {"dtype": "S1"} for n, v in ds.variables.items() if v.dtype.kind in "OUT"}
    write(ds, path, of_text | dict(encoding or {}))


@contextmanager
def kept_open(path: str | Path) -> Iterator[xr.Dataset]:
    """Open a file lazily and leave it open, unless the block finds that it is not what it is for.

    Raises
    ------
    ArchiveError
        There is no such file, or it cannot be read.
    """
    path = existing(path)
    with translation.reading(path), ExitStack() as closing:
        yield closing.enter_context(open_lazily(checked(path)))
        closing.pop_all()


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
    with kept_open(path) as ds:
        found = ds.attrs.get("kind")
        if not isinstance(found, str) or kind not in (None, found):
            what = f"of the kind {found!r}" if found else "no analysis of geoflow"
            wanted = "a file that geoflow wrote" if kind is None else f"one of the kind {kind!r}"
            raise ArchiveError(f"{path} is {what}; give {wanted}")
    return ds
