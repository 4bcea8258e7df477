"""Distances between points of a walk in function space, beside those in parameter space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from geoflow.analysis.networks.outputs import (
    as_one,
    check_logits,
    examples_of,
    first_of_network,
    of_network,
)
from geoflow.analysis.walked import snapshot_indices, walk_attributes
from geoflow.errors import InputError
from geoflow.problems import arithmetic, data, modules
from geoflow.problems.data import Tree
from geoflow.problems.forward import OUTPUTS_AT_ONCE
from geoflow.problems.parts import TensorSpec
from geoflow.system import kinds
from geoflow.system.memory import check_memory
from geoflow.system.progress import progress_bar
from geoflow.trajectories.dataset import at_snapshots
from geoflow.trajectories.given import kept_theta, theta_of
from geoflow.trajectories.loading import tensors_of

Floats = NDArray[np.float64]

DEFAULT_SNAPSHOTS = 25
# Parameters read at a time where θ is not in memory.
BLOCK = 65_536

VARIABLES = {
    "output_distance": ("root mean square of the difference of outputs", "1"),
    "js_divergence": ("Jensen–Shannon divergence of class probabilities, base 2", "bit"),
    "disagreement": ("part of the predictions whose most probable class differs", "1"),
    "parameter_distance": ("distance in θ", "1"),
    "arc_length_difference": ("arc length between the snapshots", "1"),
}


@arithmetic.without_autocast()
def along(
    ds: xr.Dataset,
    module: nn.Module,
    inputs: Mapping[str, Tree],
    *,
    classification: bool,
    class_dim: int | None = None,
    snapshots: kinds.Wholes | None = None,
    batch_size: int = OUTPUTS_AT_ONCE,
    progress: bool = False,
) -> xr.Dataset:
    """Distances between all pairs of snapshots, in predictions and in parameters.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    module : torch.nn.Module
        The network of the walk; evaluated in evaluation mode, on its own device and in its own
        dtype, and never changed. What the walk kept fixed is as it is here; wrappers of
        ``torch.compile`` and ``DataParallel`` are seen through.
    inputs : mapping of str to Tensor or array, shape (N, …), or to tuple or dict of such
        Sets of examples by name, such as ``train`` and ``test``, each as
        :meth:`geoflow.Problem.from_module` takes the inputs.
    classification : bool
        The outputs are one tensor of logits of classes, or of logarithms of their probabilities:
        Jensen–Shannon divergence and disagreement are computed too.
    class_dim : int, optional
        The axis of the outputs along which the classes are, counted from the end where negative:
        −1 of a language model's, shape (N, T, C), and 1 of those that ``cross_entropy`` takes,
        shape (N, C, …). None: 1 of outputs of shape (N, C); of others it must be given.
    snapshots : sequence of int, optional
        Indices along ``snapshot``, negative ones from the end. None: 25, evenly, the first and
        the last among them, or all where there are fewer.
    batch_size : int
        Examples evaluated at once; they must not act on each other where there are more of them.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.

    Returns
    -------
    xarray.Dataset
        Of kind ``predictions``, with dimensions ``set``, ``snapshot`` and ``snapshot_other``.
        ``output_distance`` is the root of the mean over all numbers that the network gives, in a
        tensor or a tuple or dict of them; ``js_divergence`` (Lin 1991, IEEE Trans. Inf. Theory 37),
        with logarithms to the base 2 from 0 to 1, and ``disagreement`` are means over examples and,
        where each has several, places.

    Raises
    ------
    InputError
        An argument that cannot be used, a module that is not of this walk, outputs that are not
        those of classes or are probabilities, examples that act on each other and are more than
        ``batch_size``, or outputs of all snapshots that do not fit into memory.
    """
    tensors = tensors_of(ds, module)
    indices = snapshot_indices(ds, snapshots, DEFAULT_SNAPSHOTS)
    kinds.check_kind(inputs, Mapping, "inputs", "a dict of tensors of examples by name")
    if not inputs:
        raise InputError("inputs={}; give a set of examples")
    sets = {name: examples_of(name, given) for name, given in inputs.items()}
    batch_size = kinds.as_whole(batch_size, "batch_size", 1)
    kinds.check_switch(classification, "classification")
    if class_dim is not None:
        class_dim = kinds.as_whole(class_dim, "class_dim")
        if not classification:
            raise InputError(f"class_dim={class_dim} with classification=False; leave one out")
    kinds.check_switch(progress, "progress")
    # Before the outputs, which take long.
    arc = at_snapshots(ds, "arc_length")[indices]
    network = modules.plain(module).eval()
    own = modules.parameters_by_name(network)
    like = own[tensors[0].name]
    sets = {name: data.convert(tree, like.dtype, like.device) for name, tree in sets.items()}
    steps = progress_bar(progress, indices, "outputs", unit="snapshot")
    found: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for count, index in enumerate(steps):
        theta = torch.as_tensor(kept_theta(ds, index), device="cpu")
        parameters = {t.name: _part(theta, t).to(own[t.name], copy=True) for t in tensors}
        for name, examples in sets.items():
            if count:
                given = of_network(network, parameters, examples, batch_size)
            else:
                given = first_of_network(network, parameters, examples, batch_size, name)
            found[name].append(as_one(given, classification))
            if classification and not count:
                axis = class_axis(found[name][0].shape, class_dim)
                check_logits(found[name][0], axis)
            if (now := found[name][-1].shape) != (first := found[name][0].shape):
                raise InputError(
                    f"module: its outputs for inputs[{name!r}] have shape {tuple(first)} at one "
                    f"snapshot and {tuple(now)} at another, and have no distance; give a network "
                    "whose outputs keep theirs"
                )
        if count == 0:
            needed = sum(part[0].numel() * part[0].element_size() for part in found.values())
            # Once as a list and once stacked; or stacked and in float64, where they are not yet.
            single = any(part[0].dtype != torch.float64 for part in found.values())
            needed *= (3 if single else 2) * len(indices)
            check_memory(needed, f"the outputs of {len(indices)} snapshots", "choose fewer")
    matrices: dict[str, list[Floats]] = {}
    for name in sets:
        stacked = torch.stack(found.pop(name))
        for variable, matrix in between(stacked, classification, class_dim).items():
            matrices.setdefault(variable, []).append(matrix)
    pair = ("snapshot", other("snapshot"))
    variables: dict[str, Any] = {n: (("set", *pair), np.stack(m)) for n, m in matrices.items()}
    variables["parameter_distance"] = (pair, parameter_distances(ds, indices))
    variables["arc_length_difference"] = (pair, np.abs(arc[:, None] - arc))
    return xr.Dataset(
        {
            name: (*content, {"long_name": VARIABLES[name][0], "units": VARIABLES[name][1]})
            for name, content in variables.items()
        },
        coords={
            **pair_coordinates(ds, indices),
            "set": ("set", list(sets), {"long_name": "set of examples", "units": "1"}),
        },
        attrs={
            "kind": "predictions",
            "title": "Distances in predictions and in parameters along a walk",
            **walk_attributes(ds),
        },
    )


def between(
    outputs: Tensor, classification: bool, class_dim: int | None = None
) -> dict[str, Floats]:
    """Distances between all pairs of several outputs for the same examples.

    Parameters
    ----------
    outputs : Tensor, shape (S, N, …)
        Of S networks.
    classification : bool
        They are logits: compute ``js_divergence`` and ``disagreement`` beside ``output_distance``.
    class_dim : int, optional
        The axis of each network's outputs, shape (N, …), along which the classes are; see
        :func:`along`.

    Returns
    -------
    dict of str to array, shape (S, S)
        NaN for two of which one has a NaN among its outputs.

    Raises
    ------
    InputError
        A classification without at least two classes, or of probabilities, or with no axis of the
        classes given where there are several that may be it; or complex numbers.
    """
    if outputs.is_complex():
        raise InputError(
            f"outputs are of {outputs.dtype}; let the module return real numbers, as by "
            "torch.view_as_real"
        )
    axis = class_axis(outputs.shape[1:], class_dim) if classification else 0
    if classification:
        check_logits(outputs, axis + 1)
    outputs = outputs.double()
    n = len(outputs)
    names = ["output_distance", *(["js_divergence", "disagreement"] if classification else [])]
    found = {name: np.zeros((n, n)) for name in names}
    classes = outputs.argmax(dim=axis + 1) if classification else outputs
    no_class = outputs.isnan().flatten(1).any(dim=1)
    for i in range(n):
        p = outputs[i].softmax(dim=axis) if classification else outputs[i]
        for j in range(i + 1, n):
            rms = (outputs[i] - outputs[j]).square().mean().sqrt()
            _set(found["output_distance"], i, j, rms)
            if classification:
                divergence = _jensen_shannon(p, outputs[j].softmax(dim=axis), axis).mean()
                _set(found["js_divergence"], i, j, divergence)
                different = (classes[i] != classes[j]).double().mean()
                # argmax takes a NaN for the most probable class.
                _set(found["disagreement"], i, j, math.nan if no_class[[i, j]].any() else different)
    return found


def class_axis(shape: Sequence[int], class_dim: int | None) -> int:
    """Along which axis of outputs of a shape, (N, …), the classes are, counted from 0.

    Raises
    ------
    InputError
        It is not known, not there, or holds less than two classes.
    """
    given = f"classification=True and outputs of shape {tuple(shape)}"
    if class_dim is None and len(shape) > 2:
        raise InputError(
            f"{given}: any axis but the first may be that of the classes; give class_dim, 1 or "
            f"{' or '.join(map(str, [*range(2, len(shape) - 1), -1]))}"
        )
    axis = 1 if class_dim is None else class_dim
    if not axis or (class_dim is not None and not -len(shape) < axis < len(shape)):
        there = " or ".join(map(str, range(1, len(shape)))) or "none: each example is one number"
        raise InputError(f"class_dim={class_dim} and outputs of shape {tuple(shape)}; use {there}")
    axis %= len(shape)
    if len(shape) < 2 or shape[axis] < 2:
        raise InputError(f"{given}; logits of two classes or more, (N, C), are needed")
    return axis


def parameter_distances(ds: xr.Dataset, indices: Sequence[int]) -> Floats:
    """‖θ_i − θ_j‖ between snapshots, shape (S, S), from differences, a block of θ at a time.

    Raises
    ------
    InputError
        ``indices`` are not those of snapshots.
    """
    indices = snapshot_indices(ds, kinds.as_wholes(indices, "indices"), 0)
    theta = theta_of(ds).isel(snapshot=indices)
    squares = np.zeros((len(indices), len(indices)))
    for start in range(0, ds.sizes["parameter"], BLOCK):
        block = theta.isel(parameter=slice(start, start + BLOCK)).values.astype(float)
        for i, row in enumerate(block):
            squares[i] += ((block - row) ** 2).sum(axis=1)
    return np.sqrt(squares)


def check_module(ds: xr.Dataset, module: nn.Module) -> None:
    """Make sure that a module has the parameters of a walk.

    Raises
    ------
    InputError
        It has no parameters of their names or shapes.
    """
    tensors_of(ds, module)


def other(name: str) -> str:
    """Name of the second of a pair's dimensions or coordinates."""
    return f"{name}_other"


def pair_coordinates(ds: xr.Dataset, indices: Sequence[int]) -> dict[str, Any]:
    """Flow times and steps of both snapshots of a pair.

    Raises
    ------
    InputError
        ``indices`` are not those of snapshots.
    """
    indices = snapshot_indices(ds, kinds.as_wholes(indices, "indices"), 0)
    chosen = ds[["snapshot_time", "snapshot_step"]].isel(snapshot=indices).load()
    return {
        new: (dim, variable.values, variable.attrs)
        for name, variable in chosen.coords.items()
        for new, dim in (
            (str(name), "snapshot"),
            (other(str(name)), other("snapshot")),
        )
    }


def _set(matrix: Floats, i: int, j: int, value: Tensor | float) -> None:
    matrix[i, j] = matrix[j, i] = float(value)


def _jensen_shannon(p: Tensor, q: Tensor, axis: int) -> Tensor:
    """Divergence of each prediction in bits, classes along an axis."""
    total = p + q
    # With r = (p − q)/(p + q) no two numbers near each other are subtracted but p and q.
    r = torch.where(total > 0, (p - q) / total, 0)
    terms = torch.special.xlog1py(1 + r, r) + torch.special.xlog1py(1 - r, -r)
    return (total * terms).sum(dim=axis).clamp(min=0) / (4 * math.log(2))


def _part(theta: Tensor, tensor: TensorSpec) -> Tensor:
    return theta[tensor.offset : tensor.offset + math.prod(tensor.shape)].view(tensor.shape)
