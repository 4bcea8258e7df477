"""Principal components of walks: what a plane or a space shows of them, and what it does not."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from geoflow.analysis.components.null_models import KIND as NULL_KIND
from geoflow.analysis.components.null_models import MODELS
from geoflow.analysis.components.pca import null_models_of
from geoflow.analysis.components.principal import KIND
from geoflow.plots.components import (
    COMPONENTS,
    MAKERS,
    check_kind,
    check_models,
    checked,
    checked_plane,
    walks_in,
)
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    LINES,
    MARKERS,
    SLIDE_INCHES,
    check_axes,
    check_width,
    fitted,
    laid_out,
    mark_lone,
    new_figure,
    plain,
    style,
)
from geoflow.system import kinds
from geoflow.trajectories.names import walk_called

Floats = NDArray[np.float64]

# Even in lightness, told apart by the colour-blind.
TIME_COLOURS = "cividis"
MARKED = ("*", "^", "v", "P", "X", "D", "<", ">")
LABELLED_WALKS = 10
NAMES = {"brownian": "Brownian paths", "straight_line": "straight line"}


def scores_plane(ds: xr.Dataset, ax: Axes | None = None, x: int = 1, y: int = 2) -> Axes:
    """Draw the walks on two of their components, flow time as colour, start and end marked.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.pca.along`.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    x, y : int
        Components, counted from 1.

    Raises
    ------
    InputError
        The dataset holds no components, or not so many.
    """
    check_axes(ax, optional=True)
    x, y = (kinds.as_whole(given, name, least=1) for given, name in ((x, "x"), (y, "y")))
    ds = checked(ds, x, y)
    with style():
        ax = new_figure(COLUMN_INCHES, COLUMN_INCHES).subplots() if ax is None else ax
        for number, walk in enumerate(walks_in(ds)):
            scores = walk["scores"].sel(component=[x, y]).values
            _timed_line(ax, scores[:, 0], scores[:, 1], walk["snapshot_time"].values, _norm(ds))
            named = ("start", "end") if number == 0 else (None, None)
            ax.plot(*scores[0], "o", mfc="white", mec="black", ms=5, zorder=3, label=named[0])
            ax.plot(*scores[-1], "s", color="black", ms=4.5, zorder=3, label=named[1])
            if 1 < ds.sizes["walk"] <= LABELLED_WALKS:
                name = f" {_mark(ds, number)}"
                ax.annotate(
                    name,
                    scores[_marked(ds, number)],
                    xytext=(3, 3),
                    textcoords="offset points",
                    fontsize=7,
                )
        ax.autoscale_view()
        ax.margins(0.08)
        ax.set_xlabel(_component_label(ds, x))
        ax.set_ylabel(_component_label(ds, y))
        ax.legend(loc="best")
    return ax


def off_plane(ds: xr.Dataset, ax: Axes | None = None, plane: int = 2) -> Axes:
    """Draw the distance of every point from the first ``plane`` components against arc length.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.pca.along`.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    plane : int
        2 or 3.

    Raises
    ------
    InputError
        The dataset holds no components, or another plane is asked for.
    """
    check_axes(ax, optional=True)
    ds = checked(ds)
    plane = checked_plane(ds, plane)
    with style():
        ax = new_figure(COLUMN_INCHES, 0.7 * COLUMN_INCHES).subplots() if ax is None else ax
        for number, walk in enumerate(walks_in(ds)):
            distance = walk["off_plane_distance"].sel(plane=plane).values
            arc = walk["arc_length"].values
            _timed_line(ax, arc, distance, walk["snapshot_time"].values, _norm(ds))
            if 1 < ds.sizes["walk"] <= LABELLED_WALKS:
                name = f" {_mark(ds, number)}"
                place = _marked(ds, number)
                at = (float(arc[place]), float(distance[place]))
                ax.annotate(name, at, xytext=(1, 2), textcoords="offset points", fontsize=7)
        ax.autoscale_view()
        ax.set_ylim(bottom=0)
        ax.set_xlabel(LABELS["arc_length"])
        ax.set_ylabel(f"distance from the first {plane} PCs{_units(ds)}")
    return ax


def explained_variance(
    ds: xr.Dataset, ax: Axes | None = None, width: float = COLUMN_INCHES
) -> Axes:
    """Draw the part of the variance each component explains; of null models too, where they are.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.pca.along`, of all walks together, or from
        :func:`geoflow.analysis.null_models.compare`.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    width : float
        In inches, of a new figure.

    Raises
    ------
    InputError
        The dataset holds no components.
    """
    check_axes(ax, optional=True)
    check_width(width)
    kinds.check_dataset(ds, give=f"what {MAKERS[KIND]} made")
    beside = ds.attrs.get("kind") == NULL_KIND
    ds = check_kind(ds, NULL_KIND if beside else KIND)
    ds = kinds.as_made(ds, ["model", "component"] if beside else ["component"], COMPONENTS)
    if beside:
        check_models(ds)
    with style():
        ax = new_figure(width, min(0.8 * width, 4.2)).subplots() if ax is None else ax
        component = ds["component"].values
        look: dict[str, Any] = {"markersize": 4}
        shown = ds["explained_variance_ratio"]
        if beside:
            for number, model in enumerate(MODELS):
                ratio = shown.sel(model=model).values
                # What is not there has no place on a logarithmic axis.
                ratio = np.where(ratio > 0, ratio, np.nan)
                look |= {"color": COLOURS[number], "linestyle": LINES[number]}
                label = NAMES.get(model, plain(model))
                ax.plot(component, ratio, marker=MARKERS[number], label=label, **look)
            limit, text = ds["brownian_limit"].values, "Brownian, even steps"
            ax.plot(component, limit, ":", color="#888888", label=text, linewidth=1)
        else:
            ax.plot(component, shown.values, color=COLOURS[0], marker="o", **look)
            part = shown.values[0] / float(ds["explained_variance"][0])
            floor = part * float(ds["variance_floor"])
            if floor > 1e-2 * float(shown.min()):
                ax.axhline(floor, color="#888888", linewidth=0.8, linestyle="--", label="rounding")
        ax.set_yscale("log")
        # Whole decades, so that an axis is not all minor ticks.
        low = float(np.nanmin(shown.where(shown > 0)))
        ax.set_ylim(bottom=min(10 ** np.floor(np.log10(low)), 0.1), top=1.6)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlabel("principal component")
        ax.set_ylabel("part of the variance")
        if ax.get_legend_handles_labels()[0]:
            ax.legend()
    return ax


def pca_plane(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """All points on their first two components, beside their distance from that plane.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.pca.along`, with two components at least.
    width : float
        In inches; up to that of a column, the two stand one above the other.
    """
    check_width(width)
    ds = checked(ds, 1, 2)
    with style():
        narrow = width <= COLUMN_INCHES
        figure = new_figure(width, (1.5 if narrow else 0.46) * width)
        if narrow:
            axes = figure.subplots(2, 1, height_ratios=[1.5, 1])
        else:
            axes = figure.subplots(1, 2, width_ratios=[1.25, 1])
        scores_plane(ds, axes[0])
        off_plane(ds, axes[1])
        lines = axes[0].collections[0]
        figure.colorbar(lines, ax=axes, label=LABELS["time"], pad=0.02, aspect=35)
        figure.suptitle(fitted(_title(ds, narrow), width), fontsize=8)
    return figure


def pca_space(
    ds: xr.Dataset, marks: Mapping[str, Floats] | None = None, width: float = SLIDE_INCHES
) -> Figure:
    """All points on their first three components, above the distance each has from those.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.pca.along`, with three components at least.
    marks : mapping of str to array, shape (k,), optional
        Scores of further points to mark, by their names.
    width : float
        In inches.
    """
    check_width(width)
    kinds.check_kind(marks, Mapping | None, "marks", "a dict of scores by name")
    ds = checked(ds, 1, 2, 3)
    checked_plane(ds, 3)
    several = ds.sizes["walk"] > 1
    with style():
        narrow = width <= COLUMN_INCHES
        figure = new_figure(width, (1.2 if narrow else 0.9) * width)
        parts: Any = figure.subfigures(2, 1, height_ratios=[3, 1])
        top, bottom = parts
        space: Any = top.add_subplot(projection="3d")
        off = bottom.subplots()
        for number, walk in enumerate(walks_in(ds)):
            colour, dashes = COLOURS[number % 7], LINES[number % 7]
            scores = walk["scores"].sel(component=[1, 2, 3]).values
            space.plot(*scores.T, color=colour, linewidth=0.8, linestyle=dashes)
            space.scatter(*scores.T, color=colour, s=3, depthshade=False)
            look: dict[str, Any] = {"edgecolor": "black", "depthshade": False, "s": 28}
            name = "start" if number == 0 else None
            space.scatter(*scores[0], color="white", marker="o", label=name, **look)
            if several:
                called = walk_called(_seeds(ds), number)
                name = f"{called}, mean of its points" if number < LABELLED_WALKS else None
                if number == LABELLED_WALKS:
                    more = ds.sizes["walk"] - LABELLED_WALKS
                    name = f"and so on: {more} more walk{'s' if more > 1 else ''}"
                space.scatter(*scores.mean(axis=0), color=colour, marker="s", label=name, **look)
            else:
                space.scatter(*scores[-1], color="black", marker="s", label="end", **look)
            distance = walk["off_plane_distance"].sel(plane=3).values
            arc = walk["arc_length"].values
            mark_lone(off.plot(arc, distance, color=colour, linestyle=dashes))
        for (name, scores), marker in zip((marks or {}).items(), cycle(MARKED), strict=False):
            space.scatter(*scores[:3], color="black", marker=marker, s=60, label=name)
        text = {"fontsize": 6 if narrow else 8, "labelpad": -2 if narrow else 4}
        for component, name in enumerate("xyz", start=1):
            getattr(space, f"set_{name}label")(_component_label(ds, component, short=True), **text)
        space.set_box_aspect(None, zoom=0.85 if narrow else 1.0)
        space.tick_params(labelsize=5 if narrow else 6, pad=-2 if narrow else 2)
        top.legend(loc="outside lower center", ncols=2 if narrow else 3, fontsize=6)
        off.set_xlabel(LABELS["arc_length"])
        off.set_ylabel(f"distance from\nthe first 3 PCs{_units(ds)}")
        off.set_ylim(bottom=0)
        return laid_out(figure)


def null_models(ds: xr.Dataset, walk: int = 0, width: float = SLIDE_INCHES) -> Figure:
    """Variance and first two scores of a walk beside those of its null models.

    Scores are divided by their root mean square: it is their shapes that are compared, and of the
    Brownian paths, one is drawn.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.null_models.compare`, or from
        :func:`geoflow.analysis.pca.along` with null models, with two components at least.
    walk : int
        Which, of the latter's.
    width : float
        In inches; up to that of a column, the panels stand one above the other.
    """
    check_width(width)
    kinds.check_dataset(ds, give=f"what {MAKERS[NULL_KIND]} made")
    if ds.attrs.get("kind") == KIND:
        ds = null_models_of(ds, walk)
    ds = checked(ds, 1, 2, kind=NULL_KIND)
    with style():
        narrow = width <= COLUMN_INCHES
        figure = new_figure(width, (1.9 if narrow else 0.4) * width)
        axes = figure.subplots(*((3, 1) if narrow else (1, 3)))
        explained_variance(ds, axes[0])
        axes[0].legend().remove()
        time = ds["time"]
        for ax, component in zip(axes[1:], (1, 2), strict=True):
            for number, model in enumerate(MODELS):
                score = ds["scores"].sel(model=model, component=component).values
                look: dict[str, Any] = {"color": COLOURS[number], "linestyle": LINES[number]}
                size = np.sqrt(np.mean(score**2))
                few = MARKERS[number] if len(time) <= 60 else None
                ax.plot(time.values, score / size, **look, marker=few, markersize=2)
            ax.set_xlabel(LABELS["time"] if time.attrs["long_name"] == "flow time" else "point")
            ax.set_ylabel(f"score on PC {component} / its RMS")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2 if narrow else 5)
        ratio = ds["participation_ratio"]
        between = "\n" if narrow else " "
        title = fitted(_title(ds, narrow), width)
        figure.suptitle(
            f"{title}\nparticipation ratio {float(ratio.sel(model='walk')):.2f},"
            f"{between}of random walks {float(ratio.sel(model='brownian')):.2f} "
            f"(p = {float(ds['p_value']):.3g})",
            fontsize=8,
        )
    return figure


def _seeds(ds: xr.Dataset) -> list[int]:
    """The seed of each walk."""
    return [int(walk["seed"][0]) for walk in walks_in(ds)]


def _mark(ds: xr.Dataset, number: int) -> str:
    """What stands beside a walk's line: its seed alone, or its place where that names none."""
    return walk_called(_seeds(ds), number).removeprefix("seed ")


def _marked(ds: xr.Dataset, number: int) -> int:
    """Which point of a walk its mark is at: the last where another starts as it does."""
    seeds = _seeds(ds)
    return -1 if seeds.count(seeds[number]) > 1 else 0


def _norm(ds: xr.Dataset) -> Normalize:
    time = ds["snapshot_time"]
    return Normalize(float(time.min()), float(time.max()))


def _timed_line(ax: Axes, x: Floats, y: Floats, time: Floats, norm: Normalize) -> None:
    corners = np.column_stack([x, y])
    segments = np.stack([corners[:-1], corners[1:]], axis=1)
    lines = LineCollection(list(segments), cmap=TIME_COLOURS, norm=norm, linewidths=1.6)
    lines.set_array((time[:-1] + time[1:]) / 2)
    ax.add_collection(lines)
    ax.scatter(x, y, c=time, cmap=TIME_COLOURS, norm=norm, s=7, zorder=2.5)


def _component_label(ds: xr.Dataset, component: int, short: bool = False) -> str:
    ratio = 100 * float(ds["explained_variance_ratio"].sel(component=component))
    return f"PC {component}{_units(ds)} ({ratio:.3g} %{'' if short else ' of variance'})"


def _title(ds: xr.Dataset, narrow: bool) -> str:
    """The dataset's title, on two lines where a column is too narrow for one."""
    title = plain(ds.attrs["title"])
    return title.replace(": ", ":\n", 1) if narrow else title


def _units(ds: xr.Dataset) -> str:
    return " / std" if ds.attrs["scaling"] != "none" else ""
