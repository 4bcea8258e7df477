"""Whether two trajectories agree: variable by variable, exactly or to a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from geoflow.errors import InputError
from geoflow.problems.scaling import power_of_two
from geoflow.system import kinds

# Clocks: two walks of the same settings differ in them and in nothing else.
NOT_COMPARED = ("wall_time",)
ATTRIBUTES_NOT_COMPARED = ("created",)


@dataclass(frozen=True)
class Difference:
    """How a variable or an attribute of one trajectory compares with that of another.

    Attributes
    ----------
    name : str
        Of the variable, or ``attribute NAME``.
    agrees : bool
        Whether the two agree to the tolerance.
    text : str
        ``identical``, ``not compared``, or what differs.
    largest : float
        Largest absolute difference; NaN where there is none to be taken.
    """

    name: str
    agrees: bool
    text: str
    largest: float = math.nan


def diff(a: xr.Dataset, b: xr.Dataset, *, rtol: float = 0.0, atol: float = 0.0) -> list[Difference]:
    """Compare two trajectories, or two paths; ``wall_time`` and ``created`` are left out.

    Parameters
    ----------
    a, b : xarray.Dataset
        In schema 1.0 to 1.2, or that of paths. θ is read one snapshot at a time.
    rtol, atol : float
        Values x and y agree where their distance is at most ``atol`` + ``rtol``·max(‖x‖, ‖y‖):
        two numbers, or θ as a whole at one snapshot. NaN agrees with NaN.

    Returns
    -------
    list of Difference
        One for each variable of either, then one for each attribute that differs.

    Raises
    ------
    InputError
        A tolerance that is no number, negative or not finite.
    """
    for name, given in (("a", a), ("b", b)):
        kinds.check_dataset(given, name=name)
    rtol, atol = kinds.as_number(rtol, "rtol"), kinds.as_number(atol, "atol")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}={value}; use zero or a positive number")
    names = [*a.variables, *(name for name in b.variables if name not in a.variables)]
    found = [_variable(str(name), a, b, rtol, atol) for name in names]
    for name in dict.fromkeys([*a.attrs, *b.attrs]):
        x, y = a.attrs.get(name), b.attrs.get(name)
        if name not in ATTRIBUTES_NOT_COMPARED and not _same_attribute(x, y):
            found.append(Difference(f"attribute {name}", False, f"{_said(x)} against {_said(y)}"))
    return found


def _variable(name: str, a: xr.Dataset, b: xr.Dataset, rtol: float, atol: float) -> Difference:
    if name in NOT_COMPARED:
        return Difference(name, True, "not compared")
    for which, ds in (("first", a), ("second", b)):
        if name not in ds.variables:
            return Difference(name, False, f"the {which} has none")
    x, y = a.variables[name], b.variables[name]
    if x.shape != y.shape:
        return Difference(name, False, f"shape {x.shape} against {y.shape}")
    if {x.dtype.kind, y.dtype.kind} - set("fi"):
        differ = np.flatnonzero(np.asarray(x.values != y.values))
        text = f"differs{_place(x, differ[0])}" if differ.size else "identical"
        return Difference(name, not differ.size, text)
    if x.ndim > 1:
        norms = [_norms(x[i].values, y[i].values) for i in range(x.shape[0])]
        apart, size = np.array(norms).reshape(-1, 2).T
    else:
        apart, size = _apart(x.values, y.values), np.maximum(np.abs(x.values), np.abs(y.values))
    differing = np.flatnonzero(apart > 0)
    if not differing.size:
        return Difference(name, True, "identical", 0.0)
    with np.errstate(over="ignore"):
        tolerance = atol + rtol * np.nan_to_num(size)
    beyond = np.flatnonzero((apart > tolerance) | np.isinf(apart))
    first, verb = (beyond[0], "differs by") if beyond.size else (differing[0], "agrees to")
    largest = float(apart.max())
    place = _place(x, first)
    text = f"{verb} {largest:.3g}{place and ',' + place}"
    return Difference(name, not beyond.size, text, largest)


def _place(variable: xr.Variable, index: int) -> str:
    """Where along its first dimension; a single value has none."""
    return f" first at {variable.dims[0]} {index}" if variable.dims else ""


def _norms(u: Any, v: Any) -> tuple[float, float]:
    """Distance of two arrays, 0 only where they are identical, and the greater of their norms."""
    u, v = u.astype(np.float64), v.astype(np.float64)
    # What is NaN or infinite in both agrees, and has no part in the sizes.
    there = ~(np.isnan(u) & np.isnan(v)) & ~(np.isinf(u) & (u == v))
    return _length(_apart(u, v)), max(_length(u[there]), _length(v[there]))


def _length(x: Any) -> float:
    """Norm of entries whose squares may leave a float; NaN where one is."""
    scale = power_of_two(float(np.abs(x).max(initial=0.0)))
    return float(np.linalg.norm(x * scale)) / scale


def _apart(u: Any, v: Any) -> Any:
    """Absolute differences: 0 where both are NaN, infinite where one is."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(u - v)
    same = (u == v) | (np.isnan(u) & np.isnan(v))
    return np.where(same, 0.0, np.nan_to_num(apart, nan=np.inf, posinf=np.inf))


def _same_attribute(x: Any, y: Any) -> bool:
    if x is None or y is None:
        return x is y
    u, v = np.atleast_1d(np.asarray(x)), np.atleast_1d(np.asarray(y))
    if {u.dtype.kind, v.dtype.kind} <= set("fiu"):
        # By value: from a file, numbers are NumPy's, and a list of one is that one.
        return np.array_equal(u, v, equal_nan=True)
    return type(x) is type(y) and np.array_equal(u, v)


def _said(value: object) -> str:
    """An attribute as a file has it, where numbers are NumPy's."""
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    return "nothing" if plain is None else kinds.shown(plain)
