"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis import landscape, null_models, planes, spectra
from geoflow.analysis.curvature import loss_hessian, normal_curvature, tangent_hessian
from geoflow.analysis.matrix_free import extreme_eigenvalues, spectral_density, trace
from geoflow.analysis.pca import PCA, fit_pca

__all__ = [
    "PCA",
    "extreme_eigenvalues",
    "fit_pca",
    "landscape",
    "loss_hessian",
    "normal_curvature",
    "null_models",
    "planes",
    "spectra",
    "spectral_density",
    "tangent_hessian",
    "trace",
]
