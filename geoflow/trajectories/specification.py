"""What a schema says of variables and attributes, and what in a dataset is not as it says.

Walks and paths are checked alike; what is to be there, their schemas list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr


class VariableSpec(NamedTuple):
    """What a schema says of one variable.

    ``dtype`` is NumPy's code for it: ``f8``, ``i8``, ``U`` for text, ``f`` for any float.
    """

    dtype: str
    dims: tuple[str, ...]
    units: str
    long_name: str


def type_defects(attributes: Mapping[str, Any], wanted: Mapping[str, type]) -> list[str]:
    """Say which attributes are missing or of another type, one line each."""
    found = []
    kinds: dict[type, tuple[type, ...]] = {
        str: (str,),
        int: (int, np.integer),
        float: (float, np.floating),
    }
    for name, kind in wanted.items():
        if name not in attributes:
            found.append(f"attribute {name} is missing")
        elif not isinstance(attributes[name], kinds[kind]) or isinstance(attributes[name], bool):
            found.append(f"attribute {name} is not of type {kind.__name__}")
    try:
        config = json.loads(attributes.get("config", "{}"))
    except (ValueError, TypeError, RecursionError):
        config = None
    if not isinstance(config, dict):
        found.append("attribute config is not a JSON object")
    return found


def variable_defects(
    ds: xr.Dataset, known: Mapping[str, VariableSpec], observable: VariableSpec
) -> list[str]:
    """Say which variables are not as they are known, one line each; others are observables."""
    found = []
    observables = {str(n): observable for n in ds.variables if str(n) not in known}
    for name, spec in (dict(known) | observables).items():
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
        if units != spec.units and not (spec is observable and isinstance(units, str)):
            found.append(f"variable {shown} has units {str(units)[:40]!r}")
        if not isinstance(long_name := variable.attrs.get("long_name"), str) or not long_name:
            found.append(f"variable {shown} has no long_name")
    return found


def layout_defects(ds: xr.Dataset) -> list[str]:
    """Say where the tensors of a walk or a path do not fill θ, one line each."""
    found, end = [], 0
    offsets = ds["tensor_offset"].values
    for i, text in enumerate(ds["tensor_shape"].values):
        try:
            shape = json.loads(text)
        except (ValueError, TypeError, RecursionError):
            shape = None
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            return [f"tensor_shape of tensor {i} is not a JSON list of lengths"]
        if int(offsets[i]) != end:
            found.append(f"tensor_offset of tensor {i} is not where the one before ends")
        end += math.prod(shape)
    if end != ds.sizes["parameter"]:
        found.append(f"the tensors hold {end} parameters, theta {ds.sizes['parameter']}")
    elif not end:
        found.append("theta has no parameter")
    return found
