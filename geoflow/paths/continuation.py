"""From the KKT point on one level to that on the next, by the corrector or by the flow."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor

from geoflow.errors import (
    ConvergenceError,
    CriticalPointError,
    EvaluationLimitError,
    NumericalError,
)
from geoflow.manifold.flows import FlowState, RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.paths.corrector import Corrected, Memory, correct, is_kkt
from geoflow.problems.protocol import ProblemLike
from geoflow.system.translation import numerics
from geoflow.walking.loop import walk
from geoflow.walking.stopping import Stationary

# Evaluations after which the corrector gives way to a level halfway, and that to the flow.
PATIENCE = 200
# A level is halved so often, in log c, before the path is taken to end.
MAX_HALVINGS = 8
# The flow comes to this angle at reasonable cost; what is wanted beyond is left to the corrector.
FLOW_DEGREES = 175.0

FAILURES = (ConvergenceError, CriticalPointError, NumericalError)


@dataclass(frozen=True)
class Reached:
    """A KKT point, and how it was reached.

    Attributes
    ----------
    state : FlowState
        There.
    flow : RegularizingFlow
        On its level.
    method : str
        ``corrector``, or ``walk`` where the flow was needed for it.
    n_between : int
        Levels gone through on the way.
    n_corrections : int
        Corrections made on the way.
    """

    state: FlowState
    flow: RegularizingFlow
    method: str
    n_between: int = 0
    n_corrections: int = 0

    @property
    def level(self) -> float:
        """Its c."""
        return self.flow.level_set.level


class _From:
    """A problem with another starting point, its evaluations counted with the others."""

    def __init__(self, problem: ProblemLike, theta0: Tensor) -> None:
        self.problem, self.theta0 = problem, theta0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.problem, name)


def at_level(flow: RegularizingFlow, level: float, theta: Tensor | None = None) -> RegularizingFlow:
    """The same flow on another level, from another θ0 where one is given."""
    problem = flow.problem
    if theta is not None:
        problem = cast(ProblemLike, _From(problem, theta))
    return RegularizingFlow(LevelSet(problem, level, flow.level_set.level_rtol), flow.regularizer)


class Continuation:
    """Follows the KKT point from level to level.

    Parameters
    ----------
    flow : RegularizingFlow
        Of a problem with a single constraint.
    limit : float
        ‖Π∇R‖/‖∇R‖ of the points.
    degrees : float
        The angle of it.

    Attributes
    ----------
    memory : Memory
        What the levels so far have taught.
    left : int
        Evaluations that may still be made.
    """

    def __init__(self, flow: RegularizingFlow, limit: float, degrees: float) -> None:
        self.flow, self.limit, self.degrees = flow, limit, degrees
        self.memory = Memory.unknown(flow.problem.n_parameters)
        self._end = 0

    @property
    def left(self) -> int:
        """Evaluations that may still be made."""
        return max(self._end - self.flow.problem.evaluations, 0)

    @left.setter
    def left(self, evaluations: int) -> None:
        self._end = self.flow.problem.evaluations + evaluations

    def start(self) -> Reached:
        """Walk from θ0 to the first point, on the level of the flow.

        Raises
        ------
        ConvergenceError
            The walk ends before.
        """
        return self._by_flow(self.flow, self.flow.problem.theta0)

    def to(self, level: float, before: Reached) -> Reached:
        """From a point to that on another level.

        Raises
        ------
        ConvergenceError, CriticalPointError, NumericalError
            No point is reached there.
        """
        goal, at, between, corrections, method = level, before, 0, 0, "corrector"
        halvings = 0
        while at.level != level:
            try:
                found = self._step(goal, at)
            except FAILURES:
                halvings += 1
                if halvings > MAX_HALVINGS:
                    raise
                goal = halfway(at.level, goal)
                continue
            corrections += found.n_corrections
            method = found.method if found.method == "walk" else method
            at = found
            if goal != level:
                between += 1
                goal, halvings = level, max(halvings - 1, 0)
        return replace(at, method=method, n_between=between, n_corrections=corrections)

    def _step(self, level: float, before: Reached) -> Reached:
        flow = at_level(self.flow, level)
        try:
            found = self._correct(flow, before.state, PATIENCE)
            return Reached(found.state, flow, "corrector", 0, found.n_corrections)
        except FAILURES:
            return self._by_flow(flow, before.state.theta)

    def _by_flow(self, flow: RegularizingFlow, theta: Tensor) -> Reached:
        level = flow.level_set.level
        start = at_level(flow, level, theta)
        stop = Stationary(min(self.degrees, FLOW_DEGREES))
        ended = walk(start, stop=stop, max_evaluations=max(self.left, 1), max_snapshots=2)
        status = ended.attrs["status"]
        if status == "interrupted":
            raise KeyboardInterrupt
        if status == "max_evaluations":
            raise EvaluationLimitError(ended.attrs["status_message"])
        if status not in ("stationary", "at_rest"):
            raise ConvergenceError(
                f"the walk on L = {level:.6g} ended: {ended.attrs['status_message']}",
                iterations=ended.sizes["step"],
                residual=float(ended["level_residual"][-1]),
                reason="kkt",
            )
        reached = theta.new_tensor(ended["theta"].values[-1])
        state, corrections = flow.evaluate(reached), 0
        if not is_kkt(flow, state, self.limit):
            corrected = self._correct(flow, state, 10 * PATIENCE)
            state, corrections = corrected.state, corrected.n_corrections
        return Reached(state, at_level(flow, level), "walk", 0, corrections)

    def _correct(self, flow: RegularizingFlow, state: FlowState, patience: int) -> Corrected:
        with self.budget(), numerics():
            return correct(flow, state, self.memory, self.limit, patience)

    def budget(self) -> AbstractContextManager[None]:
        """Allow as many evaluations as are left."""
        return self.flow.problem.budget(self.left)


def halfway(a: float, b: float) -> float:
    """A level between two: their geometric mean, or where one is not positive their mean."""
    return math.sqrt(a * b) if a > 0 and b > 0 else (a + b) / 2
