"""Distances between points of a walk in function space, beside those in parameter space."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from geoflow.analysis.walked import snapshot_indices, walk_attributes
from geoflow.errors import InputError
from geoflow.problems.parts import OUTPUTS_AT_ONCE, outputs
from geoflow.system import kinds, translation
from geoflow.system.memory import check_memory
from geoflow.system.progress import progress_bar
from geoflow.trajectories.dataset import at_snapshots
from geoflow.trajectories.given import theta_of

Floats = NDArray[np.float64]

DEFAULT_SNAPSHOTS = 25
# Parameters read at a time where θ is not in memory.
BLOCK = 65_536

VARIABLES = {
    "output_distance": ("root mean square of the difference of outputs", "1"),
    "js_divergence": ("Jensen–Shannon divergence of class probabilities, base 2", "bit"),
    "disagreement": ("part of the examples whose most probable class differs", "1"),
    "parameter_distance": ("distance in θ", "1"),
    "arc_length_difference": ("arc length between the snapshots", "1"),
}


def along(
    ds: xr.Dataset,
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    *,
    classification: bool,
    snapshots: Sequence[int] | None = None,
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
        dtype, and never changed.
    inputs : mapping of str to Tensor, shape (N, …)
        Sets of examples by name, such as ``train`` and ``test``.
    classification : bool
        The outputs, shape (N, C, …), are logits of C classes: Jensen–Shannon divergence and
        disagreement are computed too.
    snapshots : sequence of int, optional
        Indices along ``snapshot``, negative ones from the end. None: 25, evenly, the first and
        the last among them, or all where there are fewer.
    batch_size : int
        Examples evaluated at once.
    progress : bool
        Show a bar on standard error, where that is a terminal or a notebook's.

    Returns
    -------
    xarray.Dataset
        Of kind ``predictions``, with dimensions ``set``, ``snapshot`` and ``snapshot_other``.
        ``output_distance`` is the root of the mean over examples and outputs; ``js_divergence``
        (Lin 1991, IEEE Trans. Inf. Theory 37) is the mean over examples, with logarithms to the
        base 2: from 0 to 1.

    Raises
    ------
    InputError
        An argument that cannot be used, a module that is not of this walk, or outputs of all
        snapshots that do not fit into memory.
    """
    check_module(ds, module)
    indices = snapshot_indices(ds, snapshots, DEFAULT_SNAPSHOTS)
    kinds.check_kind(inputs, Mapping, "inputs", "a dict of tensors of examples by name")
    if not inputs:
        raise InputError("inputs={}; give a set of examples")
    for name, examples in inputs.items():
        kinds.check_kind(name, str, "inputs: a name", "a str, such as 'test'")
        kinds.check_kind(examples, Tensor, f"inputs[{name!r}]", "a tensor of examples")
        if not examples.ndim or not len(examples):
            what = f"has shape {tuple(examples.shape)}"
            raise InputError(f"inputs[{name!r}] {what}; give one example or more, (N, …)")
    batch_size = kinds.as_whole(batch_size, "batch_size", 1)
    kinds.check_switch(classification, "classification")
    kinds.check_switch(progress, "progress")
    # Before the outputs, which take long.
    arc = at_snapshots(ds, "arc_length")[indices]
    module = copy.deepcopy(module).eval()
    steps = progress_bar(progress, indices, "outputs", unit="snapshot")
    found: dict[str, list[Tensor]] = {name: [] for name in inputs}
    for count, index in enumerate(steps):
        parameters = _parameters(module, ds["theta"].isel(snapshot=index).values)
        for name, examples in inputs.items():
            try:
                given = outputs(module, parameters, _like(parameters, examples), batch_size)
            except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                if count or isinstance(error, torch.OutOfMemoryError):
                    raise
                what = f"module does not take them ({translation.reason(error)})"
                raise InputError(
                    f"inputs[{name!r}] of shape {tuple(examples.shape)} and {examples.dtype}: "
                    f"{what}; give them as it was trained on, and a module whose output is one "
                    "tensor"
                ) from error
            found[name].append(given.cpu())
        if count == 0:
            needed = sum(part[0].numel() * part[0].element_size() for part in found.values())
            # Once as a list and once stacked; or stacked and in float64, where they are not yet.
            single = any(part[0].dtype != torch.float64 for part in found.values())
            needed *= (3 if single else 2) * len(indices)
            check_memory(needed, f"the outputs of {len(indices)} snapshots", "choose fewer")
    sets = list(inputs)
    matrices: dict[str, list[Floats]] = {}
    for name in sets:
        for variable, matrix in between(torch.stack(found.pop(name)), classification).items():
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
            "set": ("set", sets, {"long_name": "set of examples", "units": "1"}),
        },
        attrs={
            "kind": "predictions",
            "title": "Distances in predictions and in parameters along a walk",
            **walk_attributes(ds),
        },
    )


def between(outputs: Tensor, classification: bool) -> dict[str, Floats]:
    """Distances between all pairs of several outputs for the same examples.

    Parameters
    ----------
    outputs : Tensor, shape (S, N, …)
        Of S networks; logits, shape (S, N, C, …), where it is a classification.
    classification : bool
        Compute ``js_divergence`` and ``disagreement`` beside ``output_distance``.

    Returns
    -------
    dict of str to array, shape (S, S)
        NaN for two of which one has a NaN among its outputs.

    Raises
    ------
    InputError
        A classification without at least two classes, or complex numbers.
    """
    if outputs.is_complex():
        raise InputError(
            f"outputs are of {outputs.dtype}; let the module return real numbers, as by "
            "torch.view_as_real"
        )
    if classification and (outputs.ndim < 3 or outputs.shape[2] < 2):
        raise InputError(
            f"classification=True and outputs of shape {tuple(outputs.shape[1:])}; logits of two "
            "classes or more, (N, C), are needed"
        )
    outputs = outputs.double()
    n = len(outputs)
    names = ["output_distance", *(["js_divergence", "disagreement"] if classification else [])]
    found = {name: np.zeros((n, n)) for name in names}
    classes = outputs.argmax(dim=2) if classification else outputs
    no_class = outputs.isnan().flatten(1).any(dim=1)
    for i in range(n):
        p = outputs[i].softmax(dim=1) if classification else outputs[i]
        for j in range(i + 1, n):
            rms = (outputs[i] - outputs[j]).square().mean().sqrt()
            _set(found["output_distance"], i, j, rms)
            if classification:
                divergence = _jensen_shannon(p, outputs[j].softmax(dim=1)).mean()
                _set(found["js_divergence"], i, j, divergence)
                different = (classes[i] != classes[j]).double().mean()
                # argmax takes a NaN for the most probable class.
                _set(found["disagreement"], i, j, math.nan if no_class[[i, j]].any() else different)
    return found


def parameter_distances(ds: xr.Dataset, indices: Sequence[int]) -> Floats:
    """‖θ_i − θ_j‖ between snapshots, shape (S, S), from differences, a block of θ at a time."""
    theta = theta_of(ds).isel(snapshot=list(indices))
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
        Its trainable tensors have other names or shapes.
    """
    kinds.check_dataset(ds, "theta", "tensor_name")
    kinds.check_kind(module, nn.Module, "module", "the network that was walked")
    here = [(n, list(p.shape)) for n, p in module.named_parameters() if p.requires_grad]
    there = [
        (str(name), json.loads(str(shape)))
        for name, shape in zip(ds["tensor_name"].values, ds["tensor_shape"].values, strict=True)
    ]
    if here != there:
        differing = [pair for pair in zip(here, there, strict=False) if pair[0] != pair[1]]
        what = " and ".join(map(str, differing[0])) if differing else "another number of them"
        raise InputError(f"module: its tensors are not those of ds ({what}); give the walk's own")


def other(name: str) -> str:
    """Name of the second of a pair's dimensions or coordinates."""
    return f"{name}_other"


def pair_coordinates(ds: xr.Dataset, indices: Sequence[int]) -> dict[str, Any]:
    """Flow times and steps of both snapshots of a pair."""
    chosen = ds[["snapshot_time", "snapshot_step"]].isel(snapshot=list(indices)).load()
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


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of each example in bits, classes along the second axis."""
    total = p + q
    # With r = (p − q)/(p + q) no two numbers near each other are subtracted but p and q.
    r = torch.where(total > 0, (p - q) / total, 0)
    terms = torch.special.xlog1py(1 + r, r) + torch.special.xlog1py(1 - r, -r)
    return (total * terms).sum(dim=1).clamp(min=0) / (4 * math.log(2))


def _parameters(module: nn.Module, theta: NDArray[Any]) -> dict[str, Tensor]:
    flat, start, found = torch.as_tensor(theta), 0, {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            part = flat[start : start + parameter.numel()].to(parameter)
            found[name] = part.view(parameter.shape)
            start += parameter.numel()
    return found


def _like(parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """Inputs where the parameters are, floating ones in their dtype."""
    like = next(iter(parameters.values()))
    return inputs.to(like) if inputs.is_floating_point() else inputs.to(like.device)
