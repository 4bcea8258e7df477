"""Datasets as figures: functions that draw on Axes and return them, and whole figures."""

from __future__ import annotations

from geoflow.plots.animation import animate
from geoflow.plots.comparison import work_precision
from geoflow.plots.ensembles import ensemble, penalties, sweep_stack
from geoflow.plots.kinds import save_figures
from geoflow.plots.path import regularization_path, singular_values
from geoflow.plots.pca import (
    explained_variance,
    null_models,
    off_plane,
    pca_plane,
    pca_space,
    scores_plane,
)
from geoflow.plots.predictions import function_distance, function_space, matrices
from geoflow.plots.series import periodogram, periodograms, relaxation, relaxations, significance
from geoflow.plots.slices import contours, projections, slice_figure
from geoflow.plots.spectra import extremes, waterfall, waterfalls
from geoflow.plots.styles import STYLE, new_figure, save, style
from geoflow.plots.trajectory import angle, level_residual, line, overview, paper_stack

__all__ = [
    "STYLE",
    "angle",
    "animate",
    "contours",
    "ensemble",
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
    "periodograms",
    "projections",
    "regularization_path",
    "relaxation",
    "relaxations",
    "save",
    "save_figures",
    "scores_plane",
    "significance",
    "singular_values",
    "slice_figure",
    "style",
    "sweep_stack",
    "waterfall",
    "waterfalls",
    "work_precision",
]


def __dir__() -> list[str]:
    return sorted(__all__)
