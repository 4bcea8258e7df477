"""Many runs in one figure: those of Tahir & Katz (2021), and scalars with their band."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    SLIDE_INCHES,
    WIDE_INCHES,
    axis_label,
    check_width,
    fitted,
    label_below,
    mark_lone,
    new_figure,
    plain,
    style,
)
from geoflow.plots.trajectory import of_scalar, shown_names, walks_of
from geoflow.system import kinds
from geoflow.trajectories import schema
from geoflow.trajectories.dataset import MOST_SHOWN, SHOWN
from geoflow.trajectories.records import RESIDUAL

A_SWEEP = "what gf.open_sweep returned"


def sweep_stack(
    walks: Sequence[xr.Dataset], mean: xr.Dataset | None, width: float = SLIDE_INCHES
) -> Figure:
    """Angle, R, test loss and test accuracy: every run, and mean ± std over them.

    Of walks of a flow of one's own, what it records stands in the place of angle and R.

    Parameters
    ----------
    walks : sequence of Dataset
        Trajectories.
    mean : Dataset or None
        The same by time, from :func:`geoflow.sweeps.ensemble.resample`; None for a single walk.
    width : float
        In inches.

    Raises
    ------
    InputError
        There is no walk, or the mean is not of these.
    """
    check_width(width)
    walks = walks_of(walks, "walks")
    names = shown_names(walks)
    if mean is not None:
        give = "what gf.sweeps.ensemble.resample made of the walks by time, or None"
        kinds.check_dataset(mean, "time", *names, name="mean", give=give)
        mean = kinds.as_made(mean, ("run", "time"), "an ensemble", "mean")
    with style():
        figure = new_figure(width, 0.24 * width * len(names))
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for name, ax, colour in zip(names, axes, cycle(COLOURS), strict=False):
            for ds in walks:
                look: dict[str, Any] = {
                    "linewidth": 0.6,
                    "alpha": 0.5,
                    "marker": None,
                    "linestyle": "-",
                }
                if mean is None:
                    look = {"linestyle": "-"}
                of_scalar(ds, name, ax, color=colour, **look)
            if mean is not None:
                _mean_and_std(ax, mean["time"].values, _runs(mean, name), colour)
        axes[-1].set_xlabel(LABELS["time"])
        plural = "s" if len(walks) > 1 else ""
        name = plain(walks[0].attrs.get("experiment") or "walk")
        axes[0].set_title(fitted(f"{name}: {len(walks)} run{plural}", width))
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
        Which. None: angle (by time), R, test loss and test accuracy; of a flow of one's own what
        it records, its first six scalars.
    width : float
        In inches.

    Raises
    ------
    InputError
        The dataset is of no sweep, or has not the scalar.
    """
    check_width(width)
    kinds.check_dataset(ds, "run", give=A_SWEEP)
    if ds.attrs.get("along") not in ds.variables:
        raise InputError(f"ds does not say along what its runs are; give {A_SWEEP}")
    along = str(ds.attrs["along"])
    ds = kinds.as_made(ds, ("run", along), "an ensemble").sortby(along)
    chosen = _usual(ds, along) if scalars is None else scalars
    chosen = kinds.as_names(chosen, "scalars")
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
        for name, ax, colour in zip(chosen, axes.flat, cycle(COLOURS), strict=False):
            runs = _runs(ds, name)
            look: dict[str, Any] = {"linewidth": 0.5, "alpha": 0.5, "linestyle": "-"}
            mark_lone(ax.plot(x, runs.T, color=colour, **look))
            _mean_and_std(ax, x, runs, colour)
            ax.set_ylabel(axis_label(name))
        label_below(axes, len(chosen), LABELS[along])
        called = f"{plain(ds.attrs['experiment'] or 'walks')}: {ds.sizes['run']} runs"
        figure.suptitle(fitted(called, width), fontsize=8)
        figure.align_ylabels()
    return figure


def _usual(ds: xr.Dataset, along: str) -> list[str]:
    """Scalars that an ensemble is drawn by, where none are named."""
    tested = [n for n in ("test_loss", "test_accuracy") if n in ds.data_vars]
    of_flow = [n for n in SHOWN if n in ds.data_vars]
    if not of_flow and along == "time":
        # Of another flow, which no attribute of an ensemble tells from its observables.
        beside = {*schema.STEP_COORDINATES, *schema.PROGRESS_VARIABLES, *schema.APART, *tested}
        beside.add(RESIDUAL)
        own = [str(n) for n in ds.data_vars if n not in beside and ds[n].dims == ("run", along)]
        of_flow = own[:MOST_SHOWN]
    return [*of_flow, *tested]


def _runs(ds: xr.Dataset, name: str) -> NDArray[np.float64]:
    """A scalar of each run, shape (run, …), as it is drawn."""
    runs: NDArray[np.float64] = ds[name].values * (100 if name.endswith("accuracy") else 1)
    return runs


def _mean_and_std(ax: Axes, x: NDArray[np.float64], runs: NDArray[np.float64], colour: str) -> None:
    """Draw the mean over the runs, and a standard deviation on either side as a band."""
    centre = runs.mean(axis=0)
    mark_lone(ax.plot(x, centre, color=colour, linewidth=1.6, linestyle="-"))
    if len(runs) > 1:
        std = runs.std(axis=0, ddof=1)
        ax.fill_between(x, centre - std, centre + std, color=colour, alpha=0.18, lw=0)


def penalties(
    baseline: xr.Dataset, walks: Sequence[xr.Dataset] = (), width: float = SLIDE_INCHES
) -> Figure:
    """Test loss after training at each penalty, with the walks' start and end as lines.

    Raises
    ------
    InputError
        The trainings, or the walks, are none.
    """
    check_width(width)
    give = "what gf.baselines.weight_decay returned"
    needed = ("test_loss", "epoch", "run", "penalty")
    kinds.check_dataset(baseline, *needed, name="baseline", give=give)
    walks = walks_of(walks, "walks", least=0)
    baseline = kinds.as_made(baseline, ("penalty", "run", "epoch"), "trainings", "baseline")
    values = baseline["test_loss"].isel(epoch=-1).values
    # A run that diverged is not left out of a mean, which would be the better for it.
    centre = values.mean(axis=1)
    # One run alone has no spread, which is not a spread of zero.
    with np.errstate(invalid="ignore"):
        spread = values.std(axis=1, ddof=1) if values.shape[1] > 1 else None
    lost = int((~np.isfinite(centre)).sum())
    note = f"\n({lost} of {len(centre)} left out: a run diverged)" if lost else ""
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
            label=f"weight decay{note}",
        )
        for name, index, colour, dashes in (
            ("walk: start", 0, COLOURS[1], "--"),
            ("walk: end", -1, COLOURS[2], "-"),
        ):
            ends = [float(ds["test_loss"][index]) for ds in walks if "test_loss" in ds]
            ends = [end for end in ends if np.isfinite(end)]
            if ends:
                ax.axhline(float(np.mean(ends)), color=colour, linestyle=dashes, label=name)
                if len(ends) > 1:
                    std = float(np.std(ends, ddof=1))
                    low, high = np.mean(ends) - std, np.mean(ends) + std
                    ax.axhspan(float(low), float(high), color=colour, alpha=0.12, linewidth=0)
        ax.set_xticks(positions, [f"{p:g}" for p in baseline["penalty"].values])
        ax.set_xlabel("penalty")
        ax.set_ylabel(LABELS["test_loss"])
        lows = np.maximum(centre - (0.0 if spread is None else spread), 0)
        known = centre[np.isfinite(centre)]
        if known.size and known.min() > 0 and known.max() / known.min() > 20:
            ax.set_yscale("log")
            ax.set_ylim(bottom=float(np.nanmin(np.where(lows > 0, lows, centre))) / 1.5)
        ax.legend()
    return figure
