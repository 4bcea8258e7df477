"""Every figure by its name, and the kind of dataset that it draws."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.errors import InputError
from geoflow.plots.comparison import work_precision
from geoflow.plots.ensembles import ensemble, penalties
from geoflow.plots.path import has_matrices, regularization_path, singular_values
from geoflow.plots.pca import explained_variance, null_models, pca_plane, pca_space
from geoflow.plots.predictions import function_space, matrices
from geoflow.plots.series import periodograms, relaxations
from geoflow.plots.slices import slice_figure
from geoflow.plots.spectra import extremes, waterfalls
from geoflow.plots.styles import SLIDE_INCHES, save
from geoflow.plots.trajectory import overview, paper_stack
from geoflow.system.kinds import check_dataset, shown


def _any(ds: xr.Dataset) -> bool:
    return True


def _has_components(ds: xr.Dataset, n: int) -> bool:
    """Whether the first n components are there, in whatever order."""
    return "component" in ds and {*range(1, n + 1)} <= {*np.ravel(ds["component"].values)}


@dataclass(frozen=True)
class Kind:
    """A figure.

    Attributes
    ----------
    of : str
        The kind of dataset it is a figure of: ``trajectory``, or the dataset's attribute ``kind``.
    function : callable
        ``function(ds, width=…, **options)`` → Figure or Axes.
    shows : callable
        Whether a dataset of that kind holds what is drawn.
    """

    of: str
    function: Callable[..., Figure | Axes]
    shows: Callable[[xr.Dataset], bool] = _any


KINDS = {
    "overview": Kind("trajectory", overview),
    "stack": Kind("trajectory", paper_stack),
    "ensemble": Kind("ensemble", ensemble),
    "work-precision": Kind("comparison", work_precision),
    "penalties": Kind("baseline", penalties),
    "regularization-path": Kind("path", regularization_path),
    "singular-values": Kind("path", singular_values, has_matrices),
    "explained-variance": Kind("pca", explained_variance),
    "pca-2d": Kind("pca", pca_plane, lambda ds: _has_components(ds, 2)),
    "pca-3d": Kind("pca", pca_space, lambda ds: _has_components(ds, 3) and 3 in ds["plane"]),
    "null-models": Kind(
        "pca", null_models, lambda ds: "null_scores" in ds and _has_components(ds, 2)
    ),
    "waterfall": Kind("spectra", waterfalls),
    "extremes": Kind("spectra", extremes),
    "periodogram": Kind("periodogram", periodograms),
    "relaxation": Kind("relaxation", relaxations),
    "function-space": Kind("predictions", function_space),
    "distances": Kind("predictions", matrices),
    "slice": Kind("slice", slice_figure),
}


def kind_of(ds: xr.Dataset) -> str:
    """Return the kind of a dataset.

    Raises
    ------
    InputError
        It is none of geoflow's.
    """
    check_dataset(ds, give="a walk or an analysis of one")
    kind = "trajectory" if "geoflow_schema" in ds.attrs else ds.attrs.get("kind")
    if kind not in {k.of for k in KINDS.values()}:
        raise InputError("ds is no dataset that geoflow draws; give a walk or an analysis of one")
    return str(kind)


def names(ds: xr.Dataset) -> list[str]:
    """Names of the figures that can be drawn of a dataset."""
    kind = kind_of(ds)
    return [name for name, k in KINDS.items() if k.of == kind and k.shows(ds)]


# The figure that shows trainings with weight decay, where they are given.
BESIDE_BASELINE = "regularization-path"


def draw(ds: xr.Dataset, name: str, **options: Any) -> Figure:
    """Draw a figure by its name.

    Parameters
    ----------
    ds : xarray.Dataset
        What it is a figure of.
    name : str
        One of :func:`names`.
    **options
        As the figure's own function takes them.

    Raises
    ------
    InputError
        No such figure of such a dataset, or no such option of it.
    """
    if not isinstance(name, str) or name not in names(ds):
        there = ", ".join(names(ds))
        raise InputError(
            f"kind={shown(name)} is no figure of this {kind_of(ds)}; use one of {there}"
        )
    function = KINDS[name].function
    _, *known = inspect.signature(function).parameters
    for option in options:
        if option not in known:
            raise InputError(f"{option}: kind={name!r} has no such option; use {', '.join(known)}")
    drawn = function(ds, **options)
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(figure, Figure)
    return figure


def save_figures(
    ds: xr.Dataset,
    folder: str | Path,
    stem: str,
    figures: Sequence[str] | None = None,
    width: float = SLIDE_INCHES,
    baseline: xr.Dataset | None = None,
) -> list[Path]:
    """Write figures of a dataset as PNG and PDF, and return the files.

    Parameters
    ----------
    ds : xarray.Dataset
        A walk, an ensemble, a regularisation path, or what an analysis gave.
    folder : str or Path
        Made where it is not there.
    stem : str
        What the names of the files start with; the figure's name follows.
    figures : sequence of str, optional
        Which. None: all of :func:`names`.
    width : float
        In inches.
    baseline : xarray.Dataset, optional
        Trainings with weight decay, drawn in those figures that have a place for them: that of a
        regularisation path against penalty.

    Raises
    ------
    InputError
        No such figure of such a dataset, none at all, or the folder cannot be made or written.
    """
    if isinstance(figures, str) or (figures is not None and not figures):
        raise InputError(f"figures={figures!r}; give a list of names, as {names(ds)}")
    chosen = names(ds) if figures is None else figures
    beside: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    if baseline is not None:
        if BESIDE_BASELINE not in beside:
            raise InputError(f"baseline: only {BESIDE_BASELINE!r} has a place for it; draw that")
        beside[BESIDE_BASELINE] = {"baseline": baseline}
    drawn = {name: draw(ds, name, width=width, **beside[name]) for name in chosen}
    return save(drawn, folder, stem)
