"""What trajectories say, beyond their scalars."""

from __future__ import annotations

from geoflow.analysis.pca import PCA, fit_pca

__all__ = ["PCA", "fit_pca"]
