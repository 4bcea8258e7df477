"""Curvature spectra along a walk: a waterfall of densities over flow time, extreme eigenvalues."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from geoflow.analysis.curvature.spectra_dataset import in_ranks
from geoflow.errors import InputError
from geoflow.plots.styles import (
    COLOURS,
    COLUMN_INCHES,
    LABELS,
    SLIDE_INCHES,
    check_axes,
    check_width,
    new_figure,
    plain,
    style,
)
from geoflow.system import kinds

Floats = NDArray[np.float64]

OPERATOR_LABELS = {
    "hessian": r"$\nabla^2 L$",
    "tangent": r"$A$, tangent space",
    "gauss_newton": r"$G$, Gauss–Newton",
}
# Of the largest modulus: within this, the axis is linear.
LINEAR = 1e-4
# Standard deviation of a node's Gaussian, in units of asinh(μ/linear): a fifteenth of a decade.
BROADENING = 0.15
# Eigenvalues for each unit of asinh where a curve starts.
FLOOR = 0.3


def waterfall(
    ds: xr.Dataset,
    operator: str = "hessian",
    ax: Axes | None = None,
    width: float = COLUMN_INCHES,
) -> Axes:
    """Spectral density of each snapshot, one above the other, the largest eigenvalues marked.

    Outliers are thousands of times as far from zero as the bulk is wide, so that the axis is
    logarithmic in the modulus, but for a linear part at zero (asinh). The height is the logarithm
    of the number of eigenvalues for each unit of that axis, from the quadrature's own nodes; a
    tick marks an eigenvalue that converged.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.analysis.curvature.spectra.along`.
    operator : str
        One of the dataset's.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    width : float
        In inches, of a new figure.

    Raises
    ------
    InputError
        The dataset holds no spectra, or not of this operator.
    """
    check_axes(ax, optional=True)
    check_width(width)
    at = _of_operator(ds, operator, "probe", "lanczos")
    n = float(at["dimension"])
    scale = float(np.abs(at["node"]).max())
    linear = LINEAR * scale if scale else 1.0
    ends = np.arcsinh(np.array([at["node"].min(), at["node"].max()], dtype=float) / linear)
    # Room at the left for the bar that gives the scale of the heights.
    left = ends[0] - 0.7 - 0.2 * (ends[1] - ends[0])
    grid = np.linspace(ends[0] - 0.7, ends[1] + 0.7, 1200)
    rows = [at.isel(snapshot=row) for row in range(at.sizes["snapshot"])]
    curves = np.array([_counts(row, grid, linear, n) for row in rows])
    heights = np.log10(np.maximum(curves, FLOOR) / FLOOR)
    # The highest reaches the next line but one.
    spacing = 0.55 * float(heights.max())
    with style():
        if ax is None:
            ax = new_figure(width, 0.95 * width).subplots()
        times = at["snapshot_time"].values
        for row in range(len(times) - 1, -1, -1):
            base = row * spacing
            order = len(times) - row
            x, y = linear * np.sinh(grid), base + heights[row]
            ax.fill_between(x, base, y, color="#FFFFFF", alpha=0.75, lw=0, zorder=2 * order)
            ax.fill_between(x, base, y, color=COLOURS[5], alpha=0.35, lw=0, zorder=2 * order)
            ax.plot(x, y, color=COLOURS[0], linestyle="-", linewidth=0.8, zorder=2 * order + 1)
            for name, colour in (("largest", COLOURS[1]), ("smallest", COLOURS[2])):
                values = at[f"{name}_eigenvalue"].isel(snapshot=row).values
                values = values[np.isfinite(values)]
                look: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 6}
                ax.plot(
                    *(values, np.full(len(values), base)),
                    color=colour,
                    zorder=2 * len(times) + 2,
                    label=f"{name} eigenvalues" if len(values) else None,
                    **look,
                )
        ax.set_xscale("asinh", linear_width=linear)
        _ticks(ax, linear, scale, ends)
        ax.set_xlim(linear * np.sinh(left), linear * np.sinh(grid[-1]))
        ax.set_yticks(spacing * np.arange(len(times)), [f"{t:.2g}" for t in times])
        ax.set_ylabel(f"{LABELS['time']} (height: log of the count)")
        ax.set_xlabel("eigenvalue")
        ax.set_title(OPERATOR_LABELS.get(operator, plain(operator)))
        ax.grid(visible=False, axis="y")
        _decade(ax)
    return ax


def waterfalls(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """:func:`waterfall` of every operator, as one figure.

    Raises
    ------
    InputError
        The dataset holds no spectra.
    """
    check_width(width)
    names = _operators(ds)
    side_by_side = width > COLUMN_INCHES
    rows, columns = (1, len(names)) if side_by_side else (len(names), 1)
    with style():
        height = 0.95 * width / columns if side_by_side else 0.75 * width * len(names)
        figure = new_figure(width, max(height, 0.45 * width))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for name, ax in zip(names, axes, strict=True):
            waterfall(ds, name, ax)
        if side_by_side:
            for ax in axes[1:]:
                ax.set_ylabel("")
        legend = {
            label: handle
            for ax in axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=2)
    return figure


def extremes(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """Extreme eigenvalues of every operator against flow time, with their residuals as bars.

    Raises
    ------
    InputError
        The dataset holds no spectra.
    """
    check_width(width)
    names = _operators(ds)
    ds = in_ranks(kinds.as_made(ds, ("snapshot", "operator", "rank"), "spectra"))
    # Where nothing converged there is nothing to draw.
    ends = [
        end for end in ("largest", "smallest") if np.isfinite(ds[f"{end}_eigenvalue"].values).any()
    ]
    if not ends:
        raise InputError("ds has no eigenvalue that converged; compute it with more products")
    with style():
        figure = new_figure(width, max(0.3 * width, 1.6) * len(ends))
        axes = figure.subplots(len(ends), len(names), squeeze=False, sharex=True)
        for column, name in enumerate(names):
            at = _of_operator(ds, name)
            for end, ax in zip(ends, axes[:, column], strict=True):
                _extreme(at, end, ax)
                if not column:
                    ax.set_ylabel(f"{end} eigenvalues")
            axes[0, column].set_title(OPERATOR_LABELS.get(name, plain(name)))
            axes[-1, column].set_xlabel(LABELS["time"])
    return figure


def _operators(ds: xr.Dataset) -> list[str]:
    kinds.check_dataset(ds, give="what geoflow spectrum made")
    if "node" not in ds or "operator" not in ds:
        raise InputError("ds holds no curvature spectra; make them with geoflow spectrum")
    return [str(name) for name in kinds.as_made(ds, ["operator"], "spectra")["operator"].values]


def _of_operator(ds: xr.Dataset, operator: str, *dims: str) -> xr.Dataset:
    """The spectra of an operator, with these dimensions behind that of the snapshots."""
    kinds.check_choice(operator, _operators(ds), "operator")
    ds = kinds.as_made(ds, ("snapshot", "operator", *dims), "spectra")
    # In whatever order they were asked for, flow time rises along an axis.
    return ds.sel(operator=operator).sortby("snapshot_time")


@np.errstate(under="ignore")
def _counts(at: xr.Dataset, grid: Floats, linear: float, n: float) -> Floats:
    """Eigenvalues for each unit of asinh(μ/linear), from all nodes of a snapshot."""
    weights = at["weight"].values.ravel() * n / at.sizes["probe"]
    there = weights > 0
    places = np.arcsinh(at["node"].values.ravel()[there] / linear)
    z = (grid[:, None] - places) / BROADENING
    kernel = np.exp(-0.5 * z * z) / (np.sqrt(2 * np.pi) * BROADENING)
    return np.asarray(kernel @ weights[there])


def _ticks(ax: Axes, linear: float, scale: float, ends: Floats) -> None:
    """Zero and every other power of ten beyond the linear part."""
    low, high = (linear * np.sinh(end) for end in ends)
    powers = np.arange(np.ceil(np.log10(3 * linear)), np.floor(np.log10(scale)) + 1)
    ticks = {0.0: "0"}
    # As whole numbers: of -0.0 the sign is written too.
    for power in map(int, powers[::-2]):
        value = 10.0**power
        if value <= high:
            ticks[value] = f"$10^{{{power}}}$"
        if -value >= low:
            ticks[-value] = f"$-10^{{{power}}}$"
    ax.set_xticks(list(ticks), list(ticks.values()))
    ax.set_xticks([], minor=True)


def _decade(ax: Axes) -> None:
    """Beside the axis, in the units of the heights, a bar as high as a factor of ten."""
    mixed: Any = ax.get_yaxis_transform()
    ax.plot([0.035, 0.035], [0.15, 1.15], color="#000000", linestyle="-", transform=mixed)
    look: dict[str, Any] = {"va": "center", "fontsize": 6, "transform": mixed}
    ax.text(0.05, 0.65, "×10", **look)


def _extreme(at: xr.Dataset, end: str, ax: Axes) -> None:
    values, bars = at[f"{end}_eigenvalue"].values, at[f"{end}_residual"].values
    times, ranks = at["snapshot_time"].values, at["rank"].values
    for column in range(values.shape[1] - 1, -1, -1):
        first = ranks[column] == 0
        ax.errorbar(
            times,
            values[:, column],
            bars[:, column],
            color=COLOURS[0] if end == "largest" else COLOURS[1],
            linestyle="-" if first else (0, (1, 1)),
            linewidth=1.3 if first else 0.7,
            marker="o" if end == "largest" else "s",
            markersize=3.5 if first else 1.8,
            capsize=2,
        )
    known = values[np.isfinite(values)]
    if end == "largest" and known.size and known.max() > 10 * known.min() > 0:
        ax.set_yscale("log")
    if not known.size:
        ax.set_yticks([])
        place: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(0.5, 0.5, "none converged", color="#888888", **place)
