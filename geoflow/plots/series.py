"""Figures of spectra in time: periodograms, and relaxation towards the end of a walk."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from numpy.typing import NDArray

from geoflow.analysis.series.exponentials import FITTED
from geoflow.errors import InputError
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    LINES,
    SLIDE_INCHES,
    TITLE_LETTERS,
    WIDE_INCHES,
    axis_label,
    check_axes,
    check_width,
    laid_out,
    new_figure,
    style,
    wrapped,
)
from geoflow.system import kinds

GREY: dict[str, Any] = {"color": "#999999", "linestyle": "-", "linewidth": 0.9}
# Of the axis, between the names of two peaks.
APART = 0.08
# Of a text in a panel, for each inch of the whole.
LETTERS_AN_INCH = 10
# Of three labels that stand in a row.
LEGEND_LETTERS = 30
DIMENSIONS = {
    "periodogram": ("level", "frequency", "scalar"),
    "relaxation": ("sample", "scalar", "term"),
}
CLOCKS = {"time": "flow time", "arc_length": "arc length"}


def periodogram(ds: xr.Dataset, scalar: str | None = None, ax: Axes | None = None) -> Axes:
    """Power of a scalar against frequency, with that of the red noise fitted to it.

    Peaks that red noise has nowhere, at the first of the levels, are marked.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.series.periodogram.along`.
    scalar : str, optional
        Which. None: the first.
    ax : Axes, optional
        Drawn on. None: a new figure's.

    Raises
    ------
    InputError
        The dataset is no periodogram, or has no such scalar.
    """
    check_axes(ax, optional=True)
    one = _of(ds, "periodogram", scalar)
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES, 0.7 * COLUMN_INCHES).subplots()
        f, power = one["frequency"].values, one["power"].values
        ax.plot(f, one["red_noise"], **GREY, label="red noise, expected")
        ax.plot(f, power, color=COLOURS[0], linestyle="-", linewidth=1, label="walk")
        _mark_peaks(ax, one, power, named=3)
        ax.set_yscale("log")
        ax.set_ylim(power.max() / 3e3, 6)
        ax.set_xlabel(_frequency(ds))
        ax.set_ylabel("power, part of the variance")
        ax.set_title(_title(ds, str(one["scalar"].values)))
        ax.legend(loc="upper right", ncols=2)
    return ax


def significance(ds: xr.Dataset, scalar: str | None = None, ax: Axes | None = None) -> Axes:
    """Power of a scalar over that of red noise, with what red noise exceeds by chance.

    Parameters
    ----------
    ds, scalar, ax
        See :func:`periodogram`.

    Raises
    ------
    InputError
        The dataset is no periodogram, or has no such scalar.
    """
    check_axes(ax, optional=True)
    one = _of(ds, "periodogram", scalar)
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES, 0.7 * COLUMN_INCHES).subplots()
        f, red = one["frequency"].values, one["red_noise"].values
        ratio = one["power"].values / red
        ax.plot(f, ratio, color=COLOURS[0], linestyle="-", linewidth=1)
        for row, (level, line) in enumerate(
            zip(one["level"].values, cycle(LINES[1:]), strict=False)
        ):
            # The same at every frequency.
            height = float((one["global_level"].values[row] / red)[0])
            look: dict[str, Any] = {"color": "#555555", "linewidth": 1, "linestyle": line}
            ax.axhline(height, label=_per_cent(level), **look)
        local = one["local_level"].values[0] / red
        ax.plot(f, local, **GREY, label=f"{_per_cent(one['level'].values[0])} at one frequency")
        _mark_peaks(ax, one, ratio, named=0)
        ax.set_yscale("log")
        top = max(ratio.max(), float((one["global_level"].values / red).max()))
        ax.set_ylim(0.02, 20 * top)
        ax.set_xlabel(_frequency(ds))
        ax.set_ylabel("power over red noise")
        letters = sum(map(len, ax.get_legend_handles_labels()[1]))
        ncols = 3 if letters <= LEGEND_LETTERS else 2
        ax.legend(loc="upper right", ncols=ncols, title=f"p = {float(one['p_value']):.3g}")
        ax.get_legend().get_title().set_fontsize(7)  # type: ignore[union-attr]
    return ax


def periodograms(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """Power of every scalar, and beside or below it that over red noise.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.series.periodogram.along`.
    width : float
        In inches.

    Raises
    ------
    InputError
        The dataset is no periodogram.
    """
    check_width(width)
    _of(ds, "periodogram", None)
    names = ds["scalar"].values.tolist()
    wide = width > WIDE_INCHES
    with style():
        rows, columns = (len(names), 2) if wide else (2 * len(names), 1)
        figure = new_figure(width, (0.36 if wide else 0.6) * width * rows)
        axes = figure.subplots(rows, columns, squeeze=False).reshape(-1, 2)
        for name, (above, below) in zip(names, axes, strict=True):
            periodogram(ds, name, above)
            significance(ds, name, below)
    return figure


def _mark_peaks(ax: Axes, one: xr.Dataset, height: NDArray[np.float64], named: int) -> None:
    """Mark local maxima above the global level, and name the frequencies of the highest.

    One whose name would stand on that of a higher one goes without.
    """
    f, over = one["frequency"].values, one["power"].values / one["global_level"].values[0]
    padded = np.concatenate([[0.0], over, [0.0]])
    highest = (over >= padded[:-2]) & (over >= padded[2:])
    peaks = np.flatnonzero((over > 1) & highest)
    look: dict[str, Any] = {"linestyle": "none", "marker": "v", "markersize": 4}
    ax.plot(f[peaks], 1.4 * height[peaks], color=COLOURS[1], **look)
    free = APART * (f[-1] - f[0])
    said: list[float] = []
    for k in peaks[np.argsort(over[peaks])[::-1]]:
        if len(said) < named and all(abs(f[k] - other) >= free for other in said):
            text = f"{f[k]:.3g}"
            ax.annotate(text, (f[k], 1.7 * height[k]), fontsize=7, ha="center", va="bottom")
            said.append(float(f[k]))


def _per_cent(level: float) -> str:
    return f"{100 * level:.6g}%"


def _frequency(ds: xr.Dataset) -> str:
    return f"frequency, cycles in a unit of {CLOCKS[ds.attrs['against']]}"


def relaxation(
    ds: xr.Dataset, scalar: str | None = None, figure: FigureBase | None = None
) -> FigureBase:
    """Distance of a scalar from its limit, on a logarithmic axis, with the fit and its residuals.

    The slope that the smallest eigenvalue of A predicts is drawn through the fit's end, where that
    eigenvalue is known and positive.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.series.relaxation.along`.
    scalar : str, optional
        Which. None: the first that was fitted, or the first.
    figure : Figure or SubFigure, optional
        Drawn on. None: a new one.

    Raises
    ------
    InputError
        The dataset is no relaxation, or has no such scalar.
    """
    kinds.check_kind(figure, FigureBase | None, "figure", "a figure of matplotlib")
    kinds.check_dataset(ds, give="what geoflow relaxation made")
    if scalar is None and ds.attrs.get("kind") == "relaxation":
        ds = kinds.as_made(ds, ["scalar"], "a relaxation")
        order = np.argsort(ds["status"].values != FITTED, kind="stable")
        scalar = str(ds["scalar"].values[order[0]])
    # The fit's end is that of the walk.
    one = _of(ds, "relaxation", scalar).sortby("time")
    t, value = one["time"].values, one["value"].values
    with style():
        figure = figure or new_figure(COLUMN_INCHES, COLUMN_INCHES)
        points: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3}
        name, status = str(one["scalar"].values), str(one["status"].values)
        if status == FITTED:
            ax, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
            limit = float(one["limit"])
            sign = 1.0 if float(one["amplitude"][0]) > 0 else -1.0
            distance, fitted = sign * (value - limit), sign * (one["fitted"].values - limit)
            # What noise takes past the limit has no place on a logarithmic axis.
            ax.plot(t, np.where(distance > 0, distance, np.nan), **points, label="walk")
            rates = ", ".join(f"{rate:.3g}" for rate in one["rate"].values)
            ax.plot(t, fitted, color=COLOURS[1], linestyle="-", label=f"fit, rate {rates}")
            predicted = float(one["predicted_rate"])
            if np.isfinite(predicted):
                slope = fitted[-1] * np.exp(-predicted * (t - t[-1]))
                shown = slope < 3 * max(distance.max(), fitted.max())
                label = f"smallest eigenvalue: {predicted:.3g}"
                ax.plot(t[shown], slope[shown], color=COLOURS[2], linestyle="--", label=label)
            below.plot(t, distance - fitted, **points)
            below.axhline(0, color="#888888", linewidth=0.8, linestyle="-")
            ax.set_ylabel(f"{axis_label(name)}\nfrom its limit, {limit:.5g}")
            ax.set_yscale("log")
            ax.legend()
            below.set_ylabel("residual")
            below.set_xlabel(LABELS["time"])
        else:
            ax = figure.subplots()
            ax.plot(t, value, **points)
            ax.set_ylabel(axis_label(name))
            # In as many lines as the panel, which is narrower than what holds it, has room for.
            whole: Any = figure
            letters = round(LETTERS_AN_INCH * whole.bbox.width / whole.figure.dpi)
            said = wrapped(status, letters)
            look: dict[str, Any] = {"xycoords": "axes fraction", "ha": "center", "va": "top"}
            ax.annotate(said, (0.5, 0.97), **look)
            # Above the points.
            low, high = ax.get_ylim()
            ax.set_ylim(top=high + 0.11 * len(said.splitlines()) * (high - low))
            ax.set_xlabel(LABELS["time"])
        ax.set_title(_title(ds, name))
    return figure


def relaxations(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """:func:`relaxation` of every scalar.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.series.relaxation.along`.
    width : float
        In inches.

    Raises
    ------
    InputError
        The dataset is no relaxation.
    """
    check_width(width)
    _of(ds, "relaxation", None)
    names = ds["scalar"].values.tolist()
    columns = min(len(names), 2) if width > WIDE_INCHES else 1
    rows = -(-len(names) // columns)
    with style():
        figure = new_figure(width, (0.48 if columns == 2 else 0.8) * width * rows)
        parts: Any = figure.subfigures(rows, columns, squeeze=False)
        for name, part in zip(names, parts.flat, strict=False):
            relaxation(ds, name, part)
        return laid_out(figure)


def _of(ds: xr.Dataset, kind: str, scalar: str | None) -> xr.Dataset:
    kinds.check_dataset(ds, give=f"what geoflow {kind} made")
    if ds.attrs.get("kind") != kind:
        raise InputError(f"ds is no {kind}; make one with geoflow {kind}")
    ds = kinds.as_made(ds, DIMENSIONS[kind], f"a {kind}")
    names = ds["scalar"].values.tolist()
    if scalar is not None:
        kinds.check_choice(scalar, names, "scalar")
    return ds.sel(scalar=names[0] if scalar is None else scalar)


def _title(ds: xr.Dataset, scalar: str) -> str:
    seed = f", seed {ds.attrs['walk_seed']}" if ds.attrs["walk_seed"] >= 0 else ""
    walk = f"{ds.attrs['experiment'] or 'walk'}{seed}"
    return wrapped(f"{walk}: {scalar.replace('_', ' ')}", TITLE_LETTERS)
