"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis import null_models, periodogram, relaxation, spectra
from geoflow.analysis.curvature import loss_hessian, normal_curvature, tangent_hessian
from geoflow.analysis.lomb_scargle import lomb_scargle
from geoflow.analysis.matrix_free import extreme_eigenvalues, spectral_density, trace
from geoflow.analysis.pca import PCA, fit_pca

__all__ = [
    "PCA",
    "extreme_eigenvalues",
    "fit_pca",
    "lomb_scargle",
    "loss_hessian",
    "normal_curvature",
    "null_models",
    "periodogram",
    "relaxation",
    "spectra",
    "spectral_density",
    "tangent_hessian",
    "trace",
]
