"""Whether what a trajectory of the schema holds fits together."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import xarray as xr

from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.dtypes import DTYPES
from geoflow.trajectories import schema

BLOCK_BYTES = 16 * 2**20
# Of differences of recorded numbers, relative to the greater of them.
ROUNDING = 1e-12
# The flow whose scalars the schema knows, of several constraints too.
OURS = RegularizingFlow.__name__
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
    found += level_defects(ds.attrs, values)
    if schema.FLOW in ds.attrs:
        # What a flow of one's own records is known to it alone.
        return found
    if (values["angle"] > 180).any():
        found.append("angle is above 180 degrees")
    with np.errstate(all="ignore"):
        distance = np.abs(values["level_residual"]) / values["gradient_norm"]
    if not np.allclose(distance, values["level_distance"], rtol=1e-9, atol=0):
        found.append("level_distance is not |level_residual|/gradient_norm")
    return found


def level_defects(attributes: Mapping[str, Any], records: Mapping[str, Any]) -> list[str]:
    """Say that the level in the attributes is not that of the records, where it is not.

    Whatever machine has walked them, a residual is the loss less the level; a level that was
    changed since is another level set.

    Parameters
    ----------
    attributes : mapping
        Of a walk, its types as the schema has them.
    records : mapping of str to array-like
        Its scalars by step: those of its constraints with a second axis, or each a column.
    """
    if attributes.get(schema.FLOW, OURS) != OURS:
        # What a flow of one's own records is known to it alone.
        return []
    levels = schema.levels(attributes) or [float(attributes["level"])]
    loss = np.asarray(records["train_loss"], dtype=float)
    if len(levels) == 1:
        residual = np.asarray(records["level_residual"], dtype=float)
        what = "level_residual is not train_loss less the level"
    else:
        # The loss is their mean, and so is the level.
        columns = schema.column_names("constraint_residual", len(levels))
        several = (
            records["constraint_residual"]
            if "constraint_residual" in records
            else np.stack([records[column] for column in columns], axis=-1)
        )
        residual = np.asarray(several, dtype=float).mean(axis=-1)
        what = "constraint_residual is not the losses less constraint_levels"
    level = float(np.mean(levels))
    found = [] if is_difference(residual, loss, level, np.abs(levels).max()) else [what]
    if not math.isclose(level, attributes["level"], rel_tol=ROUNDING):
        found.append("attribute level is not the mean of constraint_levels")
    return found


def is_difference(residual: Any, loss: Any, level: Any, size: Any) -> bool:
    """Whether residuals are losses less levels of about a size, but for rounding."""
    with np.errstate(all="ignore"):
        # At the most: what is not finite is said by itself.
        allowed = ROUNDING * np.minimum(np.maximum(np.abs(loss), size), 1e300)
        return not (np.abs(loss - level - residual) > allowed).any()


def records_of(ds: xr.Dataset) -> dict[str, Any]:
    """What :func:`level_defects` looks at of a trajectory; nothing else of it is read."""
    names = ("train_loss", "level_residual", "constraint_residual")
    return {name: ds[name].values for name in names if name in ds}


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
