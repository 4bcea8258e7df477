"""What a network gives for sets of examples, as its distances from another are taken of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from geoflow.errors import GeoflowError, InputError
from geoflow.problems import data
from geoflow.problems.data import Tree
from geoflow.problems.forward import output_chunks
from geoflow.problems.parts import Parameters
from geoflow.system import kinds, translation

# Outputs of the same examples evaluated together and apart differ by this part at the most.
TOGETHER_RTOL = {torch.float64: 1e-6, torch.float32: 1e-4}
# Probabilities add up to 1 but for this many units of their dtype's rounding.
UNITS_OF_ROUNDING = 64


def examples_of(name: Any, given: Any) -> Tree:
    """One set of examples as a tree of tensors.

    Raises
    ------
    InputError
        Something else, or not as many examples in each of its tensors.
    """
    kinds.check_kind(name, str, "inputs: a name", "a str, such as 'test'")
    where = f"inputs[{name!r}]"
    if not isinstance(given, (Tensor, np.ndarray, Mapping, tuple, list)):
        kinds.check_kind(given, Tensor, where, "a tensor of examples, or a tuple or dict of them")
    tree = data.tensors(given, where)
    shapes = [tuple(t.shape) for _, t in data.leaves(tree, where)]
    if len({shape[:1] for shape in shapes}) != 1 or not all(shape and shape[0] for shape in shapes):
        what = f"has shape {' and '.join(map(str, shapes[:4]))}" if shapes else "holds no tensor"
        raise InputError(f"{where} {what}; give one example or more, (N, …), as many in each")
    return tree


def first_of_network(
    network: nn.Module, parameters: Parameters, inputs: Tree, batch_size: int, name: str
) -> dict[str, Tensor]:
    """As :func:`of_network`, of a set of examples that the network has not seen yet.

    Raises
    ------
    InputError
        It does not take them, or the examples of a chunk act on each other.
    """
    n = data.length(inputs)
    try:
        found = of_network(network, parameters, inputs, batch_size)
    except (GeoflowError, torch.OutOfMemoryError):
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = translation.reason(error)
        shapes = " and ".join(f"{tuple(t.shape)} and {t.dtype}" for _, t in data.leaves(inputs, ""))
        if n > batch_size:
            last = n % batch_size
            some = f"{batch_size}" + (f" and a last {last}" if last else "")
            raise InputError(
                f"batch_size={batch_size}: module does not take inputs[{name!r}] of shape {shapes} "
                f"in parts of {some} ({said}); give them as it was trained on, or give "
                f"batch_size={n}, all at once"
            ) from error
        raise InputError(
            f"inputs[{name!r}] of shape {shapes}: module does not take them ({said}); give them "
            "as it was trained on"
        ) from error
    if n > batch_size:
        _check_apart(network, parameters, inputs, batch_size, name, found)
    return found


def _check_apart(
    network: nn.Module,
    parameters: Parameters,
    inputs: Tree,
    batch_size: int,
    name: str,
    found: Mapping[str, Tensor],
) -> None:
    """Compare a chunk with its two halves, which are no more than rounding apart.

    No more examples are evaluated at once than were asked for; of one at a time, two.

    Raises
    ------
    InputError
        The examples act on each other.
    """
    n, m = data.length(inputs), max(batch_size, 2)
    some, other_size = data.chunk(inputs, 0, m), 2 if batch_size == 1 else (m + 1) // 2
    try:
        otherwise = [of_network(network, parameters, some, other_size) for _ in range(2)]
    # A network may be made for chunks of one size.
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return
    for place, outputs in otherwise[0].items():
        apart = found[place]
        if len(outputs) != m or len(apart) != n or outputs.shape[1:] != apart.shape[1:]:
            continue
        rtol = TOGETHER_RTOL.get(outputs.dtype, 30 * _eps(outputs))
        wide = torch.complex128 if outputs.is_complex() else torch.float64
        once, again, known = (t.to(wide) for t in (outputs, otherwise[1][place], apart[:m]))
        size = torch.linalg.vector_norm(once)
        # What is random differs from itself.
        if torch.linalg.vector_norm(known - once) > rtol * size and torch.equal(once, again):
            raise InputError(
                f"batch_size={batch_size}: module gives other outputs for {m} of "
                f"inputs[{name!r}] at once than in two parts, so they act on each other (batch "
                f"statistics, attention over the examples, a graph); give batch_size={n}, all at "
                "once"
            )


def check_logits(outputs: Tensor, axis: int) -> None:
    """Refuse probabilities, of which a softmax would be taken once more.

    Parameters
    ----------
    outputs : Tensor, shape (…, C, …)
        Of a classifier.
    axis : int
        That of the classes.

    Raises
    ------
    InputError
        All are zero or more, and add up to 1 over the classes of each example.
    """
    if not outputs.is_floating_point() or not outputs.numel() or bool((outputs < 0).any()):
        return
    off = (outputs.double().sum(axis) - 1).abs()
    # A NaN is no probability.
    if bool((off <= min(UNITS_OF_ROUNDING * _eps(outputs), 1e-2)).all()):
        raise InputError(
            "classification=True: the outputs are probabilities (zero or more, with a sum of 1 for "
            "each example), and logits are needed; leave the softmax out, or give their logarithm"
        )


def _eps(outputs: Tensor) -> float:
    exact = not (outputs.is_floating_point() or outputs.is_complex())
    return 0.0 if exact else torch.finfo(outputs.dtype).eps


def of_network(
    network: nn.Module, parameters: Parameters, inputs: Tree, batch_size: int
) -> dict[str, Tensor]:
    """Every tensor that a network gives, shape (N, …), by its place.

    Raises
    ------
    InputError
        It gives none, or a number of all examples together.
    """
    found: dict[str, list[Tensor]] = {}
    for chunk in output_chunks(network, parameters, inputs, batch_size):
        for place, tensor in data.leaves(chunk, "outputs"):
            if not tensor.ndim:
                raise InputError(
                    f"module: {place} is a number of all examples together; have it return "
                    "what it gives for each, as by a forward hook"
                )
            found.setdefault(place, []).append(tensor.cpu())
    if not found:
        raise InputError(
            f"module: in what it gives, a {type(chunk).__name__}, no tensor is found; have it "
            "return a tensor, or a tuple or dict of them, as by a forward hook"
        )
    return {place: torch.cat(parts) for place, parts in found.items()}


def as_one(given: dict[str, Tensor], classification: bool) -> Tensor:
    """What a network gives as one tensor: all numbers in a row where it gives several.

    Raises
    ------
    InputError
        Several are no logits of a classification.
    """
    if len(given) == 1:
        return next(iter(given.values()))
    if classification:
        raise InputError(
            f"module: it returns {len(given)} tensors ({', '.join([*given][:4])}), and "
            "classification=True takes logits alone; have it return those, as by a forward hook"
        )
    return torch.cat([tensor.reshape(-1) for tensor in given.values()])
