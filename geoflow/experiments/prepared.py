"""What an experiment gives to walk: a problem, and what is known of where it comes from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from geoflow.errors import InputError
from geoflow.problems.problem import Problem
from geoflow.system.kinds import shown
from geoflow.trajectories.records import Observed


class Data(NamedTuple):
    """Inputs (N, …) and targets (N,)."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True)
class PreparedExperiment:
    """A trained problem, and as much as is known of the network behind it.

    Only the problem is needed. What is left out cannot be analysed: without ``module`` and
    ``train`` or ``test`` there are no predictions to compare.

    Attributes
    ----------
    problem : Problem
        At the trained weights, ``problem.theta0``.
    observables : mapping of str to callable, problem or regularizer
        Functions θ → float, or the problem of the loss on the test set; see :func:`geoflow.walk`.
    provenance : mapping
        JSON-able: name, seed, data, network and training.
    module : torch.nn.Module, optional
        The trained network.
    train, test : Data or tuple of two, optional
        What it was trained and is tested on: inputs and targets.
    loss_fn : callable, optional
        ``loss_fn(outputs, targets)`` → scalar mean over the examples.
    batch_size : int, optional
        Examples that the problem evaluates at once; None: all.
    classification : bool
        The network's outputs are logits of classes.
    class_dim : int, optional
        The axis of its outputs along which they are; None: 1 of outputs of shape (N, C).
    """

    problem: Problem
    observables: Mapping[str, Observed] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None
    train: Data | tuple[Any, Any] | None = None
    test: Data | tuple[Any, Any] | None = None
    loss_fn: Callable[[Any, Any], Tensor] | None = None
    batch_size: int | None = None
    classification: bool = False
    class_dim: int | None = None


def check_seed(seed: object) -> int:
    """Return a seed that decides everything and that archives can hold.

    Raises
    ------
    InputError
        No whole number, negative, or not below 2**63.
    """
    try:
        if isinstance(seed, bool):
            raise TypeError
        number = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"seed={shown(seed)}; use a whole number") from None
    if not 0 <= number < 2**63:
        raise InputError(f"seed={shown(number)}; use zero or a positive number below 2**63")
    return number
