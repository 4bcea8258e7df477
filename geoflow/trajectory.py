"""From the records of a walk to an xarray dataset in schema 1.0."""

from __future__ import annotations

import json
import platform
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from geoflow import schema
from geoflow.errors import InputError
from geoflow.flows import FlowState, RegularizingFlow
from geoflow.problem import Problem

Observable = Callable[[Tensor], float]

# What a walk's provenance says of itself in the attributes.
NAMED = ("title", "experiment", "seed")

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class StepRecords(Sequence[Mapping[str, float]]):
    """The scalars of every accepted step, by column: a few hundred bytes a step."""

    def __init__(self) -> None:
        specs = schema.STEP_COORDINATES | schema.STEP_VARIABLES
        self.columns = {n: array("q" if s.dtype == "i8" else "d") for n, s in specs.items()}

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[Any]]) -> StepRecords:
        """Take records from arrays, by name."""
        records = cls()
        records.extend(columns)
        return records

    def extend(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Add the accepted steps that arrays hold, by name."""
        for name, column in self.columns.items():
            column.frombytes(np.ascontiguousarray(columns[name], column.typecode).tobytes())

    def arrays(self, start: int = 0) -> dict[str, NDArray[Any]]:
        """Copy the columns from record ``start`` on into arrays, by name."""
        return {name: np.array(column[start:]) for name, column in self.columns.items()}

    def forget(self, n: int) -> None:
        """Drop the first ``n`` records."""
        for column in self.columns.values():
            del column[:n]

    def append(self, record: Mapping[str, float]) -> None:
        """Add one accepted step."""
        for name, column in self.columns.items():
            column.append(record[name])  # type: ignore[arg-type]

    def __len__(self) -> int:
        # By the last column, which is the last to grow: Ctrl-C may come in between.
        return len(self.columns["wall_time"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {name: column[index] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        return (self[i] for i in range(len(self)))


class Snapshot:
    """θ and the observables at one accepted step; ``dtype`` is that in which θ is kept."""

    def __init__(
        self,
        step: int,
        time: float,
        theta: Tensor,
        observables: Mapping[str, Observable],
        dtype: torch.dtype | None = None,
    ) -> None:
        self.step = step
        self.time = time
        self.theta = theta.detach().to("cpu", dtype or theta.dtype, copy=True).numpy()
        self.values = {name: float(f(theta)) for name, f in observables.items()}


def step_record(
    flow: RegularizingFlow,
    state: FlowState,
    *,
    time: float,
    arc_length: float,
    step_size: float,
    error_estimate: float,
    n_rejected: int,
    n_reprojection: int,
    counts: Mapping[str, int],
    wall_time: float,
) -> dict[str, float]:
    """Build the record of one accepted step, by the names of the schema."""
    residual = flow.level_set.residual(state.loss)
    return {
        "time": time,
        "arc_length": arc_length,
        "train_loss": state.loss,
        "level_residual": residual,
        "level_distance": abs(residual) / state.gradient_norm,
        "regularizer": state.regularizer,
        "multiplier": state.multiplier,
        "angle": state.angle,
        "gradient_norm": state.gradient_norm,
        "tangent_norm": state.tangent_norm,
        "step_size": step_size,
        "error_estimate": error_estimate,
        "n_rejected": n_rejected,
        "n_reprojection": n_reprojection,
        "n_gradient": counts["gradient"],
        "n_hvp": counts["hvp"],
        "wall_time": wall_time,
    }


def check_observables(observables: Mapping[str, Observable], theta: Tensor) -> None:
    """Refuse observables that would not fit the schema.

    Raises
    ------
    InputError
        A name the schema uses itself, or a function that does not give a number.
    """
    for name, function in observables.items():
        if not name.isidentifier() or not schema.is_observable(name):
            raise InputError(f"observables: {name!r} is taken or not a name; choose another")
        try:
            float(function(theta))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"observables[{name!r}] gave no number at theta0 ({error}); return a float"
            ) from None


def to_dataset(
    problem: Problem,
    records: StepRecords,
    snapshots: Sequence[Snapshot],
    observables: Sequence[str],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Assemble a trajectory dataset in schema 1.0.

    Parameters
    ----------
    problem : Problem
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
    problem: Problem,
    arrays: Mapping[str, Any],
    observables: Sequence[str],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Put arrays, NumPy's or Dask's, together as schema 1.0 has them.

    Parameters
    ----------
    problem : Problem
        Gives the layout of θ.
    arrays : mapping
        By the names of the schema and of the observables.
    observables : sequence of str
        Their names.
    attributes : mapping
        Global attributes.
    """
    shapes = [json.dumps(list(t.shape)) for t in problem.tensors]
    arrays = {
        **arrays,
        "tensor_name": np.array([t.name for t in problem.tensors], dtype=object),
        "tensor_offset": np.array([t.offset for t in problem.tensors], dtype=np.int64),
        "tensor_shape": np.array(shapes, dtype=object),
    }
    variables: dict[str, Any] = {
        name: (spec.dims, arrays[name], {"long_name": spec.long_name, "units": spec.units})
        for name, spec in schema.VARIABLES.items()
    }
    kept, computed = str(arrays["theta"].dtype), dtype_name(problem.dtype)
    if kept != computed:
        variables["theta"][2]["comment"] = f"computed in {computed}, rounded to {kept}"
    for name in observables:
        text = name.replace("_", " ")
        variables[name] = (("snapshot",), arrays[name], {"long_name": text, "units": "1"})
    coordinates = schema.STEP_COORDINATES | schema.SNAPSHOT_COORDINATES | schema.TENSOR_COORDINATES
    ds = xr.Dataset(variables, attrs=dict(attributes))
    return ds.set_coords(list(coordinates))


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype as NumPy and the attributes have it."""
    return str(dtype).removeprefix("torch.")


def attributes(
    flow: RegularizingFlow,
    *,
    solver: str,
    rtol: float,
    atol: float,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """Global attributes of a walk, all but its status."""
    problem = flow.problem
    named = {k: config["provenance"][k] for k in NAMED if k in config["provenance"]}
    return {
        "geoflow_schema": schema.SCHEMA_VERSION,
        "geoflow_version": version("geoflow"),
        "Conventions": schema.CONVENTIONS,
        "title": "Walk along a training-loss level set",
        "history": f"walked by geoflow {version('geoflow')}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "experiment": "",
        "seed": -1,
        "level": flow.level_set.level,
        "level_rtol": flow.level_set.level_rtol,
        "solver": solver,
        "rtol": rtol,
        "atol": atol,
        "dtype": dtype_name(problem.dtype),
        "device": str(problem.device),
        "regularizer_name": flow.regularizer_name,
        "config": json.dumps(config, sort_keys=True),
        "data_sha256": problem.data_sha256,
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "torchdiffeq_version": version("torchdiffeq"),
        "numpy_version": np.__version__,
        "xarray_version": xr.__version__,
    } | named
