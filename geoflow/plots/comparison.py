"""The work–precision diagram of solvers compared."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from geoflow.errors import InputError
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LINES,
    MARKERS,
    check_axes,
    check_width,
    new_figure,
    plain,
    style,
)
from geoflow.system import kinds


def work_precision(
    ds: xr.Dataset, ax: Axes | None = None, snapshot: int = -1, width: float = COLUMN_INCHES * 1.3
) -> Axes:
    """Relative error in θ against evaluations, a line a solver, the reference's own error under it.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.comparisons.work_precision.compare`.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    snapshot : int
        Which flow time.
    width : float
        In inches, of a new figure.

    Raises
    ------
    InputError
        The dataset is no comparison, or has no such flow time.
    """
    check_axes(ax, optional=True)
    check_width(width)
    kinds.check_dataset(ds, give="what geoflow compare made")
    if "theta_error" not in ds or "rtol" not in ds:
        raise InputError("ds is not a comparison of solvers; make one with geoflow compare")
    ds = kinds.as_made(ds, ("solver", "rtol", "snapshot"), "a comparison")
    n = ds.sizes["snapshot"]
    if not -n <= kinds.as_whole(snapshot, "snapshot") < n:
        raise InputError(f"snapshot={snapshot}: there are 0 to {n - 1}")
    with style():
        own = ax is None
        if ax is None:
            ax = new_figure(width, min(0.85 * width, 4.2)).subplots()
        at = ds.isel(snapshot=snapshot)
        for number, solver in enumerate(at["solver"].values):
            row = at.sel(solver=solver)
            asked = row["status"].values != "not_run"
            # An error of zero has no place on a logarithmic axis.
            there = (row["theta_error"].values > 0) & asked
            missing = int((asked & np.isnan(row["theta_error"].values)).sum())
            note = f" ({missing} of {asked.sum()} did not arrive)" if missing else ""
            ax.plot(
                row["evaluations"].values[there],
                row["theta_error"].values[there],
                color=COLOURS[number % len(COLOURS)],
                linestyle=LINES[number % len(LINES)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                label=f"{plain(solver)}{note}",
            )
        ax.set_xscale("log")
        ax.set_yscale("log")
        floor = float(at["reference_theta_error"])
        if floor > 0:
            label = "reference's own error"
            ax.axhline(floor, color="#888888", linewidth=0.8, linestyle="--", label=label)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_minor_formatter("")
        ax.set_xlabel(f"gradient evaluations to $t$ = {float(at['snapshot_time']):g}")
        ax.set_ylabel(r"relative error in $\theta$")
        ax.set_title(plain(ds.attrs["title"]))
        if own:
            # Under the axes, where it hides no line.
            ax.figure.legend(loc="outside lower center", ncols=2)
        else:
            ax.legend()
    return ax
