"""Whether what a trajectory of the schema holds fits together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from geoflow.problems.dtypes import DTYPES
from geoflow.trajectories import schema

BLOCK_BYTES = 16 * 2**20
NEVER_BELOW_ZERO = (
    *("arc_length", "level_distance", "gradient_norm", "tangent_norm", "angle"),
    *("step_size", "n_rejected", "n_reprojection", "n_gradient", "n_hvp", "wall_time"),
    "n_regularizer_gradient",
)


def inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say what in a dataset of the schema does not fit together, one line each."""
    return setting_inconsistencies(ds) + value_inconsistencies(ds)


def setting_inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say where θ and the observables are not what the attributes have, one line each."""
    theta, config = ds["theta"].dtype, json.loads(ds.attrs["config"])
    named = ds.attrs["dtype"], config.get("theta_dtype")
    # Of what gf.walk did not make, and of damaged settings, nothing is known.
    if "rtol" not in config or not all(dtype in list(DTYPES) for dtype in named):
        return []
    found = []
    if theta.itemsize > np.dtype(ds.attrs["dtype"]).itemsize:
        found.append(f"theta is {theta}, finer than the walk's {ds.attrs['dtype']}")
    if theta != np.dtype(config["theta_dtype"]):
        found.append(f"theta is {theta}, not {config['theta_dtype']} as its config has it")
    observables = sorted(str(n) for n in ds.data_vars if str(n) not in schema.variables(ds.attrs))
    if observables != config.get("observables"):
        found.append("the observables are not those that its config names")
    return found


def value_inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say what in the values of the steps, and in θ, does not fit together, one line each."""
    return _step_inconsistencies(ds) + theta_inconsistencies(ds)


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
    if schema.FLOW in ds.attrs:
        # What a flow of one's own records is known to it alone.
        return found
    if (values["angle"] > 180).any():
        found.append("angle is above 180 degrees")
    level, loss, residual = ds.attrs["level"], values["train_loss"], values["level_residual"]
    with np.errstate(all="ignore"):
        expected, distance = loss - level, np.abs(residual) / values["gradient_norm"]
    if not np.allclose(expected, residual, rtol=0, atol=1e-12 * min(abs(level), 1e300)):
        found.append("level_residual is not train_loss less the level")
    if not np.allclose(distance, values["level_distance"], rtol=1e-9, atol=0):
        found.append("level_distance is not |level_residual|/gradient_norm")
    return found


def theta_inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say where θ is not finite, some rows at a time."""
    row = 0
    for block in blocks(ds["theta"].variable):
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            where = ds["theta"].dims[0]
            return [f"theta is not finite at {where} {row + int(np.argmin(finite))}"]
        row += len(block)
    return []


def blocks(variable: xr.Variable) -> Iterator[Any]:
    """Values of a variable, some rows at a time."""
    rows = variable.shape[0] if variable.ndim else 0
    if rows:
        step = max(1, BLOCK_BYTES * rows // max(variable.nbytes, 1))
        for start in range(0, rows, step):
            yield variable[start : start + step].values
    else:
        yield variable.values
