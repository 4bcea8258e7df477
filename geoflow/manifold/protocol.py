"""What a walk and the solvers need of a flow, and of its state at one point."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from geoflow.manifold.level_set import LevelSet, Projection
from geoflow.problems.protocol import ProblemLike


class Scalar(NamedTuple):
    """What a flow records at every accepted step, beside what a walk records of itself."""

    long_name: str
    units: str


class State(Protocol):
    """Everything a flow knows at one point, at which L and ∇L are evaluated.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        The parameters.
    flat : Tensor, shape (N,)
        What is integrated: all tensors of the state, one after the other. θ itself where the state
        is nothing else.
    velocity : Tensor, shape (N,)
        d flat/dt.
    tensors : mapping of str to Tensor
        The parts of ``flat`` by name, in order; ``theta`` is the first.
    evaluated : tuple
        What :meth:`Flow.project` takes as known at this point.
    """

    @property
    def theta(self) -> Tensor: ...

    @property
    def flat(self) -> Tensor: ...

    @property
    def velocity(self) -> Tensor: ...

    @property
    def tensors(self) -> Mapping[str, Tensor]: ...

    @property
    def evaluated(self) -> Any: ...


class Flow(Protocol):
    """A vector field on a level set that can be walked along.

    :class:`geoflow.RegularizingFlow` is one. Any class with these attributes and methods serves.

    Attributes
    ----------
    level_set : LevelSet
        Where it flows.
    problem : ProblemLike
        That of the level set: it counts evaluations, and holds their budget.
    regularizer_name : str
        What it descends, as archives name it; empty where there is nothing.
    scalars : mapping of str to Scalar
        What it records at every accepted step.
    linearization : callable or None
        ``linearization(state)`` gives what applies the flow's linear part there, as
        :class:`geoflow.manifold.linearization.TangentHessian` does; None where it has none.
    """

    @property
    def level_set(self) -> LevelSet: ...

    @property
    def problem(self) -> ProblemLike: ...

    @property
    def regularizer_name(self) -> str: ...

    @property
    def scalars(self) -> Mapping[str, Scalar]: ...

    @property
    def linearization(self) -> Any: ...

    def start(self, theta: Tensor) -> tuple[Any, Projection]:
        """State at the beginning of a walk from θ, shape (P,), re-projected."""

    def evaluate(self, flat: Tensor, /) -> Any:
        """State at a point as it is, on the level set or not."""

    def project(self, flat: Tensor, /, *, evaluated: Any = None) -> tuple[Any, Projection]:
        """State at the re-projection of a point.

        Raises
        ------
        ConvergenceError, CriticalPointError
            See :meth:`geoflow.LevelSet.project`.
        """

    def values(self, state: Any, /) -> Mapping[str, float]:
        """The :attr:`scalars` of a state."""


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensors of a state as one vector, shape (N,); a single one as it is."""
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
