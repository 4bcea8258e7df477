"""The layers of a network in flat θ, and what can be changed of each unit without effect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from geoflow.errors import InputError
from geoflow.problems.modules import computes_as
from geoflow.system import kinds

Indices = NDArray[np.intp]

# f(−x) = −f(x), and f(ax) = a f(x) for a > 0.
ODD, HOMOGENEOUS = (nn.Tanh,), (nn.ReLU, nn.LeakyReLU)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
# The last axes of an array that a pooling takes its means or maxima over.
POOLED = {pool: n for pools in (AVERAGES, MAXIMA) for n, pool in enumerate(pools, start=1)}
WITHOUT_EFFECT = (nn.Identity, nn.Dropout)

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
        From the first on.
    output : array of int, shape (C, …) or None
        Weights and bias of each output; None where a function follows the last layer.
    """

    hidden: tuple[HiddenLayer, ...]
    output: Indices | None


def layers_of(module: nn.Module) -> Layers:
    """Find the layers of an ``nn.Sequential`` of dense layers and convolutions.

    Parameters
    ----------
    module : torch.nn.Module
        Dense layers and convolutions, one activation (tanh, ReLU or leaky ReLU) between any two of
        them, and average pooling; maximum pooling with ReLUs only. Each layer takes the units of
        the one before where they are: a dense layer has them along the last axis, which no pooling
        may mix, and a convolution in its channels, after which ``nn.Flatten()`` comes before a
        dense layer. A layer with a hook or a forward pass of its own is none of these.

    Raises
    ------
    InputError
        A network of another form, whose symmetries are not known here.
    """
    kinds.check_kind(module, nn.Module, "module", "the network that was walked")
    flat, start = {}, 0
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            size = parameter.numel()
            flat[name] = np.arange(start, start + size).reshape(tuple(parameter.shape))
            start += size
    hidden: list[HiddenLayer] = []
    names: list[str] = []
    between: list[nn.Module] = []
    for name, child in _leaves(module):
        if not computes_as(child, WEIGHTED):
            between += [] if computes_as(child, WITHOUT_EFFECT) else [child]
            continue
        tensors = [n for n in ("weight", "bias") if getattr(child, n) is not None]
        missing = [n for n in tensors if f"{name}.{n}" not in flat]
        if name and (missing or getattr(child, "groups", 1) != 1):
            what = f"{missing[0]} is fixed or shared" if missing else "channels are in groups"
            raise InputError(f"module: {name} ({type(child).__name__}): its {what}: {_KNOWN}")
        if names:
            hidden.append(_hidden(flat, names[-1], name, between))
        names.append(name)
        between = []
    if not hidden:
        raise InputError(f"module has no hidden layer: {_KNOWN}")
    closed = not all(map(_flattens, between))
    output = None if closed else np.hstack(_incoming(flat, names[-1]))
    return Layers(tuple(hidden), output)


def _hidden(
    flat: dict[str, Indices], name: str, following: str, between: list[nn.Module]
) -> HiddenLayer:
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


def _incoming(flat: dict[str, Indices], name: str) -> list[Indices]:
    weight = flat[f"{name}.weight"]
    found = [weight.reshape(len(weight), -1)]
    if f"{name}.bias" in flat:
        found.append(flat[f"{name}.bias"][:, None])
    return found


def _flattens(module: nn.Module) -> bool:
    return computes_as(module, (nn.Flatten,)) and (module.start_dim, module.end_dim) == (1, -1)


def _leaves(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules in the order in which nested ``nn.Sequential`` call them, repeated ones too."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in module.named_modules(remove_duplicate=False):
        # What is inside another module is its own affair.
        inside = bool(found) and name.startswith(f"{found[-1][0]}.".lstrip("."))
        if not computes_as(child, (nn.Sequential,)) and not inside:
            found.append((name, child))
    return found
