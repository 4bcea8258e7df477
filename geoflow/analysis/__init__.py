"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis import null_models, predictions, spectra, symmetry
from geoflow.analysis.curvature import (
    gauss_newton,
    loss_hessian,
    normal_curvature,
    tangent_hessian,
)
from geoflow.analysis.matrix_free import extreme_eigenvalues, spectral_density, trace
from geoflow.analysis.pca import PCA, fit_pca

__all__ = [
    "PCA",
    "extreme_eigenvalues",
    "fit_pca",
    "gauss_newton",
    "loss_hessian",
    "normal_curvature",
    "null_models",
    "predictions",
    "spectra",
    "spectral_density",
    "symmetry",
    "tangent_hessian",
    "trace",
]
