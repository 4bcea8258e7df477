"""Where the parameter tensors lie in θ: as problems have it, and as files do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import xarray as xr

from geoflow.problems.protocol import ProblemLike


def layout_of(problem: ProblemLike) -> list[list[Any]]:
    """Name and shape of each parameter tensor, as JSON has them."""
    return [[tensor.name, list(tensor.shape)] for tensor in problem.tensors]


def layout_in(ds: xr.Dataset) -> list[list[Any]]:
    """The same of the tensors of a walk or a path.

    Parameters
    ----------
    ds : xarray.Dataset
        With ``tensor_name`` and ``tensor_shape``, each along ``tensor``.

    Returns
    -------
    list of [str, list of int]
        Name and shape of each, in the order in which they lie in θ.
    """
    pairs = zip(ds["tensor_name"].values, ds["tensor_shape"].values, strict=True)
    return [[str(name), json.loads(shape)] for name, shape in pairs]


def layout_variables(problem: ProblemLike) -> dict[str, Any]:
    """The variables that a walk and a path have of it, each along ``tensor``."""
    layout = layout_of(problem)
    return {
        "tensor_name": np.array([name for name, _ in layout], dtype=object),
        "tensor_offset": np.array([t.offset for t in problem.tensors], dtype=np.int64),
        "tensor_shape": np.array([json.dumps(shape) for _, shape in layout], dtype=object),
    }
