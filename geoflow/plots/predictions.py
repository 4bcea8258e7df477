"""Distances in function space along a walk, beside those in parameter space."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.analysis.networks.predictions import other
from geoflow.errors import InputError
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    LINES,
    MARKERS,
    SLIDE_INCHES,
    check_axes,
    check_width,
    label_below,
    new_figure,
    plain,
    style,
)
from geoflow.system import kinds

DIMENSIONS = ("set", "snapshot", other("snapshot"))
DISTANCES = {
    "output_distance": "RMS difference of outputs",
    "js_divergence": "Jensen–Shannon divergence / bit",
    "disagreement": "disagreement / %",
}


def function_distance(
    ds: xr.Dataset,
    name: str = "output_distance",
    ax: Axes | None = None,
    width: float = COLUMN_INCHES,
) -> Axes:
    """Distance in predictions against distance in θ, a point a pair of snapshots.

    The line joins the pairs with the first snapshot.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.networks.predictions.along`.
    name : str
        ``output_distance``, ``js_divergence`` or ``disagreement``.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    width : float
        In inches, of a new figure.

    Raises
    ------
    InputError
        The dataset has no such distance, or is of one snapshot.
    """
    check_axes(ax, optional=True)
    check_width(width)
    kinds.check_choice(name, _names(ds), "name")
    ds = _in_order(ds)
    factor = 100 if name == "disagreement" else 1
    i, j = np.triu_indices(ds.sizes["snapshot"], 1)
    x = ds["parameter_distance"].values
    with style():
        if ax is None:
            ax = new_figure(width, 0.85 * width).subplots()
        # Two snapshots often agree on every class, and zero has no place on a logarithmic axis.
        linear = name == "disagreement"
        for number, part in enumerate(ds["set"].values):
            y = factor * ds[name].sel(set=part).values
            colour = COLOURS[number % 7]
            shown = (x[i, j] > 0) & ((y[i, j] > 0) | linear)
            ax.plot(
                *(x[i, j][shown], y[i, j][shown]),
                color=colour,
                linestyle="none",
                marker=MARKERS[number % 7],
                markersize=2,
                markeredgewidth=0,
                alpha=0.5,
            )
            from_start = np.where((y[0, 1:] > 0) | linear, y[0, 1:], np.nan)
            label, dashes = plain(part), LINES[number % 7]
            ax.plot(x[0, 1:], from_start, color=colour, linestyle=dashes, label=label)
        if (x > 0).any():
            ax.set_xscale("log")
        if not linear and (ds[name] > 0).any():
            ax.set_yscale("log")
        if not (ds[name] > 0).any():
            # None differs: a range of its own would go below zero.
            ax.set_ylim(0, 1)
        ax.set_xlabel(r"distance in $\theta$")
        ax.set_ylabel(DISTANCES[name])
        ax.legend()
    return ax


def function_space(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """:func:`function_distance` of every distance there is, as one figure.

    Raises
    ------
    InputError
        The dataset holds no distances in predictions, or is of one snapshot.
    """
    check_width(width)
    names = _names(ds)
    beside = width > COLUMN_INCHES
    rows, columns = (1, len(names)) if beside else (len(names), 1)
    with style():
        figure = new_figure(width, 0.4 * width if beside else 0.75 * width * len(names))
        for name, ax in zip(names, figure.subplots(rows, columns, squeeze=False).flat, strict=True):
            function_distance(ds, name, ax)
        figure.suptitle(_title(ds), fontsize=8)
    return figure


def matrices(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """Distances of every pair of snapshots, on the last set of examples and in θ, as maps.

    Raises
    ------
    InputError
        The dataset holds no distances in predictions, or is of one snapshot.
    """
    check_width(width)
    names = [*_names(ds), "parameter_distance"]
    ds = _in_order(ds)
    part = str(ds["set"].values[-1])
    n = ds.sizes["snapshot"]
    columns = 2 if width <= COLUMN_INCHES else len(names)
    rows = -(-len(names) // columns)
    marked = np.unique(np.linspace(0, n - 1, min(n, 3)).round().astype(int))
    labels = [f"{t:.2g}" for t in ds["snapshot_time"].values[marked]]
    with style():
        figure = new_figure(width, 1.15 * width * rows / columns + 0.5)
        axes = figure.subplots(rows, columns, squeeze=False)
        for name, ax in zip(names, axes.flat, strict=False):
            whole = name == "parameter_distance"
            values = ds[name].values if whole else ds[name].sel(set=part).values
            values = values * (100 if name == "disagreement" else 1)
            # From zero on, and where all are zero, as of classes that never change, with a range.
            most = np.nanmax(values, initial=0.0) or 1.0
            look: dict[str, Any] = {"cmap": "cividis", "interpolation": "nearest"}
            image = ax.imshow(values, origin="lower", vmin=0, vmax=most, **look)
            label = r"$\|\theta_i - \theta_j\|$" if whole else DISTANCES[name]
            bar = figure.colorbar(image, ax=ax, location="top", shrink=0.9)
            bar.set_label(label.replace(" d", "\nd", 1))
            ax.set_xticks(marked, labels)
            ax.set_yticks(marked, labels)
            ax.grid(visible=False)
        label_below(axes, len(names), LABELS["time"])
        for ax in axes[:, 0]:
            ax.set_ylabel(LABELS["time"])
        figure.suptitle(f"{_title(ds)}: {plain(part)} set", fontsize=8)
    return figure


def _in_order(ds: xr.Dataset) -> xr.Dataset:
    """Return the snapshots in the order of time, whatever that they were asked for in."""
    ds = kinds.as_made(ds, DIMENSIONS, "predictions")
    order = np.argsort(ds["snapshot_time"].values, kind="stable")
    return ds.isel({"snapshot": order, other("snapshot"): order})


def _names(ds: xr.Dataset) -> list[str]:
    kinds.check_dataset(ds, give="what geoflow predictions made")
    names = [name for name in DISTANCES if name in ds]
    if not names or "parameter_distance" not in ds:
        raise InputError("ds holds no distances in predictions; make them with geoflow predictions")
    kinds.as_made(ds, DIMENSIONS, "predictions")
    both = [ds[n].values for n in ("snapshot_time", other("snapshot_time")) if n in ds]
    alike = all(np.array_equal(both[0], times) for times in both)
    if not alike or ds.sizes["snapshot"] != ds.sizes[other("snapshot")]:
        raise InputError(
            f"ds: along snapshot and {other('snapshot')} it was cut apart, and holds no pairs; cut "
            f"it along both alike, such as ds.isel(snapshot=[0, 2], {other('snapshot')}=[0, 2])"
        )
    if ds.sizes["snapshot"] < 2:
        raise InputError("ds is of one snapshot, which has no distance; give two of them or more")
    return names


def _title(ds: xr.Dataset) -> str:
    name = plain(ds.attrs.get("experiment") or "walk")
    seed = ds.attrs.get("walk_seed", -1)
    return f"{name}, seed {seed}" if seed >= 0 else name
