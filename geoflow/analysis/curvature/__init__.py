"""Curvature along a walk: operators, and their spectra without a matrix."""

from __future__ import annotations

from geoflow.analysis.curvature.operators import (
    Curvature,
    Subspace,
    gauss_newton,
    loss_hessian,
    normal_curvature,
    tangent_hessian,
)

__all__ = [
    "Curvature",
    "Subspace",
    "gauss_newton",
    "loss_hessian",
    "normal_curvature",
    "tangent_hessian",
]
