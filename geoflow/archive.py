"""Trajectories as netCDF-4 files: written whole or not at all, checked when read."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import xarray as xr

from geoflow import schema
from geoflow.errors import ArchiveError, InputError


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make sure a file can be written before hours are spent on its content.

    Raises
    ------
    InputError
        The folder is not there or cannot be written, or the file is there already.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it first")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; choose another name, or --force to replace it")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another") from None
    return path


def save_trajectory(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a trajectory to a netCDF-4 file, under a temporary name first.

    Raises
    ------
    InputError
        See :func:`check_target`.
    ArchiveError
        The dataset is not in schema 1.0, or writing failed; ``path`` is as it was.
    """
    path = check_target(path, overwrite=overwrite)
    found = schema.defects(ds)
    if found:
        raise ArchiveError(f"not written to {path}: {found[0]}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        ds.to_netcdf(temporary, engine="netcdf4", format="NETCDF4", encoding=_encoding(ds))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise ArchiveError(f"writing {path} failed ({error}); free space or choose another") from (
            error
        )
    finally:
        temporary.unlink(missing_ok=True)


def open_trajectory(path: str | Path) -> xr.Dataset:
    """Open a trajectory file lazily, its schema checked.

    Parameters
    ----------
    path : str or Path
        A netCDF-4 file written by geoflow.

    Raises
    ------
    ArchiveError
        There is no such file, or it is not a trajectory in schema 1.0.
    """
    path = Path(path)
    if not path.is_file():
        raise ArchiveError(f"{path} is not a file; name a trajectory written by geoflow")
    try:
        ds = xr.open_dataset(path, engine="netcdf4")
        found = schema.defects(ds)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ArchiveError(f"{path} is not a readable netCDF-4 file ({reason})") from None
    if found:
        ds.close()
        raise ArchiveError(f"{path} is not a trajectory: {found[0]}")
    return ds


def _encoding(ds: xr.Dataset) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in ds.variables.items():
        if variable.dtype.kind in "fi":
            encoding[str(name)] = {"_FillValue": None}
            if variable.size:
                encoding[str(name)] |= {"zlib": True, "complevel": 1, "shuffle": True}
    if ds["theta"].size:
        encoding["theta"]["chunksizes"] = (1, ds.sizes["parameter"])
    return encoding
