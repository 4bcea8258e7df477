"""The point of a regularisation path to use: the best by what it was validated by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
import xarray as xr

from geoflow.errors import InputError
from geoflow.system import kinds
from geoflow.trajectories import path_dataset, path_schema


@dataclass(frozen=True)
class BestPoint:
    """The best point of a path, and those that are as good within the error of judging them.

    Attributes
    ----------
    point : int
        Its index along ``level``, as :func:`geoflow.load_into` takes it.
    level, penalty : float
        c and 1/λ there.
    value : float
        Of the observable there.
    standard_error : float
        Of that value, in its units; NaN where none is given.
    levels : tuple of float
        Least and greatest level of the points around it, without a gap, whose value is within one
        standard error of the best.
    simplest : int
        Of those points the one of the greatest penalty: the choice of the one-standard-error rule
        (Breiman, Friedman, Olshen & Stone 1984, Classification and regression trees, 3.4.3).
    """

    point: int
    level: float
    penalty: float
    value: float
    standard_error: float
    levels: tuple[float, float]
    simplest: int


def best_on_path(
    ds: xr.Dataset, by: str = "validation_loss", standard_error: float | str | None = None
) -> BestPoint:
    """Return the point of a path that does best, and how far along the path others do as well.

    Parameters
    ----------
    ds : xarray.Dataset
        A path, with observables.
    by : str
        An observable: a loss, of which the least counts, or an accuracy, of which the greatest
        does, by the end of its name. It should be of examples that are neither trained on nor
        reported: ``test_loss`` chooses on the set it is then judged by.
    standard_error : float or str, optional
        Of the observable at the best point, over the examples that it is a mean of: s/√n, with s
        the standard deviation of their n losses. A number, or the name of an observable that was
        recorded for it. None: points as good as the best are those that equal it.

    Raises
    ------
    InputError
        No such observable, no value of it, or a standard error that is negative.
    """
    kinds.check_dataset(ds, give=kinds.A_PATH)
    kinds.check_kind(by, str, "by", "the name of an observable")
    kinds.check_kind(standard_error, Real | str | None, "standard_error", "a number or a name")
    values = _observable(ds, by)
    if not by.endswith(("_loss", "_accuracy")):
        raise InputError(f"by={by!r}: name an observable that ends in _loss or _accuracy")
    worse = values if by.endswith("_loss") else -values
    if not np.isfinite(worse).any():
        raise InputError(f"by={by!r}: it has no finite value on this path")
    point = int(np.nanargmin(worse))
    error = math.nan
    if standard_error is not None:
        if isinstance(standard_error, str):
            error = float(_observable(ds, standard_error)[point])
        else:
            error = float(standard_error)
        if not error >= 0:
            raise InputError(f"standard_error={standard_error!r} is {error}; use zero or more")
    allowed = worse[point] + (error if error == error else 0.0)
    # Along the path, whatever the order in which the points were reached.
    order = path_dataset.order_along(ds)
    place = int(np.flatnonzero(order == point)[0])
    good = worse[order] <= allowed
    first = last = place
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(order) and good[last + 1]:
        last += 1
    inside = order[first : last + 1]
    level, penalty = ds["level"].values, ds["penalty"].values
    return BestPoint(
        point=point,
        level=float(level[point]),
        penalty=float(penalty[point]),
        value=float(values[point]),
        standard_error=error,
        levels=(float(level[inside].min()), float(level[inside].max())),
        simplest=int(inside[np.argmax(penalty[inside])]),
    )


def _observable(ds: xr.Dataset, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    there = [str(n) for n in ds.data_vars if path_schema.is_observable(str(n))]
    if not path_schema.is_path(ds):
        raise InputError("ds is no regularisation path; give what gf.regularization_path returned")
    if name not in there:
        raise InputError(
            f"{name!r} is no observable of this path, which has {', '.join(there) or 'none'}; "
            "follow it with observables={…}"
        )
    return np.asarray(ds[name].values, dtype=np.float64)
