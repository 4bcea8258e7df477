"""Planes in parameter space, on which the loss around a walk is looked at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.analysis.components.principal import fit_pca
from geoflow.analysis.scaled import lengths, of_size_one
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.problems.parts import TensorSpec
from geoflow.system import kinds
from geoflow.trajectories.given import theta_of

Floats = NDArray[np.float64]

# Sine of the angle between two directions below which they span no plane that rounding leaves.
LEAST_SINE = 1e-6


@dataclass(frozen=True)
class Plane:
    """The points θ = origin + α·directions[0] + β·directions[1] of R^P.

    Make one with :func:`principal`, :func:`through`, :func:`random`, or of one's own directions.

    Attributes
    ----------
    origin : array of float64, shape (P,)
        Where α = β = 0.
    directions : array of float64, shape (2, P)
        Need be neither orthogonal nor of unit length.
    names : tuple of str
        What the two are, for people.
    attributes : mapping
        How it was made: text and numbers, kept with what is computed on it.
    least_extent : float
        What is looked at holds α and β from minus to plus this.

    Raises
    ------
    InputError
        The two directions are parallel, zero or not finite, or the origin is not; or there are no
        real numbers, or those of other shapes.
    """

    origin: Floats
    directions: Floats
    names: tuple[str, str] = ("first direction", "second direction")
    attributes: Mapping[str, Any] = field(default_factory=lambda: {"plane": "given"})
    least_extent: float = 0.0

    def __post_init__(self) -> None:
        for name in ("origin", "directions"):
            object.__setattr__(self, name, kinds.as_numbers(getattr(self, name), name))
        if self.origin.ndim != 1 or self.directions.shape != (2, *self.origin.shape):
            raise InputError(
                f"origin has the shape {self.origin.shape} and directions {self.directions.shape}; "
                "give (P,) and (2, P)"
            )
        if not np.isfinite(self.origin).all():
            raise InputError("origin has non-finite values; give a point of the parameter space")
        first, second = self.norms
        ok = np.isfinite(self.directions).all() and first > 0 and second > 0
        if not ok or 1 - self.cosine**2 < LEAST_SINE**2:
            raise InputError(
                f"directions {self.names[0]!r} and {self.names[1]!r} span no plane: they are "
                "parallel, zero or not finite; choose others"
            )

    @property
    def norms(self) -> Floats:
        """Euclidean norms of the directions, shape (2,)."""
        return lengths(self.directions)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the directions; 0 where they are orthogonal."""
        first, second = self._units
        return float(first @ second)

    @property
    def _units(self) -> Floats:
        """The directions at unit length, shape (2, P)."""
        scaled = of_size_one(self.directions, axis=1)
        units: Floats = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
        return units

    def at(self, alpha: float, beta: float) -> Floats:
        """Return the point of these coordinates, shape (P,)."""
        point: Floats = self.origin + alpha * self.directions[0] + beta * self.directions[1]
        return point

    def coordinates(self, theta: NDArray[np.floating]) -> tuple[float, float, float]:
        """α and β of the point of the plane that is nearest to θ, and the distance to it."""
        from_origin = kinds.as_numbers(theta, "theta") - self.origin
        # Normal equations would square how nearly parallel the directions are.
        basis, mixed = np.linalg.qr(self._units.T)
        inside = basis.T @ from_origin
        alpha, beta = np.linalg.solve(mixed, inside) / self.norms
        return float(alpha), float(beta), float(lengths(from_origin - basis @ inside))


def principal(ds: xr.Dataset, tensors: Sequence[TensorSpec] | None = None) -> Plane:
    """Return the plane of the first two principal components of a walk's snapshots.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory with at least three snapshots.
    tensors : sequence of TensorSpec, optional
        ``problem.tensors``: rescale the components by :func:`filter_normalised`, with the mean of
        the snapshots, which is the origin. None: leave them orthonormal.

    Raises
    ------
    InputError
        The snapshots are too few, or lie on a line; or the tensors are not those of the walk.
    """
    kinds.check_dataset(ds, "snapshot", "theta")
    if tensors is not None:
        _check_tensors(tensors, ds)
    if ds.sizes["snapshot"] == 2:
        raise InputError(
            "ds holds 2 snapshots, which span no plane; walk again with three or more, or use "
            "planes.random (--random)"
        )
    # Read block by block, where it is on the disk.
    theta: Any = theta_of(ds)
    pca = fit_pca([theta], 2)
    directions = pca.components
    if tensors is not None:
        directions = np.stack([filter_normalised(d, pca.mean, tensors) for d in directions])
    first, second = 100 * pca.explained_variance_ratio
    # Rescaled, a direction is no longer that of so much variance.
    named = (f"PC 1 ({first:.3g} %)", f"PC 2 ({second:.2g} %)")
    return Plane(
        pca.mean,
        directions,
        named if tensors is None else ("PC 1, rescaled", "PC 2, rescaled"),
        {
            "plane": "pca",
            "filter_normalised": int(tensors is not None),
            "explained_variance_ratio": [float(r) for r in pca.explained_variance_ratio],
        },
    )


def through(ds: xr.Dataset, snapshots: kinds.Wholes) -> Plane:
    """Return the plane through three snapshots of a walk.

    The first is the origin and the second lies on the α axis; α and β are distances in θ.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory.
    snapshots : sequence of int
        Three indices along ``snapshot``, negative ones from the end.

    Raises
    ------
    InputError
        Not three indices of snapshots, or three points on a line.
    """
    kinds.check_dataset(ds, "snapshot", "theta")
    snapshots = kinds.as_wholes(snapshots, "through")
    given = f"through={kinds.shown(snapshots)}"
    n = ds.sizes["snapshot"]
    if n < 3:
        raise InputError(f"{given}: ds holds {n} snapshots; walk again with three or more")
    indices = [i % n for i in snapshots if -n <= i < n]
    if len(snapshots) != 3 or len(set(indices)) != 3:
        raise InputError(f"{given}: give three different snapshots, from 0 to {n - 1}")
    a, b, c = (_theta(ds, index) for index in indices)
    # Of size one each, since only where they point to is of interest.
    u, v = of_size_one(np.stack([b - a, c - a]), axis=1)
    to_second, to_third = np.linalg.norm(u), np.linalg.norm(v)
    u = u / (to_second or 1.0)
    v = v - (v @ u) * u
    norm = np.linalg.norm(v)
    if not (to_second > 0 and norm > LEAST_SINE * to_third):
        raise InputError(f"{given}: the three lie on a line; choose others")
    # Once more, so that rounding leaves no part of the first direction in it.
    v = v / norm
    v = v - (v @ u) * u
    names = (
        f"snapshots {indices[0]} to {indices[1]}",
        f"towards {indices[2]}",
    )
    return Plane(
        a,
        np.stack([u, v / np.linalg.norm(v)]),
        names,
        {"plane": "snapshots", "through": indices, "filter_normalised": 0},
    )


def random(ds: xr.Dataset, tensors: Sequence[TensorSpec], *, seed: int = 0) -> Plane:
    """Return a plane of two random directions, filter-normalised, at a walk's last snapshot.

    As in Li et al. (2018), where both coordinates go from −1 to 1. A walk hardly moves in it: of a
    displacement, a random plane shows about the fraction √(2/P).

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory.
    tensors : sequence of TensorSpec
        ``problem.tensors``.
    seed : int
        Decides the directions.

    Raises
    ------
    InputError
        A seed that cannot be used, no snapshot, or tensors that are not those of the walk.
    """
    kinds.check_dataset(ds, "snapshot", "theta")
    _check_tensors(tensors, ds)
    seed = check_seed(seed)
    if not ds.sizes["snapshot"]:
        raise InputError("ds holds no snapshot; walk again with snapshots")
    theta = _theta(ds, -1)
    drawn = np.random.default_rng(seed).standard_normal((2, len(theta)))
    return Plane(
        theta,
        np.stack([filter_normalised(d, theta, tensors) for d in drawn]),
        ("first random direction", "second random direction"),
        {"plane": "random", "seed": seed, "filter_normalised": 1},
        least_extent=1.0,
    )


def filter_normalised(
    direction: Floats, theta: NDArray[np.floating], tensors: Sequence[TensorSpec]
) -> Floats:
    """Rescale each filter of a direction to the norm of the same filter of θ.

    Li, Xu, Taylor, Studer & Goldstein (2018, NeurIPS), section 4. A filter is what makes one output
    of a layer: a row of a weight matrix, an output channel of a convolution. A tensor of one
    dimension, such as a bias, is one filter as a whole.

    Parameters
    ----------
    direction, theta : array, shape (P,)
        The direction, and where it is taken.
    tensors : sequence of TensorSpec
        Where each tensor lies in them.

    Returns
    -------
    array of float64, shape (P,)
        A filter in which the direction is zero stays zero.

    Raises
    ------
    InputError
        The tensors are not those of such vectors, or there are no real numbers.
    """
    _check_tensors(tensors)
    n = sum(math.prod(spec.shape) for spec in tensors)
    for name, vector in (("direction", direction), ("theta", theta)):
        if len(vector) != n:
            raise InputError(
                f"tensors are of {n} parameters and {name} has {len(vector)}; give the "
                "problem.tensors of the walk"
            )
    result = np.zeros(n)
    for spec in tensors:
        rows = spec.shape[0] if len(spec.shape) > 1 else 1
        part = slice(spec.offset, spec.offset + int(np.prod(spec.shape)))
        # Of a direction only where it points to is of interest.
        d = of_size_one(kinds.as_numbers(direction[part], "direction").reshape(rows, -1), axis=1)
        length = np.linalg.norm(d, axis=1)
        wanted = lengths(kinds.as_numbers(theta[part], "theta").reshape(rows, -1))
        factor = np.divide(wanted, length, out=np.zeros(rows), where=length > 0)
        result[part] = (d * factor[:, None]).reshape(-1)
    return result


def _check_tensors(tensors: Sequence[TensorSpec], ds: xr.Dataset | None = None) -> None:
    """Refuse what are no tensors, or those of another network than a walk's."""
    give = "problem.tensors"
    kinds.check_kind(tensors, Sequence, "tensors", give)
    for spec in tensors:
        kinds.check_kind(spec, TensorSpec, "tensors: one", give)
    if ds is None or "tensor_shape" not in ds:
        return
    given = (json.dumps(list(spec.shape)) for spec in tensors)
    pairs = zip_longest(given, map(str, ds["tensor_shape"].values), fillvalue="none")
    for i, (shape, walked) in enumerate(pairs):
        if shape != walked:
            raise InputError(
                f"tensors: the shape of number {i} is {shape}, and {walked} in ds; give the "
                "problem.tensors of the walk"
            )


def _theta(ds: xr.Dataset, index: int) -> Floats:
    theta: Floats = ds["theta"].isel(snapshot=index).values.astype(float)
    return theta
