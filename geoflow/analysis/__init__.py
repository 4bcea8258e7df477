"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis import landscape, null_models, pca, planes, spectra
from geoflow.analysis.components import PCA, fit_pca
from geoflow.analysis.curvature import loss_hessian, normal_curvature, tangent_hessian
from geoflow.analysis.matrix_free import extreme_eigenvalues, spectral_density, trace

__all__ = [
    "PCA",
    "extreme_eigenvalues",
    "fit_pca",
    "landscape",
    "loss_hessian",
    "normal_curvature",
    "null_models",
    "pca",
    "planes",
    "spectra",
    "spectral_density",
    "tangent_hessian",
    "trace",
]
