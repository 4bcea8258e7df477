"""The figures of Tahir & Katz (2021) over many runs, as one figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geoflow.analysis import PCA
from geoflow.errors import InputError
from geoflow.plots.style import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    LINES,
    SLIDE_INCHES,
    WIDE_INCHES,
    new_figure,
    style,
)
from geoflow.plots.trajectory import angle, line

Floats = NDArray[np.float64]
MARKERS = ("*", "^", "v")


def sweep_stack(
    walks: Sequence[xr.Dataset], mean: xr.Dataset | None, width: float = SLIDE_INCHES
) -> Figure:
    """Angle, R, test loss and test accuracy: every run, and mean ± std over them.

    Parameters
    ----------
    walks : sequence of Dataset
        Trajectories.
    mean : Dataset or None
        The same by time, from :func:`geoflow.ensemble.resample`; None for a single walk.
    width : float
        In inches.
    """
    names = [
        "angle",
        "regularizer",
        *(n for n in ("test_loss", "test_accuracy") if all(n in ds for ds in walks)),
    ]
    with style():
        figure = new_figure(width, 0.24 * width * len(names))
        axes = figure.subplots(len(names), 1, sharex=True)
        for name, ax, colour in zip(names, axes, COLOURS, strict=False):
            draw = angle if name == "angle" else line
            for ds in walks:
                named: dict[str, Any] = {} if name == "angle" else {"name": name}
                look: dict[str, Any] = {
                    "linewidth": 0.6,
                    "alpha": 0.5,
                    "marker": None,
                    "linestyle": "-",
                }
                if mean is None:
                    look = {"linestyle": "-"}
                draw(ds, ax=ax, color=colour, **named, **look)
            if mean is not None:
                factor = 100 if name.endswith("accuracy") else 1
                centre = factor * mean[name].mean("run").values
                spread = factor * mean[name].std("run", ddof=1).values
                x = mean["time"].values
                ax.plot(x, centre, color=colour, linewidth=1.6, linestyle="-")
                ax.fill_between(x, centre - spread, centre + spread, color=colour, alpha=0.18, lw=0)
            if name == "angle":
                low = min(float(ds["angle"].min()) for ds in walks)
                ax.set_ylim(min(89.0, low - 2), 183)
        axes[-1].set_xlabel(LABELS["time"])
        plural = "s" if len(walks) > 1 else ""
        axes[0].set_title(f"{walks[0].attrs['experiment'] or 'walk'}: {len(walks)} run{plural}")
        figure.align_ylabels(axes)
    return figure


def ensemble(
    ds: xr.Dataset, scalars: Sequence[str] | None = None, width: float = COLUMN_INCHES
) -> Figure:
    """Scalars of many walks on one axis: every run, mean, and mean ± std as a band.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.open_sweep`, by flow time or by angle.
    scalars : sequence of str, optional
        Which. None: angle (by time), R, test loss and test accuracy.
    width : float
        In inches.

    Raises
    ------
    InputError
        A scalar that the dataset has not.
    """
    along = str(ds.attrs["along"])
    usual = ("angle", "regularizer", "test_loss", "test_accuracy")
    chosen = [n for n in usual if n in ds.data_vars] if scalars is None else list(scalars)
    unknown = [n for n in chosen if n not in ds or ds[n].dims != ("run", along)]
    if unknown or not chosen:
        what = f"{unknown[0]!r} is no scalar of these walks" if unknown else "none is given"
        raise InputError(f"scalars={chosen}: {what}; name some that open_sweep shows")
    with style():
        columns = 2 if width > WIDE_INCHES and len(chosen) > 1 else 1
        rows = -(-len(chosen) // columns)
        figure = new_figure(width, width * (0.42 * rows / columns + 0.08))
        axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
        x = ds[along].values
        for name, ax, colour in zip(chosen, axes.flat, COLOURS * 2, strict=False):
            runs = ds[name].values * (100 if name.endswith("accuracy") else 1)
            centre = runs.mean(axis=0)
            ax.plot(x, runs.T, color=colour, linewidth=0.5, alpha=0.5, linestyle="-")
            ax.plot(x, centre, color=colour, linewidth=1.6, linestyle="-")
            if len(runs) > 1:
                std = runs.std(axis=0, ddof=1)
                ax.fill_between(x, centre - std, centre + std, color=colour, alpha=0.18, lw=0)
            ax.set_ylabel(LABELS.get(name, name.replace("_", " ")))
        for ax in axes.flat[len(chosen) :]:
            ax.remove()
        for ax in axes[-1]:
            ax.set_xlabel(LABELS[along])
        figure.suptitle(f"{ds.attrs['experiment'] or 'walks'}: {ds.sizes['run']} runs", fontsize=8)
        figure.align_ylabels()
    return figure


def penalties(
    baseline: xr.Dataset, walks: Sequence[xr.Dataset] = (), width: float = SLIDE_INCHES
) -> Figure:
    """Test loss after training at each penalty, with the walks' start and end as lines."""
    values = baseline["test_loss"].isel(epoch=-1)
    centre = values.mean("run").values
    spread = values.std("run", ddof=1).values if baseline.sizes["run"] > 1 else 0 * centre
    positions = np.arange(baseline.sizes["penalty"])
    with style():
        figure = new_figure(width, 0.42 * width)
        ax = figure.subplots()
        ax.errorbar(
            positions,
            centre,
            spread,
            color=COLOURS[0],
            linestyle="none",
            marker="o",
            markersize=4,
            capsize=2,
            label="weight decay",
        )
        for name, index, colour, dashes in (
            ("walk: start", 0, COLOURS[1], "--"),
            ("walk: end", -1, COLOURS[2], "-"),
        ):
            ends = [float(ds["test_loss"][index]) for ds in walks if "test_loss" in ds]
            if ends:
                ax.axhline(float(np.mean(ends)), color=colour, linestyle=dashes, label=name)
                if len(ends) > 1:
                    std = float(np.std(ends, ddof=1))
                    low, high = np.mean(ends) - std, np.mean(ends) + std
                    ax.axhspan(float(low), float(high), color=colour, alpha=0.12, linewidth=0)
        ax.set_xticks(positions, [f"{p:g}" for p in baseline["penalty"].values])
        ax.set_xlabel("penalty")
        ax.set_ylabel(LABELS["test_loss"])
        lows = np.maximum(centre - spread, 0)
        if np.nanmin(centre) > 0 and np.nanmax(centre) / np.nanmin(centre) > 20:
            ax.set_yscale("log")
            ax.set_ylim(bottom=float(np.nanmin(np.where(lows > 0, lows, centre))) / 1.5)
        ax.legend()
    return figure


def pca_views(
    pca: PCA,
    walks: Sequence[xr.Dataset],
    points: Sequence[NDArray[np.floating]],
    ends: Mapping[str, Floats],
    width: float = SLIDE_INCHES,
) -> Figure:
    """All points in their first three components, and the distance each has from those.

    Parameters
    ----------
    pca : PCA
        Fitted to the points, with at least three components.
    walks : sequence of Dataset
        Trajectories; give the seeds.
    points : sequence of array, shape (N_i, P)
        The points of each walk.
    ends : mapping of str to array, shape (P,)
        Further points to mark, by their names.
    width : float
        In inches.
    """
    with style():
        figure = new_figure(width, 0.95 * width)
        parts: Any = figure.subfigures(2, 1, height_ratios=[3, 1])
        top, bottom = parts
        space: Any = top.add_subplot(projection="3d")
        off = bottom.subplots()
        for number, (ds, thetas) in enumerate(zip(walks, points, strict=True)):
            colour, dashes = COLOURS[number % 7], LINES[number % 7]
            scores = pca.transform(thetas)[:, :3]
            space.plot(*scores.T, color=colour, linewidth=0.8, linestyle=dashes)
            space.scatter(*scores.T, color=colour, s=3, depthshade=False)
            mean = scores.mean(axis=0)
            label = f"seed {ds.attrs['seed']}, mean of its points" if number < 10 else None
            space.scatter(*mean, color=colour, marker="s", s=30, edgecolor="#000000", label=label)
            fraction = np.arange(len(thetas)) / max(len(thetas) - 1, 1)
            off.plot(fraction, pca.distance(thetas, 3), color=colour, linestyle=dashes)
        for (name, theta), marker in zip(ends.items(), MARKERS, strict=False):
            scores = pca.transform(theta[None])[0, :3]
            space.scatter(*scores, color="#000000", marker=marker, s=60, label=name)
        ratio = 100 * pca.explained_variance_ratio
        space.set_xlabel(f"PC 1 ({ratio[0]:.0f} %)")
        space.set_ylabel(f"PC 2 ({ratio[1]:.0f} %)")
        space.set_zlabel(f"PC 3 ({ratio[2]:.0f} %)")
        space.set_box_aspect(None, zoom=0.95)
        space.tick_params(labelsize=6)
        top.legend(loc="outside lower center", ncols=3, fontsize=6)
        off.set_xlabel("snapshots, from the first (0) to the last (1) of each walk")
        off.set_ylabel("off-plane distance")
        off.set_ylim(bottom=0)
    return figure
