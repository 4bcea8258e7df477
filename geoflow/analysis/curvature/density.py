"""A spectral density as its quadrature has it, and as a curve."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from geoflow.errors import InputError
from geoflow.system import kinds

Floats = NDArray[np.float64]

# Of the density's Gaussians, as a part of the range of the nodes.
BROADENING = 1 / 256

# Degrees of freedom from which on a standard error stands as it is: those of the usual 8 probes.
ENOUGH = 7


def widening(degrees: int) -> float:
    """Factor of a standard error that is itself estimated, with few degrees of freedom; else 1.

    Three times the error is then exceeded as often as with 7 degrees, in 2% of cases, by Student's
    t. Of one probe or two, value and error are small together, so that the error alone says little.
    """
    if degrees >= ENOUGH:
        return 1.0
    return float(student.isf(student.sf(3, ENOUGH), degrees)) / 3


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

        Of fewer than 8 probes the error is widened (:func:`widening`), of 2 by a factor of 10.6: it
        is known as roughly as that.

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
            A width that is not positive and finite, or abscissae that are no vector of real
            numbers.
        """
        width = self.width if width is None else kinds.as_number(width, "width")
        if not 0 < width < math.inf:
            raise InputError(f"width={width:g}; use a positive number")
        x = kinds.as_numbers(abscissa, "abscissa")
        if x.ndim != 1:
            raise InputError(f"abscissa has shape {x.shape}; give eigenvalues in a list, (m,)")
        curves = np.zeros((len(self.nodes), len(x)))
        # A step at a time: memory stays at probes × abscissae.
        for node, weight in zip(np.nan_to_num(self.nodes).T, self.weights.T, strict=True):
            z = (x - node[:, None]) / width
            curves += weight[:, None] * np.exp(-0.5 * z * z) / (math.sqrt(2 * math.pi) * width)
        error = curves.std(axis=0, ddof=1) / math.sqrt(len(curves))
        return curves.mean(axis=0), widening(len(curves) - 1) * error
