"""The loss on a plane, the walk's projection on it, and how far the walk is from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.contour import QuadContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    LINES,
    SLIDE_INCHES,
    WIDE_INCHES,
    check_axes,
    check_width,
    laid_out,
    mark_lone,
    new_figure,
    plain,
    style,
)
from geoflow.system import kinds

# Lightness rises along it, so that it is read in grey as well.
COLOUR_MAP = "cividis"
N_LEVELS = 17
WALK = COLOURS[1]
# Whatever lies under a line, it is seen.
HALO: list[patheffects.AbstractPathEffect] = [
    patheffects.withStroke(linewidth=2.6, foreground="#FFFFFF")
]


def contours(
    ds: xr.Dataset, name: str = "loss", ax: Axes | None = None, *, walk: bool = True
) -> Axes:
    """Filled contours of a quantity on the plane, the level c, and the walk's projection.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.landscape.slices.on_plane`.
    name : str
        ``loss`` or an observable. The contour of the level is that of the training loss, whatever
        is drawn under it.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    walk : bool
        Draw the walk's projection, with its start and end.

    Raises
    ------
    InputError
        The dataset is no slice, or has no such quantity.
    """
    check_axes(ax, optional=True)
    kinds.check_kind(name, str, "name", "loss, or the name of an observable")
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES, 0.8 * COLUMN_INCHES).subplots()
        surface(ds, name, ax, [name])
        if walk:
            path(ds, ax)
            ax.legend(loc="best", frameon=True, framealpha=0.8)
    return ax


def surface(ds: xr.Dataset, name: str, ax: Axes, together: Sequence[str]) -> QuadContourSet:
    """Draw the filled contours and the level; the colours hold all quantities of ``together``."""
    ds = check(ds)
    levels, norm = _levels(ds, [name, *together])
    alpha, beta = ds["alpha"].values, ds["beta"].values
    values = np.ma.masked_invalid(ds[name].values.T)
    filled = ax.contourf(alpha, beta, values, levels=levels, norm=norm, cmap=COLOUR_MAP)
    # Without the seams that viewers of PDF show between neighbours.
    filled.set_edgecolor("face")
    if _is_reached(ds):
        loss, c = np.ma.masked_invalid(ds["loss"].values.T), ds.attrs["level"]
        line = ax.contour(alpha, beta, loss, levels=[c], colors="#000000", linewidths=1.4)
        line.set_path_effects(HALO)
    ax.grid(visible=False)
    ax.set_xlabel(rf"$\alpha$: {plain(ds['direction'].values[0])}")
    ax.set_ylabel(rf"$\beta$: {plain(ds['direction'].values[1])}")
    norms = ds["direction_norm"].values
    # Where α and β are distances in θ, circles are round.
    if abs(ds.attrs["direction_cosine"]) < 1e-6 and np.allclose(norms, norms[0]):
        ax.set_aspect("equal", adjustable="box")
    return filled


def colour_bar(figure: Any, filled: QuadContourSet, axes: list[Axes]) -> None:
    """Draw the scale of the colours, with round numbers."""
    bar = figure.colorbar(filled, ax=axes, pad=0.02, fraction=0.05)
    if isinstance(filled.norm, LogNorm):
        bar.locator = LogLocator(subs=(1, 2, 5) if bar.vmax / bar.vmin < 1000 else (1,))
        bar.formatter = "{x:g}"
        bar.minorlocator = LogLocator(subs=())
        bar.update_ticks()


def path(ds: xr.Dataset, ax: Axes) -> None:
    """Draw the walk's projection, its start and its end."""
    # A walk may be cut in any order; it is drawn from its start to its end.
    ds = check(ds, "snapshot").sortby("snapshot_time")
    alpha, beta = ds["walk_alpha"].values, ds["walk_beta"].values
    ax.plot(
        alpha,
        beta,
        color=WALK,
        linestyle="-",
        linewidth=1.4,
        path_effects=HALO,
        label="walk, projected",
    )
    for index, marker, size, label in ((0, "o", 6, "start"), (-1, "*", 10, "end")):
        ax.plot(
            alpha[index],
            beta[index],
            color=WALK,
            linestyle="none",
            marker=marker,
            markersize=size,
            markeredgecolor="#000000",
            label=label,
        )


_LOOK: dict[str, Any] = {"linestyle": "-", "linewidth": 1.2, "marker": ".", "markersize": 3}


def off_plane(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Distance of the walk from the plane, against flow time: what the contours do not show.

    Raises
    ------
    InputError
        The dataset is no slice.
    """
    check_axes(ax, optional=True)
    ds = check(ds, "snapshot").sortby("snapshot_time")
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES, 0.6 * COLUMN_INCHES).subplots()
        ax.plot(ds["snapshot_time"].values, ds["off_plane_distance"].values, color=WALK, **_LOOK)
        ax.set_ylim(bottom=0)
        ax.set_xlabel(LABELS["time"])
        ax.set_ylabel("distance from plane")
    return ax


def projections(ds: xr.Dataset, ax: Axes | None = None) -> Axes:
    """Loss at the walk's points and at their projections on the plane, against flow time.

    Raises
    ------
    InputError
        The dataset is no slice.
    """
    check_axes(ax, optional=True)
    ds = check(ds, "snapshot").sortby("snapshot_time")
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES, 0.6 * COLUMN_INCHES).subplots()
        time = ds["snapshot_time"].values
        number = 0
        for name, label in (("loss", "training"), ("test_loss", "test")):
            for kind, where in (("walk", "at the walk"), ("projected", "projected")):
                if name in ds:
                    look: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number]}
                    values = ds[f"{kind}_{name}"].values
                    mark_lone(ax.plot(time, values, label=f"{label}, {where}", **look))
                    number += 1
        drawn = np.concatenate([np.asarray(line.get_ydata()) for line in ax.lines])
        drawn = drawn[np.isfinite(drawn)]
        if drawn.size and drawn.min() > 0 and drawn.max() / drawn.min() > 20:
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel(LABELS["time"])
        ax.set_ylabel("loss")
        ax.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.28))
    return ax


def slice_figure(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """Loss and test loss on the plane with the walk, its distance from it, and the loss there.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.landscape.slices.on_plane`.
    width : float
        In inches. Panels stand side by side from 5 inches on, and below each other under that.

    Raises
    ------
    InputError
        The dataset is no slice.
    """
    check_width(width)
    ds = check(ds, "snapshot")
    kinds.check_dataset(ds, "loss", give="what geoflow slice made")
    names = [n for n in ("loss", "test_loss") if n in ds]
    wide = width >= WIDE_INCHES
    with style():
        columns = len(names) if wide else 1
        tall = _height(ds) * (width / columns - 0.6)
        upper = tall * (1 if wide else len(names)) + 0.9
        lower = 2.1 if wide else 3.9
        figure = new_figure(width, upper + lower)
        parts: Any = figure.subfigures(2, 1, height_ratios=[upper, lower])
        top, bottom = parts
        shape = (1, columns) if wide else (len(names), 1)
        axes = np.atleast_1d(top.subplots(*shape, sharex=True, sharey=True)).ravel()
        for name, ax in zip(names, axes, strict=True):
            filled = surface(ds, name, ax, names)
            path(ds, ax)
            ax.set_title(LABELS[name])
            ax.label_outer()
        colour_bar(top, filled, list(axes))
        handles, labels = axes[0].get_legend_handles_labels()
        top.legend(handles, labels, loc="outside upper center", ncols=3)
        below = bottom.subplots(1, 2) if wide else bottom.subplots(2, 1)
        off_plane(ds, below[0])
        projections(ds, below[1])
        figure.suptitle(title(ds), fontsize=8)
        return laid_out(figure)


def title(ds: xr.Dataset) -> str:
    """Experiment, seed and level of a slice, and whether the plane reaches it."""
    name = plain(ds.attrs["experiment"] or "walk")
    seed = f", seed {ds.attrs['walk_seed']}" if ds.attrs["walk_seed"] >= 0 else ""
    rescaled = ", filter-normalised" if ds.attrs.get("filter_normalised") else ""
    what = "is the black contour" if _is_reached(ds) else "is reached at no point of this grid"
    return f"{name}{seed}{rescaled}: the level c = {ds.attrs['level']:.4g} {what}"


def check(ds: xr.Dataset, *dims: str) -> xr.Dataset:
    """Return a slice with its plane, and further dimensions, in the order of the analysis.

    Raises
    ------
    InputError
        The dataset is no slice, or was cut to a line or a point.
    """
    kinds.check_dataset(ds, give="what geoflow slice made")
    if ds.attrs.get("kind") != "slice":
        raise InputError("ds is not a slice; make one with geoflow slice")
    # A plane takes two of each.
    ds = kinds.as_made(ds, ("alpha", "beta", "direction"), "a slice", least=2)
    ds = kinds.as_made(ds, ("alpha", "beta", *dims, "direction"), "a slice")
    # Slices of earlier versions do not say which of them is whose.
    own = [ds[name].attrs.get("direction") for name in ("alpha", "beta")]
    if own == ds["direction"].values.tolist()[::-1]:
        ds = ds.isel(direction=[1, 0])
    # Contours are drawn from one point of the grid to the next.
    return ds.sortby(["alpha", "beta"])


def _is_reached(ds: xr.Dataset) -> bool:
    """Whether the loss on the plane passes the level."""
    loss = ds["loss"].values
    return bool(np.nanmin(loss) < ds.attrs["level"] < np.nanmax(loss))


def _levels(ds: xr.Dataset, names: Sequence[str]) -> tuple[NDArray[np.float64], Normalize]:
    """Boundaries of the colours: of equal ratio where all values are positive."""
    for name in names:
        if name not in ds or ds[name].dims != ("alpha", "beta"):
            raise InputError(f"{name!r} is not on the plane of this slice")
    values = np.concatenate([ds[name].values.ravel() for name in names])
    values = values[np.isfinite(values)]
    if not values.size:
        raise InputError(f"{names[0]!r} is finite nowhere on the plane; use a smaller margin")
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    if low > 0:
        # Rounding must leave no value outside.
        levels = np.geomspace(low * (1 - 1e-12), high * (1 + 1e-12), N_LEVELS)
        return levels, LogNorm(levels[0], levels[-1])
    return np.linspace(low, high, N_LEVELS), Normalize(low, high)


def _height(ds: xr.Dataset) -> float:
    """Height of a panel over its width."""
    spans = [float(np.ptp(ds[n].values)) for n in ("alpha", "beta")]
    norms = ds["direction_norm"].values
    return float(np.clip(spans[1] * norms[1] / (spans[0] * norms[0]), 0.4, 1.2))
