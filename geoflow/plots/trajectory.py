"""Figures of a walk: each function draws on Axes and returns them."""

from __future__ import annotations

import json
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
    LINES,
    SLIDE_INCHES,
    TITLE_LETTERS,
    WIDE_INCHES,
    axis_label,
    check_axes,
    check_width,
    fitted,
    mark_lone,
    new_figure,
    plain,
    style,
    wrapped,
)
from geoflow.system import kinds
from geoflow.trajectories import schema
from geoflow.trajectories.consistency import OURS
from geoflow.trajectories.dataset import at_snapshots, level_residuals, shown_scalars
from geoflow.trajectories.given import check_placed, check_walk
from geoflow.trajectories.names import walk_name

# What a title leaves out.
USUAL_R, USUAL_DTYPE = "squared_norm", "float64"


def line(ds: xr.Dataset, name: str, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """Draw a scalar of a trajectory against ``time``, ``arc_length`` or ``step``.

    A value between two that are not known, as of an observable evaluated now and then, is a point.

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
        The dataset is no trajectory, or has no such scalar; or its steps were cut apart from its
        snapshots, or put into another order, and are counted.
    """
    check_axes(ax)
    _check(ds, x)
    kinds.check_kind(name, str, "name", "the name of a scalar")
    if name not in ds or ds[name].ndim != 1:
        raise InputError(f"{name!r} is not a scalar of this trajectory")
    values = ds[name].values * (100 if name.endswith("accuracy") else 1)
    steps = _places(ds, x)
    if ds[name].dims == ("snapshot",):
        if x == "step":
            # The steps of the other panels: counted from the first that is there.
            check_placed(ds)
        steps = ds["snapshot_step"].values if x == "step" else at_snapshots(ds, x)
        few = len(steps) <= 40
        kwargs = {"marker": "o" if few else None, "markersize": 2.5} | kwargs
    mark_lone(ax.plot(steps, values, **kwargs))
    ax.set_ylabel(axis_label(name))
    known = values[np.isfinite(values)]
    if name.endswith("accuracy") and known.size:
        # A flat curve still gets an axis that means something.
        low, high = ax.get_ylim()
        ax.set_ylim(min(low, known.min() - 1), min(max(high, known.max() + 1), 100.5))
    return ax


def angle(ds: xr.Dataset, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """Angle between ∇R and ∇L, with the 180° of a KKT point."""
    line(ds, "angle", ax, x, **kwargs)
    ax.axhline(180, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
    # Of all walks that are drawn there, not of this alone.
    low = min(89.0, float(ax.dataLim.y0) - 2)
    ax.set_ylim(low, 183)
    ax.set_yticks(np.arange(30 * np.ceil(low / 30), 181, 30))
    return ax


def level_residual(ds: xr.Dataset, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """|L − c|/c at every step, with the tolerance it is kept to.

    Of several constraints the largest, each relative to its own level. Where the level set has an
    absolute tolerance too, it is |L − c| over the whole tolerance, 1 at the most.
    """
    check_axes(ax)
    _check(ds, x)
    check_walk(ds, attributes=("level", "level_rtol"))
    residuals, levels = level_residuals(ds)
    atol = json.loads(ds.attrs.get("config", "{}")).get("level_atol", 0.0)
    limit = 1.0 if atol else float(ds.attrs["level_rtol"])
    scales = ds.attrs["level_rtol"] * np.abs(levels) + atol if atol else np.abs(levels)
    relative = (np.abs(residuals) / scales).max(axis=1)
    steps = _places(ds, x)
    # Exact zeros have no place on a logarithmic axis.
    shown = np.where(relative > 0, relative, np.nan)
    look: dict[str, Any] = {"linestyle": "none", "marker": ".", "markersize": 2.5} | kwargs
    ax.plot(steps, shown, **look)
    ax.axhline(limit, color="#888888", linewidth=0.8, linestyle=(0, (1, 2)))
    ax.set_yscale("log")
    what = r"$|L-c|\,/\," if len(levels) == 1 else r"$\max_i\,|L_i-c_i|\,/\,"
    level = "c$" if len(levels) == 1 else "c_i$"
    ax.set_ylabel(f"{what}$tolerance" if atol else f"{what}{level}")
    drawn = np.append(shown[np.isfinite(shown)], limit)
    ax.set_ylim(drawn.min() / 3, 10 * drawn.max())
    return ax


def overview(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """Angle, R and the test observables against flow time, the level's residual under them.

    Of a flow of one's own what it records: its first six scalars in the place of angle and R, and
    the residual where it has one.

    Raises
    ------
    InputError
        The dataset is no walk, or records none of these.
    """
    check_width(width)
    _check(ds, "time")
    names = shown_names([ds])
    # In "e" the residual; a walk that keeps none has a scalar's panel there.
    residual = "level_residual" in ds or schema.FLOW_SCALARS not in ds.attrs
    panels = "abcdfghi"[: len(names)]
    if width <= WIDE_INCHES:
        rows, share = [*panels, *["e"][: int(residual)]], 0.42
    else:
        pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
        odd = len(panels) % 2 == 1
        last = [pairs.pop() + ("e" if residual else panels[-1])] if odd else ["ee"][: int(residual)]
        rows = pairs + last
        share = 0.36 if odd and len(rows) <= 2 else 0.25 if len(rows) <= 2 else 0.24
    with style():
        figure = new_figure(width, share * width * len(rows))
        low = 0.62 if set(rows[-1]) == {"e"} else 1.0
        heights = [1.0] * (len(rows) - 1) + [low]
        axes = figure.subplot_mosaic("\n".join(rows), sharex=True, height_ratios=heights)
        for key, name, colour in zip(panels, names, cycle(COLOURS), strict=False):
            of_scalar(ds, name, axes[key], color=colour)
        if residual:
            level_residual(ds, axes["e"], color=COLOURS[6])
        for key in set("".join(rows[-2:] if width > WIDE_INCHES else rows[-1])):
            axes[key].set_xlabel(LABELS["time"])
            axes[key].tick_params(labelbottom=True)
        figure.suptitle(fitted(title(ds), width), fontsize=8)
        figure.align_ylabels()
    return figure


def shown_names(walks: Sequence[xr.Dataset], *, alone: bool = True) -> list[str]:
    """Scalars and test observables that walks are drawn by: those that all of them have.

    Parameters
    ----------
    walks : sequence of Dataset
        At least one.
    alone : bool
        Whether there is nothing else to be drawn.

    Raises
    ------
    InputError
        There are none, and nothing else is drawn.
    """
    tested = [n for n in ("test_loss", "test_accuracy") if all(n in ds for ds in walks)]
    names = [*shown_scalars(walks), *tested]
    if alone and not names:
        flows = ", ".join(dict.fromkeys(str(ds.attrs.get(schema.FLOW, OURS)) for ds in walks))
        raise InputError(
            f"ds: there is no scalar and no test loss or accuracy that every walk has (of the flow "
            f"{plain(flows)}); draw what there is by plots.line"
        )
    return names


def of_scalar(ds: xr.Dataset, name: str, ax: Axes, x: str = "time", **kwargs: Any) -> Axes:
    """Draw a scalar as :func:`line` does, the angle as :func:`angle`."""
    return angle(ds, ax, x, **kwargs) if name == "angle" else line(ds, name, ax, x, **kwargs)


def paper_stack(
    datasets: xr.Dataset | Sequence[xr.Dataset],
    x: str = "step",
    width: float = COLUMN_INCHES,
) -> Figure:
    """Figure 2 of Tahir & Katz (2021): angle, R, test loss and test accuracy, stacked.

    Of several walks, up to seven are named by what they differ in. Of a flow of one's own, what it
    records stands in the place of angle and R.

    Parameters
    ----------
    datasets : Dataset or sequence of Dataset
        One walk, or several to be drawn over each other.
    x : str
        ``step`` as in the paper, ``time`` or ``arc_length``.
    width : float
        In inches.

    Raises
    ------
    InputError
        There is no walk, or one has no such scalar.
    """
    check_width(width)
    several = walks_of(datasets, "datasets")
    for ds in several:
        _check(ds, x)
    names = shown_names(several)
    labels = _apart(several)
    with style():
        legend = 0.16 * len(labels) / (2 if width > WIDE_INCHES else 1)
        figure = new_figure(width, min(0.42 * width, 1.5) * len(names) + 0.35 + legend)
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for number, ds in enumerate(several):
            look = {"color": COLOURS[number % 7], "linestyle": LINES[number % 7]}
            label = {"label": labels[number]} if labels else {}
            for row, (ax, name) in enumerate(zip(axes, names, strict=True)):
                of_scalar(ds, name, ax, x, **look, **(label if row == 0 else {}))
        axes[-1].set_xlabel(axis_label(x))
        called = title(several[0]) if len(several) == 1 else f"{len(several)} walks"
        axes[0].set_title(fitted(called, width))
        if labels:
            figure.legend(loc="outside lower center", ncols=2 if width > WIDE_INCHES else 1)
        figure.align_ylabels(axes)
    return figure


def walks_of(given: Any, name: str, *, least: int = 1) -> list[xr.Dataset]:
    """Walks that are given as one, or several in a sequence.

    Raises
    ------
    InputError
        What is given is no walk, or they are fewer than ``least``.
    """
    walks: list[Any]
    try:
        walks = [given] if isinstance(given, xr.Dataset | str) else list(given)
    except TypeError:
        walks = [given]
    if len(walks) < least:
        raise InputError(f"{name}={kinds.shown(given)}; give a walk, or several in a list")
    for ds in walks:
        kinds.check_dataset(ds, name=name)
    return walks


def _check(ds: xr.Dataset, x: str) -> None:
    """Refuse what is no walk, or has no such scalar to be drawn against.

    Raises
    ------
    InputError
        It is none, or has none.
    """
    kinds.check_dataset(ds, "step")
    kinds.check_kind(x, str, "x", "'time', 'arc_length' or 'step'")
    if x != "step" and (x not in ds or ds[x].dims != ("step",)):
        raise InputError(f"x={x!r} is no scalar of its steps; use 'time', 'arc_length' or 'step'")


def _places(ds: xr.Dataset, x: str) -> NDArray[np.floating] | NDArray[np.integer]:
    """Where each step stands on the horizontal axis.

    Raises
    ------
    InputError
        Steps are counted, and not in the order of time.
    """
    if x != "step":
        return ds[x].values
    if "time" in ds and (np.diff(ds["time"].values) < 0).any():
        raise InputError("ds: its steps are not in the order of time; give ds.sortby('time')")
    return np.arange(ds.sizes["step"])


def title(ds: xr.Dataset) -> str:
    """Experiment, seed, solver and tolerance of a walk; R and dtype where they are not the usual.

    Raises
    ------
    InputError
        The dataset does not say so.
    """
    check_walk(ds, attributes=("experiment", "seed", "title", "solver", "rtol"))
    name = plain(ds.attrs["experiment"] or "walk")
    seed = f", {walk_name(ds.attrs['seed'])}" if ds.attrs["seed"] >= 0 else ""
    note = ", synthetic images" if "synthetic" in ds.attrs["title"] else ""
    how = f"{plain(ds.attrs['solver'])}, rtol {ds.attrs['rtol']:g}"
    if (dtype := ds.attrs.get("dtype") or USUAL_DTYPE) != USUAL_DTYPE:
        how += f", {plain(dtype)}"
    if (r := ds.attrs.get("regularizer_name") or USUAL_R) != USUAL_R:
        how += f"\n{wrapped(f'R = {r}', TITLE_LETTERS)}"
    return f"{name}{seed}{note}: {how}"


def _apart(walks: Sequence[xr.Dataset]) -> list[str]:
    """Names of several walks by what they differ in; none where their lines are not told apart."""
    if not 1 < len(walks) <= len(COLOURS):
        return []
    forms = {
        **{"experiment": "{}", "seed": "seed {}", "solver": "{}", "rtol": "rtol {:g}"},
        **{"dtype": "{}", "regularizer_name": "R = {}"},
    }
    shown = [
        [form.format(ds.attrs[n]) for n, form in forms.items() if n in ds.attrs] for ds in walks
    ]
    common = set.intersection(*map(set, shown)) | {"", "seed -1"}
    names = [", ".join(part for part in parts if part not in common) for parts in shown]
    if "" in names or len(set(names)) < len(names):
        # That alone does not tell them apart.
        names = [f"walk {i}{', ' if n else ''}{n}" for i, n in enumerate(names, start=1)]
    return [wrapped(name, TITLE_LETTERS) for name in names]
