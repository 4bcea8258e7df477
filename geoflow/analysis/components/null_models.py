"""What the PCA of a walk would show were it none: Brownian path, straight line, relaxation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from geoflow.analysis.components.brownian import brownian_variance_ratio, simulate
from geoflow.analysis.components.path_components import (
    check_sizes,
    components_of_steps,
    participation_ratio,
    step_gram,
)
from geoflow.analysis.components.principal import USUAL
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.system import kinds

Floats = NDArray[np.float64]

KIND = "null_models"
MODELS = ("walk", "brownian", "straight_line", "relaxation")


def compare(
    points: Any,
    times: NDArray[np.floating] | None = None,
    *,
    n_components: int | None = None,
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
    n_components : int, optional
        Components wanted. None: 6, or as many as the points have where those are fewer.
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
    seed = check_seed(seed)
    if n_components is not None:
        n_components = kinds.as_whole(n_components, "n_components")
    gram, unit = step_gram(points)
    n = len(gram) + 1
    n_components = min(USUAL, n - 1) if n_components is None else n_components
    check_sizes(n, n_components)
    clock = "number of the point, from 0" if times is None else "flow time"
    times = _checked_times(times, n)
    dimension = points.shape[1] if dimension is None else dimension
    simulated = simulate(gram, dimension, n_simulations, seed, n_components)
    test, ratios, content = simulated.test, simulated.ratios, simulated.content
    rate = _fitted_rate(gram, times)
    # From end to end; rounding alone is left of it where the walk is closed.
    whole = max(float(gram.sum()), 0.0)
    paths = {
        "straight_line": np.linspace(0, 1, n),
        "relaxation": _relaxation(times, rate),
    }
    grams = {"walk": gram, "brownian": simulated.example}
    grams |= {name: np.outer(np.diff(x), np.diff(x)) for name, x in paths.items()}
    rows = {name: components_of_steps(steps[None], n_components) for name, steps in grams.items()}
    variance = {name: row.ratios[0] for name, row in rows.items()}
    cosines = {name: row.content[0] for name, row in rows.items()}
    participation = {name: float(participation_ratio(row.values)[0]) for name, row in rows.items()}
    # Of the Brownian paths the scores are those of the first, all else is the mean.
    variance["brownian"], cosines["brownian"] = ratios.mean(axis=0), content.mean(axis=0)
    participation["brownian"] = float(test.null.mean())
    squares = {m: unit * whole if m in paths else unit for m in MODELS}
    scores = np.stack([math.sqrt(squares[m]) * rows[m].scores[0] for m in MODELS])

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
    checked = kinds.as_numbers(times, "times")
    if checked.shape != (n,) or not (np.diff(checked) > 0).all():
        raise InputError(f"times: give {n} increasing numbers, one for each point")
    return checked
