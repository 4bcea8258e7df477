"""From the KKT point on one level to that on the next, by the corrector or by the flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch

from geoflow.errors import (
    BranchError,
    ConvergenceError,
    CriticalPointError,
    EvaluationLimitError,
    InputError,
    NumericalError,
)
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.protocol import apart_from
from geoflow.paths.arclength import FIRST, Arc, OnArc, strides_to
from geoflow.paths.branch import FarError, Reached, check_near, check_no_fold
from geoflow.paths.corrector import Corrected, correct, is_kkt
from geoflow.paths.learned import Bearing, Learned
from geoflow.paths.scale import Scale
from geoflow.problems.counting import own_evaluations, shared_budget
from geoflow.system.threads import one_blas_thread
from geoflow.system.translation import numerics
from geoflow.walking.loop import walk_from
from geoflow.walking.settings import WalkSettings
from geoflow.walking.stopping import Stationary

# Evaluations after which the corrector gives way to the flow, and that to a level halfway; and
# Newton's iterations along the normals after which the flow gives up to come onto a level.
PATIENCE, PROJECTIONS = 150, 40
# The way to a level is halved so often before the path is taken to end: no step is shorter.
MAX_HALVINGS = 8
# The flow comes to this angle at reasonable cost; what is wanted beyond is left to the corrector.
FLOW_DEGREES = 175.0
# The first walk is a long one. Those onto further levels are a few steps long, and `exponential`
# needs none to learn the curvature in.
FIRST_SOLVER, SOLVER = "bdf", "exponential"

# Evaluations after which no fold is looked for any longer; and after one, the next point. Neither
# is more than so many times what a level may take.
ARC_PATIENCE, ARC_PATIENCE_ROUND = 500, 2000
ARC_PART, ARC_PART_ROUND = 1, 4
# After so many strides on end that leave no prospect of a fold or a level, it is given up.
NO_PROSPECT = 2

FAILURES = (ConvergenceError, CriticalPointError, NumericalError)


def at_level(flow: RegularizingFlow, level: float) -> RegularizingFlow:
    """The same flow on another level."""
    own = flow.level_set
    return flow.on(LevelSet(flow.problem, level, own.level_rtol, level_atol=own.level_atol))


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
    memory : Learned
        What the levels so far have taught.
    left, left_of_r : int
        Evaluations that may still be made, and of R where it counts its own apart.
    short_of : Reached, optional
        The point nearest to the level that :meth:`to` did not reach.
    refused : bool
        Whether its last attempt came to a point that may be of another branch.
    """

    def __init__(self, flow: RegularizingFlow, limit: float, degrees: float) -> None:
        self.flow, self.limit, self.degrees = flow, limit, degrees
        self.memory = Learned.unknown(flow.problem.n_parameters)
        self.short_of: Reached | None = None
        self.refused = False
        self._end = self._end_of_r = 0

    @property
    def left(self) -> int:
        """Evaluations that may still be made."""
        return max(self._end - own_evaluations(self.flow.problem), 0)

    @left.setter
    def left(self, evaluations: int) -> None:
        self._end = own_evaluations(self.flow.problem) + evaluations
        self.left_of_r = evaluations

    @property
    def left_of_r(self) -> int:
        """Evaluations that the problems of R may still make, all together; set after ``left``."""
        return max(self._end_of_r - self._spent_by_r(), 0)

    @left_of_r.setter
    def left_of_r(self, evaluations: int) -> None:
        self._end_of_r = self._spent_by_r() + evaluations

    def _spent_by_r(self) -> int:
        return sum(map(own_evaluations, apart_from(self.flow)))

    def start(self) -> Reached:
        """Walk from θ0 to the first point, on the level of the flow.

        Raises
        ------
        ConvergenceError
            The walk ends before.
        """
        return self._by_flow(self.flow, None)

    @contextmanager
    def _within(self, evaluations: int, what: Callable[[], str]) -> Iterator[None]:
        """Allow at most so many evaluations, of those that are left of the whole path.

        Raises
        ------
        ConvergenceError
            They are spent, and those of the path are not: it says ``what`` failed.
        """
        whole = self._end
        self._end = min(whole, own_evaluations(self.flow.problem) + evaluations)
        try:
            yield
        except EvaluationLimitError:
            # Or those of R are, which are allowed for the whole path alone.
            if self._end == whole or self.left_of_r <= self.left:
                raise
            raise ConvergenceError(
                f"{what()} within {evaluations} evaluations: it is given up; name levels in "
                "between",
                iterations=0,
                residual=math.nan,
                reason="kkt",
            ) from None
        finally:
            self._end = whole

    def to(self, level: float, before: Reached, allowed: int) -> Reached:
        """From a point to that on another level, within so many evaluations.

        Raises
        ------
        ConvergenceError, CriticalPointError, NumericalError
            No point is reached there.
        BranchError
            The path folds on the way there, or λ changes its sign.
        """

        def what() -> str:
            other = " but one that may be of another branch" if self.refused else ""
            at = self.short_of
            beyond = "" if at is None or at.c == before.c else f" beyond L = {at.c:.6g}"
            return f"no KKT point on L = {level:.6g}{other} is reached{beyond}"

        with self._within(allowed, what):
            return self._to(level, before)

    def _to(self, level: float, before: Reached) -> Reached:
        at, between, corrections, method = before, 0, 0, "corrector"
        scale = Scale.between(before.c, level)
        length = scale.distance(before.c, level)
        shortest, halved = length / 2**MAX_HALVINGS, False
        self.memory.bearing, self.refused = None, False
        while at.c != level:
            self.short_of = at
            length = min(length, scale.distance(at.c, level))
            goal = scale.towards(level, at.c, length)
            near = length <= shortest
            try:
                # One that was too far is corrected anew from nearer: a long step is what jumps to
                # another branch, which R alone may not tell.
                found = self._step(goal, at)
                (check_no_fold if near else check_near)(at, found)
            except (*FAILURES, FarError) as failure:
                self.refused = isinstance(failure, FarError) and not failure.told
                if near:
                    raise
                length, halved = max(length / 2, shortest), True
                continue
            corrections += found.n_corrections
            method = found.method if found.method == "walk" else method
            at = found
            between += goal != level
            length, halved = length if halved else 2 * length, False
        return replace(at, method=method, n_between=between, n_corrections=corrections)

    def round(self, at: Reached, goal: float, stops: Sequence[float], allowed: int) -> Reached:
        """From a point along the arc of the branch to the next that is worth a record.

        That is a fold, or after a fold a level of ``stops``, or ``goal``.

        Parameters
        ----------
        at : Reached
            Where :meth:`to` was left, or where this method came to last.
        goal : float
            The level that was not reached.
        stops : sequence of float
            Levels at which the branch is recorded again.
        allowed : int
            Evaluations that a level may take.

        Raises
        ------
        ConvergenceError, CriticalPointError, NumericalError
            The branch is lost, or does not fold nearby.
        BranchError
            It has come back to beyond all levels.
        """
        if self.memory.bearing is None:
            patience = min(ARC_PATIENCE, ARC_PART * allowed)
        else:
            patience = min(ARC_PATIENCE_ROUND, ARC_PART_ROUND * allowed)
        with self._within(patience, lambda: "the branch comes to no fold and no level"):
            return self._round(at, goal, stops, patience)

    def _round(self, at: Reached, goal: float, stops: Sequence[float], patience: int) -> Reached:
        arc, bearing = Arc(at_level(self.flow, at.c), self.memory, self.limit), self.memory.bearing
        before, strides, hopeless = own_evaluations(self.flow.problem), 0, 0
        with self.budget(), numerics(), one_blas_thread():
            if bearing is None:
                wanted = [goal]
                rising = math.copysign(1.0, goal - at.c)
                point = arc.start(at.state, rising)
                length = FIRST * float(torch.linalg.vector_norm(at.state.theta))
                bearing = Bearing(point.direction, length, rising)
            else:
                wanted = [goal, *stops]
                point = OnArc(at.state, bearing.direction)
            while hopeless < NO_PROSPECT:
                after, ahead = arc.stride(point, bearing)
                found, rising = after, bearing.rising
                if after.slope * rising < 0:
                    found, rising = arc.fold(point, after), -rising
                level = _passed(point.state.loss, found.state.loss, wanted, at.c)
                if level is not None:
                    found, rising = arc.onto(level, point, found), bearing.rising
                if level is not None or rising != bearing.rising:
                    self.memory.bearing = Bearing(found.direction, ahead.stride, rising)
                    there = at_level(self.flow, found.state.loss if level is None else level)
                    return Reached(found.state, there, "arclength", 0, arc.count)
                coming = [level for level in wanted if (level - after.state.loss) * rising >= 0]
                if len(wanted) > 1 and not coming:
                    raise BranchError(
                        f"it leads back beyond all levels, to L = {after.state.loss:.6g}",
                        status="fold",
                    )
                strides += 1
                spent = own_evaluations(self.flow.problem) - before
                needed = spent / strides * strides_to(point, after, coming, ahead.stride)
                hopeless = hopeless + 1 if spent + needed > patience else 0
                point, bearing = after, ahead
        raise ConvergenceError(
            f"the branch shows no turn at L = {point.state.loss:.6g}, where it would take more "
            f"than {patience} evaluations to a level",
            iterations=arc.count,
            residual=point.state.loss - goal,
            reason="kkt",
        )

    def _step(self, level: float, before: Reached) -> Reached:
        flow = at_level(self.flow, level)
        try:
            found = self._correct(flow, before.state, PATIENCE)
            return Reached(found.state, flow, "corrector", 0, found.n_corrections)
        except FAILURES:
            return self._by_flow(flow, before.state)

    def _by_flow(self, flow: RegularizingFlow, before: FlowState | None) -> Reached:
        """Walk on a level from θ0, or from a state on another."""
        level, theta = flow.level_set.level, flow.problem.theta0
        if before is not None:
            evaluated = before.loss, before.gradient
            with self.budget(), numerics(), one_blas_thread():
                theta = flow.level_set.project(
                    before.theta, evaluated=evaluated, max_iterations=PROJECTIONS
                ).theta
        # A walk has one for both. What ends it is mostly what the path has less left of.
        budget = max(min(self.left, self.left_of_r), 1)
        settings = WalkSettings(
            solver=FIRST_SOLVER if before is None else SOLVER,
            stop=Stationary(min(self.degrees, FLOW_DEGREES)),
            max_evaluations=budget,
            max_snapshots=2,
        )
        try:
            ended = walk_from(flow, theta, settings)
        except InputError as error:
            # Its budget, which is what is left of the path's, was too small to begin with.
            if isinstance(error.__cause__, EvaluationLimitError):
                raise error.__cause__ from None
            raise
        status = ended.attrs["status"]
        if status == "interrupted":
            raise KeyboardInterrupt
        if status == "max_evaluations":
            raise EvaluationLimitError(ended.attrs["status_message"])
        if status == "negative_multiplier":
            raise BranchError(
                f"on L = {level:.6g} R falls towards a lower loss (λ < 0): the path ends before it",
                status=status,
            )
        if status not in ("stationary", "at_rest"):
            raise ConvergenceError(
                f"the walk on L = {level:.6g} ended: {ended.attrs['status_message']}",
                iterations=ended.sizes["step"],
                residual=float(ended["level_residual"][-1]),
                reason="kkt",
            )
        reached = theta.new_tensor(ended["theta"].values[-1])
        state, corrections = flow.evaluate(reached), 0
        if state.multiplier == 0:
            raise BranchError(
                f"on L = {level:.6g} ∇R vanishes (λ = 0): no penalty has its solution there",
                status="negative_multiplier",
            )
        if not is_kkt(flow, state, self.limit):
            corrected = self._correct(flow, state, 10 * PATIENCE)
            state, corrections = corrected.state, corrected.n_corrections
        return Reached(state, at_level(flow, level), "walk", 0, corrections)

    def _correct(self, flow: RegularizingFlow, state: FlowState, patience: int) -> Corrected:
        with self.budget(), numerics(), one_blas_thread():
            return correct(flow, state, self.memory, self.limit, patience)

    @contextmanager
    def budget(self) -> Iterator[None]:
        """Allow as many evaluations as are left, and of R likewise."""
        apart = apart_from(self.flow)
        with self.flow.problem.budget(self.left), shared_budget(apart, self.left_of_r):
            yield


def _passed(before: float, after: float, levels: Sequence[float], here: float) -> float | None:
    """The level that is passed first from one loss to another, but the one that is started on."""
    between = [
        level
        for level in levels
        if (level - before) * (level - after) < 0 and not math.isclose(level, here, rel_tol=1e-5)
    ]
    return min(between, key=lambda level: abs(level - before), default=None)
