"""Several walks as one dataset with a ``run`` dimension, resampled onto a common axis."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.archive.trajectory_files import open_trajectory
from geoflow.errors import ArchiveError, InputError
from geoflow.system import kinds
from geoflow.system.memory import check_memory
from geoflow.system.translation import reading
from geoflow.trajectories.given import NAMING, check_walk
from geoflow.trajectories.names import listed, the_walk, walk_name

Floats = NDArray[np.float64]

ALONG = ("time", "angle")
# Points of an axis, its ends.
FEWEST = 2
# What is said of an ensemble where all its walks have it.
SETTINGS = ("solver", "rtol", "atol", "regularizer_name", "dtype")
# In units of R: what walks down different functions have of it is not on one axis.
OF_R = ("regularizer", "multiplier", "tangent_norm")
# What is known of each run, beside what its walk recorded.
OF_RUN = {
    "theta_start": "parameters at the start, flat",
    "theta_end": "parameters at the end, flat",
    "level": "loss the walk keeps",
    "status": "how the walk ended",
}
PATTERN = "seed-*.nc"
# Walks that a message names.
NAMED = 5


def open_sweep(folder: str | Path, along: str = "time", n: int = 200) -> xr.Dataset:
    """Open the finished walks of a sweep as one dataset.

    A walk without a range of the axis, as one that made no step, is left out where others have
    one, with a warning that names it.

    Parameters
    ----------
    folder : str or Path
        Where :func:`geoflow.sweep` wrote them.
    along, n
        See :func:`resample`.

    Raises
    ------
    ArchiveError
        No walk there, or a file that is none.
    InputError
        See :func:`resample`.
    """
    folder = kinds.as_path(folder, "folder")
    with reading(folder, "a folder that can be read"):
        paths = sorted(folder.glob(PATTERN))
    if not paths:
        raise ArchiveError(f"{folder} has no walk ({PATTERN}); name the folder of a sweep")
    runs = [open_trajectory(path) for path in paths]
    try:
        kinds.check_choice(along, ALONG, "along")
        n = kinds.as_whole(n, "n", FEWEST)
        seeds = [int(ds.attrs["seed"]) for ds in runs]
        called = [
            walk_name(seed) if seed >= 0 else path.name
            for seed, path in zip(seeds, paths, strict=True)
        ]
        there, without = with_range(runs, along, called)
        names = {id(ds): name for ds, name in zip(runs, called, strict=True)}
        if there and without:
            left_out = listed([names[id(ds)] for ds in without], NAMED)
            warnings.warn(
                f"{folder}: left out for want of a range of {along} is {the_walk(left_out)}",
                stacklevel=2,
            )
        kept = there or runs
        return on_axis(kept, [names[id(ds)] for ds in kept], along, n)
    finally:
        for run in runs:
            run.close()


def with_range(
    runs: Sequence[xr.Dataset], along: str = "time", called: Sequence[str] | None = None
) -> tuple[list[xr.Dataset], list[xr.Dataset]]:
    """Walks with a range of the axis, and those with a single value, as of a walk of no step.

    Parameters
    ----------
    runs, along
        See :func:`resample`.
    called : sequence of str, optional
        See :func:`on_axis`.

    Raises
    ------
    InputError
        An argument of another kind; no walks, or walks of different experiments or settings of θ.
    """
    kinds.check_choice(along, ALONG, "along")
    _check(runs, called)
    there: list[xr.Dataset] = []
    without: list[xr.Dataset] = []
    for ds in runs:
        at, _ = _passage(_in_order(ds), along)
        (there if len(at) > 1 else without).append(ds)
    return there, without


def resample(runs: Sequence[xr.Dataset], along: str = "time", n: int = 200) -> xr.Dataset:
    """Put walks with different steps onto one axis, by linear interpolation.

    The axis covers what every walk has reached and no more: nothing is padded or extrapolated.

    Parameters
    ----------
    runs : sequence of Dataset
        Trajectories of one experiment, each with snapshots.
    along : str
        ``"time"``: flow time, up to the end of the shortest walk. ``"angle"``: the moment at
        which each walk first comes to an angle, from the greatest first angle to the smallest
        greatest one. Angles need not rise steadily; first passages do.
    n : int
        Points of the axis.

    Returns
    -------
    xarray.Dataset
        Dimensions ``run`` (its coordinate is the seed), ``along`` and ``parameter``. The scalars
        and observables of the trajectories by run and axis, whatever their flow records;
        ``theta_start`` and ``theta_end``, ``level`` and ``status`` by run. Attributes that
        the walks differ in are listed, and numbers left out. So are ``regularizer``, ``multiplier``
        and ``tangent_norm`` where R is another function for some: their θ, angles and observables
        can be compared, their R cannot.

    Raises
    ------
    InputError
        No walks, walks of different experiments or settings of θ, or without a common range; or
        without an angle, ``along`` it.
    """
    return on_axis(runs, None, along, n)


def on_axis(
    runs: Sequence[xr.Dataset], called: Sequence[str] | None, along: str = "time", n: int = 200
) -> xr.Dataset:
    """Put walks onto one axis as :func:`resample` does, under names that messages have for them.

    Parameters
    ----------
    runs, along, n
        See :func:`resample`.
    called : sequence of str or None
        What each walk is called: ``"seed 3"``, or its place among more walks, or its file. None:
        by its seed, or its place where it has none.

    Raises
    ------
    InputError
        See :func:`resample`.
    """
    kinds.check_choice(along, ALONG, "along")
    n = kinds.as_whole(n, "n", FEWEST)
    called = _check(runs, called)
    runs = [_in_order(ds) for ds in runs]
    # Of each scalar, by run and joined.
    check_memory(
        2 * 8 * n * sum(len(ds.variables) for ds in runs),
        f"n={n}: the points of the axis",
        "use fewer",
    )
    passages = [_passage(ds, along) for ds in runs]
    low = max(float(at[0]) for at, _ in passages)
    high = min(float(at[-1]) for at, _ in passages)
    if not low < high:
        late = [of for of, (at, _) in zip(called, passages, strict=True) if float(at[0]) == low]
        early = [of for of, (at, _) in zip(called, passages, strict=True) if float(at[-1]) == high]
        begins = (
            f"that of {listed(late, NAMED)} begins at {low:.4g}, and "
            if len(late) < len(runs)
            else ""
        )
        raise InputError(
            f"the walks have no range of {along} in common ({low:.4g} to {high:.4g}): {begins}that "
            f"of {listed(early, NAMED)} ends at {high:.4g}; leave that out"
        )
    axis = np.linspace(low, high, n)
    times = np.stack([np.interp(axis, at, time) for at, time in passages])

    one_r = len({ds.attrs["regularizer_name"] for ds in runs}) == 1
    # Of any flow: what it records is by step, and observables are by snapshot.
    names = [
        name
        for name in _numbers(runs, "step")
        if name not in (along, "event") and (one_r or name not in OF_R)
    ]
    observables = [name for name in _numbers(runs, "snapshot") if name in runs[0].data_vars]
    variables: dict[str, tuple[tuple[str, ...], NDArray[np.generic], dict[str, str]]] = {}
    for name in [*names, *observables]:
        at = "time" if name in names else "snapshot_time"
        rows = [
            np.interp(t, ds[at].values, ds[name].values) for t, ds in zip(times, runs, strict=True)
        ]
        variables[name] = (("run", along), np.stack(rows), dict(runs[0][name].attrs))
    for name, index in (("theta_start", 0), ("theta_end", -1)):
        attributes = {"long_name": OF_RUN[name], "units": "1"}
        rows = [ds["theta"].isel(snapshot=index).values for ds in runs]
        variables[name] = (("run", "parameter"), np.stack(rows), attributes)
    for name in ("level", "status"):
        values = np.array([ds.attrs[name] for ds in runs])
        variables[name] = (("run",), values, {"long_name": OF_RUN[name], "units": "1"})
    seeds = [int(ds.attrs["seed"]) for ds in runs]
    coordinates = {
        "run": ("run", seeds, {"long_name": "seed of the run", "units": "1"}),
        along: (along, axis, dict(runs[0][along].attrs)),
    }
    first = runs[0].attrs
    attributes = {
        "title": f"{first['experiment'] or 'walks'}: {len(runs)} walks by {along}",
        "kind": "ensemble",
        "along": along,
        "experiment": first["experiment"],
    }
    for name in SETTINGS:
        there = list(dict.fromkeys(ds.attrs[name] for ds in runs))
        # What is not that of all is not the ensemble's: names are listed, numbers left out.
        if len(there) == 1:
            attributes[name] = there[0]
        elif isinstance(there[0], str):
            attributes[name] = ", ".join(there)
    return xr.Dataset(variables, coordinates, attributes)


def _numbers(runs: Sequence[xr.Dataset], dim: str) -> list[str]:
    """Names of the numbers along a dimension that all walks have."""
    return [
        str(name)
        for name, variable in runs[0].variables.items()
        if variable.dtype.kind in "fiu"
        and all(name in ds and ds[name].dims == (dim,) for ds in runs)
    ]


def _in_order(ds: xr.Dataset) -> xr.Dataset:
    """Return the walk with its snapshots in the order of time, in which it is interpolated."""
    rising = (np.diff(ds["snapshot_time"].values) >= 0).all()
    return ds if rising else ds.sortby("snapshot_time")


def _passage(ds: xr.Dataset, along: str) -> tuple[Floats, Floats]:
    """Values of the axis, increasing, and the flow times at which a walk first has them."""
    time = ds["time"].values
    kept = ds["snapshot_time"].values
    inside = (time >= kept[0]) & (time <= kept[-1])
    time = time[inside]
    if along == "time":
        return time, time
    if "angle" not in ds:
        raise InputError(
            f"along={along!r}: the walks record no angle, as those of a flow of one's own need "
            "not; use along='time'"
        )
    return _first_passages(ds["angle"].values[inside], time)


def _first_passages(angle: Floats, time: Floats) -> tuple[Floats, Floats]:
    """Angles, increasing, and the times at which the line through the steps first has them."""
    highest = np.maximum.accumulate(angle)
    rises = np.flatnonzero(np.diff(highest) > 0)
    # Where the angle fell in between, it passes its record within the step that makes the next.
    part = (highest[rises] - angle[rises]) / (angle[rises + 1] - angle[rises])
    passed = time[rises] + part * (time[rises + 1] - time[rises])
    at = np.concatenate([highest[:1], np.stack([highest[rises], highest[rises + 1]], 1).ravel()])
    when = np.concatenate([time[:1], np.stack([passed, time[rises + 1]], 1).ravel()])
    # A record is first had when it is made, and what is above it once it is passed: two times
    # where it is not passed at once.
    again = np.append(False, np.diff(at) <= 0)
    waits = again & np.append(False, np.diff(when) > 0)
    at = np.where(waits, np.nextafter(at, np.inf), at)
    keep = np.append(True, np.diff(at) > 0)
    return at[keep], when[keep]


def _check(runs: Sequence[xr.Dataset], called: Sequence[str] | None) -> Sequence[str]:
    """Refuse walks that do not belong together; returns what they are called."""
    kinds.check_kind(runs, Sequence, "runs", "a list of walks")
    if not runs:
        raise InputError("runs=[]; give at least one walk")
    for ds in runs:
        check_walk(ds, "theta", "time", "snapshot_time", attributes=(*NAMING, *SETTINGS))
    first = runs[0]
    names = {str(k) for k in first.data_vars}
    if taken := sorted(names & {"run", *OF_RUN}):
        raise InputError(
            f"runs: their observable {taken[0]!r} has the name of what a sweep has itself; give "
            "it another, ds.rename(…)"
        )
    if called is None:
        called = [walk_name(int(ds.attrs["seed"]), number) for number, ds in enumerate(runs)]
    called = kinds.as_names(called, "called")
    if len(called) != len(runs):
        raise InputError(f"called has {len(called)} names for {len(runs)} walks; give as many")
    for ds, name in zip(runs, called, strict=True):
        if not (ds.sizes["snapshot"] and ds.sizes["step"]):
            raise InputError(f"{the_walk(name)} has no snapshot; walk again with some")
        if ds.attrs["experiment"] != first.attrs["experiment"]:
            raise InputError(
                f"walks of {first.attrs['experiment']!r} and {ds.attrs['experiment']!r} "
                "do not belong together; give those of one experiment"
            )
        numbers = [one.sizes["parameter"] for one in (first, ds)]
        if numbers[0] != numbers[1]:
            raise InputError(
                f"walks of {numbers[0]} and {numbers[1]} parameters do not belong together; give "
                "those of one network"
            )
        if {str(k) for k in ds.data_vars} != names:
            raise InputError(f"{the_walk(name)} has other observables than the first")
    return called
