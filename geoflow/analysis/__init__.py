"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis import landscape
from geoflow.analysis.components import brownian, null_models, pca
from geoflow.analysis.components.principal import PCA, fit_pca
from geoflow.analysis.curvature import spectra
from geoflow.analysis.curvature.matrix_free import extreme_eigenvalues, spectral_density, trace
from geoflow.analysis.curvature.operators import (
    gauss_newton,
    loss_hessian,
    normal_curvature,
    tangent_hessian,
)
from geoflow.analysis.landscape import planes
from geoflow.analysis.networks import between, predictions, symmetry
from geoflow.analysis.series import periodogram, relaxation
from geoflow.analysis.series.lomb_scargle import lomb_scargle

__all__ = [
    "PCA",
    "between",
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


def __dir__() -> list[str]:
    return sorted(__all__)
