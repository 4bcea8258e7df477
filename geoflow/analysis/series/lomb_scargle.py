"""Lomb–Scargle periodograms, with significance against red noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from geoflow.analysis.series import exponentials, red_noise
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.problems.scaling import power_of_two
from geoflow.system import kinds
from geoflow.system.limits import OPERATIONS, check_work
from geoflow.system.memory import check_memory

Floats = NDArray[np.float64]

DETREND = ("mean", "linear", "relaxation")
LEVELS = (0.95, 0.99)
FEWEST = 10

# Sines and cosines held at a time.
ENTRIES = 2**24


@dataclass(frozen=True)
class Spectrum:
    """Lomb–Scargle periodograms of K series beside those of red noise.

    Attributes
    ----------
    frequency : array of float64, shape (F,)
        Cycles in a unit of the clock.
    power : array of float64, shape (F, K)
        Part of the variance about the background that a sinusoid explains, from 0 to 1.
    red_noise : array of float64, shape (F, K)
        Its expectation under the red noise fitted to the series.
    local_p_value : array of float64, shape (F, K)
        Of the power at one frequency, named beforehand.
    local_level, global_level : array of float64, shape (L, F, K)
        Power that red noise exceeds at this one frequency, or at any, with probability 1 − level.
    peak_frequency, peak_power, p_value : array of float64, shape (K,)
        The highest peak above the red noise, between the grid's frequencies, and its global
        p-value: the probability that red noise has so high a peak anywhere.
    time_constant : array of float64, shape (K,)
        Of the red noise fitted.
    background : array of float64, shape (N, K)
        What was taken off the series.
    """

    frequency: Floats
    power: Floats
    red_noise: Floats
    local_p_value: Floats
    local_level: Floats
    global_level: Floats
    peak_frequency: Floats
    peak_power: Floats
    p_value: Floats
    time_constant: Floats
    background: Floats


def frequency_grid(
    times: Floats, *, oversampling: float = 5.0, max_frequency: float | None = None
) -> Floats:
    """From one cycle over the span T to 1/(2 median spacing), in steps of 1/(oversampling · T).

    With uneven samples there is no Nyquist frequency; what lies above half the median rate may be
    asked for by ``max_frequency``. Where all times are multiples of one step, powers repeat beyond
    half its rate.

    Raises
    ------
    InputError
        Times that fall or are not finite, an option that is not positive, or hardly a frequency.
    """
    oversampling = kinds.as_number(oversampling, "oversampling")
    if max_frequency is not None:
        max_frequency = kinds.as_number(max_frequency, "max_frequency")
    if max_frequency is not None and not (math.isfinite(max_frequency) and max_frequency > 0):
        raise InputError(f"max_frequency={max_frequency:g}; use a positive number")
    if not (math.isfinite(oversampling) and oversampling > 0):
        raise InputError(f"oversampling={oversampling:g}; use a positive number")
    t = kinds.as_numbers(times, "times")
    steps = np.diff(t) if t.ndim == 1 and np.isfinite(t).all() else np.empty(0)
    spacing = float(np.median(steps)) if steps.size else 0.0
    if not (steps >= 0).all() or not spacing > 0:
        raise InputError("times: give two or more increasing numbers")
    span = float(t[-1] - t[0])
    high = 0.5 / spacing if max_frequency is None else max_frequency
    wanted = (high * span - 1) * oversampling * (1 + 1e-12)
    count = math.floor(min(wanted, 1e18)) + 1
    # The grid itself, and expected power for some tens of time constants.
    check_memory(8 * 50 * count, f"max_frequency={high:g}: {count:.2g} frequencies", "use less")
    if count < 3:
        raise InputError(
            f"max_frequency={high:g}: hardly above one cycle over the span, {1 / span:g}; use more"
        )
    return (1 + np.arange(count) / oversampling) / span


def lomb_scargle(
    times: NDArray[np.floating],
    values: NDArray[np.floating],
    *,
    detrend: str = "mean",
    oversampling: float = 5.0,
    max_frequency: float | None = None,
    levels: kinds.Reals = LEVELS,
    n_simulations: int = 999,
    seed: int = 0,
) -> Spectrum:
    """Periodograms of series at uneven times, and how likely red noise has such peaks.

    At each frequency a sinusoid is fitted by least squares together with the background; the power
    is the part of the sum of squares about the background alone that it explains. With the mean as
    the background this is the generalised Lomb–Scargle periodogram (Zechmeister & Kürster 2009,
    A&A 496, 577, eq. 4), as in ``scipy.signal.lombscargle(…, normalize=True,
    floating_mean=True)``; here it is computed for the series and all simulations at once.

    The null hypothesis is an Ornstein–Uhlenbeck process with a time constant fitted to the series
    (:func:`geoflow.analysis.series.red_noise.fit`), as in REDFIT (Schulz & Mudelsee 2002, Comput.
    Geosci. 28, 421). Its expected periodogram at these very times is computed exactly
    (:func:`geoflow.analysis.series.red_noise.expected_part`). The test statistic is the maximum
    over frequencies of the power over that; its distribution is that of simulated processes at the
    same times, time constant and background fitted anew. From one time constant to another the
    expectation is taken to change as that of the sums of squares does.

    Parameters
    ----------
    times : array, shape (N,)
        Increasing, at least 10.
    values : array, shape (N,) or (N, K)
        One series or several.
    detrend : str
        The background: ``mean``; ``linear``, a mean and a trend; ``relaxation``, an exponential
        approach to a limit, fitted first and then linearised about the fit.
    oversampling, max_frequency
        See :func:`frequency_grid`.
    levels : sequence of float
        Of significance.
    n_simulations : int
        The least p-value is 1/(n_simulations + 1).
    seed : int
        Of the simulations.

    Raises
    ------
    InputError
        An argument that cannot be used, or a background that leaves nothing or does not fit.
    """
    t, y = kinds.as_numbers(times, "times"), kinds.as_numbers(values, "values")
    y = y[:, None] if y.ndim == 1 else y
    levels = checked_levels(levels)
    n_simulations = kinds.as_whole(n_simulations, "n_simulations")
    _check(t, y, detrend, n_simulations, seed)
    # Nothing depends on the size of a series but its background; squares may leave a float.
    scale = np.array([power_of_two(float(np.abs(x).max())) for x in y.T])
    frequency = frequency_grid(t, oversampling=oversampling, max_frequency=max_frequency)
    _check_cost(y.shape, len(frequency), n_simulations)
    shared = None if detrend == "relaxation" else _Design(t, _background(t, y, detrend), frequency)
    columns = []
    for x in (y * scale).T:
        design = shared or _Design(t, _background(t, x, detrend), frequency)
        rng = np.random.default_rng(seed)
        columns.append(_spectrum(design, x, levels, n_simulations, rng))
    columns = [c | {"background": c["background"] / k} for c, k in zip(columns, scale, strict=True)]
    return Spectrum(
        frequency, **{k: np.stack([c[k] for c in columns], axis=-1) for k in columns[0]}
    )


class _Design:
    """Sinusoids orthogonal to a background at the sample times, and red noise seen by them.

    Raises
    ------
    InputError
        Of some frequency nothing is left, as where samples are even, at multiples of their rate.
    """

    def __init__(self, times: Floats, background: Floats, frequency: Floats) -> None:
        self.times, self.background, self.frequency = times, background, frequency
        self.q = np.linalg.qr(background)[0]
        taus = red_noise.grid(times)
        self.expected = np.empty((len(taus), len(frequency)))
        for columns, waves in self.blocks():
            for row, tau in enumerate(taus):
                seen = waves * red_noise.covariance_product(times, tau, waves)
                self.expected[row, columns] = seen.sum(axis=(0, 2))
        unseen = frequency[self.expected[0] == 0]
        if unseen.size:
            raise InputError(
                f"max_frequency={frequency[-1]:g}: samples at these times see no wave of the "
                f"frequency {unseen[0]:g}; use less than that"
            )
        for row, tau in enumerate(taus):
            outside = (self.q * red_noise.covariance_product(times, tau, self.q)).sum()
            self.expected[row] /= len(times) - outside

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Sinusoids of a few frequencies at a time."""
        at_once = max(1, ENTRIES // (4 * len(self.times)))
        for start in range(0, len(self.frequency), at_once):
            columns = slice(start, start + at_once)
            yield columns, self.waves(self.frequency[columns])

    def waves(self, frequency: Floats) -> Floats:
        """Orthonormal bases of cos and sin of each frequency beside the background, (N, F, 2).

        What rounding alone leaves of one is 0, as at the Nyquist frequency of even samples.
        """
        phase = 2 * np.pi * np.outer(frequency, self.times - self.times.mean())
        pairs = self.residual(np.stack([np.cos(phase), np.sin(phase)], axis=-1))
        basis, size, _ = np.linalg.svd(pairs, full_matrices=False)
        there = size > 1e-7 * np.sqrt(len(self.times))
        return np.moveaxis(basis * there[:, None], 1, 0)

    def residual(self, x: Floats) -> Floats:
        """What the background leaves of columns, shape (…, N, K)."""
        left: Floats = x - self.q @ (self.q.T @ x)
        return left

    def expected_at(self, position: Floats, columns: slice) -> Floats:
        """Expected explained over expected total sum of squares of red noise, shape (S, some).

        At places of the grid of time constants.
        """
        low = np.clip(position.astype(int), 0, len(self.expected) - 2)
        part = (position - low)[:, None]
        mixed: Floats = (1 - part) * self.expected[low, columns]
        return mixed + part * self.expected[low + 1, columns]


def _explained(series: Floats, waves: Floats) -> Floats:
    """Sums of squares of S series that sinusoids of F frequencies explain, shape (S, F)."""
    explained: Floats = (np.tensordot(series, waves, (0, 0)) ** 2).sum(axis=-1)
    return explained


def _spectrum(
    design: _Design, x: Floats, levels: Sequence[float], count: int, rng: np.random.Generator
) -> dict[str, Any]:
    residual = design.residual(x[:, None])
    total = float((residual**2).sum())
    if total <= (1e3 * np.finfo(float).eps * np.abs(x).max()) ** 2 * len(x):
        raise InputError("values: a series has no variance about its background; leave it out")
    noise = red_noise.fit(design.times, residual, design.background)
    tau = float(noise.time_constant[0])
    simulated = design.residual(red_noise.draw(design.times, tau, count, rng))
    refitted = red_noise.fit(design.times, simulated, design.background).position
    totals = (simulated**2).sum(axis=0)
    n = len(design.frequency)
    power, expected, p_value = np.empty(n), np.empty(n), np.empty(n)
    local = np.empty((len(levels), n))
    highest = np.zeros(count)
    for columns, waves in design.blocks():
        power[columns] = _explained(residual, waves)[0] / total
        expected[columns] = red_noise.expected_part(design.times, tau, design.q, waves)
        ratio = _explained(simulated, waves) / totals[:, None]
        ratio /= design.expected_at(refitted, columns)
        ratio *= design.expected_at(noise.position, columns)[0] / expected[columns]
        highest = np.maximum(highest, ratio.max(axis=1))
        observed = power[columns] / expected[columns]
        p_value[columns] = (1 + (ratio >= observed).sum(axis=0)) / (count + 1)
        local[:, columns] = np.quantile(ratio, levels, axis=0) * expected[columns]
    best = int((power / expected).argmax())
    peak, peak_power = _peak(design, residual, total, expected, best)
    above = int((highest >= (power / expected)[best]).sum())
    return {
        "power": power,
        "red_noise": expected,
        "local_p_value": p_value,
        "local_level": local,
        "global_level": np.outer(np.quantile(highest, levels), expected),
        "peak_frequency": peak,
        "peak_power": peak_power,
        "p_value": (1 + above) / (count + 1),
        "time_constant": tau,
        "background": x - residual[:, 0],
    }


def _peak(
    design: _Design, residual: Floats, total: float, expected: Floats, best: int
) -> tuple[float, float]:
    """Frequency and power of the maximum near a grid frequency, red noise taken as it is there."""
    f = design.frequency

    def power(frequency: float) -> float:
        return _explained(residual, design.waves(np.array([frequency]))).item() / total

    def lowered(frequency: float) -> float:
        return -power(frequency) / float(np.interp(frequency, f, expected))

    low, high = f[max(best - 1, 0)], f[min(best + 1, len(f) - 1)]

    def at(part: float) -> float:
        return float(low + part * (high - low))

    # By parts of the interval, so that the unit of time does not matter.
    found = minimize_scalar(
        lambda part: lowered(at(part)), bounds=(0, 1), method="bounded", options={"xatol": 1e-9}
    )
    peak = at(found.x) if found.fun < lowered(f[best]) else float(f[best])
    return peak, power(peak)


def _background(times: Floats, x: Floats, detrend: str) -> Floats:
    ones = np.ones_like(times)
    if detrend == "mean":
        return ones[:, None]
    if detrend == "linear":
        return np.column_stack([ones, (times - times.mean()) / np.ptp(times)])
    fitted = exponentials.fit(times, x)
    if fitted.status != exponentials.FITTED:
        raise InputError(
            f"detrend='relaxation' does not fit ({fitted.status}); use 'linear' or 'mean'"
        )
    return fitted.jacobian


def _check_cost(shape: tuple[int, ...], n_frequencies: int, n_simulations: int) -> None:
    """Refuse simulations that memory cannot hold, or that would take hours."""
    n, n_series = shape
    at_once = min(n_frequencies, max(1, ENTRIES // (4 * n)))
    # Draws, residuals and their fits; powers of some frequencies, their squares and expectations.
    needed = 8 * n_simulations * (8 * n + 6 * at_once)
    check_memory(needed, f"n_simulations={n_simulations}: the simulated series", "use fewer")
    operations = 4 * n * n_frequencies * n_simulations * n_series
    named = f"n_simulations={n_simulations} at {n_frequencies} frequencies"
    check_work(operations, OPERATIONS, named, "operations")


def checked_levels(levels: kinds.Reals) -> list[float]:
    """Return levels of significance as a list.

    Raises
    ------
    InputError
        There are none, or they are no numbers between 0 and 1.
    """
    found = kinds.as_numbers(levels, "levels")
    if found.ndim != 1 or not found.size or not ((found > 0) & (found < 1)).all():
        given = kinds.shown(levels)
        raise InputError(f"levels={given}; use numbers between 0 and 1 in a list")
    return [float(level) for level in found]


def _check(t: Floats, y: Floats, detrend: str, count: int, seed: int) -> None:
    if t.ndim != 1 or y.ndim != 2 or len(y) != len(t) or not red_noise.are_increasing(t):
        raise InputError("times: give increasing numbers, and values of shape (N,) or (N, K)")
    if not y.shape[1]:
        raise InputError("values: there is no series in them; give one or more")
    if len(t) < FEWEST:
        raise InputError(f"times: {len(t)} samples; use at least {FEWEST}, from a longer walk")
    if not np.isfinite(y).all():
        raise InputError("values are not finite; leave those out")
    kinds.check_choice(detrend, DETREND, "detrend")
    if count < 19:
        raise InputError(f"n_simulations={count}; use at least 19, for p-values of 5%")
    check_seed(seed)
