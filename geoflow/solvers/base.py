"""What a solver is: ``init`` once, then one accepted step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.protocol import Flow, State
from geoflow.problems.scaling import length

# Numbers, strings and tensors only, so that a checkpoint can hold it.
Carry = dict[str, float | int | str | Tensor]

# ``state.flat`` inside a step, by the flow time since its start; not re-projected.
Interpolant = Callable[[float], Tensor]


@dataclass(frozen=True)
class Tolerance:
    """Local error allowed: ‖error‖ ≤ ``rtol``·‖θ‖ + ``atol``·√P, in units of θ."""

    rtol: float
    atol: float

    @classmethod
    def checked(cls, rtol: float, atol: float, dtype: torch.dtype) -> Tolerance:
        """Make a tolerance the dtype can resolve.

        Raises
        ------
        InputError
            Not positive, not finite, or below the resolution of ``dtype``.
        """
        resolution = 10 * torch.finfo(dtype).eps
        if not (math.isfinite(rtol) and rtol > 0):
            raise InputError(f"rtol={rtol}; use a positive number such as 1e-3")
        if rtol < resolution:
            raise InputError(
                f"rtol={rtol} is below what {dtype} resolves; use at least {resolution:.1e}"
            )
        if not (math.isfinite(atol) and atol >= 0):
            raise InputError(f"atol={atol}; use zero or a positive number such as 1e-6")
        return cls(float(rtol), float(atol))

    def scale(self, theta: Tensor) -> float:
        """The error allowed at θ, in units of θ."""
        return self.rtol * norm(theta) + self.atol * math.sqrt(theta.numel())

    def per_step(self, theta: Tensor, order: int, many_steps: float) -> float:
        """Error that a step may add, in units of θ, so that their sum stays in proportion to rtol.

        From rtol = ``many_steps`` down it falls faster than rtol: a method of order p takes
        rtol^(−1/(p + 1)) as many steps, whose errors add up.
        """
        share = min(self.rtol / many_steps, 1.0) ** (1 / (order + 1))
        return self.scale(theta) * share


@dataclass(frozen=True)
class StepResult:
    """One accepted step.

    Attributes
    ----------
    state : State
        Where it ended.
    carry : Carry
        What the solver hands to its next step.
    time : float
        Flow time covered, > 0.
    error_estimate : float
        Local error over the error allowed; NaN where the method estimates none.
    n_rejected : int
        Attempts rejected before this one.
    n_reprojection : int
        Newton corrections, those of rejected attempts included.
    interpolant : callable, optional
        What lies between its ends, of the order of the method or one less; it is asked before the
        next step is made, and costs no evaluation. A solver that is ``dense`` gives one.
    """

    state: State
    carry: Carry
    time: float
    error_estimate: float
    n_rejected: int
    n_reprojection: int
    interpolant: Interpolant | None = None


# Vectors that a solver is taken to hold which does not say.
DEFAULT_VECTORS = 20

# What a solver can need of a flow beyond its velocity and re-projection.
LINEARIZATION = "a linearization"
REGULARIZER = "a regularizer that it descends"
ONE_CONSTRAINT = "a single constraint"

_HAS: Mapping[str, Callable[[Flow], bool]] = {
    LINEARIZATION: lambda flow: flow.linearization is not None,
    REGULARIZER: lambda flow: bool(flow.regularizer_name),
    ONE_CONSTRAINT: lambda flow: flow.level_set.n_constraints == 1,
}


class Solver(Protocol):
    """A one-step integrator of a flow on a level set.

    A solver holds its settings only; all that changes along a walk is in the carry, so that
    a walk can be stopped and resumed with the same numbers.

    Attributes
    ----------
    name : str
        Name in archives and on the command line.
    order : int
        Order of convergence of θ in the step size.
    needs : tuple of str
        Of :data:`LINEARIZATION`, :data:`REGULARIZER` and :data:`ONE_CONSTRAINT`, what a flow must
        have for this solver; the flow and its states are given to it as they are. May be left out
        where it is none of them.
    vectors : int
        The most vectors of the state's size that it holds at a time, its carry and temporaries
        included, beside the state it starts from and what one evaluation and one re-projection
        take; by it the memory of a walk is estimated. Where it is left out, ``DEFAULT_VECTORS``.
    dense : bool
        Whether its steps have an interpolant. Where it is false or left out, steps end at each
        snapshot's time, and an event is located by shorter steps.
    """

    name: str
    order: int
    dense: bool
    needs: tuple[str, ...]
    vectors: int

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able: enough to make the solver again."""

    def init(self, flow: Any, state: Any, tolerance: Tolerance) -> Carry:
        """Prepare the first step from ``state``."""

    def step(
        self,
        flow: Any,
        state: Any,
        carry: Carry,
        tolerance: Tolerance,
        max_time: float,
    ) -> StepResult:
        """Make one accepted step of at most ``max_time``.

        Raises
        ------
        StepSizeError
            No step above the rounding of θ meets the tolerance.
        ConvergenceError, CriticalPointError
            Re-projection fails however small the step.
        """


def norm(v: Tensor) -> float:
    """‖v‖ as a number."""
    return float(torch.linalg.vector_norm(v))


def check_descent(solver: Solver, state: FlowState) -> None:
    """Refuse a flow that goes elsewhere than down R, for a solver that takes ∇R for its velocity.

    Parameters
    ----------
    solver : Solver
        Is named.
    state : FlowState
        Where the walk begins, with its normals and ∇R.

    Raises
    ------
    InputError
        The velocity of the state is not −Π∇R.
    """
    down = state.regularizer_gradient
    other = length(state.velocity + down - state.normals.split(down).part)
    # As far as it rounds, and a flow of one's own may round more.
    if not other <= math.sqrt(torch.finfo(down.dtype).eps) * length(down):
        raise InputError(
            f"solver={solver.name!r} goes down R, and the velocity of the flow is another than "
            f"−Π∇R, by {other:.3g}; use one of torchdiffeq's, such as 'dopri5'"
        )


def vectors_of(solver: Solver) -> int:
    """The most vectors that a solver holds, by what it says of itself."""
    return int(getattr(solver, "vectors", DEFAULT_VECTORS))


def bytes_of(solver: Solver, theta: Tensor) -> int:
    """Bytes that a solver holds at the most of vectors like θ.

    As many as its ``vectors`` take, or what its ``bytes_at(theta)`` says where it has one: that of
    a solver which keeps some in another dtype than θ's.
    """
    own = getattr(solver, "bytes_at", None)
    return int(own(theta) if own else vectors_of(solver) * theta.numel() * theta.element_size())


def is_dense(solver: Solver) -> bool:
    """Whether a solver's steps have an interpolant, by what it says of itself."""
    return bool(getattr(solver, "dense", False))


def check_needs(solver: Solver, flow: Flow) -> None:
    """Refuse a flow that has not what a solver needs.

    Raises
    ------
    InputError
        Names the solver, the flow and what is missing.
    """
    missing = [need for need in getattr(solver, "needs", ()) if not _HAS[need](flow)]
    if missing:
        raise InputError(
            f"solver={solver.name!r} needs a flow with {' and '.join(missing)}, which "
            f"{type(flow).__name__} has not; use one of torchdiffeq's, such as 'dopri5'"
        )
