"""Datasets as figures: functions that draw on Axes and return them, and whole figures."""

from __future__ import annotations

from geoflow.plots.comparison import save_work_precision, work_precision
from geoflow.plots.ensembles import pca_views, penalties, sweep_stack
from geoflow.plots.predictions import (
    function_distance,
    function_space,
    matrices,
    save_predictions,
)
from geoflow.plots.spectra import extremes, save_spectra, waterfall, waterfalls
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
    "extremes",
    "function_distance",
    "function_space",
    "level_residual",
    "line",
    "matrices",
    "new_figure",
    "overview",
    "paper_stack",
    "pca_views",
    "penalties",
    "save",
    "save_figures",
    "save_predictions",
    "save_spectra",
    "save_work_precision",
    "style",
    "sweep_stack",
    "waterfall",
    "waterfalls",
    "work_precision",
]
