"""Every figure by its name, and the kind of dataset that it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geoflow.errors import InputError
from geoflow.plots import comparison, ensembles, slices, trajectory


@dataclass(frozen=True)
class Kind:
    """A figure.

    Attributes
    ----------
    of : str
        The kind of dataset it is a figure of: ``trajectory``, or the dataset's attribute ``kind``.
    function : callable
        ``function(ds, **options)`` → Figure or Axes.
    usual : bool
        Drawn where no figure is asked for by name.
    """

    of: str
    function: Callable[..., Figure | Axes]
    usual: bool = True


KINDS = {
    "overview": Kind("trajectory", trajectory.overview),
    "stack": Kind("trajectory", trajectory.paper_stack),
    "work-precision": Kind("comparison", comparison.work_precision),
    "ensemble": Kind("ensemble", ensembles.ensemble),
    "slice": Kind("slice", slices.slice_figure),
    "penalties": Kind("baseline", ensembles.penalties),
}


def kind_of(ds: xr.Dataset) -> str:
    """Return the kind of a dataset.

    Raises
    ------
    InputError
        It is none of geoflow's.
    """
    kind = "trajectory" if "geoflow_schema" in ds.attrs else ds.attrs.get("kind")
    if kind not in {k.of for k in KINDS.values()}:
        raise InputError("ds is no dataset that geoflow draws; give a walk or an analysis of one")
    return str(kind)


def names(ds: xr.Dataset) -> list[str]:
    """Names of the figures that can be drawn of a dataset."""
    kind = kind_of(ds)
    return [name for name, k in KINDS.items() if k.of == kind]


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
        No such figure of such a dataset.
    """
    if name not in names(ds):
        there = ", ".join(names(ds))
        raise InputError(f"kind={name!r} is no figure of this {kind_of(ds)}; use one of {there}")
    drawn = KINDS[name].function(ds, **options)
    figure = drawn if isinstance(drawn, Figure) else drawn.figure
    assert isinstance(figure, Figure)
    return figure
