"""A slice as a dataset: the names it has, and what each variable is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.analysis.landscape.planes import Plane
from geoflow.analysis.walked import walk_attributes
from geoflow.errors import InputError
from geoflow.problems.protocol import check_problem
from geoflow.trajectories import storable
from geoflow.trajectories.dataset import at_snapshots

Floats = NDArray[np.float64]

KIND = "slice"
LOSS = "loss"

# What a slice has of the walk beside its losses.
ON_THE_WALK = {
    "walk_alpha": "first coordinate of the snapshot's projection",
    "walk_beta": "second coordinate of the snapshot's projection",
    "off_plane_distance": "distance of the snapshot from the plane",
}
# Its dimensions, and what else it has; names that an observable cannot have.
DIMENSIONS = ("alpha", "beta", "direction", "snapshot")
OTHERS = (
    *("snapshot_time", "snapshot_step", "snapshot_arc_length"),
    *("direction_norm", "explained_variance_ratio"),
)


def check_observables(observables: Mapping[str, object]) -> None:
    """Refuse what is no observable, or would have the name of another variable of a slice.

    Raises
    ------
    InputError
        Names the first.
    """
    for name, function in observables.items():
        others = {LOSS, *observables} - {name}
        of_others = {v for n in others for v in (n, *beside(n))}
        taken = {LOSS, *DIMENSIONS, *OTHERS, *ON_THE_WALK, *of_others}
        usable = isinstance(name, str) and name.isidentifier()
        if not usable or taken & {name, *beside(name)}:
            raise InputError(f"observables: {name!r} is taken or not a name; choose another")
        # The longest of its variables, in a file.
        storable.check_name(beside(name)[1], "observables")
        if not callable(function):
            check_problem(function, f"observables[{name!r}]")


def beside(name: str) -> tuple[str, str]:
    """Variables that a function has beside that on the grid: at snapshots, at projections."""
    return f"walk_{name}", f"projected_{name}"


def assemble(
    ds: xr.Dataset,
    plane: Plane,
    axes: tuple[Floats, Floats],
    grid: Mapping[str, Floats],
    walk: Mapping[str, Floats],
) -> xr.Dataset:
    """Put what was computed together.

    Parameters
    ----------
    ds : xarray.Dataset
        The walk.
    plane : Plane
        Of the grid.
    axes : tuple of array
        Its α and β.
    grid, walk : mapping of str to array
        Losses and observables on the grid, by name; and what is known of each snapshot.
    """

    def described(dims: Any, values: Any, long_name: str, units: str = "1") -> Any:
        return dims, values, {"long_name": long_name, "units": units}

    text = {name: name.replace("_", " ") for name in grid} | {LOSS: "training loss"}
    variables = {
        name: described(("alpha", "beta"), values, f"{text[name]} on the plane")
        for name, values in grid.items()
    }
    long_names = dict(ON_THE_WALK)
    for name in grid:
        at_snapshot, projected = beside(name)
        long_names[at_snapshot] = f"{text[name]} at the snapshot"
        long_names[projected] = f"{text[name]} at the snapshot's projection"
    for name, long_name in long_names.items():
        variables[name] = described("snapshot", walk[name], long_name)
    variables["direction_norm"] = described("direction", plane.norms, "length in θ of a direction")
    attributes = dict(plane.attributes)
    if "explained_variance_ratio" in attributes:
        ratio = attributes.pop("explained_variance_ratio")
        variables["explained_variance_ratio"] = described(
            "direction", np.array(ratio), "part of the snapshots' variance along the component"
        )
    coordinates = {
        **{
            name: (
                name,
                values,
                # By which a slice whose directions stand the other way round is known.
                {"long_name": f"{which} coordinate on the plane", "units": "1", "direction": of},
            )
            for name, values, which, of in zip(
                ("alpha", "beta"), axes, ("first", "second"), plane.names, strict=True
            )
        },
        "direction": described("direction", list(plane.names), "direction of the plane"),
        "snapshot_arc_length": described(
            "snapshot",
            at_snapshots(ds, "arc_length"),
            "arc length in θ at the snapshot",
        ),
    }
    chosen = ds[["snapshot_time", "snapshot_step"]].load()
    found = xr.Dataset(
        variables,
        coordinates,
        {
            "kind": KIND,
            "title": "Loss on a plane through a walk",
            **walk_attributes(ds),
            **attributes,
            "direction_cosine": plane.cosine,
        },
    )
    return found.assign_coords(chosen.coords)
