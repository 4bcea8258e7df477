"""A loss over data as a sum of batches, each a function of the parameters."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from geoflow.errors import InputError
from geoflow.problems import ahead, alone, arithmetic, checks, data
from geoflow.problems.data import Tree
from geoflow.system import kinds

Parameters = dict[str, Tensor]

# Examples whose outputs are computed at once, without gradient.
OUTPUTS_AT_ONCE = 500


class TensorSpec(NamedTuple):
    """Where one parameter tensor lies in the flat vector."""

    name: str
    offset: int
    shape: tuple[int, ...]


def laid_out(tensors: Mapping[str, Tensor]) -> tuple[TensorSpec, ...]:
    """Where each of these lies in one flat vector of them all, in their order."""
    specs, offset = [], 0
    for name, tensor in tensors.items():
        specs.append(TensorSpec(name, offset, tuple(tensor.shape)))
        offset += tensor.numel()
    return tuple(specs)


# The sum of the losses of some examples, and their weight: scalars both.
Weighted = tuple[Tensor, Tensor]


class LossPart:
    """The loss of one batch: a sum of losses, and what it weighs in the mean.

    L(θ) = Σ sums / Σ weights over the parts. Weights do not depend on θ. Several threads may
    evaluate one: whatever it changes while it does is its to guard, as a network by its lock of
    :mod:`geoflow.problems.alone`.
    """

    @alone.in_turn
    def sum_and_weight(self, parameters: Parameters) -> Weighted:
        """Sum of the batch's losses, a scalar, and its weight."""
        raise InputError(f"{type(self).__name__} gives no loss")


@dataclass(frozen=True)
class FunctionPart(LossPart):
    """A loss that is a function of flat θ."""

    function: Callable[[Tensor], Tensor]

    def sum_and_weight(self, parameters: Parameters) -> Weighted:
        """The function's value."""
        value = self.function(parameters["theta"])
        return value, torch.ones_like(value.detach())


@dataclass(frozen=True)
class ModulePart(LossPart):
    """A loss of a network's outputs on some examples.

    Attributes
    ----------
    module : torch.nn.Module
        Called with the parameters in place of its own.
    fixed : mapping of str to Tensor
        Parameters and buffers that do not move.
    inputs, targets
        The examples: a tensor, or a tuple or dict of tensors.
    loss_fn : callable
        ``loss_fn(outputs, targets)`` → scalar.
    scale, weight : float
        The part is ``scale * loss_fn(…)``, weighing ``weight``.
    mean : callable, optional
        The mean loss as it was given, where the part is its sum over some of the examples.
    """

    module: nn.Module
    fixed: Mapping[str, Tensor]
    inputs: Tree
    targets: Tree
    loss_fn: Callable[[Any, Any], Tensor]
    scale: float = 1.0
    weight: float = 1.0
    mean: Callable[[Any, Any], Tensor] | None = None

    def outputs(self, parameters: Parameters) -> Any:
        """What the network gives on the examples."""
        arguments, keywords = as_arguments(_own(self.inputs))
        return self.called(parameters, arguments, keywords)

    @alone.in_turn
    def called(
        self, parameters: Parameters, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        """What the network gives on other arguments."""
        named = {**self.fixed, **parameters}
        with self.lock:
            for names in self._ties:
                # What is a buffer too is what θ has.
                own = next((n for n in names if n in parameters), names[0])
                if own in named:
                    named.update(dict.fromkeys(names, named[own]))
            return functional_call(self.module, named, arguments, keywords, tie_weights=False)

    @property
    def lock(self) -> AbstractContextManager[object]:
        """Held round what must see the network as one evaluation leaves it: outputs and loss."""
        return alone.lock_of(self.module).held()

    @functools.cached_property
    def _ties(self) -> list[list[str]]:
        """Names of each tensor that has several: looked up once, not at every evaluation."""
        found: dict[Tensor, list[str]] = {}
        every = (self.module.named_parameters, self.module.named_buffers)
        for name, tensor in itertools.chain(*(named(remove_duplicate=False) for named in every)):
            found.setdefault(tensor, []).append(name)
        return [names for names in found.values() if len(names) > 1]

    @alone.in_turn
    def sum_of_outputs(self, outputs: Any) -> Tensor:
        """The part's sum, as a function of the outputs."""
        with self.lock:
            value = self.loss_fn(outputs, _own(self.targets))
        if not isinstance(value, Tensor):
            raise checks.no_loss("loss_fn", value, "return one scalar tensor, the mean loss")
        return value if self.scale == 1.0 else self.scale * value

    @alone.in_turn
    def sum_and_weight(self, parameters: Parameters) -> Weighted:
        """Sum of the losses of the examples.

        Raises
        ------
        InputError
            The network or the loss writes into them.
        """
        examples = {"inputs": self.inputs, "targets": self.targets}
        # The loss may use what a layer or a hook has kept of these outputs.
        with self.lock, unwritten(examples):
            return self.weighted_sum(self.outputs(parameters))

    def weighted_sum(self, outputs: Any) -> Weighted:
        """The part's sum as a function of the outputs, and its weight."""
        value = self.sum_of_outputs(outputs)
        return value, torch.full_like(value.detach(), self.weight)


def _own(tree: Tree) -> Tree:
    """The same tensors in containers that may be changed, as by ``batch.pop("labels")``."""
    return data.mapped(tree, lambda tensor: tensor)


@contextmanager
def unwritten(examples: Mapping[str, Tree]) -> Iterator[None]:
    """Refuse an evaluation that changes the data: the next would be of others.

    Raises
    ------
    InputError
        A tensor of theirs has been written to.
    """
    before = {name: data.versions(tree) for name, tree in examples.items()}
    yield
    for name, tree in examples.items():
        if data.versions(tree) != before[name]:
            raise InputError(
                f"{name}: an in-place operation writes into them while the loss is evaluated (a "
                "first layer with inplace=True, clamp_); set inplace=False, or write into a clone"
            )


def module_parts(problem: Any, purpose: str) -> list[ModulePart]:
    """Parts of a problem whose network and data are known, as those of ``from_module`` are.

    Parameters
    ----------
    problem : ProblemLike
        The problem.
    purpose : str
        What needs them, for the message.

    Raises
    ------
    InputError
        The problem is another, or holds only a share of its data.
    """
    if getattr(problem, "n_processes", 1) > 1:
        raise InputError(
            f"problem: its data are divided over processes, and {purpose} needs them in one; start "
            "one process"
        )
    return of_network(getattr(problem, "_parts", None), purpose)


def of_network(parts: Any, purpose: str) -> list[ModulePart]:
    """Those of a problem's parts whose network and data are known; see :func:`module_parts`."""
    found = [p for p in parts if isinstance(p, ModulePart)] if isinstance(parts, tuple) else []
    if not found:
        raise InputError(
            f"problem: its loss is not that of outputs it knows, and {purpose} needs a network's "
            "outputs; make it with Problem.from_module"
        )
    return found


def network_of(problem: Any) -> nn.Module | None:
    """The network of a problem, or of the one that another is made of, where it has one."""
    for held in (problem, *getattr(problem, "problems", ()), getattr(problem, "whole", None)):
        parts = getattr(held, "_parts", None)
        part = parts[0] if isinstance(parts, tuple) else getattr(parts, "bound", None)
        module = getattr(part, "module", None)
        if isinstance(module, nn.Module):
            return module
    return None


class Bound(nn.Module):
    """A module and a function of it, as one module whose parameters can be replaced."""

    def __init__(self, module: nn.Module, batch_loss: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.module = module
        self.batch_loss = batch_loss

    def forward(self, batch: Any) -> Any:
        """Apply the function to the module and a batch."""
        return self.batch_loss(self.module, batch)


@dataclass(frozen=True)
class BatchPart(LossPart):
    """What a user's function says of a module on one batch."""

    bound: Bound
    fixed: Mapping[str, Tensor]
    batch: Tree

    @alone.in_turn
    def sum_and_weight(self, parameters: Parameters) -> Weighted:
        """Sum of the batch's losses, and their weight.

        Raises
        ------
        InputError
            The function gave something else, or it writes into the batch.
        """
        named = {f"module.{n}": t for n, t in {**self.fixed, **parameters}.items()}
        with alone.lock_of(self.bound.module).held(), unwritten({"batches": self.batch}):
            found = functional_call(self.bound, named, (_own(self.batch),))
            total, weight = as_weighted(found)
        return total, torch.as_tensor(weight, dtype=total.dtype, device=total.device).detach()


def as_weighted(found: Any) -> tuple[Tensor, Any]:
    """Return what a user's ``batch_loss`` gave, where it is a sum and a weight.

    Raises
    ------
    InputError
        It is something else.
    """
    if not (isinstance(found, tuple | list) and len(found) == 2):
        raise InputError(
            f"batch_loss returned a {type(found).__name__}; return (sum of losses, weight)"
        )
    total, weight = found
    if not (isinstance(total, Tensor) and total.shape == ()):
        shape = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
        raise InputError(f"batch_loss returned a sum of {shape}; it must be a scalar tensor")
    return total, as_weight(weight)


def as_weight(weight: Any) -> Any:
    """Return the weight of a batch, where it is one.

    Raises
    ------
    InputError
        It is no finite number, or below zero. Of a tensor on a GPU its value is not looked at.
    """
    if isinstance(weight, Tensor | np.ndarray):
        found = weight if isinstance(weight, Tensor) else torch.as_tensor(weight, device="cpu")
        if found.numel() == 1 and not found.is_complex():
            found = found.reshape(())
            with suppress(RuntimeError):  # inside torch.func.vmap there are several values
                if found.device.type == "cpu":
                    as_weight(float(found.detach()))
            return found
    try:
        number = math.nan if isinstance(weight, str | bytes) else kinds.real(weight)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(
            f"batch_loss returned the weight {kinds.shown(weight)}; return a finite number that "
            "is not below zero, such as that of the examples"
        )
    return number


@dataclass(frozen=True)
class BatchParts(Iterable[LossPart]):
    """Parts made of batches as they are read: one is in memory at a time, two on a GPU.

    Attributes
    ----------
    batches : iterable
        Gives the same batches in the same order whenever it is iterated.
    """

    bound: Bound
    fixed: Mapping[str, Tensor]
    batches: Iterable[Any]
    dtype: torch.dtype
    device: torch.device

    def __iter__(self) -> Iterator[LossPart]:
        for batch in ahead.moved(self.batches, self.dtype, self.device):
            yield BatchPart(self.bound, self.fixed, batch)

    def __len__(self) -> int:
        return sum(1 for _ in self.batches)


def add_up(
    contributions: Iterable[tuple[tuple[Tensor, ...], Tensor]],
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Add up what the parts of a loss give: sums and weights, each for itself.

    A problem over several processes adds up theirs in the same way before it divides.

    Parameters
    ----------
    contributions : iterable
        (tensors, weight) of each part: of its sum of losses, say, and of that sum's gradient.

    Returns
    -------
    tuple of Tensor
        Sums over the parts: in float64 where there are several, whatever the network's dtype, so
        that their number costs no digits.
    Tensor
        Sum of the weights, likewise.

    Raises
    ------
    InputError
        There is no part.
    """
    remaining = iter(contributions)
    first = next(remaining, None)
    if first is None:
        raise InputError(
            "batches: this pass gave none; give the same whenever they are iterated, as a list or "
            "a DataLoader does"
        )
    sums, weight = first
    for n, (tensors, more) in enumerate(remaining):
        if n == 0:
            sums = tuple(t.to(_widest(t.device), copy=True) for t in sums)
            weight = weight.to(_widest(weight.device))
        sums = tuple(total.add_(t) for total, t in zip(sums, tensors, strict=True))
        weight = weight + more
    return sums, weight


def _widest(device: torch.device) -> torch.dtype:
    # Apple's processors have no float64.
    return torch.float32 if device.type == "mps" else torch.float64


def as_arguments(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a network is called: ``*inputs`` of a tuple, ``**inputs`` of a dictionary."""
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def outputs(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tree,
    batch_size: int = OUTPUTS_AT_ONCE,
) -> Tensor:
    """Evaluate a network without gradient, some examples at a time to bound the memory.

    Parameters
    ----------
    module : torch.nn.Module
        Not changed.
    parameters : mapping of str to Tensor
        In place of the module's own.
    inputs : Tensor, shape (N, …), or a tuple or dict of such
        Of the parameters' dtype, on their device.
    batch_size : int
        Examples at a time.

    Returns
    -------
    Tensor, shape (N, …)
    """
    return torch.cat(list(output_chunks(module, parameters, inputs, batch_size)))


def output_chunks(
    module: nn.Module,
    parameters: Mapping[str, Tensor],
    inputs: Tree,
    batch_size: int = OUTPUTS_AT_ONCE,
) -> Iterator[Tree]:
    """What :func:`outputs` puts together, chunk by chunk, whatever tree of tensors it is."""
    n = data.length(inputs)
    held = {name: tensor.detach() for name, tensor in parameters.items()}
    device = next(t.device for _, t in data.leaves(inputs, ""))

    @alone.in_turn
    def found(start: int) -> Tree:
        arguments, keywords = as_arguments(data.chunk(inputs, start, batch_size))
        # The network may take derivatives itself.
        with torch.enable_grad(), arithmetic.exact(device), alone.lock_of(module).held():
            return functional_call(module, held, arguments, keywords)

    for start in range(0, n, batch_size):
        yield data.mapped(found(start), lambda tensor: tensor.detach())
