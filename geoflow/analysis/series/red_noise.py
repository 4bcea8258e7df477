"""Red noise at uneven times: the Ornstein–Uhlenbeck process, fitted and drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.ndimage import map_coordinates

Floats = NDArray[np.float64]

# Time constants looked through: from a fifth of the least spacing, where neighbours correlate by
# 0.7% and the noise is white, to ten times the span, where it is a random walk.
SHORTEST, LONGEST = 0.2, 10.0
RATIO = 1.3

# A trapezoidal sum over log s of an analytic integrand is right to some exp(−π²/STEP), here 10⁻⁵.
STEP = 0.7
# Of the integral, what is left out at either end.
LEFT_OUT = 1e-6


@dataclass(frozen=True)
class RedNoise:
    """Processes x with E[x(s)x(t)] = σ² exp(−|s − t|/τ), one for each of S series.

    Attributes
    ----------
    time_constant : array of float64, shape (S,)
        τ; the first or the last of the grid where the likelihood has no maximum between.
    variance : array of float64, shape (S,)
        σ².
    position : array of float64, shape (S,)
        Where τ lies on the grid, in grid points.
    """

    time_constant: Floats
    variance: Floats
    position: Floats


def are_increasing(times: Floats) -> bool:
    """Whether times are finite and each is later than the one before, shape (N,)."""
    return bool(np.isfinite(times).all() and (np.diff(times) > 0).all())


def grid(times: Floats) -> Floats:
    """Time constants looked through for samples at these times, a geometric row."""
    low = SHORTEST * float(np.diff(times).min())
    high = LONGEST * float(times[-1] - times[0])
    return np.geomspace(low, high, 2 + int(math.log(high / low) / math.log(RATIO)))


@np.errstate(under="ignore")
def fit(times: Floats, series: Floats, background: Floats) -> RedNoise:
    """Fit a process to each series by restricted maximum likelihood.

    The likelihood is that of an AR(1) process at uneven times (Robinson 1977, Stoch. Process.
    Appl. 6, 9; Mudelsee 2002, Comput. Geosci. 28, 69), of what the background leaves over only:
    this takes most of the bias towards white noise off short series.

    Parameters
    ----------
    times : array, shape (N,)
        Increasing.
    series : array, shape (N, S)
        Sampled at these times.
    background : array, shape (N, p)
        Columns whose multiples are no noise: ones, for a mean.
    """
    taus = grid(times)
    p = background.shape[1]
    n_free = len(times) - p
    misfit = np.empty((len(taus), series.shape[1]))
    variance = np.empty_like(misfit)
    for row, tau in enumerate(taus):
        whitened, log_determinant = _whiten(times, float(tau), np.hstack([background, series]))
        q, r = np.linalg.qr(whitened[:, :p])
        left = whitened[:, p:] - q @ (q.T @ whitened[:, p:])
        variance[row] = np.maximum((left**2).sum(axis=0), np.finfo(float).tiny) / n_free
        misfit[row] = (
            n_free * np.log(variance[row])
            + log_determinant
            + 2 * np.log(np.abs(np.diagonal(r))).sum()
        )
    # The vertex of the parabola through the best grid point and its neighbours.
    best = misfit.argmin(axis=0)
    inside = np.clip(best, 1, len(taus) - 2)
    below, here, above = (
        np.take_along_axis(misfit, inside[None] + k, axis=0)[0] for k in (-1, 0, 1)
    )
    bend = below - 2 * here + above
    vertex = inside + 0.5 * (below - above) / np.where(bend > 0, bend, 1)
    position = np.where((best == inside) & (bend > 0), vertex, best.astype(float))
    return RedNoise(
        np.exp(np.interp(position, np.arange(len(taus)), np.log(taus))),
        np.exp(map_coordinates(np.log(variance), [position, np.arange(len(position))], order=1)),
        position,
    )


@np.errstate(under="ignore")
def draw(times: Floats, tau: float, count: int, rng: np.random.Generator) -> Floats:
    """Draw ``count`` series of unit variance at these times, shape (N, count)."""
    x = rng.standard_normal((len(times), count))
    correlation, fresh = _transition(times, tau)
    x[1:] *= fresh[:, None]
    return _remembered(x, correlation)


@np.errstate(under="ignore")
def covariance_product(times: Floats, tau: float, vectors: Floats) -> Floats:
    """Σ v for vectors along the first axis, with Σᵢⱼ = exp(−|tᵢ − tⱼ|/τ); linear in N."""
    correlation, _ = _transition(times, tau)
    backward = _remembered(vectors[::-1], correlation[::-1])[::-1]
    return _remembered(vectors, correlation) + backward - vectors


@np.errstate(under="ignore")
def expected_part(times: Floats, tau: float, q: Floats, waves: Floats) -> Floats:
    """Expected part of the sum of squares about a background that waves explain, shape (F,).

    The expectation of a ratio of two sums of squares, xᵀBx of the waves and xᵀMx about the
    background, is not the ratio of their expectations where few modes have most of xᵀMx, as those
    of a random walk do. It is ∫ E[xᵀBx exp(−s xᵀMx)] ds over s from 0 to ∞ (Sawa 1978, J. Econom.
    8, 161), and with the tridiagonal inverse of Σ each s is linear in N.

    Parameters
    ----------
    times : array, shape (N,)
        Increasing.
    tau : float
        Time constant of the process.
    q : array, shape (N, p)
        Orthonormal basis of the background.
    waves : array, shape (N, F, 2)
        Orthonormal bases beside the background, those of each of F frequencies; or zeros.
    """
    n, p = q.shape
    correlation, fresh = _transition(times, tau)
    # Upper banded form.
    inverse = np.zeros((2, n))
    inverse[0, 1:] = -correlation / fresh**2
    inverse[1, 0] = 1
    inverse[1, 1:] = 1 / fresh**2
    inverse[1, :-1] += (correlation / fresh) ** 2
    log_determinant = 2 * float(np.log(fresh).sum())
    columns = np.hstack([q, waves.reshape(n, -1)])
    total = n - float((q * covariance_product(times, tau, q)).sum())
    found, remaining, log_s = np.zeros(waves.shape[1]), 1.0, math.log(LEFT_OUT / total)
    while remaining > LEFT_OUT:
        s = math.exp(log_s)
        factor = cholesky_banded(inverse + np.array([[0.0], [2 * s]]))
        solved = cho_solve_banded((factor, False), columns)
        # The background is taken out of what s weighs: Σ⁻¹ + 2sM, with M = I − qqᵀ.
        inner = np.eye(p) - 2 * s * q.T @ solved[:, :p]
        seen = columns[:, p:].T @ solved[:, :p]
        own = (columns[:, p:] * solved[:, p:]).sum(axis=0)
        own += 2 * s * (seen.T * np.linalg.solve(inner, seen.T)).sum(axis=0)
        log_all = log_determinant + 2 * np.log(factor[1]).sum() + np.linalg.slogdet(inner)[1]
        remaining = math.exp(-0.5 * log_all)
        found += STEP * s * remaining * own.reshape(-1, 2).sum(axis=1)
        log_s += STEP
    return found


def _remembered(x: Floats, correlation: Floats) -> Floats:
    """Sums yᵢ = xᵢ + ρᵢ yᵢ₋₁ along the first axis."""
    y = x.copy()
    for i, rho in enumerate(correlation, start=1):
        y[i] += rho * y[i - 1]
    return y


def _transition(times: Floats, tau: float) -> tuple[Floats, Floats]:
    """Correlation of neighbours, and the standard deviation of what is new in the later one."""
    steps = np.diff(times) / tau
    return np.exp(-steps), np.sqrt(-np.expm1(-2 * steps))


def _whiten(times: Floats, tau: float, columns: Floats) -> tuple[Floats, float]:
    """Columns in which the process is white noise of its variance, and log det Σ."""
    correlation, fresh = _transition(times, tau)
    whitened = columns.copy()
    whitened[1:] = (columns[1:] - correlation[:, None] * columns[:-1]) / fresh[:, None]
    return whitened, 2 * float(np.log(fresh).sum())
