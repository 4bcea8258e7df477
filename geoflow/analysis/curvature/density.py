"""A spectral density as its quadrature has it, and as a curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.system import kinds

Floats = NDArray[np.float64]

# Of the density's Gaussians, as a part of the range of the nodes.
BROADENING = 1 / 256


@dataclass(frozen=True)
class SpectralDensity:
    """A spectral density by stochastic Lanczos quadrature.

    Attributes
    ----------
    nodes, weights : array of float64, shape (n_probes, n_steps)
        Eigenvalue and weight of each point mass; for each probe the weights sum to 1. Where a
        Lanczos iteration ended early, NaN and 0.
    size : int
        n, the number of eigenvalues.
    """

    nodes: Floats
    weights: Floats
    size: int

    @property
    def range(self) -> tuple[float, float]:
        """Least and largest node."""
        return float(np.nanmin(self.nodes)), float(np.nanmax(self.nodes))

    @property
    def width(self) -> float:
        """Standard deviation of the Gaussians of :meth:`on`, by default: 1/256 of the range."""
        low, high = self.range
        scale = max(abs(low), abs(high))
        least = np.sqrt(np.finfo(float).eps) * scale if scale else 1.0
        return max((high - low) * BROADENING, float(least))

    def grid(self, n_points: int = 1025) -> Floats:
        """Even abscissae that hold all of the broadened density."""
        n_points = kinds.as_whole(n_points, "n_points", 2)
        low, high = self.range
        return np.linspace(low - 6 * self.width, high + 6 * self.width, n_points)

    @np.errstate(under="ignore")
    def on(self, abscissa: Floats, width: float | None = None) -> tuple[Floats, Floats]:
        """Density, each node broadened to a Gaussian, and its standard error over the probes.

        Parameters
        ----------
        abscissa : array, shape (m,)
            Eigenvalues.
        width : float, optional
            Standard deviation of the Gaussians, in units of the eigenvalues.

        Returns
        -------
        density, standard_error : array of float64, shape (m,)
            In units of 1/eigenvalue; the density integrates to 1.

        Raises
        ------
        InputError
            A width that is not positive, or abscissae that are no vector of real numbers.
        """
        width = self.width if width is None else kinds.as_number(width, "width")
        if not width > 0:
            raise InputError(f"width={width:g}; use a positive number")
        x = kinds.as_numbers(abscissa, "abscissa")
        if x.ndim != 1:
            raise InputError(f"abscissa has shape {x.shape}; give eigenvalues in a list, (m,)")
        curves = np.zeros((len(self.nodes), len(x)))
        # A step at a time: memory stays at probes × abscissae.
        for node, weight in zip(np.nan_to_num(self.nodes).T, self.weights.T, strict=True):
            z = (x - node[:, None]) / width
            curves += weight[:, None] * np.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * width)
        return curves.mean(axis=0), curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
