"""Trajectory schema 1.0 to 1.2: all variables and attributes of a trajectory, and their check."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import ArchiveError, InputError
from geoflow.manifold.flows import SCALARS
from geoflow.manifold.protocol import Scalar
from geoflow.trajectories.specification import (
    VariableSpec,
    layout_defects,
    type_defects,
    variable_defects,
)

SCHEMA_VERSION = "1.0"
# Of walks with snapshots between their steps or with recorded events, which a reader of 1.0 would
# not understand; all others are written as 1.0 still.
LATER_VERSION = "1.1"
# Of walks on several constraints, and of those whose R counts its evaluations apart.
LATEST_VERSION = "1.2"
# All that are read.
VERSIONS = (SCHEMA_VERSION, LATER_VERSION, LATEST_VERSION)
CONVENTIONS = "CF-1.11"

STEP_COORDINATES = {
    "time": VariableSpec("f8", ("step",), "1", "flow time"),
    "arc_length": VariableSpec("f8", ("step",), "1", "arc length of the walk in parameter space"),
}


def _scalars(scalars: Mapping[str, Scalar]) -> dict[str, VariableSpec]:
    return {n: VariableSpec("f8", ("step",), s.units, s.long_name) for n, s in scalars.items()}


# What a walk records of itself, beside the scalars of its flow.
PROGRESS_VARIABLES = {
    "step_size": VariableSpec("f8", ("step",), "1", "flow time covered by the step"),
    "error_estimate": VariableSpec("f8", ("step",), "1", "local error estimate over the tolerance"),
    "n_rejected": VariableSpec("i8", ("step",), "1", "rejected attempts so far"),
    "n_reprojection": VariableSpec("i8", ("step",), "1", "Newton corrections so far"),
    "n_gradient": VariableSpec("i8", ("step",), "1", "gradient evaluations so far"),
    "n_hvp": VariableSpec("i8", ("step",), "1", "Hessian-vector products so far"),
    "wall_time": VariableSpec("f8", ("step",), "s", "wall time so far"),
}

# Only in walks that record events: their names, as a JSON list, and which one a row is.
EVENTS = "events"
EVENT = VariableSpec("i8", ("step",), "1", "events recorded here; 0: none")

# Only in walks whose R evaluates problems of its own: SHA-256 of their data, and what they cost.
REGULARIZER_DATA = "regularizer_data_sha256"
APART = {
    "n_regularizer_gradient": VariableSpec(
        "i8", ("step",), "1", "gradient evaluations of the regularisation function so far"
    )
}

# Only in walks on several constraints: the level of each, as a JSON list.
LEVELS = "constraint_levels"
CONSTRAINTS = {
    "constraint_residual": VariableSpec(
        "f8", ("step", "constraint"), "1", "loss of the constraint less its level"
    ),
    "constraint_multiplier": VariableSpec(
        "f8", ("step", "constraint"), "1", "Lagrange multiplier of the constraint"
    ),
}
CONSTRAINT_COORDINATES = {
    "constraint_level": VariableSpec("f8", ("constraint",), "1", "level of the constraint")
}
# No more are believed of a file.
MOST_CONSTRAINTS = 100_000

# Of a walk of a RegularizingFlow, as nearly all are; see step_variables for the others.
STEP_VARIABLES = {**_scalars(SCALARS), **PROGRESS_VARIABLES}

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


def _with_steps(steps: Mapping[str, VariableSpec]) -> dict[str, VariableSpec]:
    return {
        **STEP_COORDINATES,
        **steps,
        **SNAPSHOT_COORDINATES,
        **TENSOR_COORDINATES,
        "theta": THETA,
    }


VARIABLES = _with_steps(STEP_VARIABLES)

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
    "event",
    "at_rest",
    "negative_multiplier",
    "level_not_kept",
    "observable_failed",
    "evaluation_failed",
    "process_lost",
    "processes_diverged",
    "interrupted",
)

# Of these, of a walk that came to where it was to.
REACHED = ("stationary", "event", "plateau", "t_end")


# Only in walks of another flow than RegularizingFlow: its name, and its scalars as a JSON object
# of name → [long_name, units].
FLOW, FLOW_SCALARS = "flow", "flow_scalars"


def version_of(config: Mapping[str, Any], attributes: Mapping[str, Any], *, dense: bool) -> str:
    """Version of the schema that a walk is written in: the oldest that does for its settings.

    ``dense`` says whether its solver has interpolants, so that snapshots may lie within steps.
    """
    if REGULARIZER_DATA in attributes or LEVELS in attributes:
        return LATEST_VERSION
    within = dense and (config.get("snapshot_times") or config.get("snapshot_every"))
    return LATER_VERSION if within or config.get("events") else SCHEMA_VERSION


def is_observable(name: str) -> bool:
    """Whether a variable of a trajectory is an observable, not one of the schema's own."""
    return all(name not in known for known in (VARIABLES, APART, CONSTRAINTS))


def flow_attributes(name: str, scalars: Mapping[str, Scalar]) -> dict[str, str]:
    """Attributes that say what a flow records; none for that which the schema knows.

    Raises
    ------
    InputError
        A scalar whose name a walk uses itself.
    """
    if scalars == SCALARS:
        return {}
    known = {**VARIABLES, **APART, **CONSTRAINTS, **CONSTRAINT_COORDINATES}
    others = {n: s for n, s in known.items() if n not in SCALARS}
    for scalar in scalars:
        if scalar in others or not scalar.isidentifier():
            raise InputError(
                f"flow: the scalar {scalar!r} of {name} is taken or not a name; choose another"
            )
    return {FLOW: name, FLOW_SCALARS: json.dumps({n: list(s) for n, s in scalars.items()})}


def step_variables(attributes: Mapping[str, Any]) -> dict[str, VariableSpec]:
    """Scalars of each accepted step of a walk, by its global attributes, coordinates left out.

    Raises
    ------
    ArchiveError
        The attributes do not say what the flow recorded.
    """
    more = {"event": EVENT} if event_names(attributes) else {}
    if REGULARIZER_DATA in attributes:
        more |= APART
    if LEVELS in attributes:
        more |= CONSTRAINTS
    text = attributes.get(FLOW_SCALARS)
    if text is None:
        return {**STEP_VARIABLES, **more}
    try:
        scalars = {
            str(name): Scalar(str(long_name), str(units))
            for name, (long_name, units) in json.loads(text).items()
        }
        flow_attributes("", scalars)
    except (ValueError, TypeError, AttributeError, RecursionError, InputError):
        raise ArchiveError(f"attribute {FLOW_SCALARS} cannot be used; run again") from None
    return {**_scalars(scalars), **PROGRESS_VARIABLES, **more}


def levels(attributes: Mapping[str, Any]) -> list[float]:
    """Levels of the constraints of a walk on several of them; none of a walk on one.

    Raises
    ------
    ArchiveError
        The attribute cannot be used.
    """
    try:
        found = json.loads(attributes.get(LEVELS, "[]"))
        usable = isinstance(found, list) and len(found) <= MOST_CONSTRAINTS
        usable = usable and all(type(c) in (int, float) and np.isfinite(c) for c in found)
        if usable and (len(found) > 1) == (LEVELS in attributes):
            return [float(level) for level in found]
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    raise ArchiveError(f"attribute {LEVELS} cannot be used; run again")


def columns(attributes: Mapping[str, Any]) -> dict[str, VariableSpec]:
    """Variables by step as columns of numbers: one for each constraint of those that have them.

    Raises
    ------
    ArchiveError
        See :func:`step_variables`.
    """
    found: dict[str, VariableSpec] = {}
    n = len(levels(attributes))
    for name, spec in (STEP_COORDINATES | step_variables(attributes)).items():
        several = spec.dims == ("step", "constraint")
        found |= dict.fromkeys(column_names(name, n) if several else [name], spec)
    return found


def column_names(name: str, n: int) -> list[str]:
    """Names of the columns of a variable by step and constraint."""
    return [f"{name}_{i}" for i in range(n)]


def event_names(attributes: Mapping[str, Any]) -> list[str]:
    """Names of the events that a walk records, in the order of their numbers.

    Raises
    ------
    ArchiveError
        The attribute cannot be used.
    """
    try:
        names = json.loads(attributes.get(EVENTS, "[]"))
        if all(isinstance(name, str) and name.isidentifier() for name in names):
            return list(names)
    except (ValueError, TypeError, RecursionError):
        pass
    raise ArchiveError(f"attribute {EVENTS} cannot be used; run again")


def variables(attributes: Mapping[str, Any]) -> dict[str, VariableSpec]:
    """All variables of a walk but its observables, by its global attributes.

    Raises
    ------
    ArchiveError
        See :func:`step_variables`.
    """
    of_each = CONSTRAINT_COORDINATES if levels(attributes) else {}
    return _with_steps(step_variables(attributes)) | of_each


def defects(ds: xr.Dataset) -> list[str]:
    """Say what in a dataset is not as its schema has it, one line each; empty where all is."""
    found = attribute_defects(ds.attrs) + _variable_defects(ds)
    if not found:
        found = _value_defects(ds)
    return found


def attribute_defects(attributes: Mapping[str, Any]) -> list[str]:
    """Say what in the global attributes is not as the schema has it, one line each."""
    found = []
    version = attributes.get("geoflow_schema")
    if version is None and "geoflow_path" in attributes:
        found.append("it is a regularisation path, which gf.open_path opens, and no walk")
    elif not isinstance(version, str) or version not in VERSIONS:
        found.append(f"attribute geoflow_schema is {version!r}, not one of {', '.join(VERSIONS)}")
    found += type_defects(attributes, ATTRIBUTES)
    status = attributes.get("status", STATUSES[0])
    if not isinstance(status, str) or status not in STATUSES:
        found.append(f"attribute status is {str(status)[:40]!r}, not one of {', '.join(STATUSES)}")
    return found


def _variable_defects(ds: xr.Dataset) -> list[str]:
    try:
        known = variables(ds.attrs)
    except ArchiveError as error:
        return [str(error)]
    return variable_defects(ds, known, OBSERVABLE)


def _value_defects(ds: xr.Dataset) -> list[str]:
    found = layout_defects(ds)
    if not ds.sizes["step"]:
        return ["there is no step"]
    if (n := len(levels(ds.attrs))) and (
        ds.sizes["constraint"] != n
        or not np.array_equal(ds["constraint_level"].values, levels(ds.attrs))
    ):
        return ["constraint_level is not what the attribute constraint_levels has"]
    time = ds["time"].values
    if not (np.isfinite(time).all() and (np.diff(time) > 0).all()):
        found.append("time does not increase at every step")
    rising = ("arc_length", "wall_time", "n_rejected", "n_reprojection", "n_gradient", "n_hvp")
    for name in (*rising, *(n for n in APART if n in ds)):
        if not (np.diff(ds[name].values) >= 0).all():
            found.append(f"{name} falls, though it counts up")
    steps = ds["snapshot_step"].values
    if len(steps) and (steps.min() < 0 or steps.max() >= ds.sizes["step"]):
        found.append("snapshot_step names a step that is not there")
    else:
        found += _misplaced(ds["snapshot_time"].values, steps, time, ds.attrs["geoflow_schema"])
    if ds.attrs["geoflow_schema"] == SCHEMA_VERSION and (np.diff(steps) <= 0).any():
        found.append("snapshot_step does not increase")
    return found


def _misplaced(
    at: NDArray[np.float64], steps: NDArray[np.int64], time: NDArray[np.float64], version: str
) -> list[str]:
    """Say which snapshots do not lie where their step is."""
    placed = in_their_steps(at, steps, time, version).all()
    if version == SCHEMA_VERSION:
        return [] if placed else ["snapshot_time differs from the time of its step"]
    found = [] if placed else ["a snapshot is outside its step"]
    return found + ["snapshot_time does not increase"] * bool((np.diff(at) <= 0).any())


def in_their_steps(
    at: NDArray[np.float64], steps: NDArray[np.int64], time: NDArray[np.float64], version: str
) -> NDArray[np.bool_]:
    """Whether each snapshot lies where its step is: at its end, from 1.1 on within it too.

    Parameters
    ----------
    at, steps : array, shape (snapshot,)
        Times and steps of the snapshots; the steps are there.
    time : array, shape (step,)
        Where the steps end.
    version : str
        Of the schema.
    """
    found: NDArray[np.bool_] = at == time[steps]
    if version != SCHEMA_VERSION:
        # The first is no step but the start.
        found |= (steps > 0) & (time[steps - 1] < at) & (at <= time[steps])
    return found
