"""Principal components of points of parameter space, through their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geoflow.errors import InputError

Floats = NDArray[np.float64]

# Columns scaled at a time: beside the points themselves little memory is needed.
BLOCK = 8192


@dataclass(frozen=True)
class PCA:
    """The principal components of N points in R^P.

    Attributes
    ----------
    mean, scale : array of float64, shape (P,)
        A point is centred by the one, and divided by the other.
    components : array of float64, shape (k, P)
        Orthonormal, by falling variance; of each, the greatest coordinate among the points it was
        fitted to is positive.
    explained_variance : array of float64, shape (k,)
        Along each component, with N − 1 in the denominator.
    explained_variance_ratio : array of float64, shape (k,)
        Its part of the variance of all P.
    """

    mean: Floats
    scale: Floats
    components: Floats
    explained_variance: Floats
    explained_variance_ratio: Floats

    def transform(self, points: NDArray[np.floating]) -> Floats:
        """Coordinates of points, shape (N, P), along the components, shape (N, k)."""
        return self._scaled(points) @ self.components.T

    def distance(self, points: NDArray[np.floating], k: int | None = None) -> Floats:
        """Distance of points, shape (N, P), from the plane of the first ``k`` components.

        Shape (N,), in units of the scaled space: what a drawing in that plane does not show.
        """
        scaled = self._scaled(points)
        components = self.components[:k]
        return np.linalg.norm(scaled - (scaled @ components.T) @ components, axis=1)

    def _scaled(self, points: NDArray[np.floating]) -> Floats:
        return (np.asarray(points, dtype=float) - self.mean) / self.scale


def fit_pca(
    points: Sequence[NDArray[np.floating]], n_components: int = 6, *, standardise: bool = False
) -> PCA:
    """Find the principal components of all points of several walks.

    P is far greater than N, so the eigenvectors of the N × N Gram matrix are computed and not
    those of the P × P covariance; the result is the same.

    Parameters
    ----------
    points : sequence of array, shape (N_i, P)
        The points of each walk.
    n_components : int
        Components wanted.
    standardise : bool
        Divide each parameter by its standard deviation first, as Tahir & Katz (2021) do: then a
        parameter that hardly moves counts as much as one that moves far. Parameters that do not
        move at all stay at zero.

    Raises
    ------
    InputError
        Points of different P or with non-finite values, or too few for the components.
    """
    if not points or len({p.shape[1] for p in points}) > 1:
        raise InputError("points: give arrays of shape (N, P), all of the same P")
    n, p = sum(len(part) for part in points), points[0].shape[1]
    if not 1 <= n_components < n:
        raise InputError(f"n_components={n_components}: {n} points have 1 to {n - 1} components")
    mean, scale = np.empty(p), np.ones(p)
    gram = np.zeros((n, n))
    for columns, block in _blocks(points):
        if not np.isfinite(block).all():
            raise InputError("points have non-finite values; leave those out")
        mean[columns] = block.mean(axis=0)
        if standardise:
            # As scikit-learn has it: with N in the denominator, and 1 where nothing moves.
            std = block.std(axis=0)
            still = std <= 10 * np.finfo(float).eps * np.abs(mean[columns])
            scale[columns] = np.where(still, 1.0, std)
        scaled = (block - mean[columns]) / scale[columns]
        gram += scaled @ scaled.T
    eigenvalues, vectors = np.linalg.eigh(gram)
    largest = np.argsort(eigenvalues)[::-1][:n_components]
    if eigenvalues[largest[-1]] <= n * np.finfo(float).eps * eigenvalues[largest[0]]:
        rank = int((eigenvalues > n * np.finfo(float).eps * eigenvalues[largest[0]]).sum())
        raise InputError(f"n_components={n_components}: the points span {rank} dimensions only")
    singular, vectors = np.sqrt(eigenvalues[largest]), vectors[:, largest]
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(n_components)])
    components = np.empty((n_components, p))
    for columns, block in _blocks(points):
        scaled = (block - mean[columns]) / scale[columns]
        components[:, columns] = (vectors.T @ scaled) / singular[:, None]
    return PCA(
        mean,
        scale,
        components,
        explained_variance=eigenvalues[largest] / (n - 1),
        explained_variance_ratio=eigenvalues[largest] / np.trace(gram),
    )


def _blocks(points: Sequence[NDArray[np.floating]]) -> Iterator[tuple[slice, Floats]]:
    """All points, a few columns at a time."""
    for start in range(0, points[0].shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        yield columns, np.concatenate([part[:, columns] for part in points]).astype(float)
