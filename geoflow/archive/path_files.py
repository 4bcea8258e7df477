"""Regularisation paths as netCDF-4 files: written whole or not at all, checked when read."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from geoflow.archive import netcdf, seal
from geoflow.archive.trajectory_files import encoding
from geoflow.errors import ArchiveError
from geoflow.system import files, translation
from geoflow.trajectories import path_schema


def save_path(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a regularisation path to a netCDF-4 file, under a temporary name first.

    Raises
    ------
    InputError
        See :func:`geoflow.system.files.check_target`.
    ArchiveError
        The dataset is not in the schema of paths, or writing failed; ``path`` is as it was.
    """
    path = files.check_target(path, overwrite=overwrite)
    found = path_schema.defects(ds)
    if found:
        raise ArchiveError(f"not written to {path}: {found[0]}")
    with translation.writing(path), files.replacing(path) as temporary:
        netcdf.write(ds, temporary, encoding(ds))
        seal.append(temporary)


def open_path(path: str | Path) -> xr.Dataset:
    """Open the file of a regularisation path lazily, its schema checked.

    Parameters
    ----------
    path : str or Path
        A file that :func:`geoflow.regularization_path` or ``geoflow path`` wrote.

    Raises
    ------
    ArchiveError
        There is no such file, or it is no path.
    """
    path = netcdf.existing(path)
    with translation.reading(path):
        ds = netcdf.open_lazily(netcdf.checked(path))
    found = path_schema.defects(ds)
    if found:
        ds.close()
        raise ArchiveError(f"{path} is not a regularisation path: {found[0]}")
    return ds
