"""Principal components as they are drawn: checked, in their order, one walk after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr

from geoflow.analysis.components.null_models import KIND as NULL_KIND
from geoflow.analysis.components.null_models import MODELS
from geoflow.analysis.components.principal import KIND
from geoflow.errors import InputError
from geoflow.system import kinds

COMPONENTS = "principal components"
MAKERS = {KIND: "pca.along or geoflow pca", NULL_KIND: "null_models.compare"}


def checked(ds: xr.Dataset, *components: int, kind: str = KIND) -> xr.Dataset:
    """The dataset in the order of the analysis, with those walks only of which it has points.

    Parameters
    ----------
    ds : xarray.Dataset
        Transposed or cut, perhaps.
    *components : int
        Numbers of those that are drawn, from 1 on.
    kind : str
        Of the dataset: principal components, or null models of them.

    Returns
    -------
    xarray.Dataset

    Raises
    ------
    InputError
        It is of another kind, or lacks one of these components.
    """
    ds = check_kind(ds, kind)
    dims = ("walk" if kind == KIND else "model", "point", "component")
    ds = kinds.as_made(ds, dims, COMPONENTS)
    there = ds["component"].values.tolist()
    if missing := [c for c in components if c not in there]:
        if max(there) == len(there):  # none was cut away
            raise InputError(
                f"ds has {len(there)} components, and {max(components)} are drawn; ask for more"
            )
        raise InputError(f"ds has no component {missing[0]}, which is drawn; keep it")
    if kind == NULL_KIND:
        check_models(ds)
    else:
        walks, of = ds["walk"].values, ds["walk_index"].values
        ds = ds.isel(walk=np.isin(walks, of), point=np.isin(of, walks))
        if not ds.sizes["walk"]:
            raise InputError(
                "ds holds no point of its walks: walk_index and walk have no number in common; "
                "keep the numbers of the walks as they were"
            )
    return ds


def check_kind(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """Return a dataset of this kind.

    Raises
    ------
    InputError
        It is of another.
    """
    kinds.check_dataset(ds, give=f"what {MAKERS[kind]} made")
    if ds.attrs.get("kind") != kind:
        raise InputError(f"ds is not of kind {kind!r}; make it with {MAKERS[kind]}")
    return ds


def check_models(ds: xr.Dataset) -> None:
    """Refuse null models of which one was cut away.

    Raises
    ------
    InputError
        One was.
    """
    if missing := [name for name in MODELS if name not in ds["model"].values]:
        raise InputError(f"ds has no model {missing[0]!r}, which is drawn; keep it")


def checked_plane(ds: xr.Dataset, plane: int) -> int:
    """Return a number of components that span a plane whose distances are known.

    Raises
    ------
    InputError
        They are not.
    """
    there = kinds.as_made(ds, ["plane"], COMPONENTS)["plane"].values.tolist()
    if kinds.as_whole(plane, "plane") not in there:
        raise InputError(f"plane={plane}; use one of {there}")
    return plane


def walks_in(ds: xr.Dataset) -> Iterator[xr.Dataset]:
    """The points of one walk after the other, in the order of time."""
    for index in ds["walk"].values:
        walk = ds[["scores", "off_plane_distance"]].isel(point=ds["walk_index"].values == index)
        # A walk may be cut in any order; it is drawn from its start to its end.
        yield walk.sortby("snapshot_time")
