"""Principal components of a path from the inner products of its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from geoflow.analysis.components.blocks import block_bytes, column_blocks
from geoflow.analysis.scaled import of_size_one
from geoflow.errors import InputError
from geoflow.system import kinds
from geoflow.system.memory import check_memory

Floats = NDArray[np.float64]

# Of many paths, the numbers held at a time.
SIMULATED = 2**22


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
    scores = kinds.as_numbers(scores, "scores")
    if scores.ndim != 2 or len(scores) <= scores.shape[1] or not np.isfinite(scores).all():
        raise InputError(
            f"scores have shape {scores.shape}; give finite scores (N, k) with N greater than k"
        )
    scores = of_size_one(scores, axis=0)
    total = (scores**2).sum(axis=0)
    spectrum = dct(scores, type=2, norm="ortho", axis=0)
    k = np.arange(scores.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        content: Floats = spectrum[k + 1, k] ** 2 / total
    return np.where(total > 0, content, np.nan)


def step_gram(points: Any) -> tuple[Floats, float]:
    """Inner products of the steps, shape (N − 1, N − 1), over their mean square; the latter.

    Parameters
    ----------
    points : array, shape (N, P)
        Of NumPy or Dask, or a lazy one, which is read in blocks.

    Raises
    ------
    InputError
        Too few points, non-finite values, no motion, or more memory needed than there is.
    """
    if getattr(points, "ndim", None) != 2:
        raise InputError(f"points={kinds.shown(points)}; give an array of shape (N, P)")
    if len(points) < 3:
        raise InputError(f"points have shape {points.shape}; give (N, P) with N of 3 at least")
    check_steps(points)
    n = len(points)
    gram = np.zeros((n - 1, n - 1))
    for _, block in column_blocks([points]):
        steps = np.diff(block, axis=0)
        if not np.isfinite(steps).all():
            raise InputError("points have non-finite values; leave those out")
        with np.errstate(over="ignore"):
            gram += steps @ steps.T
    check_squares(gram)
    mean = float(np.trace(gram)) / len(gram)
    if mean == 0:
        raise InputError("points are all the same; there is no walk to compare")
    return gram / mean, mean


def check_steps(points: Any) -> None:
    """Refuse points of which memory cannot hold the inner products of the steps.

    Parameters
    ----------
    points : array, shape (N, P)
        As for :func:`step_gram`.

    Raises
    ------
    InputError
        It cannot.
    """
    n = len(points)
    needed = 3 * block_bytes([points]) + 6 * 8 * max(n * n, SIMULATED)
    check_memory(needed, f"the inner products of {n:,} points", "give fewer points")


class StepComponents(NamedTuple):
    """Of each path: ratios and contents, shape (count, k), scores, and all eigenvalues."""

    ratios: Floats
    content: Floats
    scores: Floats
    values: Floats


def components_of_steps(gram: Floats, n_components: int) -> StepComponents:
    """Principal components of paths, from the inner products of their steps.

    Parameters
    ----------
    gram : array, shape (count, N − 1, N − 1)
        Of each path.
    n_components : int
        Components wanted.
    """
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
    return StepComponents(
        np.where(there, ratios, 0.0),
        np.where(there, content, np.nan),
        np.where(there[:, None], scores, np.nan),
        values,
    )


def participation_ratio(values: Floats) -> Floats:
    """(Σλ)²/Σλ² of the eigenvalues of each path, shape (count, n): how many directions it uses."""
    values = of_size_one(values, axis=1)
    ratio: Floats = values.sum(axis=1) ** 2 / (values**2).sum(axis=1)
    return ratio


def check_squares(gram: Floats) -> None:
    """Refuse inner products that are beyond float64, or so small that it rounds them.

    Raises
    ------
    InputError
        The points are too far from each other, or too near.
    """
    total = float(np.trace(gram))
    least = np.finfo(float).tiny / np.finfo(float).eps
    # Of zero the rank is known.
    if not (total == 0 or least <= total < np.inf):
        what = "overflow" if total > 1 else "underflow"
        raise InputError(f"points: squares of their distances {what} float64; give them rescaled")


def check_sizes(n_points: int, n_components: int | None) -> None:
    """Refuse more components than the points have.

    Raises
    ------
    InputError
        Fewer than 2 points, or more components than N − 1.
    """
    kinds.as_whole(n_points, "n_points", 2)
    if n_components is not None:
        n_components = kinds.as_whole(n_components, "n_components")
    if n_components is not None and not 1 <= n_components < n_points:
        raise InputError(
            f"n_components={n_components}: {n_points} points have 1 to {n_points - 1} components"
        )
