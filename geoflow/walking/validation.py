"""What is wrong with a trajectory file: its bytes, what it holds, whether that fits together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from geoflow.archive import netcdf, seal, trajectory_files
from geoflow.errors import ArchiveError
from geoflow.system import translation
from geoflow.trajectories import migrations, path_schema, schema
from geoflow.walking import configuration

BLOCK_BYTES = 16 * 2**20
NEVER_BELOW_ZERO = (
    *("arc_length", "level_distance", "gradient_norm", "tangent_norm", "angle"),
    *("step_size", "n_rejected", "n_reprojection", "n_gradient", "n_hvp", "wall_time"),
    "n_regularizer_gradient",
)


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
    path = netcdf.existing(path)
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
            found += unreadable
            if not unreadable and path_schema.is_path(ds):
                found += path_schema.defects(ds) or _path_inconsistencies(ds)
            elif not unreadable:
                current = migrations.upgrade(ds)
                found += (
                    schema.defects(current)
                    or _attribute_inconsistencies(current)
                    or [*_value_inconsistencies(current), *_checkpoint_defects(file, current)]
                )
    except translation.UNREADABLE as error:
        found.append(f"it cannot be read as netCDF-4 ({translation.reason(error)})")
    return found


def _unguarded(path: netcdf.Checked) -> list[str]:
    """Name the variables that carry no checksum."""
    with netcdf.opened(path) as file:
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
            for _ in _blocks(variable):
                pass
        except translation.UNREADABLE as error:
            reason = translation.reason(error)
            found.append(f"variable {str(name)!a}: its checksum differs from its values ({reason})")
    return found


def _blocks(variable: xr.Variable) -> Iterator[Any]:
    """Values of a variable, some rows at a time."""
    rows = variable.shape[0] if variable.ndim else 0
    if rows:
        step = max(1, BLOCK_BYTES * rows // max(variable.nbytes, 1))
        for start in range(0, rows, step):
            yield variable[start : start + step].values
    else:
        yield variable.values


def _value_inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say what in a dataset of the schema does not fit together."""
    return [*_step_inconsistencies(ds), *_theta_inconsistencies(ds)]


def _step_inconsistencies(ds: xr.Dataset) -> list[str]:
    names = schema.STEP_COORDINATES | schema.step_variables(ds.attrs)
    values = {name: ds[name].values for name in names}
    found = [
        f"{name} is not finite at step {int(np.argmin(np.isfinite(column)))}"
        for name, column in values.items()
        if name != "error_estimate" and not np.isfinite(column).all()
    ]
    never = [name for name in NEVER_BELOW_ZERO if name in values]
    found += [f"{name} is negative" for name in never if (values[name] < 0).any()]
    found += [
        f"{name} is {values[name][0]} at the start, not 0"
        for name in ("time", "arc_length", "step_size")
        if values[name][0] != 0
    ]
    if (values["step_size"][1:] <= 0).any():
        found.append("step_size is not positive after the start")
    found += configuration.level_defects(ds.attrs, values)
    if schema.FLOW in ds.attrs:
        # What a flow of one's own records is known to it alone.
        return found
    if (values["angle"] > 180).any():
        found.append("angle is above 180 degrees")
    residual = values["level_residual"]
    with np.errstate(all="ignore"):
        distance = np.abs(residual) / values["gradient_norm"]
    if not np.allclose(distance, values["level_distance"], rtol=1e-9, atol=0):
        found.append("level_distance is not |level_residual|/gradient_norm")
    return found


def _theta_inconsistencies(ds: xr.Dataset) -> list[str]:
    row = 0
    for block in _blocks(ds["theta"].variable):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            where = ds["theta"].dims[0]
            return [f"theta is not finite at {where} {row + int(np.argmin(finite))}"]
        row += len(block)
    return []


def _attribute_inconsistencies(ds: xr.Dataset) -> list[str]:
    found = configuration.defects(ds.attrs) + _created_defects(ds)
    if found:
        return found
    theta, config = ds["theta"].dtype, json.loads(ds.attrs["config"])
    if "rtol" not in config:
        return found
    if theta.itemsize > np.dtype(ds.attrs["dtype"]).itemsize:
        found.append(f"theta is {theta}, finer than the walk's {ds.attrs['dtype']}")
    if theta != np.dtype(config["theta_dtype"]):
        found.append(f"theta is {theta}, not {config['theta_dtype']} as its config has it")
    observables = sorted(str(n) for n in ds.data_vars if str(n) not in schema.variables(ds.attrs))
    if observables != config["observables"]:
        found.append("the observables are not those that its config names")
    return found


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
    found = [*configuration.path_variable_defects(ds), *path_schema.inconsistencies(ds)]
    # Some is asked for before a path is gone on with, too.
    return [*dict.fromkeys(found), *_theta_inconsistencies(ds)]


def _checkpoint_defects(path: netcdf.Checked, ds: xr.Dataset) -> list[str]:
    with netcdf.opened(path) as file:
        if trajectory_files.CHECKPOINT_GROUP not in file.groups:
            return []
    try:
        trajectory_files.read_checkpoint(path, ds)
    except ArchiveError as error:
        return [str(error).removeprefix(f"{path}: ")]
    return []
