"""What a walk comes to, in a sentence."""

from __future__ import annotations

import numpy as np
import xarray as xr

from geoflow.trajectories import schema
from geoflow.trajectories.dataset import level_residuals


def sentence(ds: xr.Dataset) -> str:
    """Say how a walk ended, for how much, and what came of it.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory of a :class:`~geoflow.RegularizingFlow` or of a flow of one's own.
    """
    seed = f"Seed {ds.attrs['seed']}" if ds.attrs["seed"] >= 0 else "This walk"
    last = ds.isel(step=-1)
    spent = int(last["n_gradient"]) + 2 * int(last["n_hvp"])
    said = f"{seed} ends {ds.attrs['status'].replace('_', ' ')} at t = {float(last['time']):.3g}"
    said += f" after {spent:,} gradient evaluations"
    changes = []
    for name, label, digits in (
        ("regularizer", "R", ".4g"),
        ("angle", "the angle", ".1f"),
        ("test_loss", "the test loss", ".4g"),
        ("test_accuracy", "the test accuracy", ".1%"),
    ):
        if name in ds and ds[name].size:
            first, end = float(ds[name][0]), float(ds[name][-1])
            unit = "°" if name == "angle" else ""
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
