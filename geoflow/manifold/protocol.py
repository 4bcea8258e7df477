"""What a walk and the solvers need of a flow, and of its state at one point."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.projection import Projection
from geoflow.problems import unchanged
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds


class Scalar(NamedTuple):
    """What a flow records at every accepted step, beside what a walk records of itself."""

    long_name: str
    units: str


class State(Protocol):
    """Everything a flow knows at one point, at which L and ∇L are evaluated."""

    @property
    def theta(self) -> Tensor:
        """The parameters θ, shape (P,)."""

    @property
    def flat(self) -> Tensor:
        """What is integrated, shape (N,): the tensors of the state one after the other."""

    @property
    def velocity(self) -> Tensor:
        """The time derivative of ``flat``, shape (N,)."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The parts of ``flat`` by name, ``theta`` the first; a checkpoint keeps these."""

    @property
    def evaluated(self) -> Any:
        """L and ∇L at this point, as :meth:`geoflow.LevelSet.project` takes them."""


class Flow(Protocol):
    """A vector field on a level set that can be walked along.

    :class:`geoflow.RegularizingFlow` is one. Any class with these attributes and methods serves. To
    be walked along on several constraints it has a method ``constraint_values`` too, that of
    RegularizingFlow.
    """

    @property
    def level_set(self) -> LevelSet:
        """Where it flows."""

    @property
    def problem(self) -> ProblemLike:
        """That of the level set: it counts evaluations, and holds their budget."""

    @property
    def regularizer_name(self) -> str:
        """What it descends, as archives name it; empty where there is nothing."""

    @property
    def scalars(self) -> Mapping[str, Scalar]:
        """What it records at every accepted step, by name."""

    @property
    def linearization(self) -> Callable[[Any], Any] | None:
        """What gives the flow's linear part at a state, or None.

        Called with a state, it returns what :class:`TangentHessian
        <geoflow.manifold.linearization.TangentHessian>` is for a RegularizingFlow.
        """

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

    def at_rest(self, state: Any, /) -> bool:
        """Whether the velocity at a state is zero to rounding: a walk ends there."""

    def values(self, state: Any, /) -> Mapping[str, float]:
        """The :attr:`scalars` of a state."""


def apart_from(flow: Flow) -> tuple[ProblemLike, ...]:
    """Problems that what a flow descends evaluates beside that of its level set.

    Their evaluations are counted apart. A flow of one's own has none, unless it says so by an
    attribute ``regularizer_problems``.
    """
    return tuple(getattr(flow, "regularizer_problems", ()))


def check_unchanged(flow: Flow) -> None:
    """Refuse problems that have changed since they were made.

    One evaluation of each, without gradient and not counted; see
    :func:`geoflow.problems.unchanged.check`.

    Raises
    ------
    InputError
        The loss of one at its θ0 is another.
    """
    for problem in (flow.problem, *apart_from(flow)):
        unchanged.check(problem)


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """The tensors of a state as one vector, shape (N,); a single one as it is."""
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    return torch.cat([tensor.reshape(-1) for tensor in tensors.values()])


PARTS = ("level_set", "problem", "scalars", "start")


def check_flow(flow: Any) -> None:
    """Refuse what is no flow, before anything is evaluated.

    Raises
    ------
    InputError
        Names what is missing.
    """
    missing = [part for part in PARTS if not hasattr(flow, part)]
    if missing:
        raise InputError(
            f"flow={kinds.shown(flow)} is a {type(flow).__name__} without {', '.join(missing)}; "
            f"give {kinds.A_FLOW}, or a flow of one's own"
        )
