"""Datasets as figures: functions that draw on Axes and return them, and whole figures."""

from __future__ import annotations

from geoflow.plots.animation import animate
from geoflow.plots.comparison import save_work_precision, work_precision
from geoflow.plots.ensembles import penalties, sweep_stack
from geoflow.plots.pca import (
    explained_variance,
    null_models,
    off_plane,
    pca_plane,
    pca_space,
    save_pca,
    scores_plane,
)
from geoflow.plots.periodogram import (
    periodogram,
    relaxation,
    save_spectra_in_time,
    significance,
)
from geoflow.plots.predictions import (
    function_distance,
    function_space,
    matrices,
    save_predictions,
)
from geoflow.plots.slices import contours, projections, save_slice, slice_figure
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
    "animate",
    "contours",
    "explained_variance",
    "extremes",
    "function_distance",
    "function_space",
    "level_residual",
    "line",
    "matrices",
    "new_figure",
    "null_models",
    "off_plane",
    "overview",
    "paper_stack",
    "pca_plane",
    "pca_space",
    "penalties",
    "periodogram",
    "projections",
    "relaxation",
    "save",
    "save_figures",
    "save_pca",
    "save_predictions",
    "save_slice",
    "save_spectra",
    "save_spectra_in_time",
    "save_work_precision",
    "scores_plane",
    "significance",
    "slice_figure",
    "style",
    "sweep_stack",
    "waterfall",
    "waterfalls",
    "work_precision",
]
