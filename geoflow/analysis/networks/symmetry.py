"""Symmetries of layered networks: motion along them, and the distance of symmetric copies."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csc_array
from torch import nn

from geoflow.analysis.networks.layers import HiddenLayer, Indices, Layers, layers_in
from geoflow.analysis.networks.predictions import (
    DEFAULT_SNAPSHOTS,
    other,
    pair_coordinates,
)
from geoflow.analysis.scaled import lengths, of_size_one
from geoflow.analysis.walked import snapshot_indices, walk_attributes
from geoflow.errors import InputError
from geoflow.problems.scaling import power_of_two
from geoflow.system import kinds
from geoflow.system.progress import progress_bar
from geoflow.trajectories.loading import tensors_of

Floats = NDArray[np.float64]


class NearestCopy(NamedTuple):
    """A symmetric copy of a point.

    Attributes
    ----------
    theta : array of float64, shape (P,)
        The same network, its units in another order and of other signs.
    distance : float
        From the point it was to be near to, in units of θ.
    exact : bool
        No copy is nearer. False: the distance is an upper bound of the least one.
    """

    theta: Floats
    distance: float
    exact: bool


def rescaling_fraction(layers: Layers, theta: Floats, vector: Floats) -> float:
    """Part of a vector's squared norm in the span of the rescaling directions at θ.

    To multiply incoming weights and bias of a ReLU by a and to divide its outgoing weights by a
    changes no output. The tangent of this orbit at a = 1 is (incoming, −outgoing). Those of
    adjacent layers are not orthogonal; the projection is by least squares, exact to rounding.

    Parameters
    ----------
    layers : Layers
        Those that cannot be rescaled have no such directions.
    theta : array, shape (P,)
        The point.
    vector : array, shape (P,)
        A velocity or a displacement.

    Returns
    -------
    float
        From 0 to 1. NaN for the zero vector.

    Raises
    ------
    InputError
        The point or the vector is not finite, or not of the network's parameters.
    """
    theta, vector = _points(layers, theta=theta, vector=vector)
    vector = of_size_one(vector, axis=0)
    square = float(vector @ vector)
    if square == 0:
        return math.nan
    tangents = _rescaling_tangents(layers, theta)
    # The length of a direction does not matter, nor then its squares.
    largest = abs(tangents).max(axis=0).toarray().reshape(-1)
    tangents.data = np.ldexp(
        tangents.data, -np.repeat(np.frexp(largest)[1], np.diff(tangents.indptr))
    )
    norms = np.sqrt(tangents.power(2).sum(axis=0))
    # A unit without weights has no direction.
    tangents, norms = tangents[:, norms > 0], norms[norms > 0]
    if not tangents.shape[1]:
        return 0.0
    values, vectors = np.linalg.eigh((tangents.T @ tangents).toarray() / np.outer(norms, norms))
    along = vectors.T @ ((tangents.T @ vector) / norms)
    kept = values > len(values) * np.finfo(float).eps * values[-1]
    return min(1.0, float((along[kept] ** 2 / values[kept]).sum()) / square)


def shift_fraction(layers: Layers, vector: Floats) -> float:
    """Part of a vector's squared norm that moves all outputs alike.

    To add the same numbers to the weights and bias of every output adds the same number to every
    logit, which softmax, and with it the cross-entropy, does not see: a symmetry of the loss and
    not of the network. The regularising flow of R = ‖θ‖² takes the mean of the outputs' weights and
    biases to zero as exp(−2t), exactly.

    Parameters
    ----------
    layers : Layers
        Of a classifier.
    vector : array, shape (P,)
        A velocity or a displacement.

    Returns
    -------
    float
        From 0 to 1. NaN for the zero vector, and where a function follows the last layer.

    Raises
    ------
    InputError
        The vector is not finite, or not of the network's parameters.
    """
    (vector,) = _points(layers, vector=vector)
    vector = of_size_one(vector, axis=0)
    square = float(vector @ vector)
    if square == 0 or layers.output is None:
        return math.nan
    rows = vector[layers.output]
    return float(len(rows) * (rows.mean(axis=0) ** 2).sum()) / square


def balancedness(layers: Layers, theta: Floats) -> Floats:
    """‖incoming‖² − ‖outgoing‖² of every unit that can be rescaled, layer by layer.

    The loss does not change along the rescaling directions, so ∇L is orthogonal to them, and
    gradient flow conserves these numbers (Du, Hu & Lee 2018, NeurIPS). The regularising flow of
    R = ‖θ‖² takes each to zero as exp(−4t), exactly.

    Parameters
    ----------
    layers : Layers
        Of the network.
    theta : array, shape (P,)
        The point.

    Returns
    -------
    array of float64, shape (units,)
        In the order of the layers, and of the units in each.

    Raises
    ------
    InputError
        The point is not finite, or not of the network's parameters.
    """
    (theta,) = _points(layers, theta=theta)
    found = [
        (theta[layer.incoming] ** 2).sum(axis=1) - (theta[layer.outgoing] ** 2).sum(axis=1)
        for layer in layers.hidden
        if layer.homogeneous
    ]
    return np.concatenate([np.empty(0), *found])


def nearest_copy(layers: Layers, target: Floats, theta: Floats) -> NearestCopy:
    """Find the copy of θ nearest to a target, over orders of units and, of odd ones, signs.

    With one hidden layer a linear assignment gives the nearest. With more, the layers are assigned
    in turn, the others held, until none changes, as in Ainsworth, Hayase & Srinivasa (2023, ICLR,
    algorithm 1), with signs; from θ as it is, and from an assignment by incoming weights alone,
    layer after layer, which finds exact copies. The nearer is an upper bound, no farther than θ
    itself. Rescalings are not sought.

    Parameters
    ----------
    layers : Layers
        Of the network.
    target, theta : array, shape (P,)
        Two points.

    Raises
    ------
    InputError
        One of them is not finite, or not of the network's parameters.
    """
    target, theta = _points(layers, target=target, theta=theta)
    # Inner products are compared with each other only, so that they may be of size one.
    seen = of_size_one(target, axis=0)
    scale = power_of_two(float(np.abs(theta).max(initial=0)))
    exact = len(layers.hidden) == 1
    starts = [theta.copy()]
    if not exact:
        starts.append(starts[0].copy())
        for layer in layers.hidden:
            _assign(layer, seen, starts[1], scale, (layer.incoming,))
    # What rounding could feign as nearer.
    least = 1e-12 * float(np.linalg.norm(seen) * np.linalg.norm(theta * scale))
    found = []
    for copy in starts:
        changed = True
        while changed:
            gains = [
                _assign(layer, seen, copy, scale, (layer.incoming, layer.outgoing), least)
                for layer in layers.hidden
            ]
            changed = any(gains) and not exact
        found.append(NearestCopy(copy, float(lengths(target - copy)), exact))
    return min(found, key=lambda copy: copy.distance)


def along(
    ds: xr.Dataset,
    module: nn.Module,
    *,
    classification: bool,
    snapshots: kinds.Wholes | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Motion of a walk along its network's symmetries.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    module : torch.nn.Module
        The network of the walk; see :func:`~geoflow.analysis.networks.layers.layers_of`. Units
        with a weight that the walk kept fixed have no other copy.
    classification : bool
        The loss is the cross-entropy of logits, and the units of the last layer are the classes:
        ``shift_fraction`` is computed too.
    snapshots : sequence of int, optional
        Indices along ``snapshot``. None: 25, evenly, or all where there are fewer.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.

    Returns
    -------
    xarray.Dataset
        Of kind ``symmetry``. ``symmetric_distance(snapshot, other)``: from the nearest copy of the
        one to the other; its attribute ``bound`` is ``exact`` or ``upper bound``.
        ``rescaling_fraction(snapshot)`` and ``shift_fraction(snapshot)``: of the squared
        displacement to the next of these snapshots; NaN for the last. A tanh network has discrete
        symmetries only, along which nothing continuous moves: the former is exactly 0.

    Raises
    ------
    InputError
        A network whose symmetries are not known here, or not of this walk; or a snapshot that is
        not finite.
    """
    tensors = tensors_of(ds, module)
    kinds.check_switch(classification, "classification")
    kinds.check_switch(progress, "progress")
    layers = layers_in(module, tensors)
    indices = snapshot_indices(ds, snapshots, DEFAULT_SNAPSHOTS)
    n = len(indices)
    distance, rescaled, shifted = np.zeros((n, n)), np.full(n, np.nan), np.full(n, np.nan)
    exact = len(layers.hidden) == 1

    def theta(position: int) -> Floats:
        index = indices[position]
        found = np.asarray(ds["theta"].isel(snapshot=index).values, dtype=float)
        _check_finite(**{f"snapshots: theta of {index}": found})
        return found

    rows = progress_bar(progress, range(n), "symmetries", unit="snapshot")
    for i in rows:
        here = theta(i)
        # From the next one on: one is read again and again, so that two at a time are held.
        for j in range(i + 1, n):
            there = theta(j)
            distance[i, j] = distance[j, i] = nearest_copy(layers, here, there).distance
            if j == i + 1:
                rescaled[i] = rescaling_fraction(layers, here, there - here)
                shifted[i] = shift_fraction(layers, there - here)
    part = "part of the squared displacement to the next snapshot along"
    found = xr.Dataset(
        coords=pair_coordinates(ds, indices),
        attrs={
            "kind": "symmetry",
            "title": "Motion of a walk along its network's symmetries",
            **walk_attributes(ds),
        },
    )
    found["symmetric_distance"] = (
        ("snapshot", other("snapshot")),
        distance,
        {
            "long_name": "distance in θ from the nearest symmetric copy",
            "units": "1",
            "bound": "exact" if exact else "upper bound",
        },
    )
    look = {"long_name": f"{part} rescalings of units", "units": "1"}
    found["rescaling_fraction"] = ("snapshot", rescaled, look)
    if classification:
        look = {"long_name": f"{part} shifts of all logits", "units": "1"}
        found["shift_fraction"] = ("snapshot", shifted, look)
    return found


def _points(layers: Layers, **points: Any) -> list[Floats]:
    """Points as arrays of float64, after making sure that the layers' parameters are in each."""
    found = {name: kinds.as_numbers(point, name) for name, point in points.items()}
    parts = [part for layer in layers.hidden for part in (layer.incoming, layer.outgoing)]
    parts += [] if layers.output is None else [layers.output]
    least = 1 + max((int(part.max(initial=0)) for part in parts), default=0)
    size = max(array.size for array in found.values())
    for name, array in found.items():
        if array.shape != (size,) or size < least:
            raise InputError(
                f"{name} has the shape {array.shape}; give the (P,) parameters of the network, "
                f"{max(size, least)} at least"
            )
    _check_finite(**found)
    return list(found.values())


def _check_finite(**points: Floats) -> None:
    """Refuse what is not finite, of which no units can be told apart."""
    for name, point in points.items():
        if not np.isfinite(point).all():
            raise InputError(f"{name} has non-finite values; leave it out")


def _assign(
    layer: HiddenLayer,
    target: Floats,
    copy: Floats,
    scale: float,
    parts: tuple[Indices, ...],
    least: float = -math.inf,
) -> bool:
    """Reorder the units of a layer in place, to be nearest to the target in some of their weights.

    Nothing is done, and False returned, where the inner product of the target with the copy times
    ``scale`` does not grow by more than ``least``.
    """
    there, here = (np.hstack([theta[part] for part in parts]) for theta in (target, copy))
    similarity = there @ (here * scale).T
    gain = np.abs(similarity) if layer.odd else similarity
    every, order = linear_sum_assignment(gain, maximize=True)
    if gain[every, order].sum() <= np.trace(similarity) + least:
        return False
    flipped = layer.odd & (similarity[every, order] < 0)
    sign = np.where(flipped, -1.0, 1.0)[:, None]
    for part in (layer.incoming, layer.outgoing):
        copy[part] = sign * copy[part[order]]
    return True


def _rescaling_tangents(layers: Layers, theta: Floats) -> csc_array:
    """Sparse matrix, shape (P, units): the rescaling direction of each unit a column."""
    rows, columns, entries, start = [], [], [], 0
    for layer in layers.hidden:
        if layer.homogeneous:
            units = np.arange(start, start + len(layer.incoming))
            for part, sign in ((layer.incoming, 1.0), (layer.outgoing, -1.0)):
                rows.append(part.ravel())
                columns.append(np.repeat(units, part.shape[1]))
                entries.append(sign * theta[part].ravel())
            start += len(units)
    if not rows:
        return csc_array((len(theta), 0))
    where = (np.concatenate(rows), np.concatenate(columns))
    return csc_array((np.concatenate(entries), where), shape=(len(theta), start))
