"""Sums of exponentials fitted to a curve, with intervals that hold for red residuals."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import t as student

from geoflow.analysis.series import red_noise
from geoflow.errors import InputError
from geoflow.system import kinds

Floats = NDArray[np.float64]

# Less than one e-folding within the window, and the limit is extrapolated; more than three before
# the second sample, and the first one alone stands out; rates known to a factor of four only, and
# the curve is no exponential.
LEAST_DECAY, MOST_DECAY = 1.0, 3.0
WIDEST = 4.0
SPARE_POINTS = 3
# A rate of less than this part of what the curve does within the window is none that was found.
LEAST_PART = 1e-3
# Units in the last place within which a curve is constant.
ROUNDING = 16 * float(np.finfo(float).eps)

FITTED = "fitted"


@dataclass(frozen=True)
class ExponentialFit:
    """Exponentials fitted to a curve: y(t) = y∞ + Σ aₖ exp(−rₖ(t − t₀)).

    Attributes
    ----------
    status : str
        ``fitted``, or why there is no rate; then all numbers are NaN.
    rate, rate_low, rate_high : array of float64, shape (K,)
        rₖ, rising, and the ends of its confidence interval.
    amplitude : array of float64, shape (K,)
        aₖ, at the first of the times.
    limit : float
        y∞, fitted or known.
    fitted : array of float64, shape (N,)
        The curve at the times.
    noise_time : float
        Time constant of the residuals, as red noise.
    jacobian : array of float64, shape (N, p)
        Derivatives of the fitted curve by log rₖ, aₖ and y∞, in this order; where the limit is
        known, of log(y − y∞) by log rₖ and log aₖ.
    """

    status: str
    rate: Floats
    rate_low: Floats
    rate_high: Floats
    amplitude: Floats
    limit: float
    fitted: Floats
    noise_time: float
    jacobian: Floats


@np.errstate(under="ignore")
def fit(
    times: NDArray[np.floating],
    values: NDArray[np.floating],
    *,
    n_terms: int = 1,
    limit: float | None = None,
    confidence: float = 0.95,
) -> ExponentialFit:
    """Fit a relaxation to a curve by nonlinear least squares.

    With an unknown limit the residuals are absolute; where the limit is known they are those of the
    logarithm of the distance from it, so that every decade counts alike.

    The intervals are of log r, from the covariance (JᵀJ)⁻¹JᵀΣJ(JᵀJ)⁻¹ of the estimate under
    residuals that are an Ornstein–Uhlenbeck process, fitted to them
    (:func:`geoflow.analysis.series.red_noise.fit`), and Student's t with N − p degrees of freedom.
    They cover what noise does, white or red; where the residuals are a misfit and no noise, as on a
    walk that is not yet close to its end, they are a scale and not a confidence.

    Parameters
    ----------
    times : array, shape (N,)
        Increasing.
    values : array, shape (N,)
        The curve.
    n_terms : int
        Exponentials, 1 or 2.
    limit : float, optional
        y∞, below all values. None: fitted.
    confidence : float
        Of the intervals.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    t, y = kinds.as_numbers(times, "times"), kinds.as_numbers(values, "values")
    if t.ndim != 1 or t.shape != y.shape or not red_noise.are_increasing(t):
        raise InputError("times: give increasing numbers, and as many values")
    if not np.isfinite(y).all():
        raise InputError("values are not finite; leave those out")
    n_terms, confidence = checked_terms(n_terms), checked_confidence(confidence)
    limit = None if limit is None else kinds.as_number(limit, "limit")
    if limit is not None and not all(math.isfinite(v - limit) for v in y.tolist()):
        raise InputError(f"limit={limit}; use a number whose distance from values a float can hold")
    if limit is not None and not (y > limit).all():
        raise InputError(f"limit={limit}: not all values are above it; leave it to be fitted")
    n_parameters = 2 * n_terms + (limit is None)
    if len(t) < n_parameters + SPARE_POINTS:
        return refused(
            f"too few points: {len(t)}, of {n_parameters + SPARE_POINTS} needed", len(t), n_terms
        )
    span = float(t[-1] - t[0])
    x = (t - t[0]) / span
    if float(np.ptp(y)) <= ROUNDING * float(np.abs(y).max()):
        return refused("no decay: the curve is constant", len(t), n_terms)
    top = 0.0 if limit is None else math.log(float(y.max()) - limit)
    scale = float(np.ptp(y)) if limit is None else 1.0
    z = (y - y[-1]) / scale if limit is None else np.log(y - limit) - top
    # However little a curve falls towards a known limit, its residuals are seen beside that.
    size = 1.0 if limit is None else min(1.0, float(np.ptp(z)))
    if limit is not None and np.polyfit(x, z, 1)[0] >= 0:
        return refused("no decay: the curve does not fall towards its limit", len(t), n_terms)
    start = _start(x, z, n_terms, limit is None)
    if start is None:
        return refused("no decay: no sum of exponentials comes near", len(t), n_terms)

    def model(p: Floats) -> tuple[Floats, Floats]:
        """The curve and its derivatives; of its logarithm where the limit is known."""
        rates, rest = np.exp(p[:n_terms]), p[n_terms:]
        if limit is None:
            decay = np.exp(-np.outer(x, rates))
            by_rate = -decay * np.outer(x, rates) * rest[:n_terms]
            curve = decay @ rest[:n_terms] + rest[-1]
            return curve, np.column_stack([by_rate, decay, np.ones_like(x)])
        logs = rest - np.outer(x, rates)
        highest = logs.max(axis=1, keepdims=True)
        terms = np.exp(logs - highest)
        total = terms.sum(axis=1, keepdims=True)
        parts = terms / total
        curve = (np.log(total) + highest)[:, 0]
        return curve, np.hstack([-parts * np.outer(x, rates), parts])

    low, high = _bounds(x, n_terms, len(start), size)
    found = least_squares(
        lambda p: (model(p)[0] - z) / size,
        start,
        jac=lambda p: model(p)[1] / size,
        bounds=(low, high),
        x_scale="jac",
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
        max_nfev=1000,
    )
    order = np.argsort(found.x[:n_terms])
    p = np.concatenate(
        [found.x[:n_terms][order], found.x[n_terms : 2 * n_terms][order], found.x[2 * n_terms :]]
    )
    curve, jacobian = model(p)
    noise = red_noise.fit(t, (z - curve)[:, None], jacobian)
    error = _log_rate_errors(t, jacobian, noise, n_terms)
    width = float(student.ppf((1 + confidence) / 2, len(t) - n_parameters)) * error
    status = _judge(p[:n_terms], width, low[0], limit is None, float(x[1]))
    if status != FITTED:
        return refused(status, len(t), n_terms)
    rate = np.exp(p[:n_terms]) / span
    known = limit is not None
    if not known:
        jacobian[:, :n_terms] *= scale
    return ExponentialFit(
        FITTED,
        rate,
        rate * np.exp(-width),
        rate * np.exp(width),
        np.exp(p[n_terms:] + top) if known else p[n_terms : 2 * n_terms] * scale,
        float(limit) if limit is not None else float(y[-1] + scale * p[-1]),
        limit + np.exp(curve + top) if limit is not None else y[-1] + scale * curve,
        float(noise.time_constant[0]),
        jacobian,
    )


def checked_terms(n_terms: int) -> int:
    """Return a number of exponentials that can be fitted.

    Raises
    ------
    InputError
        It is another.
    """
    n_terms = kinds.as_whole(n_terms, "n_terms")
    if n_terms not in (1, 2):
        raise InputError(f"n_terms={n_terms}; use 1 or 2")
    return n_terms


def checked_confidence(confidence: float) -> float:
    """Return the confidence of an interval.

    Raises
    ------
    InputError
        It is no number between 0 and 1.
    """
    confidence = kinds.as_number(confidence, "confidence")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence}; use a number between 0 and 1")
    return confidence


def refused(status: str, n: int, n_terms: int) -> ExponentialFit:
    """What is said of a curve that has no rate: why, and NaN.

    Parameters
    ----------
    status : str
        Why there is none.
    n, n_terms : int
        Samples of the curve, and exponentials that were asked for.
    """
    none, curve = np.full(n_terms, math.nan), np.full(n, math.nan)
    return ExponentialFit(
        status, none, none, none, none, math.nan, curve, math.nan, np.full((n, 0), math.nan)
    )


def _start(x: Floats, z: Floats, n_terms: int, free: bool) -> Floats | None:
    """Parameters near the best fit: linear least squares at rates of a grid."""
    rates = np.geomspace(0.05, 5 / float(np.diff(x).min()), 60)
    logs, target = -np.outer(x, rates), z
    if not free:
        # Residuals of the logarithm are relative ones, nearly.
        logs, target = logs - z[:, None], np.ones_like(z)
    # Of size one each, since a curve may fall by more than a float holds.
    highest = logs.max(axis=0)
    decay = np.exp(logs - highest)
    best, chosen = math.inf, None
    for pick in itertools.combinations(range(len(rates)), n_terms):
        columns = decay[:, pick]
        if free:
            columns = np.column_stack([columns, np.ones_like(x)])
        linear, *_ = np.linalg.lstsq(columns, target, rcond=None)
        if not free and not (linear > 0).all():
            continue
        misfit = float(((columns @ linear - target) ** 2).sum())
        if misfit < best:
            best = misfit
            rest = linear if free else np.log(linear) - highest[list(pick)]
            chosen = np.concatenate([np.log(rates[list(pick)]), rest])
    return chosen


def _bounds(x: Floats, n_terms: int, n_parameters: int, size: float) -> tuple[Floats, Floats]:
    """Of log rates only: between a straight line and a jump at the first sample."""
    low, high = np.full(n_parameters, -np.inf), np.full(n_parameters, np.inf)
    low[:n_terms] = math.log(LEAST_PART * size)
    high[:n_terms] = math.log(100 / float(np.diff(x).min()))
    return low, high


def _log_rate_errors(
    times: Floats, jacobian: Floats, noise: red_noise.RedNoise, n_terms: int
) -> Floats:
    """Standard errors of log r under red residuals."""
    inverse = np.linalg.pinv(jacobian).astype(float)
    spread: Floats = red_noise.covariance_product(times, float(noise.time_constant[0]), inverse.T)
    errors: Floats = np.sqrt(np.diagonal(inverse @ spread)[:n_terms] * noise.variance[0])
    return errors


def _judge(log_rates: Floats, width: Floats, low: float, free: bool, spacing: float) -> str:
    if log_rates[-1] > math.log(MOST_DECAY / spacing):
        return "no decay: the first sample alone stands out"
    if free and log_rates[0] < math.log(LEAST_DECAY):
        return "unresolved: less than one e-folding within the window"
    # At a bound the fit has not ended, and what is left of the curve is no noise about it.
    if log_rates[0] < low + math.log(2):
        return "unresolved: the slowest rate is too small to be told from zero"
    if not (2 * width < math.log(WIDEST)).all():
        return f"unresolved: the rate is uncertain by more than a factor of {WIDEST:g}"
    return FITTED
