"""What a walk comes to, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from geoflow.trajectories import schema
from geoflow.trajectories.dataset import level_residuals
from geoflow.trajectories.names import walk_called

# Statuses that are no words, as what follows a walk's name.
ENDED = {
    "stationary": "ends stationary",
    "event": "ends at an event",
    "plateau": "ends on a plateau",
    "at_rest": "ends at rest",
    "t_end": "ends as asked",
    "interrupted": "was interrupted",
}


def names_of(walks: Sequence[xr.Dataset]) -> list[str]:
    """What each walk is called on a page: by its seed, and by its place where that names none."""
    if len(walks) == 1 and walks[0].attrs["seed"] < 0:
        return ["This walk"]
    seeds = [int(ds.attrs["seed"]) for ds in walks]
    return [walk_called(seeds, i).capitalize() for i in range(len(walks))]


def sentence(ds: xr.Dataset, name: str | None = None) -> str:
    """Say how a walk ended, for how much, and what came of it.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory of a :class:`~geoflow.RegularizingFlow` or of a flow of one's own.
    name : str, optional
        What it is called. None: by its seed.
    """
    name = names_of([ds])[0] if name is None else name
    last = ds.isel(step=-1)
    spent = int(last["n_gradient"]) + 2 * int(last["n_hvp"])
    status = ds.attrs["status"]
    how = ENDED.get(status, f"ends early ({status.replace('_', ' ')})")
    said = f"{name} {how} at t = {float(last['time']):.3g}"
    said += f" after {spent:,} gradient evaluation{'' if spent == 1 else 's'}"
    changes = []
    for scalar, label, digits in (
        ("regularizer", "R", ".4g"),
        ("angle", "the angle", ".1f"),
        ("test_loss", "the test loss", ".4g"),
        ("test_accuracy", "the test accuracy", ".1%"),
    ):
        ends = [float(ds[scalar][i]) for i in (0, -1)] if scalar in ds and ds[scalar].size else []
        # What is not known at an end neither goes nor stays.
        if ends and not np.isnan(ends).any():
            first, end = ends
            unit = "°" if scalar == "angle" else ""
            start, end_text = f"{first:{digits}}{unit}", f"{end:{digits}}{unit}"
            moved = f"goes from {start} to {end_text}" if start != end_text else f"stays {start}"
            changes.append(f"{label} {moved}")
    said += ": " + ", ".join(changes) if changes else ""
    if "level_residual" in ds:
        n = len(schema.levels(ds.attrs))
        what = f"each of the {n} constraints" if n else "the training loss"
        level = "its level" if n else f"{ds.attrs['level']:.4g}"
        said += f"; {what} keeps to {level} within {worst_residual(ds):.1e} of it"
    return said + "."


def worst_residual(ds: xr.Dataset) -> float:
    """The largest |L − c|/|c| of a walk, over its steps and constraints."""
    residuals, levels = level_residuals(ds)
    return float((np.abs(residuals) / np.abs(levels)).max())
