"""What is wrong with a trajectory file: its bytes, what it holds, whether that fits together."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import xarray as xr

from geoflow.archive import netcdf, seal, trajectory_files
from geoflow.archive.inputs import existing
from geoflow.errors import ArchiveError
from geoflow.system import translation
from geoflow.trajectories import consistency, migrations, path_schema, schema
from geoflow.walking import configuration


def validate(path: str | Path) -> list[str]:
    """Say what is wrong with a file of a walk or a path, one line each; empty where nothing is.

    The seal at its end is compared with every byte before it, the Fletcher checksum of each
    variable with its values, all of it with the schema, and then the values with each other.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    ArchiveError
        There is no such file.
    """
    path = existing(path)
    broken = seal.defect(path)
    if broken == seal.BROKEN:
        # HDF5 need not come to an end on bytes that were not written as they are.
        return [broken]
    found = [broken] if broken else []
    try:
        file = netcdf.checked(path)
        if broken:
            found += _unguarded(file)
        with netcdf.open_lazily(file) as ds:
            unreadable = _unreadable(ds)
            if other := trajectory_files.other_kind(ds):
                # Nothing else is promised of such a file, nor checked.
                said = f"it is of the kind {other}; give the file of a walk or of a path"
                return [*unreadable, said]
            found += unreadable
            if not unreadable and path_schema.is_path(ds):
                found += path_schema.defects(ds) or _path_inconsistencies(ds)
            elif not unreadable:
                current = migrations.upgrade(ds)
                found += (
                    schema.defects(current)
                    or _attribute_inconsistencies(current)
                    or consistency.setting_inconsistencies(current)
                    or consistency.value_inconsistencies(current)
                    + _checkpoint_defects(file, current)
                )
    except translation.UNREADABLE as error:
        found.append(f"it cannot be read as netCDF-4 ({translation.reason(error)})")
    return found


def _unguarded(checked: netcdf.Checked) -> list[str]:
    """Name the variables that carry no checksum."""
    with netcdf.opened(checked) as file:
        return [
            f"variable {name} carries no checksum: damage to it would not be seen"
            for name, variable in file.variables.items()
            if variable.ndim and np.dtype(variable.dtype).kind in "fiuS"
            if not (variable.filters() or {}).get("fletcher32")
        ]


def _unreadable(ds: xr.Dataset) -> list[str]:
    """Name the variables that cannot be read through, as their checksum differs."""
    found = []
    for name, variable in ds.variables.items():
        try:
            for _ in consistency.blocks(variable):
                pass
        except translation.UNREADABLE as error:
            said = translation.reason(error)
            found.append(f"variable {str(name)!a}: its checksum differs from its values ({said})")
    return found


def _attribute_inconsistencies(ds: xr.Dataset) -> list[str]:
    return configuration.defects(ds.attrs) + _created_defects(ds)


def _created_defects(ds: xr.Dataset) -> list[str]:
    try:
        datetime.fromisoformat(ds.attrs["created"])
    except ValueError:
        return ["attribute created is not a time in ISO 8601"]
    return []


def _path_inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say what in a path of the schema does not fit together."""
    found = [*_created_defects(ds), *configuration.path_defects(ds.attrs)]
    if found:
        return found
    return [
        *configuration.path_variable_defects(ds),
        *path_schema.inconsistencies(ds),
        *consistency.theta_inconsistencies(ds),
    ]


def _checkpoint_defects(checked: netcdf.Checked, ds: xr.Dataset) -> list[str]:
    path = checked.path
    with netcdf.opened(checked) as file:
        if trajectory_files.CHECKPOINT_GROUP not in file.groups:
            return []
    try:
        trajectory_files.read_checkpoint(path, ds)
    except ArchiveError as error:
        return [str(error).removeprefix(f"{path}: ")]
    return []
