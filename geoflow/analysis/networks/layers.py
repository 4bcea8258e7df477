"""The layers of a network in flat θ, and what can be changed of each unit without effect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils import parametrize

from geoflow.errors import InputError
from geoflow.problems.modules import (
    DROPOUTS,
    check_wrappers,
    computes_as,
    moving_parameters,
    tied_names,
    unwrap,
)
from geoflow.problems.parts import TensorSpec, laid_out
from geoflow.system import kinds

Indices = NDArray[np.intp]

# f(−x) = −f(x), and f(ax) = a f(x) for a > 0.
ODD, HOMOGENEOUS = (nn.Tanh,), (nn.ReLU, nn.LeakyReLU)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
# The last axes of an array that a pooling takes its means or maxima over.
POOLED = {pool: n for pools in (AVERAGES, MAXIMA) for n, pool in enumerate(pools, start=1)}
WITHOUT_EFFECT = (nn.Identity, *DROPOUTS)

_KNOWN = (
    "symmetries are known of an nn.Sequential of dense layers and convolutions, with one tanh or "
    "ReLU between them, average pooling of images, and nn.Flatten() before a dense layer"
)


@dataclass(frozen=True)
class HiddenLayer:
    """Where the weights of a layer's units lie in flat θ; of a convolution, units are channels.

    Attributes
    ----------
    incoming : array of int, shape (n, …)
        Incoming weights and bias of each unit.
    outgoing : array of int, shape (n, …)
        Outgoing weights of each unit.
    odd : bool
        The activation is odd, as tanh is: the sign of a unit can be changed.
    homogeneous : bool
        The activation is positively homogeneous, as ReLU is: a unit can be rescaled.
    """

    incoming: Indices
    outgoing: Indices
    odd: bool
    homogeneous: bool


@dataclass(frozen=True)
class Layers:
    """The layers of a network in flat θ, from :func:`layers_of`.

    Attributes
    ----------
    hidden : tuple of HiddenLayer
        From the first on, those of which all weights are in θ.
    output : array of int, shape (C, …) or None
        Weights and bias of each output, as far as they are in θ; None where none is, or a function
        follows the last layer.
    """

    hidden: tuple[HiddenLayer, ...]
    output: Indices | None


def layers_of(module: nn.Module, parameters: str | Sequence[str] | None = None) -> Layers:
    """Find the layers of an ``nn.Sequential`` of dense layers and convolutions.

    Parameters
    ----------
    module : torch.nn.Module
        Dense layers and convolutions, one activation (tanh, ReLU or leaky ReLU) between any two of
        them, and average pooling; maximum pooling with ReLUs only. Each layer takes the units of
        the one before where they are: a dense layer has them along the last axis, which no pooling
        may mix, and a convolution in its channels, after which ``nn.Flatten()`` comes before a
        dense layer. A layer with a hook or a forward pass of its own is none of these. Wrappers of
        ``torch.compile`` and ``DataParallel`` are seen through.
    parameters : str or sequence of str, optional
        Patterns of the names of those that θ holds, as ``Problem.from_module`` takes them. None:
        all with ``requires_grad``. Units with a weight that is not among them have no other copy.

    Raises
    ------
    InputError
        A network of another form, whose symmetries are not known here, or one without a hidden
        layer all of whose weights θ holds.
    """
    kinds.check_kind(module, nn.Module, "module", "the network that was walked")
    return layers_in(module, laid_out(moving_parameters(module, parameters)))


def layers_in(module: nn.Module, tensors: Iterable[TensorSpec]) -> Layers:
    """As :func:`layers_of`, where it is known what θ holds, and where.

    Raises
    ------
    InputError
        See there.
    """
    check_wrappers(module)
    flat: dict[str, Indices] = {}
    for name, offset, shape in tensors:
        flat[name] = np.arange(offset, offset + math.prod(shape)).reshape(shape)
    ties = tied_names(module)
    layers: list[tuple[str, nn.Module]] = []
    hidden: list[HiddenLayer] = []
    between: list[nn.Module] = []
    fixed = ""
    for name, child in _leaves(module):
        if not computes_as(child, WEIGHTED):
            between += [] if computes_as(child, WITHOUT_EFFECT) else [child]
            continue
        layers.append((name, child))
        missing = [n for n in _tensors(child) if f"{name}.{n}" not in flat]
        shared = [n for n in missing if ties.get(f"{name}.{n}") in flat]
        if missing:
            said = f"{name} ({type(child).__name__}): its {(shared or missing)[0]} is"
            if shared:
                raise InputError(f"module: {said} shared: {_KNOWN}")
            fixed = fixed or f"{said} fixed"
        if len(layers) > 1:
            (before, above), weight = layers[-2], f"{name}.weight"
            if weight in flat and all(f"{before}.{n}" in flat for n in _tensors(above)):
                hidden.append(_hidden(flat, layers[-2:], between))
        between = []
    if not hidden:
        if fixed and len(layers) > 1:
            raise InputError(
                f"module: {fixed}, and no hidden layer has all its weights in θ, so that nothing "
                "of it is symmetric; let two layers in a row move"
            )
        for name, child in _leaves(module):
            if isinstance(child, WEIGHTED) and not computes_as(child, WEIGHTED):
                what = f"{name} ({type(child).__name__})"
                raise InputError(
                    f"module: {what} computes its weight, or has a hook or a forward pass of its "
                    f"own: {_KNOWN}{_of_parametrizations(child)}"
                )
        raise InputError(f"module has no hidden layer: {_KNOWN}")
    closed = not all(map(_flattens, between))
    output = [] if closed else _incoming(flat, layers[-1][0])
    return Layers(tuple(hidden), np.hstack(output) if output else None)


def _of_parametrizations(layer: nn.Module) -> str:
    """What to do about a weight that is computed of others; those are in θ."""
    if not parametrize.is_parametrized(layer):
        return ""
    return "; walk without parametrizations, as after parametrize.remove_parametrizations"


def _hidden(
    flat: dict[str, Indices], pair: list[tuple[str, nn.Module]], between: list[nn.Module]
) -> HiddenLayer:
    (name, _), (following, _) = pair
    for where, layer in pair:
        if getattr(layer, "groups", 1) != 1:
            what = f"{where} ({type(layer).__name__}): its channels are in groups"
            raise InputError(f"module: {what}: {_KNOWN}")
    activations = [m for m in between if computes_as(m, (*ODD, *HOMOGENEOUS))]
    homogeneous = bool(activations) and type(activations[0]) in HOMOGENEOUS
    pools = (*AVERAGES, *MAXIMA) if homogeneous else AVERAGES
    known = (*ODD, *HOMOGENEOUS, *pools)
    strange = [m for m in between if not (computes_as(m, known) or _flattens(m))]
    if strange or len(activations) != 1:
        what = type(strange[0]).__name__ if strange else f"{len(activations)} activations"
        raise InputError(f"module: {what} between {name} and {following}: {_KNOWN}")
    incoming = _incoming(flat, name)
    n = len(incoming[0])
    after = flat[f"{following}.weight"]
    if not _takes(flat[f"{name}.weight"], after, between):
        raise InputError(f"module: {following} does not take the {n} units of {name}: {_KNOWN}")
    # A dense layer after a convolution has a block of columns for each channel.
    outgoing = np.moveaxis(after.reshape(len(after), n, -1), 1, 0).reshape(n, -1)
    return HiddenLayer(np.hstack(incoming), outgoing, not homogeneous, homogeneous)


def _takes(weight: Indices, after: Indices, between: list[nn.Module]) -> bool:
    """Whether each unit has inputs of its own in the next layer, in blocks unit by unit."""
    n, width = len(weight), after.shape[1]
    # Where the units are, counted from the last axis, which is 1: there of a dense layer.
    axis, in_blocks = weight.ndim - 1, False
    for module in between:
        if _flattens(module):
            # Of channels, each is a block then; of a dense layer's units, those of all places
            # alternate, and there is one place only where the width stays.
            axis, in_blocks = 1, in_blocks or axis > 1
        elif type(module) in POOLED and _mixes(module, axis):
            return False
    return after.ndim - 1 == axis and (width % n == 0 if in_blocks else width == n)


def _mixes(pool: nn.Module, axis: int) -> bool:
    """Whether a pooling goes over an axis, counted from the last, in windows of more than one."""
    n = POOLED[type(pool)]
    given = [getattr(pool, name) for name in ("kernel_size", "stride", "padding")]
    return n >= axis and [np.broadcast_to(v, n)[n - axis] for v in given] != [1, 1, 0]


def _tensors(layer: nn.Module) -> list[str]:
    return [n for n in ("weight", "bias") if getattr(layer, n) is not None]


def _incoming(flat: dict[str, Indices], name: str) -> list[Indices]:
    found = [flat[f"{name}.{n}"] for n in ("weight", "bias") if f"{name}.{n}" in flat]
    return [part.reshape(len(part), -1) for part in found]


def _flattens(module: nn.Module) -> bool:
    return computes_as(module, (nn.Flatten,)) and (module.start_dim, module.end_dim) == (1, -1)


def _leaves(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules in the order in which nested ``nn.Sequential`` call them, repeated ones too."""
    inner = unwrap(module)
    # What is inside another module is its own affair.
    if not computes_as(inner, (nn.Sequential,)):
        yield name, inner
        return
    for key, child in inner._modules.items():
        if child is not None:
            yield from _leaves(child, f"{name}.{key}".lstrip("."))
