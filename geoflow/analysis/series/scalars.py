"""Scalars of a walk as series with common samples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.analysis.components import pca
from geoflow.errors import InputError
from geoflow.system import kinds
from geoflow.trajectories import dataset as trajectory
from geoflow.trajectories.given import check_walk

Floats = NDArray[np.float64]

CLOCKS = ("time", "arc_length")
# Scalars of one call.
MOST = 10_000


@dataclass(frozen=True)
class Series:
    """K scalars at N common samples.

    Attributes
    ----------
    names, units : list of str
        K of each.
    values : array of float64, shape (N, K)
        The scalars.
    clock : array of float64, shape (N,)
        What they are taken against, increasing.
    time : array of float64, shape (N,)
        Flow time of the samples.
    samples : str
        ``step`` or ``snapshot``.
    """

    names: list[str]
    units: list[str]
    values: Floats
    clock: Floats
    time: Floats
    samples: str


def series(ds: xr.Dataset, scalars: Sequence[str | xr.DataArray], against: str = "time") -> Series:
    """Collect scalars of a walk: at every step, or at the snapshots if one is known there only.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    scalars : sequence of str or DataArray
        Names of scalars of every step or of observables; ``pc1``, ``pc2``, … for the scores of the
        snapshots on their principal components, centred and not standardised
        (:func:`geoflow.analysis.pca.along`); or arrays with the dimension ``snapshot``,
        alone or with a second one such as the components of PCA scores, of which each column then
        is a scalar.
    against : str
        ``time`` or ``arc_length``.

    Raises
    ------
    InputError
        A scalar that is not there, not finite or given twice, or samples that cannot be used.
    """
    kinds.check_dataset(ds, "step", "time")
    give = "names in a list, such as ['angle']"
    one = isinstance(scalars, str)
    scalars = [str(scalars)] if one else kinds.listed(scalars, "scalars", give, MOST)
    kinds.check_choice(against, CLOCKS, "against")
    check_walk(ds, "time", against)
    found = [column for scalar in _with_scores(ds, scalars) for column in _columns(ds, scalar)]
    if not found:
        raise InputError("scalars: none is given; name one, such as angle")
    names = [str(column.name) for column in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"scalars: {twice[0]!r} is given twice; give it once")
    at_snapshots = any(column.dims == ("snapshot",) for column in found)
    samples = "snapshot" if at_snapshots else "step"

    def sampled(column: xr.DataArray) -> Floats:
        if column.dims == (samples,):
            return kinds.as_numbers(column.values, str(column.name))
        return trajectory.at_snapshots(ds, str(column.name))

    values = np.stack([sampled(column) for column in found], axis=1)
    clock = sampled(ds[against])
    if not np.isfinite(values).all():
        bad = names[int((~np.isfinite(values)).any(axis=0).argmax())]
        raise InputError(f"{bad} has non-finite values; leave it out")
    if not (np.diff(clock) > 0).all():
        raise InputError(f"{against} does not increase at every {samples}; choose another clock")
    return Series(
        names,
        [str(column.attrs.get("units", "1")) for column in found],
        values,
        clock,
        sampled(ds["time"]),
        samples,
    )


def _with_scores(ds: xr.Dataset, scalars: Sequence[str | xr.DataArray]) -> list[str | xr.DataArray]:
    """Put the walk's own PCA scores in the place of the names pc1, pc2, …."""

    def component(scalar: str | xr.DataArray) -> int:
        named = isinstance(scalar, str) and re.fullmatch(r"pc([1-9][0-9]{0,8})", scalar)
        return int(named[1]) if named else 0

    asked = max(map(component, scalars), default=0)
    if not asked:
        return list(scalars)
    scores = pca.along(ds, asked)["scores"].values
    return [
        xr.DataArray(
            scores[:, k - 1],
            dims="snapshot",
            name=f"pc{k}",
            attrs={"long_name": f"score on principal component {k}", "units": "1"},
        )
        if (k := component(scalar))
        else scalar
        for scalar in scalars
    ]


def _columns(ds: xr.Dataset, scalar: str | xr.DataArray) -> list[xr.DataArray]:
    if isinstance(scalar, xr.DataArray):
        array = scalar
        if "snapshot" not in array.dims or array.ndim > 2:
            raise InputError(
                f"scalars: an array has the dimensions {array.dims}; give (snapshot,) or "
                "(snapshot, component)"
            )
        if array.sizes["snapshot"] != ds.sizes["snapshot"]:
            raise InputError(
                f"scalars: an array has {array.sizes['snapshot']} snapshots and ds "
                f"{ds.sizes['snapshot']}; give scores of this walk"
            )
        if array.ndim == 1:
            return [array.rename(array.name or "array")]
        array = array.transpose("snapshot", ...)
        other = array.dims[1]
        labels = array[other].values if other in array.coords else range(1, array.shape[1] + 1)
        stem = array.name or "array"
        return [array[:, k].rename(f"{stem} {label}") for k, label in enumerate(labels)]
    there = [n for n in ds.variables if ds[n].dims in (("step",), ("snapshot",)) and n != "time"]
    there = [n for n in there if not str(n).startswith("snapshot_")]
    if not isinstance(scalar, str) or scalar not in there:
        names = ", ".join(sorted(map(str, there)))
        raise InputError(f"{kinds.shown(scalar)} is not a scalar of this walk; choose from {names}")
    return [ds[scalar]]
