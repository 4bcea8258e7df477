"""Figures of a regularisation path: what its points are worth and made of, against penalty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import Locator, LogFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.manifold import regularizers
from geoflow.plots.styles import (
    COLOURS,
    LINES,
    MARKERS,
    SLIDE_INCHES,
    TITLE_LETTERS,
    WIDE_INCHES,
    axis_label,
    check_width,
    label_below,
    new_figure,
    plain,
    style,
    wrapped,
)
from geoflow.problems.parts import TensorSpec
from geoflow.system import kinds, translation
from geoflow.trajectories import path_dataset, path_schema

Floats = NDArray[np.float64]
# Of trainings: penalty, mean, and deviation where there are several at each.
Ends = tuple[Floats, Floats, Floats | None]

X_LABEL = "penalty $1/\\lambda$\nmore regularisation $\\rightarrow$"
# Weight decay is drawn so far beyond the path, as a factor of the penalty: what is farther would
# leave the path a corner of its panels.
BEYOND = 3.0
# A larger ratio of the values of a panel gets a logarithmic axis.
WIDE = 10.0
# Below this ratio of penalties more of them than the decades are numbered.
FEW_DECADES = 100.0
# Of a title, at the size of the style.
LETTERS_AN_INCH = 15
# Of those of one layer; and how far below the largest they are drawn.
SINGULAR_VALUES, DEPTH = 5, 1e4


def regularization_path(
    ds: xr.Dataset, baseline: xr.Dataset | None = None, width: float = SLIDE_INCHES
) -> Figure:
    """Every observable, R and the training loss, which is the level, against penalty.

    The points are joined in the order in which the path passes them, so that it is seen to turn.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.regularization_path`.
    baseline : xarray.Dataset, optional
        From :func:`geoflow.baselines.weight_decay`: mean ± standard deviation over its runs after
        the last epoch, at each penalty not far from the path's. What is penalised there is Σ w²
        over the kernels, which is R of the path for ``squared_norm(tensors="*.weight")``. A penalty
        of zero has no place on the axis.
    width : float
        In inches.

    Raises
    ------
    InputError
        The dataset is no path, or R is no squared norm and a baseline is given.
    """
    check_width(width)
    ds = checked(ds, "level")
    names = [*observables(ds), "regularizer", "train_loss"]
    ordered = ds.isel(level=path_dataset.order_along(ds))
    first = first_walked(ds)
    beside = {} if baseline is None else _ends(ds, baseline, names)
    with style():
        figure, axes = _panels(len(names), width)
        for name, ax, colour in zip(names, axes.flat, cycle(COLOURS), strict=False):
            values = _shown(name, ordered[name].values)
            look: dict[str, Any] = {"color": colour, "linestyle": "-", "markersize": 3.5}
            ax.plot(ordered["penalty"], values, marker="o", label="path", **look)
            if first.any():
                ax.plot(
                    ds["penalty"].values[first],
                    _shown(name, ds[name].values[first]),
                    marker="o",
                    markersize=8,
                    markerfacecolor="none",
                    color=colour,
                    linestyle="none",
                    label="end of its first walk",
                )
            if name in beside:
                _draw_ends(ax, *beside[name])
            ax.set_ylabel("training loss = level" if name == "train_loss" else axis_label(name))
            _scale(ax, name, values, beside.get(name))
        _penalty_axes(axes, len(names), beside, ds)
        handles, labels = axes.flat[len(names) - 1].get_legend_handles_labels()
        ncols = 3 if width > WIDE_INCHES else 2
        figure.legend(_uncoloured(handles), labels, loc="outside lower center", ncols=ncols)
        figure.suptitle(title(ds), fontsize=8)
        figure.align_ylabels()
    return figure


def singular_values(ds: xr.Dataset, width: float = SLIDE_INCHES) -> Figure:
    """The largest singular values of every layer's weights against penalty: which directions live.

    Kernels of convolutions are flattened to (outputs, rest). What is below 10⁻⁴ of a layer's
    largest is not drawn.

    Parameters
    ----------
    ds : xarray.Dataset
        From :func:`geoflow.regularization_path`.
    width : float
        In inches.

    Raises
    ------
    InputError
        The dataset is no path, or has no tensor with rows.
    """
    check_width(width)
    ds = checked(ds, "level", "parameter", "tensor")
    ordered = ds.isel(level=path_dataset.order_along(ds))
    chosen = [t for t in _tensors(ds) if _is_matrix(t)]
    if not chosen:
        raise InputError("ds: none of its tensors has rows, as a layer's weight has")
    found = [_largest(ordered, t) for t in chosen]
    with style():
        figure, axes = _panels(len(chosen), width)
        for tensor, values, ax in zip(chosen, found, axes.flat, strict=False):
            # Zeros to rounding have no place on a logarithmic axis.
            seen = np.where(values > values.max() / DEPTH, values, np.nan)
            for rank, row in enumerate(seen.T):
                if np.isfinite(row).any():
                    ax.plot(
                        ordered["penalty"],
                        row,
                        color=COLOURS[rank],
                        linestyle=LINES[rank],
                        marker=MARKERS[rank],
                        markersize=3,
                        label="largest" if rank == 0 else f"{rank + 1}.",
                    )
            ax.set_yscale("log")
            _few_ticks(ax)
            shape = " × ".join(map(str, tensor.shape))
            room = round(LETTERS_AN_INCH * width / axes.shape[1])
            ax.set_title(wrapped(f"{tensor.name} ({shape})", room))
        for ax in axes[:, 0]:
            ax.set_ylabel("singular value")
        _penalty_axes(axes, len(chosen), {}, ds)
        handles, labels = max(
            (ax.get_legend_handles_labels() for ax in axes.flat[: len(chosen)]),
            key=lambda both: len(both[1]),
        )
        figure.legend(handles, labels, loc="outside lower center", ncols=SINGULAR_VALUES)
        figure.suptitle(title(ds), fontsize=8)
    return figure


def _uncoloured(lines: Sequence[Any]) -> list[Any]:
    """Handles of a legend for all panels, without the colour that each has of its own."""
    found = []
    for line in lines:
        if isinstance(line, Line2D):
            plainly = Line2D([], [])
            plainly.update_from(line)
            plainly.set_color("black")
            found.append(plainly)
        else:
            found.append(line)
    return found


def observables(ds: xr.Dataset) -> list[str]:
    """Names of a path's observables: losses first, then by the alphabet."""
    names = [str(n) for n in ds.data_vars if path_schema.is_observable(str(n))]
    return sorted(names, key=lambda n: (not n.endswith("loss"), n))


def has_matrices(ds: xr.Dataset) -> bool:
    """Whether any of a path's tensors has rows."""
    return any(map(_is_matrix, _tensors(ds)))


def title(ds: xr.Dataset) -> str:
    """Experiment, seed and R of a path, and how it ended where that was early."""
    name = plain(ds.attrs["experiment"])
    seed = f", seed {ds.attrs['seed']}" if ds.attrs["seed"] >= 0 else ""
    of = f"{name}{seed}: " if name else "path: "
    n, status = ds.sizes["level"], ds.attrs["status"]
    ended = "" if status == "complete" else f", ended early: {status}"
    levels = f"{n} level{'s' if n > 1 else ''}"
    r = wrapped(f"R = {ds.attrs['regularizer_name']}", TITLE_LETTERS)
    return f"{of}{levels}{ended}\n{r}"


def checked(ds: xr.Dataset, *dims: str) -> xr.Dataset:
    """The path with these dimensions in the order of its schema, and its points as it reached them.

    Raises
    ------
    InputError
        It is none, or lacks one of these dimensions.
    """
    kinds.check_dataset(ds, give=kinds.A_PATH)
    if not path_schema.is_path(ds):
        raise InputError("ds is no regularisation path; make one with gf.regularization_path")
    ds = kinds.as_made(ds, dims, "a path")
    # In the order in which the points were reached, which says where a fold is; of a path without
    # these columns, they are taken to stand in it.
    reached = [ds[name].values for name in ("wall_time", "n_gradient") if name in ds]
    return ds.isel(level=np.lexsort(reached)) if reached else ds


def first_walked(ds: xr.Dataset) -> NDArray[np.bool_]:
    """Where the point is that the path begins with, shape (level,): nowhere where it was cut away.

    Corrections lead from there to the others; points may stand in any order.
    """
    # Past a fold, the path may come to the same level again.
    found: NDArray[np.bool_] = ds["level"].values == ds.attrs["level"]
    return found & (ds["method"].values == "walk") if "method" in ds else found


def _tensors(ds: xr.Dataset) -> list[TensorSpec]:
    with translation.reading("ds", "what can be drawn"):
        columns = (ds[f"tensor_{n}"].values for n in ("name", "offset", "shape"))
        return [
            TensorSpec(str(name), int(offset), tuple(json.loads(str(shape))))
            for name, offset, shape in zip(*columns, strict=True)
        ]


def _is_matrix(tensor: TensorSpec) -> bool:
    return len(tensor.shape) > 1 and min(tensor.shape) > 0


def _largest(ds: xr.Dataset, tensor: TensorSpec) -> Floats:
    """The largest singular values of a tensor along the path, shape (level, rank)."""
    span = slice(tensor.offset, tensor.offset + int(np.prod(tensor.shape)))
    theta = ds["theta"].isel(parameter=span).values.astype(float)
    if theta.shape[1] != np.prod(tensor.shape):
        raise InputError(f"ds: theta was cut, and {tensor.name} is not whole; give all of it")
    matrices = theta.reshape(len(theta), tensor.shape[0], -1)
    found: Floats = np.linalg.svd(matrices, compute_uv=False)[:, :SINGULAR_VALUES]
    return found


def _ends(ds: xr.Dataset, baseline: xr.Dataset, names: list[str]) -> dict[str, Ends]:
    """Penalty, mean and deviation of the trainings near the path, by name."""
    give = "what gf.baselines.weight_decay returned"
    kinds.check_dataset(baseline, "parameter", "penalty", name="baseline", give=give)
    dims = ("penalty", "run", "epoch", "parameter")
    baseline = kinds.as_made(baseline, dims, "trainings", "baseline")
    name = str(ds.attrs["regularizer_name"])
    if name.partition(":")[0] != "squared_norm":
        raise InputError(f"baseline: R of the path is {name}, and weight decay's a squared norm")
    of_path, of_baseline = (str(d.attrs.get("experiment", "")) for d in (ds, baseline))
    sizes = [d.sizes["parameter"] for d in (ds, baseline)]
    if sizes[0] != sizes[1] or (of_path and of_baseline and of_path != of_baseline):
        raise InputError(
            f"baseline: its trainings are of {of_baseline or 'a network'} with {sizes[1]:,} "
            f"parameters, the path is of {of_path or 'one'} with {sizes[0]:,}; give trainings of "
            "the same"
        )
    penalty = baseline["penalty"].values
    low, high = ds["penalty"].values.min() / BEYOND, ds["penalty"].values.max() * BEYOND
    near = (penalty >= low) & (penalty <= high)
    found = {}
    for wanted in names:
        if wanted == "regularizer":
            runs = _regularizer(name, baseline)[near]
        elif wanted in baseline and np.isfinite(baseline[wanted].values).any():
            runs = baseline[wanted].isel(epoch=-1).values[near]
        else:
            continue
        runs = _shown(wanted, runs)
        # One run alone has no spread, which is not a spread of zero.
        spread = runs.std(axis=1, ddof=1) if runs.shape[1] > 1 else None
        found[wanted] = penalty[near], runs.mean(axis=1), spread
    return found


def _regularizer(name: str, baseline: xr.Dataset) -> Floats:
    """R of the path at the ends of the trainings, shape (penalty, run)."""
    r = regularizers.get(name).bind(SimpleNamespace(tensors=_tensors(baseline)))
    theta = torch.from_numpy(baseline["theta"].values.astype(float))
    values = [[float(r.value_and_gradient(run)[0]) for run in runs] for runs in theta]
    return np.array(values)


def _draw_ends(ax: Axes, penalty: Floats, centre: Floats, spread: Floats | None) -> None:
    ax.errorbar(
        penalty,
        centre,
        spread,
        color="#555555",
        linestyle="none",
        marker="s",
        markersize=4,
        markerfacecolor="none",
        capsize=2,
        linewidth=1,
        label="weight decay" if spread is None else "weight decay, mean ± deviation",
    )


def _panels(n: int, width: float) -> tuple[Figure, Any]:
    """An empty figure of n panels, in one column where it is narrow."""
    columns = min(3 if n > 4 else 2, n) if width > WIDE_INCHES else 1
    rows = -(-n // columns)
    figure = new_figure(width, width * {1: 0.48, 2: 0.34, 3: 0.28}[columns] * rows + 1)
    return figure, figure.subplots(rows, columns, sharex=True, squeeze=False)


def _penalty_axes(axes: Any, n: int, beside: dict[str, Any], ds: xr.Dataset) -> None:
    """Penalty along each of the n panels, numbered under the last of each column."""
    penalties = [ds["penalty"].values, *(ends[0] for ends in beside.values())]
    both = np.concatenate(penalties)
    low, high = float(both.min()), float(both.max())
    margin = max((high / low) ** 0.05, 1.2)
    # Beside a panel stand its label and its numbers.
    inches = axes.flat[0].figure.get_size_inches()[0] / axes.shape[1] - 0.7
    for ax in label_below(axes, n, X_LABEL):
        ax.set_xscale("log")
        ax.set_xlim(low / margin, high * margin)
        if high / low < FEW_DECADES:
            ax.xaxis.set_major_locator(_penalty_ticks(low / margin, high * margin, inches))
            ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())


def _penalty_ticks(low: float, high: float, inches: float) -> Locator:
    """Ones, twos and fives where their numbers have room, or fewer, or a few round numbers."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    an_inch = np.log10(high / low) / inches
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = np.outer(decades, digits).ravel()
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        letters = np.array([len(f"{tick:g}") for tick in ticks])
        room = LETTERS_AN_INCH * np.diff(np.log10(ticks)) / an_inch
        if len(ticks) > 1 and (room > (letters[1:] + letters[:-1]) / 2).all():
            return LogLocator(subs=digits)
    # What is on less than a decade is numbered as on a linear axis.
    return MaxNLocator(2, steps=[1, 2, 4, 5, 10])


def _scale(ax: Axes, name: str, values: Floats, beside: Ends | None) -> None:
    both = values if beside is None else np.concatenate([values, beside[1]])
    both = both[np.isfinite(both)]
    if not both.size:
        return
    if name.endswith("accuracy"):
        margin = max(0.08 * float(both.max() - both.min()), 1.0)
        ax.set_ylim(both.min() - margin, both.max() + margin)
    elif both.min() > 0 and both.max() > WIDE * both.min():
        ax.set_yscale("log")
        ax.set_ylim(both.min() / 1.5, 1.5 * both.max())
        _few_ticks(ax)


def _few_ticks(ax: Axes) -> None:
    """Number the minor ticks where there are few decades."""
    ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
    ax.tick_params(axis="y", which="minor", labelsize=6)


def _shown(name: str, values: Floats) -> Floats:
    return values * 100.0 if name.endswith("accuracy") else values
