"""Principal components of points of parameter space, through their Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.analysis.components.blocks import block_bytes, column_blocks
from geoflow.analysis.components.path_components import check_squares
from geoflow.errors import InputError, RankError
from geoflow.system import kinds
from geoflow.system.memory import check_memory

Floats = NDArray[np.float64]

# The ``kind`` of the datasets that hold components.
KIND = "pca"

# Components, where no number of them is asked for.
USUAL = 6


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

    @classmethod
    def of(cls, ds: xr.Dataset) -> PCA:
        """Take the components out of a dataset of :func:`along`, to place other points by them.

        Raises
        ------
        InputError
            It is another dataset, or was cut to a single component or parameter.
        """
        kinds.check_dataset(ds, give="what pca.along returned")
        if ds.attrs.get("kind") != KIND:
            raise InputError("ds holds no principal components; make it with pca.along")
        ds = kinds.as_made(ds, ("component", "parameter"), "principal components")
        ds = ds.sortby("component")
        return cls(**{name: ds[name].values for name in cls.__dataclass_fields__})

    def transform(self, points: NDArray[np.floating]) -> Floats:
        """Coordinates of points, shape (N, P), along the components, shape (N, k).

        Raises
        ------
        InputError
            The points are of another P.
        """
        return self._scaled(points) @ self.components.T

    def distance(self, points: NDArray[np.floating], k: int | None = None) -> Floats:
        """Distance of points, shape (N, P), from the plane of the first ``k`` components.

        Shape (N,), in units of the scaled space: what a drawing in that plane does not show.

        Raises
        ------
        InputError
            The points are of another P.
        """
        scaled = self._scaled(points)
        components = self.components[:k]
        distance: Floats = np.linalg.norm(scaled - (scaled @ components.T) @ components, axis=-1)
        return distance

    def _scaled(self, points: NDArray[np.floating]) -> Floats:
        found = kinds.as_numbers(points, "points")
        if found.shape[-1:] != self.mean.shape:
            raise InputError(
                f"points have the shape {found.shape}; give (N, P) with P of {len(self.mean)}"
            )
        return (found - self.mean) / self.scale


def fit_pca(
    points: Sequence[Any],
    n_components: int | None = None,
    *,
    standardise: bool = False,
    progress: bool = False,
) -> PCA:
    """Find the principal components of all points of several walks.

    P is mostly far greater than N, so the eigenvectors of the N × N Gram matrix are computed and
    not those of the P × P covariance. The points are read twice, a few columns at a time. Where P
    is less than N it is the covariance, and the points, fewer numbers than a Gram matrix has, are
    read once and kept; the result is the same to rounding.

    Either matrix has the squares of the singular values. Rounding perturbs its eigenvalues by
    up to about Nε times the first, ε = 2·10⁻¹⁶, so that a component with the part r of the first
    one's variance has a relative accuracy of Nε/r; those below Nε are refused. Scores are accurate
    to 10⁻⁸ of the first component's all the same.

    Parameters
    ----------
    points : sequence of array, shape (N_i, P)
        The points of each walk: arrays of NumPy or Dask, or lazy ones, such as ``ds["theta"]``.
    n_components : int, optional
        Components wanted. None: 6, or as many as the points span where those are fewer.
    standardise : bool
        Divide each parameter by its standard deviation first, as Tahir & Katz (2021) do: then a
        parameter that hardly moves counts as much as one that moves far. Parameters that do not
        move at all stay at zero.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.

    Raises
    ------
    InputError
        Points of different P or with non-finite values, too few for the components, or more
        memory needed than there is.
    """
    return fit(points, n_components, standardise, progress)[0]


@np.errstate(under="ignore")
def fit(
    points: Sequence[Any], n_components: int | None, standardise: bool, progress: bool
) -> tuple[PCA, Floats, float]:
    """Find the components, and with them what only all of the spectrum gives.

    Returns
    -------
    PCA
        As :func:`fit_pca` does.
    scores : array of float64, shape (N, min(N − 1, P))
        Of the points, on all components there are.
    floor : float
        The explained variance that rounding alone may make, of the matrix of inner products and of
        the points as they are stored.
    """
    if not isinstance(points, Sequence) or any(not hasattr(p, "ndim") for p in points):
        raise InputError(f"points={kinds.shown(points)}; give a list of arrays of shape (N, P)")
    if not points or any(p.ndim != 2 for p in points) or len({p.shape[1] for p in points}) > 1:
        raise InputError("points: give arrays of shape (N, P), all of the same P")
    n, p = sum(len(part) for part in points), points[0].shape[1]
    if n < 2:
        there = "a single point is" if n else "no point is"
        raise InputError(f"points: {there} there, and it takes two; walk again with more snapshots")
    kinds.check_switch(standardise, "standardise")
    kinds.check_switch(progress, "progress")
    usual = n_components is None
    n_components = min(USUAL, n - 1) if usual else kinds.as_whole(n_components, "n_components")
    if not 1 <= n_components < n:
        have = "one component" if n == 2 else f"1 to {n - 1} components"
        remedy = "fewer, or walk again with more snapshots" if n_components >= n else "more"
        raise InputError(f"n_components={n_components}: {n} points have {have}; ask for {remedy}")
    # Of few parameters the covariance is smaller, and so are the points themselves.
    few = p < n
    # A block, what is read for it and a copy; the matrix, and what its eigenvectors take; of few
    # parameters the points and their scores.
    needed = 8 * p * (n_components + 2) + 3 * block_bytes(points)
    needed += 6 * 8 * min(n, p) ** 2 + (4 * 8 * n * p if few else 0)
    check_memory(
        needed,
        f"n_components={n_components}: {n:,} points of {p:,} parameters",
        "ask for fewer components" if p > 6 * n else "give fewer points",
    )
    mean, scale = np.empty(p), np.ones(p)
    gram, stored = np.zeros((min(n, p),) * 2), 0.0
    kept = np.empty((n, p)) if few else None
    epsilon = max(_epsilon(part.dtype) for part in points)
    for columns, block in column_blocks(points, "Gram matrix", progress):
        mean[columns] = block.mean(axis=0)
        if not np.isfinite(mean[columns]).all():
            raise InputError("points have non-finite values; leave those out")
        block -= mean[columns]
        # Of each parameter by itself, whose squares may leave a float.
        exponents = np.frexp(np.abs(block).max(axis=0))[1]
        scaled = np.ldexp(block, -exponents)
        spread = np.ldexp(np.sqrt(np.einsum("ij,ij->j", scaled, scaled) / n), exponents)
        if standardise:
            # As scikit-learn has it: with N in the denominator, and 1 where nothing moves.
            still = spread <= 10 * np.finfo(float).eps * np.abs(mean[columns])
            scale[columns] = np.where(still, 1.0, spread)
            block /= scale[columns]
        if kept is not None:
            kept[:, columns] = block
        else:
            with np.errstate(over="ignore"):
                gram += block @ block.T
        # Rounding is even within half a unit in the last place, so its variance is a twelfth.
        with np.errstate(over="ignore"):
            size = (mean[columns] / scale[columns]) ** 2 + (spread / scale[columns]) ** 2
        stored += epsilon**2 / 12 * float(size.sum())
    if kept is not None:
        with np.errstate(over="ignore"):
            gram = kept.T @ kept
    check_squares(gram)
    eigenvalues, vectors = np.linalg.eigh(gram)
    eigenvalues, vectors = eigenvalues[::-1], vectors[:, ::-1]
    if kept is None:
        # The last is that of the mean, which is zero.
        eigenvalues, vectors = eigenvalues[:-1], vectors[:, :-1]
    lost = n * np.finfo(float).eps * eigenvalues[0]
    rank = int((eigenvalues > lost).sum())
    if not rank:
        raise RankError(
            "points are all the same: they span 0 dimensions and have no components; give others"
        )
    if usual:
        n_components = min(n_components, rank)
    if n_components > rank:
        raise RankError(f"n_components={n_components}: the points span {rank} dimensions only")
    singular = np.sqrt(np.maximum(eigenvalues, 0))
    # Of each component in the order of the points; the greatest coordinate is to be positive.
    along = vectors if kept is None else kept @ vectors
    signs = np.sign(along[np.abs(along).argmax(axis=0), np.arange(along.shape[1])])
    # In the order of the components, so that each row is written in one piece.
    turned = np.ascontiguousarray((vectors * signs)[:, :n_components].T)
    if kept is not None:
        scores, components = along * signs, turned
    else:
        scores, components = along * (signs * singular), np.empty((n_components, p))
        turned /= singular[:n_components, None]
        for columns, block in column_blocks(points, "components", progress):
            block -= mean[columns]
            block /= scale[columns]
            components[:, columns] = turned @ block
    variance = eigenvalues[:n_components] / (n - 1)
    ratio = eigenvalues[:n_components] / np.trace(gram)
    floor = max(lost, stored) / (n - 1)
    return PCA(mean, scale, components, variance, ratio), scores, floor


def _epsilon(dtype: Any) -> float:
    return float(np.finfo(dtype).eps) if np.dtype(dtype).kind == "f" else 0.0
