"""Figures of spectra in time: periodograms, and relaxation towards the end of a walk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.errors import InputError
from geoflow.plots.style import COLOURS, COLUMN_INCHES, LABELS, new_figure, save, style

CLOCKS = {"time": "flow time", "arc_length": "arc length"}


def periodogram(ds: xr.Dataset, scalar: str | None = None, ax: Axes | None = None) -> Axes:
    """Power of a scalar against frequency, with the red noise and what it exceeds by chance.

    Peaks above the global level are marked with their frequency.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.periodogram.along`.
    scalar : str, optional
        Which. None: the first.
    ax : Axes, optional
        Drawn on. None: a new figure's.

    Raises
    ------
    InputError
        The dataset is no periodogram, or has no such scalar.
    """
    one = _of(ds, "periodogram", scalar)
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES, 0.95 * COLUMN_INCHES).subplots()
        f, power = one["frequency"].values, one["power"].values
        grey: dict[str, Any] = {"color": "#888888", "linewidth": 0.9}
        ax.plot(f, power, color=COLOURS[0], linestyle="-", label="walk")
        ax.plot(f, one["red_noise"], **grey, linestyle="-", label="red noise, expected")
        level = float(one["level"][0])
        one = one.isel(level=0)
        ax.plot(f, one["local_level"], **grey, linestyle=":", label=f"{level:.0%} at one frequency")
        ax.plot(f, one["global_level"], **grey, linestyle="--", label=f"{level:.0%} at any")
        # Local maxima; the ends of the grid are none.
        above = power > one["global_level"].values
        inner = np.r_[False, (power[1:-1] >= power[:-2]) & (power[1:-1] > power[2:]), False]
        peaks = np.flatnonzero(above & inner)
        look: dict[str, Any] = {"linestyle": "none", "marker": "v", "markersize": 4}
        ax.plot(f[peaks], 1.25 * power[peaks], color=COLOURS[1], **look)
        for k in peaks[np.argsort(power[peaks])[::-1]][:3]:
            ax.annotate(
                f"{f[k]:.3g}", (f[k], 1.35 * power[k]), fontsize=7, ha="center", va="bottom"
            )
        ax.set_yscale("log")
        ax.set_ylim(power.max() * 1e-5, power.max() * 8)
        ax.set_ylim(max(power.max() * 1e-5, np.quantile(power, 0.02) / 2), 4)
        ax.set_xlabel(f"frequency, cycles in a unit of {CLOCKS[ds.attrs['against']]}")
        ax.set_ylabel("power, part of the variance")
        p = float(one["p_value"])
        ax.set_title(f"{_walk(ds)}: {one['scalar'].item()}, p = {p:.2g}")
        ax.legend(loc="upper right", ncols=2, columnspacing=1.0, handlelength=1.8)
    return ax


def relaxation(ds: xr.Dataset, scalar: str | None = None, figure: Figure | None = None) -> Figure:
    """Distance of a scalar from its limit, on a logarithmic axis, with the fit and its residuals.

    The slope that the smallest eigenvalue of A predicts is drawn through the fit's end, where that
    eigenvalue is known and positive.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.relaxation.along`.
    scalar : str, optional
        Which. None: the first that was fitted, or the first.
    figure : Figure, optional
        Drawn on. None: a new one.

    Raises
    ------
    InputError
        The dataset is no relaxation, or has no such scalar.
    """
    if scalar is None and ds.attrs.get("kind") == "relaxation":
        order = np.argsort(ds["status"].values != "fitted", kind="stable")
        scalar = str(ds["scalar"].values[order[0]])
    one = _of(ds, "relaxation", scalar)
    t, value = one["time"].values, one["value"].values
    with style():
        figure = figure or new_figure(COLUMN_INCHES, COLUMN_INCHES)
        ax, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        points: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3}
        name = one["scalar"].item()
        if one["status"].item() == "fitted":
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
            ax.set_ylabel(f"distance of {_label(name)}\nfrom {limit:.5g}")
            ax.set_yscale("log")
            ax.legend()
        else:
            ax.plot(t, value, **points)
            ax.set_ylabel(_label(name))
            ax.annotate(one["status"].item(), (0.5, 0.9), xycoords="axes fraction", ha="center")
            below.set_visible(False)
            ax.tick_params(labelbottom=True)
        (below if below.get_visible() else ax).set_xlabel(LABELS["time"])
        below.set_ylabel("residual")
        ax.set_title(f"{_walk(ds)}: {name}")
        figure.align_ylabels([ax, below])
    return figure


def save_spectra_in_time(ds: xr.Dataset, folder: str | Path, stem: str) -> list[Path]:
    """Write a figure for each scalar of a periodogram or a relaxation, as PNG and PDF.

    Raises
    ------
    InputError
        The dataset is neither, or the folder cannot be made or written.
    """
    figures: dict[str, Figure] = {}
    for name in ds["scalar"].values.tolist():
        if ds.attrs.get("kind") == "relaxation":
            figure = relaxation(ds, name)
        else:
            drawn = periodogram(ds, name).figure
            assert isinstance(drawn, Figure)
            figure = drawn
        figures[f"{ds.attrs['kind']}-{name}".replace(" ", "-")] = figure
    return save(figures, folder, stem)


def _of(ds: xr.Dataset, kind: str, scalar: str | None) -> xr.Dataset:
    if ds.attrs.get("kind") != kind:
        raise InputError(f"ds is no {kind}; make one with geoflow {kind}")
    names = ds["scalar"].values.tolist()
    if scalar is not None and scalar not in names:
        raise InputError(f"scalar={scalar!r}; choose from {', '.join(names)}")
    return ds.sel(scalar=names[0] if scalar is None else scalar)


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _walk(ds: xr.Dataset) -> str:
    seed = f", seed {ds.attrs['walk_seed']}" if ds.attrs["walk_seed"] >= 0 else ""
    return f"{ds.attrs['experiment'] or 'walk'}{seed}"
