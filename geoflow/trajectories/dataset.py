"""From the records of a walk to an xarray dataset in schema 1.0 to 1.2."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.manifold.protocol import Flow, apart_from
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds
from geoflow.trajectories import schema, storable
from geoflow.trajectories.given import check_placed, check_walk
from geoflow.trajectories.layout import layout_variables
from geoflow.trajectories.records import RESIDUAL, Snapshot, StepRecords

# What a walk's provenance says of itself in the attributes.
NAMED = ("title", "experiment", "seed")
# In the titles of experiments' walks.
WALK_TITLE = "walk along the training-loss level set"
# What a walk down R is shown by, and how many scalars of another flow are.
SHOWN = ("angle", "regularizer")
MOST_SHOWN = 6


def to_dataset(
    problem: ProblemLike,
    records: StepRecords,
    snapshots: Sequence[Snapshot],
    observables: Sequence[str],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Assemble a trajectory dataset in schema 1.0 to 1.2.

    Parameters
    ----------
    problem : ProblemLike
        Gives the layout of θ.
    records : StepRecords
        Every accepted step.
    snapshots : sequence of Snapshot
        In the order of the walk.
    observables : sequence of str
        Their names; a variable each, also where there is no snapshot.
    attributes : mapping
        Global attributes.
    """
    thetas = [s.theta for s in snapshots]
    empty = np.empty((0, problem.n_parameters), dtype_name(problem.dtype))
    arrays: dict[str, Any] = {
        **records.arrays(),
        "snapshot_time": np.array([s.time for s in snapshots], dtype=float),
        "snapshot_step": np.array([s.step for s in snapshots], dtype=np.int64),
        "theta": np.stack(thetas) if thetas else empty,
    }
    for name in observables:
        arrays[name] = np.array([s.values[name] for s in snapshots], dtype=float)
    return assemble(problem, arrays, observables, attributes)


def assemble(
    problem: ProblemLike,
    arrays: Mapping[str, Any],
    observables: Sequence[str],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Put arrays, NumPy's or Dask's, together as the schema has them.

    Parameters
    ----------
    problem : ProblemLike
        Gives the layout of θ.
    arrays : mapping
        By the names of the schema and of the observables.
    observables : sequence of str
        Their names.
    attributes : mapping
        Global attributes.
    """
    arrays = {**arrays, **layout_variables(problem)}
    levels = schema.levels(attributes)
    if levels:
        arrays = {**arrays, **_by_constraint(arrays, levels)}
    variables: dict[str, Any] = {
        name: (spec.dims, arrays[name], {"long_name": spec.long_name, "units": spec.units})
        for name, spec in schema.variables(attributes).items()
    }
    if "event" in variables:
        names = schema.event_names(attributes)
        # As CF has it for what may be several at once.
        flags = {"flag_masks": 2 ** np.arange(len(names)), "flag_meanings": " ".join(names)}
        variables["event"][2].update(flags)
    kept, computed = str(arrays["theta"].dtype), dtype_name(problem.dtype)
    if kept != computed:
        variables["theta"][2]["comment"] = f"computed in {computed}, rounded to {kept}"
    for name in observables:
        text = name.replace("_", " ")
        variables[name] = (("snapshot",), arrays[name], {"long_name": text, "units": "1"})
    coordinates = schema.STEP_COORDINATES | schema.SNAPSHOT_COORDINATES | schema.TENSOR_COORDINATES
    if levels:
        coordinates = coordinates | schema.CONSTRAINT_COORDINATES
    ds = xr.Dataset(variables, attrs=dict(attributes))
    return ds.set_coords(list(coordinates))


def _by_constraint(arrays: Mapping[str, Any], levels: Sequence[float]) -> dict[str, Any]:
    """Columns put together, as schema 1.2 has what is recorded of each constraint."""
    found: dict[str, Any] = {"constraint_level": np.array(levels)}
    for name in schema.CONSTRAINTS:
        columns = [arrays[column] for column in schema.column_names(name, len(levels))]
        # NumPy's function of Dask's arrays is Dask's.
        found[name] = np.stack(columns, axis=1)
    return found


def at_snapshots(ds: xr.Dataset, name: str) -> NDArray[np.float64]:
    """Values of a scalar of the steps at the snapshots, shape (snapshot,).

    As recorded where a step ends at the snapshot; between the steps interpolated linearly in time.

    Raises
    ------
    InputError
        There is no such scalar, or the dataset was cut along its steps.
    """
    check_placed(ds)
    check_walk(ds, *{name} & schema.VARIABLES.keys(), attributes=())
    at, steps = ds["snapshot_time"].values, ds["snapshot_step"].values
    time, values = ds["time"].values, ds[name].values.astype(float)
    return np.where(at == time[steps], values[steps], np.interp(at, time, values))


def shown_scalars(walks: Sequence[xr.Dataset]) -> list[str]:
    """Scalars that walks are shown by: angle and R, or what a flow of one's own records instead.

    Of the latter the first few that all walks have, without the residual of the level, which is
    shown apart; none where they have none in common.

    Raises
    ------
    ArchiveError
        A walk does not say what its flow recorded.
    """
    usual = all(name in ds for ds in walks for name in SHOWN)
    if usual or not any(schema.FLOW_SCALARS in ds.attrs for ds in walks):
        return list(SHOWN)
    others = {**schema.PROGRESS_VARIABLES, **schema.APART, "event": schema.EVENT}
    recorded = [
        name
        for name, spec in schema.step_variables(walks[0].attrs).items()
        if spec.dims == ("step",) and name not in others and name != RESIDUAL
    ]
    return [name for name in recorded if all(name in ds for ds in walks)][:MOST_SHOWN]


def level_residuals(ds: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """L − c of each constraint at every step, shape (step, constraint), and their levels.

    Raises
    ------
    InputError
        The dataset is no walk, or has not the residuals of its constraints.
    """
    check_walk(ds, attributes=("level",))
    several = schema.levels(ds.attrs)
    name = "constraint_residual" if several else "level_residual"
    kinds.check_dataset(ds, name)
    residuals = np.asarray(ds[name].values, dtype=float)
    # Of several the mean, which is the attribute, may be zero.
    return residuals.reshape(len(residuals), -1), np.array(several or [ds.attrs["level"]])


def attributes(
    flow: Flow,
    *,
    solver: str,
    rtol: float,
    atol: float,
    config: Mapping[str, Any],
    dense: bool = False,
) -> dict[str, Any]:
    """Global attributes of a walk, all but its status.

    Raises
    ------
    InputError
        The problem's tensors do not fill θ, the flow records under a name that is taken, or
        something that no file could hold.
    """
    problem = flow.problem
    _check_layout(problem)
    for name, scalar in flow.scalars.items():
        storable.check_name(name, f"flow: a scalar of {type(flow).__name__}")
        for text in scalar:
            storable.check_text(text, f"flow: what {name!r} of {type(flow).__name__} is")
    events = [event["name"] for event in config.get("events", [])]
    named = {k: config["provenance"][k] for k in NAMED if k in config["provenance"]}
    apart = [p.data_sha256 for p in apart_from(flow)]
    later = {schema.REGULARIZER_DATA: " ".join(apart)} if apart else {}
    if flow.level_set.n_constraints > 1:
        later[schema.LEVELS] = json.dumps(flow.level_set.levels.tolist())
    found = {
        "geoflow_schema": schema.version_of(config, later, dense=dense),
        "geoflow_version": version("geoflow"),
        "Conventions": schema.CONVENTIONS,
        "title": "Walk along a training-loss level set",
        "history": f"walked by geoflow {version('geoflow')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "experiment": "",
        "seed": -1,
        # Of several constraints their mean; what each has is beside it.
        "level": float(flow.level_set.levels.mean()),
        "level_rtol": flow.level_set.level_rtol,
        "solver": solver,
        "rtol": rtol,
        "atol": atol,
        "dtype": dtype_name(problem.dtype),
        "device": str(problem.device),
        "regularizer_name": flow.regularizer_name,
        "config": storable.as_json(config, "provenance, with the settings,"),
        "data_sha256": problem.data_sha256,
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "torchdiffeq_version": version("torchdiffeq"),
        "numpy_version": np.__version__,
        "xarray_version": xr.__version__,
        **schema.flow_attributes(type(flow).__name__, flow.scalars),
        **({schema.EVENTS: json.dumps(events)} if events else {}),
        **later,
    } | named
    storable.check_attributes(found, [t.name for t in problem.tensors])
    return found


def _check_layout(problem: ProblemLike) -> None:
    """Refuse, before anything is walked, tensors that no reader of the file would take."""
    end = 0
    for tensor in problem.tensors:
        if tensor.offset != end:
            break
        end += math.prod(tensor.shape)
    else:
        if end == problem.n_parameters:
            return
    raise InputError(
        f"problem: its tensors do not fill its {problem.n_parameters} parameters one after the "
        "other; give name, offset and shape of every one, in flat order"
    )
