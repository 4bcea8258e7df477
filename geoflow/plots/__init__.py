"""Datasets as figures: functions that draw on Axes and return them, and whole figures."""

from __future__ import annotations

from geoflow.plots.animation import animate
from geoflow.plots.comparison import save_work_precision, work_precision
from geoflow.plots.ensembles import pca_views, penalties, sweep_stack
from geoflow.plots.slices import contours, off_plane, projections, save_slice, slice_figure
from geoflow.plots.style import STYLE, new_figure, save, style
from geoflow.plots.trajectory import (
    angle,
    level_residual,
    line,
    overview,
    paper_stack,
    save_figures,
)

__all__ = [
    "STYLE",
    "angle",
    "animate",
    "contours",
    "level_residual",
    "line",
    "new_figure",
    "off_plane",
    "overview",
    "paper_stack",
    "pca_views",
    "penalties",
    "projections",
    "save",
    "save_figures",
    "save_slice",
    "save_work_precision",
    "slice_figure",
    "style",
    "sweep_stack",
    "work_precision",
]
