"""Regularisation paths as netCDF-4 files: written whole or not at all, checked when read."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr

from geoflow.archive import netcdf, pieces, seal
from geoflow.archive.inputs import existing
from geoflow.archive.parts import check_free
from geoflow.archive.trajectory_files import encoding, open_trajectory
from geoflow.errors import ArchiveError
from geoflow.system import files, locks, translation
from geoflow.trajectories import path_schema, storable

_OVER = "remove its folder to start over"


def save_path(ds: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a regularisation path to a netCDF-4 file, under a temporary name first.

    Raises
    ------
    InputError
        See :func:`geoflow.archive.parts.check_free`.
    ArchiveError
        The dataset is not in the schema of paths, or writing failed, or what was written would be
        refused when it is opened; ``path`` is as it was. A StorageError where another file got the
        name meanwhile, and this one is beside it.
    """
    path = check_free(path, overwrite=overwrite)
    check_path(ds, path)
    with netcdf.replacing(path, locks.replacing(path, overwrite=overwrite)) as temporary:
        write(ds, temporary)


def check_path(ds: xr.Dataset, path: Path) -> None:
    """Refuse what is no regularisation path, before anything is made where it would be written.

    Parameters
    ----------
    ds : xarray.Dataset
        To be written.
    path : Path
        Its file.

    Raises
    ------
    ArchiveError
        The dataset is not in the schema of paths.
    """
    found = path_schema.defects(ds) or storable.depth_defects(ds.attrs)
    if found:
        raise ArchiveError(f"not written to {path}: {found[0]}")


def write(ds: xr.Dataset, path: Path) -> None:
    """Write in place a regularisation path that :func:`check_path` has passed.

    Raises
    ------
    Exception
        See :data:`geoflow.system.translation.UNWRITABLE`: what the disk or the library says.
    """
    netcdf.write(ds, path, encoding(ds))
    seal.append(path)


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
    with netcdf.kept_open(path) as ds:
        found = path_schema.defects(ds)
        if found:
            raise ArchiveError(f"{path} is not a regularisation path: {found[0]}")
    return ds


def open_walk_or_path(path: str | Path) -> xr.Dataset:
    """Open the file of a walk or of a regularisation path, whichever it is.

    Raises
    ------
    ArchiveError
        There is no such file, or it is neither.
    """
    path = existing(path)
    with translation.reading(path), netcdf.open_lazily(netcdf.checked(path)) as ds:
        found = path_schema.is_path(ds)
    return open_path(path) if found else open_trajectory(path)


def kept_settings(path: str | Path) -> dict[str, Any] | None:
    """Attributes of an unfinished path that is kept beside this file; None where there is none.

    Raises
    ------
    ArchiveError
        They are damaged.
    """
    pieces.remove_left(Path(path))
    file = pieces.folder_beside(Path(path)) / pieces.SETTINGS
    if not pieces.are_kept(Path(path)) or file.is_symlink():
        return None
    with translation.reading(file, f"what an analysis keeps, {_OVER}"):
        settings = _decoded(files.content(file, pieces.LONGEST_SETTINGS).decode("utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    if path_schema.PATH not in settings:
        return None
    # As a finished one, but for what it gets at its end.
    later = {"created": "", "status": path_schema.STATUSES[0], "status_message": ""}
    found = [f"attribute {name} is there already" for name in later if name in settings]
    found += path_schema.attribute_defects(later | settings)
    if not isinstance(settings.get("tensors"), list):
        found.append("its tensors are no list")
    if found:
        raise ArchiveError(f"{file} is not of a path: {found[0]}; {_OVER}")
    return settings


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def is_path(path: str | Path) -> bool:
    """Whether this is the file of a path, there or not yet.

    A walk that is there is none, whatever of a path was begun under its name.
    """
    if files.is_file(Path(path)):
        with (
            suppress(*translation.UNREADABLE),
            netcdf.open_lazily(netcdf.checked(Path(path))) as ds,
        ):
            if path_schema.is_path(ds) or "geoflow_schema" in ds.attrs:
                return path_schema.is_path(ds)
    return kept_settings(path) is not None
