"""From the points of a regularisation path to an xarray dataset in its schema."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems.protocol import ProblemLike
from geoflow.trajectories import dataset, path_schema, schema
from geoflow.trajectories.layout import layout_variables


class PathPoint(NamedTuple):
    """A point of a path.

    Attributes
    ----------
    values : mapping
        By the names of the schema and of the observables, one number or text each.
    theta : ndarray, shape (P,)
        The parameters.
    """

    values: Mapping[str, Any]
    theta: NDArray[Any]


def to_dataset(
    problem: ProblemLike,
    points: Sequence[PathPoint],
    observables: Sequence[str],
    attributes: Mapping[str, Any],
) -> xr.Dataset:
    """Assemble the dataset of a path that has a point at least.

    Parameters
    ----------
    problem : ProblemLike
        Gives the layout of θ.
    points : sequence of PathPoint
        In the order of the path.
    observables : sequence of str
        Their names.
    attributes : mapping
        Global attributes.
    """
    eigenvalues = "smallest_eigenvalue" in points[0].values
    cost_of_r = attributes[path_schema.PATH] == path_schema.WITH_COST_OF_R
    specs = path_schema.variables(eigenvalues=eigenvalues, cost_of_r=cost_of_r)
    arrays: dict[str, Any] = {
        "theta": np.stack([point.theta for point in points]),
        **layout_variables(problem),
    }
    for name, spec in specs.items():
        if name not in arrays:
            column = [point.values[name] for point in points]
            arrays[name] = np.array(column, dtype=object if spec.dtype == "U" else spec.dtype)
    variables: dict[str, Any] = {
        name: (spec.dims, arrays[name], {"long_name": spec.long_name, "units": spec.units})
        for name, spec in specs.items()
    }
    for name in observables:
        values = np.array([point.values[name] for point in points], dtype=float)
        variables[name] = (("level",), values, {"long_name": name.replace("_", " "), "units": "1"})
    ds = xr.Dataset(variables, attrs=dict(attributes))
    return ds.set_coords(["level", *schema.TENSOR_COORDINATES])


def order_along(ds: xr.Dataset) -> NDArray[np.intp]:
    """The points of a path in the order in which its curve passes them.

    That is by level, but where it goes round a fold: from there on, in the order reached.

    Parameters
    ----------
    ds : xarray.Dataset
        A path.

    Returns
    -------
    ndarray, shape (level,)
        Indices along ``level``.
    """
    level = ds["level"].values
    by_level = np.argsort(level, kind="stable")
    on_arc = np.flatnonzero(ds["method"].values == "arclength") if "method" in ds else by_level[:0]
    if not len(on_arc):
        return by_level
    # What was reached before the first fold lies in order; it folds at one end of that.
    order = [int(i) for i in by_level if i < on_arc[0]]
    if not order:  # all before the fold was cut away
        return np.arange(len(level))
    upward = abs(level[on_arc[0]] - level[order[-1]]) < abs(level[on_arc[0]] - level[order[0]])
    if not upward:
        order.reverse()
    for i in range(on_arc[0], len(level)):
        away = {j: _apart(level[i], level[j]) for j in (order[0], order[-1])}
        if i in on_arc or away[order[-1]] <= away[order[0]]:
            order.append(i)
        else:
            order.insert(0, i)
    return np.array(order if upward else order[::-1])


def _apart(one: float, other: float) -> float:
    """How far two levels are apart in log c; of two signs, infinitely."""
    return abs(math.log(one / other)) if one / other > 0 else math.inf


def attributes(
    flow: RegularizingFlow,
    *,
    degrees: float,
    config: Mapping[str, Any],
    cost_of_r: bool,
) -> dict[str, Any]:
    """Global attributes of a path, all but its status: those of a walk, but its solver's, and more.

    ``cost_of_r`` says whether its points have what the problems of R cost.

    Raises
    ------
    InputError
        Something that no file could hold.
    """
    of_walk = dataset.attributes(flow, solver="", rtol=0.0, atol=0.0, config=config)
    of_walk = {n: v for n, v in of_walk.items() if n not in path_schema.OF_SOLVER}
    own = {
        path_schema.PATH: path_schema.WITH_COST_OF_R if cost_of_r else path_schema.VERSION,
        "kind": path_schema.KIND,
        "history": f"followed by geoflow {version('geoflow')}",
        "degrees": degrees,
    }
    if "title" not in config["provenance"]:
        own["title"] = "Regularisation path along the level of the training loss"
    return of_walk | own
