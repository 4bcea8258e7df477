"""Schema 1.2 of a regularisation path: its variables and attributes, and their check.

A path is one walk after another, the level set changing in between; its points have the names and
units that those of a trajectory have, over the dimension ``level``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from geoflow.trajectories import consistency, schema
from geoflow.trajectories.specification import (
    VariableSpec,
    layout_defects,
    type_defects,
    variable_defects,
)

VERSION = "1.1"
# 1.1 has points past a fold: a level may come again, and their method is "arclength". 1.2 is of
# paths whose R evaluates problems of its own, and has what these cost.
WITH_COST_OF_R = "1.2"
READABLE = ("1.0", VERSION, WITH_COST_OF_R)
# The dataset's attribute ``kind``.
KIND = "path"
# The attribute that has the version.
PATH = "geoflow_path"

OF_FLOW = ("multiplier", "regularizer", "train_loss", "level_residual", "level_distance", "angle")
# Of a walk's attributes those that a path has not.
OF_SOLVER = ("geoflow_schema", "solver", "rtol", "atol")
COUNTS = ("n_gradient", "n_hvp")


def _over_levels(name: str) -> VariableSpec:
    return schema.STEP_VARIABLES[name]._replace(dims=("level",))


LEVEL = {"level": VariableSpec("f8", ("level",), "1", "loss that the level set keeps")}

LEVEL_VARIABLES = {
    "penalty": VariableSpec("f8", ("level",), "1", "penalty 1/lambda, weight of R beside the loss"),
    **{name: _over_levels(name) for name in OF_FLOW},
    "kkt_residual": VariableSpec(
        "f8",
        ("level",),
        "1",
        "norm of the tangential part of the regularizer's gradient over its norm",
    ),
    "method": VariableSpec(
        "U", ("level",), "1", "how the point was reached: walk, corrector or arclength"
    ),
    "n_between": VariableSpec("i8", ("level",), "1", "levels gone through on the way to this one"),
    "n_correction": VariableSpec("i8", ("level",), "1", "corrections made on the way to this one"),
    **{name: _over_levels(name) for name in (*COUNTS, "wall_time")},
}

# Only where it was asked for.
SMALLEST_EIGENVALUE = VariableSpec(
    "f8", ("level",), "1", "smallest eigenvalue of the Hessian on the level set"
)

COST_OF_R = {name: spec._replace(dims=("level",)) for name, spec in schema.APART.items()}

THETA = VariableSpec("f", ("level", "parameter"), "1", "parameters, flat")
OBSERVABLE = VariableSpec("f8", ("level",), "1", "")

VARIABLES = {
    **LEVEL,
    **LEVEL_VARIABLES,
    **schema.TENSOR_COORDINATES,
    "theta": THETA,
    "smallest_eigenvalue": SMALLEST_EIGENVALUE,
    **COST_OF_R,
}

ATTRIBUTES = {
    PATH: str,
    "kind": str,
    **{n: kind for n, kind in schema.ATTRIBUTES.items() if n not in OF_SOLVER},
    "degrees": float,
}

NEVER_BELOW_ZERO = (
    *("multiplier", "level_distance", "angle", "kkt_residual", "wall_time"),
    *("n_between", "n_correction", "n_gradient", "n_hvp", *COST_OF_R),
)

METHODS = ("walk", "corrector", "arclength")

STATUSES = (
    "complete",
    "fold",
    "max_evaluations",
    "projection_failed",
    "not_converged",
    "critical_point",
    "negative_multiplier",
    "numerical_failure",
    "step_size_underflow",
    "level_not_kept",
    "observable_failed",
    "evaluation_failed",
    "interrupted",
)


def is_path(ds: xr.Dataset) -> bool:
    """Whether a dataset is a regularisation path."""
    return PATH in ds.attrs


def is_observable(name: str) -> bool:
    """Whether a variable of a path is an observable, not one of the schema's own."""
    return name not in VARIABLES


def variables(*, eigenvalues: bool, cost_of_r: bool) -> dict[str, VariableSpec]:
    """All variables of a path but its observables."""
    left_out = {
        *(() if eigenvalues else ("smallest_eigenvalue",)),
        *(() if cost_of_r else COST_OF_R),
    }
    return {n: spec for n, spec in VARIABLES.items() if n not in left_out}


def defects(ds: xr.Dataset) -> list[str]:
    """Say what in a dataset is not as the schema has it, one line each; empty where all is."""
    known = variables(
        eigenvalues="smallest_eigenvalue" in ds.variables,
        cost_of_r=ds.attrs.get(PATH) == WITH_COST_OF_R,
    )
    found = attribute_defects(ds.attrs) + variable_defects(ds, known, OBSERVABLE)
    return found or _value_defects(ds)


def attribute_defects(attributes: Mapping[str, Any]) -> list[str]:
    """Say what in the global attributes is not as the schema has it, one line each."""
    found = []
    if PATH not in attributes and "geoflow_schema" in attributes:
        found.append("it is a walk, which gf.open_trajectory opens")
    elif attributes.get(PATH) not in READABLE or attributes.get("kind") != KIND:
        found.append(f"attribute {PATH} is {attributes.get(PATH)!r}, not {VERSION!r}")
    found += type_defects(attributes, ATTRIBUTES)
    status = attributes.get("status", STATUSES[0])
    if not isinstance(status, str) or status not in STATUSES:
        found.append(f"attribute status is {str(status)[:40]!r}, not one of {', '.join(STATUSES)}")
    return found


def _value_defects(ds: xr.Dataset) -> list[str]:
    if not ds.sizes["level"]:
        return ["there is no point"]
    found = layout_defects(ds)
    for name in ("wall_time", *COUNTS, *(COST_OF_R if ds.attrs[PATH] == WITH_COST_OF_R else ())):
        if not (np.diff(ds[name].values) >= 0).all():
            found.append(f"{name} falls, though it counts up")
    unknown = set(map(str, ds["method"].values)) - set(METHODS)
    if unknown:
        found.append(f"method is {min(unknown)[:40]!a}, not one of {', '.join(METHODS)}")
    return found


def kkt_limit(degrees: float) -> float:
    """The largest ‖Π∇R‖/‖∇R‖ of a point at this angle between ∇R and ∇L or above it."""
    return math.sin(math.radians(180 - degrees))


def level_defects(ds: xr.Dataset) -> list[str]:
    """Say where the levels are not those of the losses, or of the attribute, one line each.

    Parameters
    ----------
    ds : xarray.Dataset
        Without :func:`defects`.
    """
    level, loss, residual = (ds[n].values for n in ("level", "train_loss", "level_residual"))
    found = []
    if level[0] != ds.attrs["level"]:
        found.append("the first level is not the attribute level")
    if not consistency.is_difference(residual, loss, level, abs(level)):
        found.append("level_residual is not train_loss less the level")
    return found


def inconsistencies(ds: xr.Dataset) -> list[str]:
    """Say what in the values of a path does not fit together, one line each.

    Parameters
    ----------
    ds : xarray.Dataset
        Without :func:`defects`; its ``degrees`` lie between 90 and 180.
    """
    names = [n for n in (*LEVEL, *LEVEL_VARIABLES, *COST_OF_R) if n in ds.variables]
    columns = {n: ds[n].values for n in names if ds[n].dtype.kind in "fi"}
    found = [
        f"{name} is not finite at level {int(np.argmin(np.isfinite(values)))}"
        for name, values in columns.items()
        if not np.isfinite(values).all()
    ]
    found += [
        f"{name} is negative"
        for name in NEVER_BELOW_ZERO
        if name in columns and (columns[name] < 0).any()
    ]
    if found:
        return found
    found += level_defects(ds)
    if not np.allclose(columns["penalty"] * columns["multiplier"], 1, rtol=1e-9, atol=0):
        found.append("penalty is not 1/multiplier")
    degrees = ds.attrs["degrees"]
    # As the angle is rounded, so is its sine.
    if (columns["kkt_residual"] > kkt_limit(degrees) * (1 + 1e-9)).any():
        found.append(f"kkt_residual is above that of {degrees:g} degrees")
    rounding = 1e-6 if ds.attrs["dtype"] == "float64" else 1e-3
    sine = np.sin(np.radians(180 - columns["angle"]))
    if not np.allclose(sine, columns["kkt_residual"], rtol=rounding, atol=rounding):
        found.append("kkt_residual is not the sine of the angle")
    return found
