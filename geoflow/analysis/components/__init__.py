"""Principal components of walks, and of the random walks set beside them."""

from __future__ import annotations

from geoflow.analysis.components.principal import PCA, fit, fit_pca

__all__ = ["PCA", "fit", "fit_pca"]
