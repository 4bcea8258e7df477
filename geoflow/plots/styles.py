"""How every figure looks, and how figures are written."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from geoflow.errors import InputError
from geoflow.system import files, kinds, locks, translation

# Okabe & Ito's palette: told apart by the colour-blind, and by lightness in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

COLUMN_INCHES = 3.5
SLIDE_INCHES = 7.0
# From here on, panels stand two in a row.
WIDE_INCHES = 5.0
# Characters in a line of a label, and of a title, that a panel has room for, and lines of each.
LABEL_LETTERS, TITLE_LETTERS, MOST_LINES = 24, 46, 3

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
    "multiplier": r"multiplier $\lambda$",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy / %",
    "train_accuracy": "training accuracy / %",
    "train_loss": "training loss",
    "loss": "training loss",
}


def plain(text: object) -> str:
    """Return text of a dataset as matplotlib shows it as it is: nothing of it is a formula."""
    return str(text).replace("$", r"\$")


def wrapped(text: str, letters: int) -> str:
    """Return text in lines of so many letters, as :func:`plain` does; what is too long is cut."""
    lines = [text] if len(text) <= letters else textwrap.wrap(text, letters)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], f"{lines[MOST_LINES - 1][: letters - 1]}…"]
    return plain("\n".join(lines))


def fitted(title: str, width: float) -> str:
    """Return a title, of which nothing is a formula, in lines that a figure has room for.

    Parameters
    ----------
    title : str
        As :func:`plain` returns it.
    width : float
        Of the figure, in inches.
    """
    letters = int(TITLE_LETTERS * max(width / COLUMN_INCHES, 0.5))
    return "\n".join(
        "\n".join(textwrap.wrap(line, letters)) if len(line) > letters else line
        for line in title.split("\n")
    )


def axis_label(name: str) -> str:
    """What is written at the axis of a scalar, by its name."""
    return LABELS.get(name) or wrapped(name.replace("_", " "), LABEL_LETTERS)


def mark_lone(drawn: Sequence[Line2D]) -> None:
    """Mark the points of lines that no line shows: those without a finite neighbour.

    Parameters
    ----------
    drawn : sequence of Line2D
        As ``Axes.plot`` returns them. One with markers of its own is left as it is.
    """
    for line in drawn:
        ax = line.axes
        if not isinstance(ax, Axes) or line.get_marker() not in (None, "None", "none", "", " "):
            continue
        x, y = (np.asarray(values, float) for values in line.get_data(orig=False))
        there = np.concatenate([[False], np.isfinite(x) & np.isfinite(y), [False]])
        lone = there[1:-1] & ~there[:-2] & ~there[2:]
        if lone.any():
            look: dict[str, Any] = {"color": line.get_color(), "alpha": line.get_alpha()}
            look |= {"linestyle": "none", "marker": "o", "markersize": 2.5}
            ax.plot(x[lone], y[lone], zorder=line.get_zorder(), **look)


def label_below(axes: Any, n: int, label: str) -> list[Axes]:
    """Keep the first n panels of a grid, and number and label the lowest of each column.

    Parameters
    ----------
    axes : array of Axes, shape (row, column)
        That share their horizontal axis.
    n : int
        Those after it are removed.
    label : str
        Of the horizontal axis.

    Returns
    -------
    list of Axes
        The n panels.
    """
    for ax in axes.flat[n:]:
        ax.remove()
    kept = list(axes.flat[:n])
    for ax in kept[-axes.shape[1] :]:
        ax.set_xlabel(label)
        ax.tick_params(labelbottom=True)
    return kept


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this block in geoflow's style; nothing outside changes."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def check_width(width: Any, name: str = "width") -> None:
    """Refuse what is no size of a figure, in inches.

    Raises
    ------
    InputError
        It is no number, or not positive and finite.
    """
    if not 0 < kinds.as_number(width, name) < math.inf:
        raise InputError(f"{name}={width}; use a positive number of inches")


def check_axes(ax: Any, *, optional: bool = False) -> None:
    """Refuse what nothing can be drawn on; None stands for a new figure's where ``optional``.

    Raises
    ------
    InputError
        They are no Axes.
    """
    if not (optional and ax is None):
        give = "Axes of matplotlib, such as gf.plots.new_figure(3.5, 2.5).subplots()"
        kinds.check_kind(ax, Axes, "ax", give)


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure, in inches, that belongs to no window.

    Raises
    ------
    InputError
        A size that is no positive number.
    """
    check_width(width)
    check_width(height, "height")
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def laid_out(figure: Figure) -> Figure:
    """Lay a figure of several parts out, and return it.

    How much room a label needs is known by its ticks, and these by the room: after a single pass,
    as when a figure is first saved, labels can be cut off.
    """
    figure.draw_without_rendering()
    return figure


def save(figures: Mapping[str, Figure], folder: str | Path, stem: str) -> list[Path]:
    """Write each figure as PNG and PDF, and return the files.

    Parameters
    ----------
    figures : mapping of str to Figure
        By the name that its files take after the stem.
    folder : str or Path
        Made where it is not there.
    stem : str
        What the names of the files start with.

    Raises
    ------
    InputError
        The folder cannot be made or written, or has no name; or a figure cannot be drawn.
    """
    kinds.check_kind(figures, Mapping, "figures", "a dict of figures by name")
    for name, figure in figures.items():
        kinds.check_kind(figure, Figure, f"figures[{name!r}]", "a figure of matplotlib")
    folder = files.folder_named(folder, "folder")
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for ending in ("png", "pdf"):
                path = folder / f"{stem}-{name}.{ending}"
                content = _drawn(name, figure, ending)
                # Its name is made here, and was not given by the user: a link is replaced, not
                # followed.
                with locks.replacing(path, follow=False) as temporary:
                    temporary.write_bytes(content)
                paths.append(path)
    except OSError as error:
        said = translation.reason(error)
        raise InputError(f"{folder} cannot be written ({said}); name another") from None
    return paths


def _drawn(name: str, figure: Figure, ending: str) -> bytes:
    """A figure as the bytes of a file: what fails is the drawing, and not a disk that is full."""
    # Without its date, so that the same walk gives the same file.
    undated = {"CreationDate": None} if ending == "pdf" else None
    content = io.BytesIO()
    try:
        figure.savefig(content, format=ending, dpi=200, metadata=undated)
    except translation.UNREADABLE as error:
        raise InputError(
            f"figure {name!r} cannot be drawn ({translation.reason(error)}); look at the settings "
            "of matplotlib, and at what is drawn"
        ) from error
    return content.getvalue()
