"""Trajectory datasets as figures: each function draws on Axes and returns them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from geoflow.errors import InputError

# Okabe & Ito's palette: told apart by the colour-blind, and by lightness in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

COLUMN_INCHES = 3.5
SLIDE_INCHES = 7.0

STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=LINES),
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "svg.hashsalt": "geoflow",
}

LABELS = {
    "time": "flow time $t$",
    "arc_length": r"arc length in $\theta$",
    "step": "step",
    "angle": r"angle $\angle(\nabla R, \nabla L)$ / °",
    "regularizer": r"$R(\theta)$",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy / %",
    "train_accuracy": "training accuracy / %",
    "train_loss": "training loss",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this block in geoflow's style; nothing outside changes."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def line(ds: xr.Dataset, name: str, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """Draw a scalar of a trajectory against ``time``, ``arc_length`` or ``step``.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory.
    name : str
        A scalar of every step, or an observable of the snapshots.
    ax : Axes
        Drawn on.
    x : str
        Horizontal axis.
    **kwargs
        Passed on to ``Axes.plot``.

    Raises
    ------
    InputError
        The dataset has no such scalar.
    """
    if name not in ds or ds[name].ndim != 1:
        raise InputError(f"{name!r} is not a scalar of this trajectory")
    values = ds[name].values * (100 if name.endswith("accuracy") else 1)
    steps = np.arange(ds.sizes["step"]) if x == "step" else ds[x].values
    if ds[name].dims == ("snapshot",):
        steps = steps[ds["snapshot_step"].values]
        few = len(steps) <= 40
        kwargs = {"marker": "o" if few else None, "markersize": 2.5} | kwargs
    ax.plot(steps, values, **kwargs)
    ax.set_ylabel(LABELS.get(name, name.replace("_", " ")))
    if name.endswith("accuracy"):
        # A flat curve still gets an axis that means something.
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, values.min() - 1), min(max(high, values.max() + 1), 100.5))
    return ax


def angle(ds: xr.Dataset, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """Angle between ∇R and ∇L, with the 180° of a KKT point."""
    line(ds, "angle", ax, x, **kwargs)
    ax.axhline(180, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_ylim(min(89.0, float(ds["angle"].min()) - 2), 183)
    ax.set_yticks([90, 120, 150, 180])
    return ax


def level_residual(ds: xr.Dataset, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """|L − c|/c at every step, with the tolerance it is kept to."""
    relative = np.abs(ds["level_residual"].values) / abs(ds.attrs["level"])
    steps = np.arange(ds.sizes["step"]) if x == "step" else ds[x].values
    # Exact zeros have no place on a logarithmic axis.
    shown = np.where(relative > 0, relative, np.nan)
    look: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 2.5} | kwargs
    ax.plot(steps, shown, **look)
    rtol = ds.attrs["level_rtol"]
    ax.axhline(rtol, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_yscale("log")
    ax.set_ylabel(r"$|L-c|\,/\,c$")
    low = np.nanmin(np.append(shown[np.isfinite(shown)], rtol))
    ax.set_ylim(low / 3, 10 * max(rtol, np.nanmax(np.append(shown[np.isfinite(shown)], rtol))))
    return ax


def overview(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """Angle, R and the test observables against flow time, the level's residual under them."""
    panels = [n for n in ("test_loss", "test_accuracy") if n in ds]
    with style():
        figure = new_figure(width, 0.72 * width if panels else 0.5 * width)
        rows = ["ab", "cd", "ee"] if len(panels) == 2 else ["ab", "ce"] if panels else ["ab", "ee"]
        heights = [1.0] * (len(rows) - 1) + [0.62 if len(panels) != 1 else 1.0]
        axes = figure.subplot_mosaic("\n".join(rows), sharex=True, height_ratios=heights)
        angle(ds, axes["a"])
        line(ds, "regularizer", axes["b"], color=COLOURS[1])
        for key, name, colour in zip("cd", panels, COLOURS[2:], strict=False):
            line(ds, name, axes[key], color=colour)
        level_residual(ds, axes["e"], color=COLOURS[6])
        for key in set("".join(rows[-2:])):
            axes[key].set_xlabel(LABELS["time"])
            axes[key].tick_params(labelbottom=True)
        figure.suptitle(_title(ds), fontsize=8)
    return figure


def paper_stack(
    datasets: xr.Dataset | Sequence[xr.Dataset],
    x: str = "step",
    width: float = COLUMN_INCHES,
) -> Figure:
    """Figure 2 of Tahir & Katz (2021): angle, R, test loss and test accuracy, stacked.

    Parameters
    ----------
    datasets : Dataset or sequence of Dataset
        One walk, or several to be drawn over each other.
    x : str
        ``step`` as in the paper, ``time`` or ``arc_length``.
    width : float
        In inches.
    """
    several = [datasets] if isinstance(datasets, xr.Dataset) else list(datasets)
    names = [n for n in ("test_loss", "test_accuracy") if all(n in ds for ds in several)]
    with style():
        figure = new_figure(width, width * (0.42 * (2 + len(names)) + 0.1))
        axes = figure.subplots(2 + len(names), 1, sharex=True)
        for number, ds in enumerate(several):
            look = {"color": COLOURS[number % 7], "linestyle": LINES[number % 7]}
            angle(ds, axes[0], x, **look)
            line(ds, "regularizer", axes[1], x, **look)
            for ax, name in zip(axes[2:], names, strict=True):
                line(ds, name, ax, x, **look)
        axes[-1].set_xlabel(LABELS[x])
        axes[0].set_title(_title(several[0]) if len(several) == 1 else f"{len(several)} walks")
        figure.align_ylabels(axes)
    return figure


def save_figures(ds: xr.Dataset, folder: str | Path, stem: str) -> list[Path]:
    """Write every figure of a walk as PNG and PDF, and return the files.

    Raises
    ------
    InputError
        The folder cannot be made or written.
    """
    return _save({"overview": overview(ds), "stack": paper_stack(ds)}, folder, stem)


def work_precision(ds: xr.Dataset, ax: Axes | None = None, snapshot: int = -1) -> Axes:
    """Relative error in θ against evaluations, a line a solver, the reference's own error under it.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.comparison.compare`.
    ax : Axes, optional
        Drawn on. None: a new figure's.
    snapshot : int
        Which flow time.

    Raises
    ------
    InputError
        The dataset is no comparison.
    """
    if "theta_error" not in ds or "rtol" not in ds.dims:
        raise InputError("ds is not a comparison of solvers; make one with geoflow compare")
    with style():
        if ax is None:
            ax = new_figure(COLUMN_INCHES * 1.3, COLUMN_INCHES * 1.1).subplots()
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
                label=f"{solver}{note}",
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
        ax.set_title(ds.attrs["title"])
        # Under the axes, where it hides no line.
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return ax


def save_work_precision(ds: xr.Dataset, folder: str | Path, stem: str) -> list[Path]:
    """Write the work–precision diagram as PNG and PDF, and return the files.

    Raises
    ------
    InputError
        The folder cannot be made or written.
    """
    figure = work_precision(ds).figure
    assert isinstance(figure, Figure)
    return _save({"work-precision": figure}, folder, stem)


def _save(figures: Mapping[str, Figure], folder: str | Path, stem: str) -> list[Path]:
    """Write each figure as PNG and PDF."""
    folder = Path(folder)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for ending in ("png", "pdf"):
                path = folder / f"{stem}-{name}.{ending}"
                # Without its date, so that the same walk gives the same file.
                undated = {"CreationDate": None} if ending == "pdf" else None
                figure.savefig(path, dpi=200, metadata=undated)
                paths.append(path)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); name another") from None
    return paths


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _title(ds: xr.Dataset) -> str:
    name = ds.attrs["experiment"] or "walk"
    seed = f", seed {ds.attrs['seed']}" if ds.attrs["seed"] >= 0 else ""
    note = ", synthetic images" if "synthetic" in ds.attrs["title"] else ""
    return f"{name}{seed}{note}: {ds.attrs['solver']}, rtol {ds.attrs['rtol']:g}"
