"""What walks come to, in a sentence and in a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.report.parts import Row, Table
from geoflow.trajectories import schema
from geoflow.trajectories.dataset import level_residuals, shown_scalars
from geoflow.trajectories.names import walk_called

# What a scalar is called on a page, if not by its name.
SHORT = {"regularizer": "R"}
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


def run_table(walks: Sequence[xr.Dataset], called: Sequence[str]) -> Table:
    """Make the table of walks one by one, by the scalars that their flow records.

    Parameters
    ----------
    walks : sequence of Dataset
        At least one.
    called : sequence of str
        What each is called.
    """
    seeded = all(ds.attrs["seed"] >= 0 for ds in walks)
    names = shown_scalars(walks)
    # A flow of one's own need not record it.
    kept = all("level_residual" in ds for ds in walks)
    scalars = [SHORT.get(name, name.replace("_", " ")) for name in names]
    head = ["level c", "end", *scalars, "evaluations"]
    head += [*["worst |L − c|/c"][: int(kept)], "time / s"]
    rows = []
    for ds, name in zip(walks, called, strict=True):
        last = ds.isel(step=-1)
        cells = [
            name.removeprefix("Seed ") if seeded else name,
            f"{ds.attrs['level']:.4g}",
            ds.attrs["status"],
            *(_from_to(ds[scalar].values, scalar) for scalar in names),
            f"{int(last['n_gradient']) + 2 * int(last['n_hvp']):,}",
            *([f"{worst_residual(ds):.1e}"] if kept else []),
            f"{float(last['wall_time']):.1f}",
        ]
        rows.append(Row(cells))
    first = "seed" if seeded else "walk"
    return Table("runs", "The walks, one by one.", [first, *head], rows)


def _from_to(values: NDArray[np.float64], name: str) -> str:
    digits, unit = (".1f", "°") if name == "angle" else (".4g", "")
    return f"{values[0]:{digits}}{unit} → {values[-1]:{digits}}{unit}"
