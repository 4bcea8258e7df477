"""Principal components of the points of walks, through their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.analysis.components import null_models as nulls
from geoflow.analysis.components.brownian import check_cost, check_simulations
from geoflow.analysis.components.path_components import (
    check_steps,
    cosine_content,
    participation_ratio,
)
from geoflow.analysis.components.principal import KIND, PCA, USUAL, fit
from geoflow.archive.trajectory_files import open_trajectory
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.system import kinds
from geoflow.trajectories.dataset import at_snapshots
from geoflow.trajectories.given import check_placed, check_walk, theta_of
from geoflow.trajectories.names import the_walk, walk_called, walk_name

Floats = NDArray[np.float64]

PLANES = (2, 3)
SHARES = (0.9, 0.99, 0.999)
TENSOR_COORDINATES = ("tensor_name", "tensor_offset", "tensor_shape")
POINT_COORDINATES = {
    "walk_index": ("walk, counted from 0", "1"),
    "seed": ("seed of the walk", "1"),
    "snapshot_time": ("flow time", "1"),
    "snapshot_step": ("step of the walk", "1"),
    "arc_length": ("arc length in parameter space", "1"),
}
# Seeds that a title names.
MOST_NAMED = 10
# What a null model's variable is called beside the walks' own.
NULL = "null_"


def along(
    datasets: xr.Dataset | str | Path | Sequence[xr.Dataset | str | Path],
    n_components: int | None = None,
    *,
    standardise: bool = False,
    null_models: bool = False,
    n_simulations: int = 999,
    seed: int = 0,
    progress: bool = False,
) -> xr.Dataset:
    """Principal components of all snapshots of one walk, or of several together.

    θ is never read whole: files may be larger than memory.

    Parameters
    ----------
    datasets : Dataset, path, or a sequence of either
        Trajectories of networks of one shape, in schema 1.0 to 1.2.
    n_components, standardise, progress
        See :func:`~geoflow.analysis.fit_pca`.
    null_models : bool
        Set null models beside each walk, by :func:`geoflow.analysis.null_models.compare`: its
        variables, with the prefix ``null_``. A pass over the points more. Not for standardised
        points: a random walk that is standardised is no random walk with independent, isotropic
        steps, which is what the simulations are.
    n_simulations, seed : int
        Of the Brownian paths.

    Returns
    -------
    xarray.Dataset
        Dimensions ``component``, ``parameter``, ``point`` (the snapshots of all walks, one walk
        after the other), ``walk``, ``plane`` and ``share``; ``kind`` is ``"pca"``.

        - ``components``, ``mean``, ``scale``, ``explained_variance``,
          ``explained_variance_ratio``: those of :class:`~geoflow.analysis.PCA`;
        - ``scores``: of every point, with its ``walk_index``, ``seed``, ``snapshot_time``,
          ``snapshot_step`` and ``arc_length``;
        - ``off_plane_distance``: of every point from the plane of the first 2 and 3 components;
        - ``cosine_content``: of each score, by walk, centred on that walk
          (:func:`~geoflow.analysis.components.path_components.cosine_content`);
        - ``participation_ratio`` of all components, and ``n_directions``, how many it takes for
          90, 99 and 99.9% of the variance;
        - ``variance_floor``: the explained variance that rounding alone may make, of the Gram
          matrix and of θ as it is stored. Below it a component says nothing.

    Raises
    ------
    InputError
        See :func:`~geoflow.analysis.fit_pca`; no walk, or walks of different networks.
    ArchiveError
        A path that is not a trajectory.
    """
    if n_components is not None:
        n_components = kinds.as_whole(n_components, "n_components")
    kinds.check_switch(standardise, "standardise")
    kinds.check_switch(null_models, "null_models")
    kinds.check_switch(progress, "progress")
    give = f"{kinds.A_WALK}, or several of them"
    kinds.check_kind(datasets, xr.Dataset | str | Path | Iterable, "datasets", give)
    one = isinstance(datasets, xr.Dataset | str | Path)
    several: Sequence[Any] = [datasets] if one else kinds.listed(datasets, "datasets", give)
    if null_models and standardise:
        raise InputError(
            "null_models=True with standardise=True: a standardised random walk has no isotropic "
            "steps; leave one of the two out"
        )
    if null_models:
        # Before the points are read, which may take minutes.
        seed = check_seed(seed)
        check_simulations(n_simulations, seed)
    with ExitStack() as stack:
        for one in several:
            kinds.check_kind(one, xr.Dataset | str | Path, "datasets", give)
        walks = [
            ds if isinstance(ds, xr.Dataset) else stack.enter_context(open_trajectory(ds))
            for ds in several
        ]
        _check_walks(walks)
        if null_models:
            _check_null_models(walks, n_components, n_simulations)
        points = [theta_of(ds) for ds in walks]
        fitted, scores, floor = fit(points, n_components, standardise, progress)
        found = _dataset(walks, fitted, scores, floor, standardise)
        if null_models:
            beside = [
                nulls.compare(
                    theta_of(ds),
                    ds["snapshot_time"].values,
                    n_components=min(len(fitted.components), ds.sizes["snapshot"] - 1),
                    n_simulations=n_simulations,
                    seed=seed,
                )
                for ds in walks
            ]
            found = found.merge(_prefixed(beside)).assign_attrs(
                seed=seed, n_simulations=n_simulations
            )
        return found


def null_models_of(ds: xr.Dataset, walk: int = 0) -> xr.Dataset:
    """Take one walk's null models out of a dataset of :func:`along`, as ``compare`` gave them.

    Raises
    ------
    InputError
        There are none, or no such walk.
    """
    kinds.check_dataset(ds, give="what pca.along(…, null_models=True) returned")
    walk = kinds.as_whole(walk, "walk")
    names = {str(n): str(n).removeprefix(NULL) for n in ds.data_vars if str(n).startswith(NULL)}
    if names:
        dims = ("walk", "model", "point", "component")
        ds = kinds.as_made(ds, dims, "principal components").sortby("component")
    there = bool(names) and 0 <= walk < ds.sizes["walk"]
    # By its number among all: some may have been cut away.
    its = ds["walk_index"].values == ds["walk"].values[walk] if there else np.zeros(0, bool)
    if not names:
        raise InputError(f"ds holds no null models of walk {walk}; make it with null_models=True")
    if not its.any():
        having = np.flatnonzero(np.isin(ds["walk"].values, ds["walk_index"].values)).tolist()
        use = f"use walk={having[0]}" if having else "keep the points and the numbers of walks"
        raise InputError(f"walk={walk}: ds holds no points of it; {use}")
    own = ds[list(names)].isel(walk=walk, point=its)
    # A walk of few points has fewer components than the longest, and NaN beyond its own.
    own = own.isel(component=own["component"].values < own.sizes["point"])
    seed = int(own["walk_seed"])
    own = own.rename(names | {"snapshot_time": "time"})
    own = own.drop_vars(["walk", "walk_seed", *POINT_COORDINATES], errors="ignore")
    seeds = [int(s) for s in ds["walk_seed"].values]
    # A single walk without a seed needs no name.
    called = f", {walk_called(seeds, walk)}" if seeds[1:] or seed >= 0 else ""
    title = f"Principal components beside null models: {ds.attrs['experiment'] or 'walk'}{called}"
    return own.assign_attrs(kind=nulls.KIND, title=title, walk_seed=seed)


def _dataset(
    walks: Sequence[xr.Dataset], fitted: PCA, scores: Floats, floor: float, standardise: bool
) -> xr.Dataset:
    n, k = len(scores), len(fitted.components)
    lengths = [ds.sizes["snapshot"] for ds in walks]
    seeds = [int(ds.attrs["seed"]) for ds in walks]
    units = "standard deviations" if standardise else "1"
    squares = scores**2
    eigenvalues = squares.sum(axis=0)
    cumulated = np.cumsum(eigenvalues) / eigenvalues.sum()
    beyond = [np.sqrt(squares[:, plane:].sum(axis=1)) for plane in PLANES]
    ends = np.cumsum([0, *lengths])
    content = np.stack([_content(scores[a:b, :k]) for a, b in pairwise(ends)])

    def described(dims: str, values: Any, long_name: str, units: str = "1") -> tuple[Any, ...]:
        return tuple(dims.split()), values, {"long_name": long_name, "units": units}

    at = {
        "walk_index": np.repeat(np.arange(len(walks)), lengths),
        "seed": np.repeat(seeds, lengths),
        "snapshot_time": np.concatenate([ds["snapshot_time"].values for ds in walks]),
        "snapshot_step": np.concatenate([ds["snapshot_step"].values for ds in walks]),
        "arc_length": np.concatenate([at_snapshots(ds, "arc_length") for ds in walks]),
    }
    coordinates = {
        "component": described("component", np.arange(1, k + 1), "principal component"),
        "walk": described("walk", np.arange(len(walks)), "walk, counted from 0"),
        "walk_seed": described("walk", seeds, "seed of the walk"),
        "plane": described("plane", list(PLANES), "components that span the plane"),
        "share": described("share", list(SHARES), "share of the variance"),
    } | {name: described("point", at[name], *text) for name, text in POINT_COORDINATES.items()}
    layout = walks[0]
    coordinates |= {
        n: (("tensor",), layout[n].values, dict(layout[n].attrs)) for n in TENSOR_COORDINATES
    }
    first = walks[0].attrs
    return xr.Dataset(
        {
            "components": described("component parameter", fitted.components, "components"),
            "mean": described("parameter", fitted.mean, "mean of the points"),
            "scale": described("parameter", fitted.scale, "what a parameter is divided by"),
            "scores": described(
                "point component", scores[:, :k], "coordinate along the component", units
            ),
            "explained_variance": described(
                "component", fitted.explained_variance, "variance along the component"
            ),
            "explained_variance_ratio": described(
                "component", fitted.explained_variance_ratio, "part of the variance explained"
            ),
            "off_plane_distance": described(
                "plane point", np.stack(beyond), "distance from the plane", units
            ),
            "cosine_content": described(
                "walk component", content, "cosine content of the walk's score"
            ),
            "participation_ratio": described(
                "",
                participation_ratio(eigenvalues[None])[0],
                "participation ratio of the principal components",
            ),
            "n_directions": described(
                "share",
                np.minimum(np.searchsorted(cumulated, SHARES) + 1, len(eigenvalues)),
                "components it takes for the share of the variance",
            ),
            "variance_floor": described(
                "", floor, "explained variance that rounding alone may make"
            ),
        },
        coordinates,
        {
            "title": f"Principal components of {n} points: {_names(first, seeds)}",
            "kind": KIND,
            "experiment": first["experiment"],
            "walk_seed": seeds[0] if len(seeds) == 1 else seeds,
            "scaling": "standard deviation" if standardise else "none",
            "geoflow_version": version("geoflow"),
        },
    )


def _content(scores: Floats) -> Floats:
    """Cosine content by component, NaN where a walk has too few points for it."""
    k = min(scores.shape[1], len(scores) - 1)
    content = np.full(scores.shape[1], np.nan)
    if k > 0:
        centred = scores[:, :k] - scores[:, :k].mean(axis=0)
        content[:k] = cosine_content(centred)
    return content


def _prefixed(beside: Sequence[xr.Dataset]) -> xr.Dataset:
    """Null models of several walks, by walk and by point."""
    parts = [
        xr.concat([ds.drop_vars(["scores", "time"]) for ds in beside], "walk", join="outer"),
        xr.concat([ds[["scores"]].drop_vars("time") for ds in beside], "point", join="outer"),
    ]
    whole = xr.merge(parts, combine_attrs="override")
    named = {str(name): NULL + str(name) for name in whole.data_vars}
    return whole.rename(named).drop_vars("walk", errors="ignore")


def _check_walks(walks: Sequence[xr.Dataset]) -> None:
    if not walks:
        raise InputError("datasets=[]; give at least one walk")
    for ds in walks:
        check_walk(ds, "theta", "arc_length", *TENSOR_COORDINATES)
        check_placed(ds)
    shapes = {tuple(map(str, ds["tensor_shape"].values)) for ds in walks}
    if len(shapes) > 1:
        raise InputError("the walks are of networks of different shapes; give those of one")


def _check_null_models(
    walks: Sequence[xr.Dataset], n_components: int | None, n_simulations: int
) -> None:
    """Refuse walks too short or too long for null models, before the points of any are read."""
    for number, ds in enumerate(walks):
        n = ds.sizes["snapshot"]
        if n >= 3:
            check_steps(theta_of(ds))
            components = USUAL if n_components is None else n_components
            check_cost(n, n_simulations, max(1, min(components, n - 1)))
        if 1 <= n < 3:
            plural = "s" if n > 1 else ""
            raise InputError(
                f"null_models=True: {the_walk(walk_name(int(ds.attrs['seed']), number))} has {n} "
                f"snapshot{plural}, and it takes three; walk again with more, or leave it out"
            )


def _names(attributes: Any, seeds: Sequence[int]) -> str:
    experiment = attributes["experiment"] or "walk"
    given = [str(s) for s in seeds if s >= 0]
    plural = "s" if len(given) > 1 else ""
    if len(seeds) > MOST_NAMED:
        return f"{experiment}, {len(seeds)} walks"
    return f"{experiment}, seed{plural} {', '.join(given)}" if given else str(experiment)
