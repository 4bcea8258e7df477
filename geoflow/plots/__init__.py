"""Datasets as figures: functions that draw on Axes and return them, and whole figures."""

from __future__ import annotations

from geoflow.plots.comparison import save_work_precision, work_precision
from geoflow.plots.ensembles import pca_views, penalties, sweep_stack
from geoflow.plots.periodogram import (
    periodogram,
    relaxation,
    save_spectra_in_time,
    significance,
)
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
    "level_residual",
    "line",
    "new_figure",
    "overview",
    "paper_stack",
    "pca_views",
    "penalties",
    "periodogram",
    "relaxation",
    "save",
    "save_figures",
    "save_spectra_in_time",
    "save_work_precision",
    "significance",
    "style",
    "sweep_stack",
    "work_precision",
]
