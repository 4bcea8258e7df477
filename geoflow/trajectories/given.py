"""Walks that users give back: whole, or cut along a dimension in a way that leaves them walks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.problems.dtypes import DTYPES
from geoflow.system import kinds
from geoflow.trajectories import schema

# That every analysis repeats.
NAMING = ("experiment", "seed")


def check_walk(ds: xr.Dataset, *names: str, attributes: tuple[str, ...] = NAMING) -> None:
    """Refuse what is no walk, or one without these variables and attributes.

    Parameters
    ----------
    ds : xarray.Dataset
        What was given.
    *names : str
        Variables, of the schema, each along its own dimensions in whatever order.
    attributes : tuple of str
        Global attributes.

    Raises
    ------
    InputError
        Names the first that is missing, or a variable with other dimensions.
    """
    kinds.check_dataset(ds, *names)
    for name in names:
        dims = schema.VARIABLES[name].dims
        if set(ds[name].dims) != set(dims):
            raise InputError(
                f"ds: {name} has the dimensions {ds[name].dims}, not {dims}; cut a walk by a list "
                f"or a slice, such as ds.isel({dims[0]}=[-1])"
            )
    missing = [name for name in attributes if name not in ds.attrs]
    if missing:
        raise InputError(
            f"ds has no attribute {missing[0]!r}; give {kinds.A_WALK}, its attributes kept"
        )


def check_placed(ds: xr.Dataset, snapshots: Sequence[int] | None = None) -> None:
    """Make sure that snapshots lie in the steps of the dataset that they name.

    Parameters
    ----------
    ds : xarray.Dataset
        A walk.
    snapshots : sequence of int, optional
        Their indices. None: all.

    Raises
    ------
    InputError
        One does not: the steps were cut, so that at its index is another step, or none.
    """
    check_walk(ds, "snapshot_time", "snapshot_step", "time", attributes=())
    chosen = slice(None) if snapshots is None else list(snapshots)
    at, steps = (ds[n].values[chosen] for n in ("snapshot_time", "snapshot_step"))
    time = ds["time"].values
    # What cannot be told without its attribute may be of any version.
    version = ds.attrs.get("geoflow_schema", schema.LATER_VERSION)
    there = (steps >= 0) & (steps < len(time))
    if not (there.all() and schema.in_their_steps(at, steps, time, version).all()):
        raise InputError(
            "ds: its snapshots name other steps than it has, as where it was cut along step; cut "
            "it along snapshot only, or open it anew"
        )


def theta_of(ds: xr.Dataset) -> xr.DataArray:
    """θ of all snapshots, shape (snapshot, parameter), not read yet where it is in a file.

    Raises
    ------
    InputError
        There is none, or it has other dimensions.
    """
    check_walk(ds, "theta", attributes=())
    return ds["theta"].transpose(*schema.THETA.dims)


def kept_theta(ds: xr.Dataset, index: int, along: str = "snapshot") -> NDArray[Any]:
    """θ of a snapshot or of a point of a path as it is kept, in the byte order of this machine.

    Shape (P,). Other programs may write another order, of which torch takes none.
    """
    theta = ds["theta"].isel({along: index}).values
    return theta.astype(theta.dtype.newbyteorder("="), copy=False)


def kept_dtype(ds: xr.Dataset) -> torch.dtype:
    """Dtype in which θ is kept.

    Raises
    ------
    InputError
        It is none that a walk has.
    """
    # Whatever the order of its bytes.
    name = np.dtype(ds["theta"].dtype).name
    if name not in DTYPES:
        raise InputError(f"ds: theta is of dtype {name}; give it in float64 or float32")
    return DTYPES[name]
