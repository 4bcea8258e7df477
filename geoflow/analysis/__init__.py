"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis import (
    brownian,
    landscape,
    null_models,
    pca,
    periodogram,
    planes,
    predictions,
    relaxation,
    spectra,
    symmetry,
)
from geoflow.analysis.components import PCA, fit_pca
from geoflow.analysis.curvature import (
    gauss_newton,
    loss_hessian,
    normal_curvature,
    tangent_hessian,
)
from geoflow.analysis.lomb_scargle import lomb_scargle
from geoflow.analysis.matrix_free import extreme_eigenvalues, spectral_density, trace

__all__ = [
    "PCA",
    "brownian",
    "extreme_eigenvalues",
    "fit_pca",
    "gauss_newton",
    "landscape",
    "lomb_scargle",
    "loss_hessian",
    "normal_curvature",
    "null_models",
    "pca",
    "periodogram",
    "planes",
    "predictions",
    "relaxation",
    "spectra",
    "spectral_density",
    "symmetry",
    "tangent_hessian",
    "trace",
]
