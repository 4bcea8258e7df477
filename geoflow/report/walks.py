"""What a walk comes to, in a sentence."""

from __future__ import annotations

import numpy as np
import xarray as xr


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
        worst = float(np.abs(ds["level_residual"]).max()) / abs(ds.attrs["level"])
        said += f"; the training loss keeps to {ds.attrs['level']:.4g} within {worst:.1e} of it"
    return said + "."
