"""What a walk records: scalars of every accepted step, θ and observables where θ is kept."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import InputError, ObservableError
from geoflow.manifold.protocol import Flow
from geoflow.manifold.regularizers.bound import BoundRegularizer
from geoflow.manifold.regularizers.measured import as_function
from geoflow.manifold.regularizers.named import Bindable
from geoflow.problems import inner
from geoflow.problems.protocol import ProblemLike
from geoflow.system import kinds
from geoflow.system.translation import kind_and_reason
from geoflow.trajectories import schema, storable

# Names of the schema's own, in whatever walk.
TAKEN = {
    **schema.VARIABLES,
    **schema.APART,
    **schema.CONSTRAINTS,
    **schema.CONSTRAINT_COORDINATES,
}

# L − c, where a flow records it, and that of each of several constraints.
RESIDUAL, RESIDUALS = "level_residual", "constraint_residual"

Observable = Callable[[Tensor], SupportsFloat]
# What is given as one: its loss, or its value.
Observed = Observable | ProblemLike | Bindable | BoundRegularizer


class StepRecords(Sequence[Mapping[str, float]]):
    """The scalars of every accepted step, by column: a few hundred bytes a step.

    Parameters
    ----------
    attributes : mapping, optional
        Global attributes of the walk, which say what its flow records; without, it is a
        RegularizingFlow.

    Attributes
    ----------
    furthest : ndarray, shape (n,)
        The greatest |L − c| of each constraint of all, of those too that were dropped; of length 0
        where none is recorded.
    """

    def __init__(self, attributes: Mapping[str, Any] | None = None) -> None:
        specs = schema.columns(attributes or {})
        self.columns: dict[str, array[Any]] = {
            n: array("q" if s.dtype == "i8" else "d") for n, s in specs.items()
        }
        n = len(schema.levels(attributes or {}))
        names = schema.column_names(RESIDUALS, n) if n else [RESIDUAL]
        self._residuals = [name for name in names if name in self.columns]
        self.furthest: NDArray[np.float64] = np.zeros(len(self._residuals))

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[Any]]) -> StepRecords:
        """Take records from arrays, by name."""
        records = cls()
        records.extend(columns)
        return records

    def extend(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Add the accepted steps that arrays hold, by name."""
        for name, column in self.columns.items():
            column.frombytes(np.ascontiguousarray(columns[name], column.typecode).tobytes())
        for i, name in enumerate(self._residuals):
            self.furthest[i] = np.abs(columns[name]).max(initial=self.furthest[i])

    def arrays(self, start: int = 0) -> dict[str, NDArray[Any]]:
        """Copy the columns from record ``start`` on into arrays, by name."""
        return {name: np.array(column[start:]) for name, column in self.columns.items()}

    def forget(self, n: int) -> None:
        """Drop the first ``n`` records."""
        for column in self.columns.values():
            del column[:n]

    def append(self, record: Mapping[str, float]) -> None:
        """Add one accepted step."""
        for name, column in self.columns.items():
            column.append(record[name])
        residuals = np.array([record[name] for name in self._residuals])
        self.furthest = np.fmax(self.furthest, abs(residuals))

    def __len__(self) -> int:
        # By the last column, which is the last to grow: Ctrl-C may come in between.
        return len(self.columns["wall_time"])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {name: column[index] for name, column in self.columns.items()}

    def __iter__(self) -> Iterator[Mapping[str, float]]:
        return (self[i] for i in range(len(self)))


class Snapshot:
    """θ and the observables at the end of one accepted step, or within it.

    ``between`` counts those within a step from 0 on; it is None for that at its end. ``dtype`` is
    that in which θ is kept.
    """

    def __init__(
        self,
        step: int,
        time: float,
        theta: Tensor,
        observables: Mapping[str, Observable],
        dtype: torch.dtype | None = None,
        *,
        between: int | None = None,
    ) -> None:
        self.step = step
        self.between = between
        self.time = time
        self.theta: NDArray[Any] = theta.detach().to("cpu", dtype or theta.dtype, copy=True).numpy()
        self.values: dict[str, float] = {
            name: value_of(f, theta, f"observables[{name!r}]") for name, f in observables.items()
        }


def value_of(function: Observable, theta: Tensor, called: str) -> float:
    """Value of a user's function along a walk, which never gets the walk's own θ to write into.

    Parameters
    ----------
    function : callable
        An observable, or that of an event.
    theta : Tensor, shape (P,)
        Where.
    called : str
        What the message has it as.

    Raises
    ------
    ObservableError
        The function raised an error, or gave no number.
    """
    try:
        return kinds.real(inner.value(function, theta))
    except Exception as error:
        raise ObservableError(f"{called} raised {kind_and_reason(error)}") from error


def unknown(theta: Tensor) -> float:
    """In place of an observable that cannot be evaluated."""
    return math.nan


def step_record(
    flow: Flow,
    state: Any,
    *,
    time: float,
    arc_length: float,
    step_size: float,
    error_estimate: float,
    n_rejected: int,
    n_reprojection: int,
    counts: Mapping[str, int],
    wall_time: float,
    event: int = 0,
) -> dict[str, float]:
    """Build the record of one accepted step: the flow's scalars, and those of the walk.

    That of an ``event`` within a step has its number.
    """
    return {
        **flow.values(state),
        **_of_constraints(flow, state),
        "time": time,
        "arc_length": arc_length,
        "step_size": step_size,
        "error_estimate": error_estimate,
        "n_rejected": n_rejected,
        "n_reprojection": n_reprojection,
        "n_gradient": counts["gradient"],
        "n_hvp": counts["hvp"],
        "n_regularizer_gradient": counts.get("regularizer_gradient", 0),
        "wall_time": wall_time,
        "event": event,
    }


def _of_constraints(flow: Flow, state: Any) -> dict[str, float]:
    """Columns of what is recorded of each of several constraints."""
    n = flow.level_set.n_constraints
    if n == 1:
        return {}
    found: dict[str, float] = {}
    for name, values in flow.constraint_values(state).items():  # type: ignore[attr-defined]
        found |= zip(schema.column_names(name, n), map(float, values), strict=True)
    return found


def as_observables(
    observables: Mapping[str, Observed] | None, problem: ProblemLike
) -> dict[str, Observable]:
    """Observables by name: of a problem its loss, of a regularisation function its value.

    Parameters
    ----------
    observables : mapping, optional
        Functions, problems, or regularisation functions; None: none.
    problem : ProblemLike
        For which a regularisation function is made.

    Raises
    ------
    InputError
        They are no mapping, or a regularisation function does not fit the problem.
    """
    give = "a dict of functions of theta by name"
    kinds.check_kind(observables, Mapping | None, "observables", give)
    return {name: _as_function(f, name, problem) for name, f in (observables or {}).items()}


def _as_function(observable: Observed, name: str, problem: ProblemLike) -> Observable:
    try:
        found = as_function(observable, problem)
    except InputError as error:
        raise InputError(f"observables[{name!r}]: {error}") from None
    if callable(found):
        function: Observable = found
        return function
    # What is neither is refused once it is called.
    return lambda theta: float(found.loss(theta).mean())


def check_observables(observables: Mapping[str, Observable], theta: Tensor) -> None:
    """Refuse observables that would not fit the schema.

    Raises
    ------
    InputError
        A name the schema uses itself, or a function that does not give a number.
    """
    for name, function in observables.items():
        storable.check_name(name, "observables", TAKEN)
        try:
            found = inner.value(function, theta)
        except Exception as error:
            raise InputError(
                f"observables[{name!r}] at theta0 raised {kind_and_reason(error)}; give a function "
                "of θ that returns a float"
            ) from None
        try:
            kinds.real(found)
        except Exception:
            raise InputError(
                f"observables[{name!r}] gave no number at theta0 ({kinds.shown(found)}); return a "
                "float, each number by a function of its own"
            ) from None
