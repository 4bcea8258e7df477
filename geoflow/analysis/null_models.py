"""What the PCA of a walk would show were it none: Brownian path, straight line, relaxation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.optimize import minimize_scalar

from geoflow.analysis.blocks import block_bytes, column_blocks
from geoflow.errors import InputError
from geoflow.memory import check_memory

Floats = NDArray[np.float64]

KIND = "null_models"
MODELS = ("walk", "brownian", "straight_line", "relaxation")

# Of simulated paths, the numbers held at a time.
SIMULATED = 2**22


@dataclass(frozen=True)
class BrownianTest:
    """A walk beside simulated Brownian paths.

    Attributes
    ----------
    statistic : float
        Participation ratio of the walk's principal components.
    null : array of float64, shape (n_simulations,)
        The same of the simulated paths.
    p_value : float
        Two-sided; at least 2/(n_simulations + 1).
    """

    statistic: float
    null: Floats
    p_value: float


def brownian_variance_ratio(n_points: int, n_components: int | None = None) -> Floats:
    """Explained variance ratios of a Brownian path's principal components, in high dimension.

    λ_k ∝ 1/(2 sin(kπ/2N))² for k = 1 … N − 1, of N evenly spaced points as P → ∞; 6/(π²k²) as
    N → ∞ as well (Antognini & Sohl-Dickstein 2018, NeurIPS). The scores are cosines.

    Parameters
    ----------
    n_points : int
        N.
    n_components : int, optional
        None: all N − 1.

    Raises
    ------
    InputError
        Fewer than 2 points, or more components than N − 1.
    """
    _check_sizes(n_points, n_components)
    k = np.arange(1, n_points)
    values = 1 / (2 * np.sin(k * np.pi / (2 * n_points))) ** 2
    ratios: Floats = values[:n_components] / values.sum()
    return ratios


def cosine_content(scores: NDArray[np.floating]) -> Floats:
    """Part of each score that is a cosine of k half periods, k = 1, 2, … by column.

    (2/N)(Σᵢ cos(kπ(i + ½)/N) pᵢ)²/Σᵢ pᵢ²: from 0 to 1, and near 1 for the leading scores of a
    random walk (Hess 2000, Phys. Rev. E 62, 8438; 2002, Phys. Rev. E 65, 031910). A ramp has 0.99
    too: a high content alone does not tell a random walk from a straight line.

    Parameters
    ----------
    scores : array, shape (N, k)
        Centred scores on the principal components, in the order of the walk.

    Returns
    -------
    array of float64, shape (k,)
        NaN for a score that is zero.

    Raises
    ------
    InputError
        Not an array of two dimensions with more rows than columns, or non-finite.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or len(scores) <= scores.shape[1] or not np.isfinite(scores).all():
        raise InputError(
            f"scores have shape {scores.shape}; give finite scores (N, k) with N greater than k"
        )
    total = (scores**2).sum(axis=0)
    spectrum = dct(scores, type=2, norm="ortho", axis=0)
    k = np.arange(scores.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        content: Floats = spectrum[k + 1, k] ** 2 / total
    return np.where(total > 0, content, np.nan)


def brownian_path(
    n_points: int, dimension: int, *, step_lengths: Floats | None = None, seed: int = 0
) -> Floats:
    """Draw a random walk from the origin with independent, isotropic steps, shape (N, dimension).

    Parameters
    ----------
    n_points, dimension : int
        N and P.
    step_lengths : array, shape (N − 1,), optional
        Lengths that the steps are scaled to. None: as they come, normal of unit variance in each
        direction.
    seed : int
        Decides the steps.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    _check_sizes(n_points, None)
    steps = _generator(seed).standard_normal((n_points - 1, dimension))
    if step_lengths is not None:
        lengths = np.asarray(step_lengths, dtype=float)
        if lengths.shape != (n_points - 1,) or not (lengths >= 0).all():
            raise InputError(f"step_lengths: give {n_points - 1} numbers that are not negative")
        steps *= (lengths / np.linalg.norm(steps, axis=1))[:, None]
    return np.concatenate([np.zeros((1, dimension)), np.cumsum(steps, axis=0)])


def brownian_test(
    points: Any,
    *,
    dimension: int | None = None,
    n_simulations: int = 999,
    seed: int = 0,
) -> BrownianTest:
    """Test whether a walk could be a random walk with independent, isotropic steps.

    The statistic is the participation ratio of the principal components,
    (Σ λ_k)²/Σ λ_k²: how many directions the path uses. It is 5/2 for a long Brownian path in high
    dimension, 1 for a straight line and for a relaxation at one rate, above 5/2 for steps that tend
    to turn back. The null distribution is simulated: random walks whose steps have the lengths of
    the walk's own, so that uneven steps are no reason to reject. Given the seed, the p-value is
    decided; under the null hypothesis it is below any α with probability at most α.

    Parameters
    ----------
    points : array, shape (N, P)
        In the order of the walk; of NumPy or Dask, or a lazy one, which is read in blocks.
    dimension : int, optional
        Of the space the steps are isotropic in; None: P. Where the steps of a diffusion span d
        effective directions, the null hypothesis is wider with d than with P.
    n_simulations : int
        The least p-value is 2/(n_simulations + 1).
    seed : int
        Of the simulations.

    Raises
    ------
    InputError
        Points that cannot be used, or another argument.
    """
    gram, _ = _step_gram(points)
    dimension = points.shape[1] if dimension is None else dimension
    return _brownian_test(gram, dimension, n_simulations, seed).test


def compare(
    points: Any,
    times: NDArray[np.floating] | None = None,
    *,
    n_components: int = 6,
    dimension: int | None = None,
    n_simulations: int = 999,
    seed: int = 0,
) -> xr.Dataset:
    """Principal components of a walk beside those of the null models of the same length.

    Brownian paths have the walk's own step lengths; what stands for them is the mean over the
    simulations. The straight line leads evenly from the first point to the last. The relaxation
    leads between the same points as 1 − exp(−rt), with the rate r that fits the walk best by least
    squares, from 10⁻³ (even speed) to 10³ over the walk's duration. Both lie on one line, so they
    have one component.

    Parameters
    ----------
    points : array, shape (N, P)
        In the order of the walk, such as ``ds["theta"]``; of NumPy or Dask, or a lazy one, which
        is read in blocks.
    times : array, shape (N,), optional
        Of the points, increasing, for the relaxation, such as ``ds["snapshot_time"].values``. None:
        0, 1, 2, ….
    n_components : int
        Components wanted.
    dimension, n_simulations, seed
        See :func:`brownian_test`.

    Returns
    -------
    xarray.Dataset
        ``explained_variance_ratio`` and ``cosine_content`` by ``model`` (``walk``, ``brownian``,
        ``straight_line``, ``relaxation``) and ``component``, NaN where a model has no such
        component; ``scores`` by model, ``point`` and component, those of one of the Brownian paths,
        turned so that their cosine content is positive; standard deviations of the first two over
        the Brownian paths; ``participation_ratio`` by model; the analytic limit
        ``brownian_limit``; the test's ``p_value``; the ``rate`` fitted, in units of 1/time.

    Raises
    ------
    InputError
        Points that cannot be used, or another argument.
    """
    gram, unit = _step_gram(points)
    n = len(gram) + 1
    _check_sizes(n, n_components)
    clock = "number of the point, from 0" if times is None else "flow time"
    times = _checked_times(times, n)
    dimension = points.shape[1] if dimension is None else dimension
    simulated = _brownian_test(gram, dimension, n_simulations, seed, n_components)
    test, ratios, content = simulated.test, simulated.ratios, simulated.content
    rate = _fitted_rate(gram, times)
    whole = float(gram.sum())
    paths = {
        "straight_line": np.linspace(0, 1, n),
        "relaxation": _relaxation(times, rate),
    }
    grams = {"walk": gram, "brownian": simulated.example}
    grams |= {name: whole * np.outer(np.diff(x), np.diff(x)) for name, x in paths.items()}
    rows = {name: _components(steps[None], n_components) for name, steps in grams.items()}
    variance = {name: row.ratios[0] for name, row in rows.items()}
    cosines = {name: row.content[0] for name, row in rows.items()}
    participation = {name: float(_participation(row.values)[0]) for name, row in rows.items()}
    # Of the Brownian paths the scores are those of the first, all else is the mean.
    variance["brownian"], cosines["brownian"] = ratios.mean(axis=0), content.mean(axis=0)
    participation["brownian"] = float(test.null.mean())
    scores = np.stack([math.sqrt(unit) * rows[m].scores[0] for m in MODELS])

    def described(dims: tuple[str, ...], values: Any, long_name: str) -> tuple[Any, ...]:
        return dims, values, {"long_name": long_name, "units": "1"}

    both, by_component = ("model", "component"), ("component",)
    return xr.Dataset(
        {
            "explained_variance_ratio": described(
                both, np.stack([variance[m] for m in MODELS]), "part of the variance explained"
            ),
            "cosine_content": described(
                both, np.stack([cosines[m] for m in MODELS]), "cosine content of the score"
            ),
            "scores": described(
                ("model", "point", "component"), scores, "coordinate along the component"
            ),
            "explained_variance_ratio_std": described(
                by_component,
                ratios.std(axis=0, ddof=1),
                "standard deviation of explained_variance_ratio over Brownian paths",
            ),
            "cosine_content_std": described(
                by_component,
                content.std(axis=0, ddof=1),
                "standard deviation of cosine_content over Brownian paths",
            ),
            "brownian_limit": described(
                by_component,
                brownian_variance_ratio(n, n_components),
                "explained_variance_ratio of Brownian motion in high dimension, even steps",
            ),
            "participation_ratio": described(
                ("model",),
                np.array([participation[m] for m in MODELS]),
                "participation ratio of the principal components",
            ),
            "p_value": described((), test.p_value, "p-value of the walk as a Brownian path"),
            "rate": described((), rate, "relaxation rate fitted to the walk"),
        },
        coords={
            "model": described(("model",), list(MODELS), "model"),
            "component": described(
                by_component, np.arange(1, n_components + 1), "principal component"
            ),
            "time": described(("point",), times, clock),
        },
        attrs={
            "title": "Principal components of a walk beside null models",
            "kind": KIND,
            "n_points": n,
            "dimension": dimension,
            "n_simulations": n_simulations,
            "seed": seed,
        },
    )


class _Simulated(NamedTuple):
    test: BrownianTest
    ratios: Floats
    content: Floats
    example: Floats


class _Components(NamedTuple):
    """Of each path: ratios and contents, shape (count, k), scores, and all eigenvalues."""

    ratios: Floats
    content: Floats
    scores: Floats
    values: Floats


def _brownian_test(
    gram: Floats, dimension: int, n_simulations: int, seed: int, n_components: int = 1
) -> _Simulated:
    check_simulations(n_simulations, seed, dimension)
    lengths = np.sqrt(np.diagonal(gram))
    rng = _generator(seed)
    n_steps = len(gram)
    at_once = max(1, SIMULATED // n_steps**2)
    null, found = [], []
    example = gram
    for start in range(0, n_simulations, at_once):
        count = min(at_once, n_simulations - start)
        simulated = _isotropic_gram(rng, count, n_steps, dimension) * np.outer(lengths, lengths)
        if start == 0:
            example = simulated[0]
        components = _components(simulated, n_components)
        null.append(_participation(components.values))
        found.append((components.ratios, components.content))
    all_null = np.concatenate(null)
    statistic = float(_participation(_components(gram[None], 1).values)[0])
    tails = [1 + int((all_null <= statistic).sum()), 1 + int((all_null >= statistic).sum())]
    p_value = min(1.0, 2 * min(tails) / (n_simulations + 1))
    test = BrownianTest(statistic, all_null, p_value)
    ratios, content = (np.concatenate(part) for part in zip(*found, strict=True))
    return _Simulated(test, ratios, content, example)


def _step_gram(points: Any) -> tuple[Floats, float]:
    """Inner products of the steps, shape (N − 1, N − 1), over their mean square; the latter."""
    if points.ndim != 2 or len(points) < 3:
        raise InputError(f"points have shape {points.shape}; give (N, P) with N of 3 at least")
    n = len(points)
    needed = 3 * block_bytes([points]) + 6 * 8 * max(n * n, SIMULATED)
    check_memory(needed, f"the inner products of {n:,} points", "give fewer points")
    gram = np.zeros((n - 1, n - 1))
    for _, block in column_blocks([points]):
        steps = np.diff(block, axis=0)
        gram += steps @ steps.T
    mean = float(np.trace(gram)) / len(gram)
    if not math.isfinite(mean):
        raise InputError("points have non-finite values; leave those out")
    if mean == 0:
        raise InputError("points are all the same; there is no walk to compare")
    return gram / mean, mean


def _isotropic_gram(rng: np.random.Generator, count: int, n_steps: int, dimension: int) -> Floats:
    """Inner products of random unit vectors, shape (count, n_steps, n_steps).

    In high dimension by Bartlett's decomposition of the Wishart distribution, which is exact and
    whose cost does not grow with the dimension.
    """
    if dimension <= n_steps:
        factor = rng.standard_normal((count, n_steps, dimension))
    else:
        factor = np.tril(rng.standard_normal((count, n_steps, n_steps)), -1)
        diagonal = np.arange(n_steps)
        factor[:, diagonal, diagonal] = np.sqrt(
            rng.chisquare(dimension - diagonal, (count, n_steps))
        )
    factor /= np.linalg.norm(factor, axis=2, keepdims=True)
    gram: Floats = factor @ factor.swapaxes(1, 2)
    return gram


def _components(gram: Floats, n_components: int) -> _Components:
    """Principal components of paths, from the inner products of their steps."""
    points = np.pad(np.cumsum(np.cumsum(gram, axis=1), axis=2), ((0, 0), (1, 0), (1, 0)))
    points = points - points.mean(axis=1, keepdims=True)
    points = points - points.mean(axis=2, keepdims=True)
    values, vectors = np.linalg.eigh(points)
    values = np.maximum(values[:, ::-1], 0)
    # The last is that of the mean, which is zero.
    values = values[:, :-1]
    ratios = values[:, :n_components] / values.sum(axis=1, keepdims=True)
    vectors = vectors[:, :, ::-1][:, :, :n_components]
    content = np.stack([cosine_content(v) for v in vectors])
    there = ratios > len(gram[0]) * np.finfo(float).eps
    k = np.arange(n_components)
    turned = np.where(dct(vectors, type=2, axis=1)[:, k + 1, k] < 0, -1.0, 1.0)
    scores = vectors * (turned * np.sqrt(values[:, :n_components]))[:, None]
    return _Components(
        np.where(there, ratios, 0.0),
        np.where(there, content, np.nan),
        np.where(there[:, None], scores, np.nan),
        values,
    )


def _participation(values: Floats) -> Floats:
    ratio: Floats = values.sum(axis=1) ** 2 / (values**2).sum(axis=1)
    return ratio


def _relaxation(times: Floats, rate: float) -> Floats:
    """From 0 to 1 at a rate; a rate of zero is a straight line in time."""
    t = times - times[0]
    if abs(rate) * t[-1] < 1e-9:
        return t / t[-1]
    relaxed: Floats = np.expm1(-rate * t) / np.expm1(-rate * t[-1])
    return relaxed


def _fitted_rate(gram: Floats, times: Floats) -> float:
    """Rate, at least zero, at which the relaxation between the ends is nearest to the walk.

    ‖xᵢ − x₀ − sᵢ(x_N − x₀)‖² summed over i is least; it depends on the walk by inner products with
    its whole displacement only.
    """
    along = np.concatenate([[0.0], np.cumsum(gram.sum(axis=1))])
    whole = float(along[-1])
    if whole <= 0:
        return 0.0  # the walk ends where it began
    duration = float(times[-1] - times[0])

    def misfit(log_rate: float) -> float:
        s = _relaxation(times, math.exp(log_rate) / duration)
        return float((whole * s * s - 2 * s * along).sum())

    grid = np.linspace(math.log(1e-3), math.log(1e3), 61)
    best = int(np.argmin([misfit(x) for x in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(misfit, bounds=bounds, method="bounded", options={"xatol": 1e-10})
    return math.exp(float(found.x)) / duration


def _checked_times(times: NDArray[np.floating] | None, n: int) -> Floats:
    if times is None:
        return np.arange(n, dtype=float)
    checked = np.asarray(times, dtype=float)
    if checked.shape != (n,) or not (np.diff(checked) > 0).all():
        raise InputError(f"times: give {n} increasing numbers, one for each point")
    return checked


def check_simulations(n_simulations: int, seed: int, dimension: int = 1) -> None:
    """Refuse what no Brownian paths can be simulated with.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    if dimension < 1 or n_simulations < 2:
        raise InputError(f"dimension={dimension}, n_simulations={n_simulations}; use more")
    _generator(seed)


def _check_sizes(n_points: int, n_components: int | None) -> None:
    if n_points < 2:
        raise InputError(f"n_points={n_points}; use at least 2")
    if n_components is not None and not 1 <= n_components < n_points:
        raise InputError(
            f"n_components={n_components}: {n_points} points have 1 to {n_points - 1} components"
        )


def _generator(seed: int) -> np.random.Generator:
    if seed < 0:
        raise InputError(f"seed={seed}; use zero or a positive number")
    return np.random.default_rng(seed)
