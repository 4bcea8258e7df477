"""Trajectory schema 1.0: every variable and attribute of a trajectory dataset, and its check."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import xarray as xr

SCHEMA_VERSION = "1.0"
CONVENTIONS = "CF-1.11"


class VariableSpec(NamedTuple):
    """What the schema says of one variable.

    ``dtype`` is NumPy's code for it: ``f8``, ``i8``, ``U`` for text, ``f`` for any float.
    """

    dtype: str
    dims: tuple[str, ...]
    units: str
    long_name: str


STEP_COORDINATES = {
    "time": VariableSpec("f8", ("step",), "1", "flow time"),
    "arc_length": VariableSpec("f8", ("step",), "1", "arc length of the walk in parameter space"),
}

STEP_VARIABLES = {
    "train_loss": VariableSpec("f8", ("step",), "1", "training loss L"),
    "level_residual": VariableSpec("f8", ("step",), "1", "training loss less the level, L - c"),
    "level_distance": VariableSpec(
        "f8", ("step",), "1", "first-order distance |L - c|/|grad L| from the level set"
    ),
    "regularizer": VariableSpec("f8", ("step",), "1", "regularisation function R"),
    "multiplier": VariableSpec("f8", ("step",), "1", "Lagrange multiplier"),
    "angle": VariableSpec("f8", ("step",), "degree", "angle between grad R and grad L"),
    "gradient_norm": VariableSpec("f8", ("step",), "1", "norm of the loss gradient"),
    "tangent_norm": VariableSpec("f8", ("step",), "1", "norm of the tangent part of grad R"),
    "step_size": VariableSpec("f8", ("step",), "1", "flow time covered by the step"),
    "error_estimate": VariableSpec("f8", ("step",), "1", "local error estimate over the tolerance"),
    "n_rejected": VariableSpec("i8", ("step",), "1", "rejected attempts so far"),
    "n_reprojection": VariableSpec("i8", ("step",), "1", "Newton corrections so far"),
    "n_gradient": VariableSpec("i8", ("step",), "1", "gradient evaluations so far"),
    "n_hvp": VariableSpec("i8", ("step",), "1", "Hessian-vector products so far"),
    "wall_time": VariableSpec("f8", ("step",), "s", "wall time so far"),
}

SNAPSHOT_COORDINATES = {
    "snapshot_time": VariableSpec("f8", ("snapshot",), "1", "flow time of the snapshot"),
    "snapshot_step": VariableSpec("i8", ("snapshot",), "1", "step of the snapshot"),
}

TENSOR_COORDINATES = {
    "tensor_name": VariableSpec("U", ("tensor",), "1", "name of the parameter tensor"),
    "tensor_offset": VariableSpec("i8", ("tensor",), "1", "first index of the tensor in theta"),
    "tensor_shape": VariableSpec("U", ("tensor",), "1", "shape of the tensor, a JSON list"),
}

THETA = VariableSpec("f", ("snapshot", "parameter"), "1", "parameters, flat")

OBSERVABLE = VariableSpec("f8", ("snapshot",), "1", "")

VARIABLES = {
    **STEP_COORDINATES,
    **STEP_VARIABLES,
    **SNAPSHOT_COORDINATES,
    **TENSOR_COORDINATES,
    "theta": THETA,
}

ATTRIBUTES = {
    "geoflow_schema": str,
    "geoflow_version": str,
    "Conventions": str,
    "title": str,
    "created": str,
    "experiment": str,
    "seed": int,
    "level": float,
    "level_rtol": float,
    "solver": str,
    "rtol": float,
    "atol": float,
    "dtype": str,
    "device": str,
    "regularizer_name": str,
    "status": str,
    "status_message": str,
    "config": str,
    "data_sha256": str,
    "python_version": str,
    "torch_version": str,
    "torchdiffeq_version": str,
    "numpy_version": str,
    "xarray_version": str,
}

STATUSES = (
    "stationary",
    "t_end",
    "plateau",
    "max_evaluations",
    "max_steps",
    "step_size_underflow",
    "projection_failed",
    "critical_point",
    "numerical_failure",
    "interrupted",
)


def is_observable(name: str) -> bool:
    """Whether a variable of a trajectory is an observable, not one of the schema's own."""
    return name not in VARIABLES


def defects(ds: xr.Dataset) -> list[str]:
    """Say what in a dataset is not as schema 1.0 has it, one line each; empty where all is."""
    found = _attribute_defects(ds) + _variable_defects(ds)
    if not found:
        found = _value_defects(ds)
    return found


def _attribute_defects(ds: xr.Dataset) -> list[str]:
    found = []
    version = ds.attrs.get("geoflow_schema")
    if version != SCHEMA_VERSION:
        found.append(f"attribute geoflow_schema is {version!r}, not {SCHEMA_VERSION!r}")
    kinds: dict[type, tuple[type, ...]] = {
        str: (str,),
        int: (int, np.integer),
        float: (float, np.floating),
    }
    for name, kind in ATTRIBUTES.items():
        if name not in ds.attrs:
            found.append(f"attribute {name} is missing")
        elif not isinstance(ds.attrs[name], kinds[kind]):
            found.append(f"attribute {name} is not of type {kind.__name__}")
    try:
        config = json.loads(ds.attrs.get("config", "{}"))
    except (ValueError, TypeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        found.append("attribute config is not a JSON object")
    status = ds.attrs.get("status", STATUSES[0])
    if status not in STATUSES:
        found.append(f"attribute status is {str(status)[:40]!r}, not one of {', '.join(STATUSES)}")
    return found


def _variable_defects(ds: xr.Dataset) -> list[str]:
    found = []
    observables = {str(n): OBSERVABLE for n in ds.variables if is_observable(str(n))}
    for name, spec in (VARIABLES | observables).items():
        if name not in ds.variables:
            found.append(f"variable {name} is missing")
            continue
        # A name from a hostile file is no text to show as it is.
        shown = name if name.isidentifier() else ascii(name[:80])
        if not name.isidentifier():
            found.append(f"variable {shown} has no name that an observable may have")
        variable = ds.variables[name]
        if variable.dims != spec.dims:
            found.append(f"variable {shown} has dimensions {variable.dims}, not {spec.dims}")
        code = "U" if variable.dtype.kind in "OUT" else variable.dtype.str[1:]
        if not code.startswith(spec.dtype):
            found.append(f"variable {shown} has dtype {variable.dtype}, not {spec.dtype}")
        units = variable.attrs.get("units")
        if units != spec.units and not (spec is OBSERVABLE and isinstance(units, str)):
            found.append(f"variable {shown} has units {str(units)[:40]!r}")
        if not isinstance(long_name := variable.attrs.get("long_name"), str) or not long_name:
            found.append(f"variable {shown} has no long_name")
    return found


def _value_defects(ds: xr.Dataset) -> list[str]:
    found = []
    if not ds.sizes["step"]:
        return ["there is no step"]
    time = ds["time"].values
    if not (np.isfinite(time).all() and (np.diff(time) > 0).all()):
        found.append("time does not increase at every step")
    for name in ("arc_length", "wall_time", "n_rejected", "n_reprojection", "n_gradient", "n_hvp"):
        if not (np.diff(ds[name].values) >= 0).all():
            found.append(f"{name} falls, though it counts up")
    steps = ds["snapshot_step"].values
    if len(steps) and (steps.min() < 0 or steps.max() >= ds.sizes["step"]):
        found.append("snapshot_step names a step that is not there")
    elif not np.array_equal(ds["snapshot_time"].values, time[steps]):
        found.append("snapshot_time differs from the time of its step")
    if (np.diff(steps) <= 0).any():
        found.append("snapshot_step does not increase")
    return found
