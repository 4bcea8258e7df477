"""From one level to a KKT point on another: moves along the normal, and relaxations.

What is solved is the bordered system of

    ∇R + λ∇L = 0,    L = c,

for θ and λ. In the tangent space it reads A d = −Π∇R, with A = Π(∇²R + λ∇²L)Π; along the normal
Newton's step reaches L = c. Far from its solution the linear model of Π∇R holds for a small part
of that d only: the outliers of A, 10³ to 10⁴ times the rest, are made up of normals that turn on
the way. So what is solved is (A + 1/τ) d = −Π∇R, a step of flow time τ by the linearly implicit
Euler method, which becomes Newton's as τ grows: pseudo-transient continuation (Kelley & Keyes,
SIAM J. Numer. Anal. 35, 1998).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.linearization import TangentHessian
from geoflow.paths.learned import FIRST_REACH, FIRST_TIME, Learned
from geoflow.paths.scale import away, same_side
from geoflow.paths.tangent_solver import (
    LossCurvature,
    Solved,
    bulk_of,
    oblique_normal,
    solve,
)
from geoflow.problems.counting import own_evaluations
from geoflow.solvers.multistep.secant import resolved

# Farther from its level than this, in log L, a point is moved there, not relaxed there.
NEAR = 0.1
# The most that a move changes log L; how its reach grows from one to the next.
FURTHEST, FARTHER = math.log(4.0), 1.2
# ‖Π∇R‖/‖∇R‖ that the linear model of a move may foretell; and that after it is good, or too much.
FORETOLD, GOOD, TOO_MUCH = 0.3, 0.36, 0.6
# Flow time over which a move keeps to the KKT points. All flow times that are numbers here, and
# what is remembered of them, are in units of the flow's own scale of time.
MOVE_TIME = 0.05
# A relaxation is solved to this part of Π∇R, or until it promises this part of what is wanted: it
# is made where Π∇R is above that.
FORCING, AIM = 0.5, 0.9
# Flow time grows where the linear model was right, and shrinks where it was wrong; a relaxation
# that is more than so far wrong is made again, shorter.
GROW, SHRINK = 2.0, 0.3
RIGHT, USABLE = 0.3, 0.8
# Longer than this a step is all but Newton's: where the model is ten times better, grow faster.
NEWTON, GROW_FAST = 1.0, 10.0
# By how much the loss may change in a relaxation, in log L.
DRIFT = 0.3
# Where R + λL falls by what is foretold of it, up to this part, a relaxation is made that raises
# ‖Π∇R‖/‖∇R‖ to no more than this: the stiff directions, which make it up, are soon done with.
ALIKE, RAISED = 0.1, 0.25
# R + λL is known to so many units of rounding.
NOISE = 1e4
# Beyond this ‖Π∇R‖/‖∇R‖, λ says nothing.
LOST = 0.9
# A step that was wrong is made shorter so often in the space of its solution.
TRIES = 3
# Shorter than this no step is worth an evaluation.
SHORTEST = 1e-6


@dataclass(frozen=True)
class Corrected:
    """A KKT point on its level.

    Attributes
    ----------
    state : FlowState
        There.
    n_corrections : int
        Moves and relaxations made.
    """

    state: FlowState
    n_corrections: int


def is_kkt(flow: RegularizingFlow, state: FlowState, limit: float) -> bool:
    """Whether a state is on its level with λ > 0 and ‖Π∇R‖ ≤ ``limit``·‖∇R‖."""
    on_level = abs(flow.level_set.residual(state.loss)) <= flow.level_set.tolerance
    return on_level and state.multiplier > 0 and residual_of(state) <= limit


def residual_of(state: FlowState) -> float:
    """‖Π∇R‖/‖∇R‖; infinite where ∇R vanishes, which no path comes to."""
    vanishes = state.multiplier == state.tangent_norm == 0
    return math.inf if vanishes else state.kkt_residual


def correct(
    flow: RegularizingFlow, state: FlowState, memory: Learned, limit: float, patience: int
) -> Corrected:
    """Come from a state, on another level, to a KKT point on the level of ``flow``.

    Parameters
    ----------
    flow : RegularizingFlow
        Evaluates; its level is where to come to.
    state : FlowState
        Where to start.
    memory : Learned
        What is known; takes in what is learned.
    limit : float
        ‖Π∇R‖/‖∇R‖ to come to.
    patience : int
        Evaluations after which it is given up.

    Raises
    ------
    ConvergenceError
        It does not converge.
    CriticalPointError
        ∇L vanishes.
    """
    correction, spent0 = _Correction(flow, state, memory, limit), own_evaluations(flow.problem)
    while not is_kkt(flow, correction.state, limit):
        spent = own_evaluations(flow.problem) - spent0
        if spent >= patience or min(memory.time, memory.reach) < SHORTEST:
            memory.time, memory.reach = FIRST_TIME, FIRST_REACH
            raise ConvergenceError(
                f"no KKT point on L = {flow.level_set.level:.6g} is reached from L = "
                f"{state.loss:.6g} within {spent} evaluations",
                iterations=correction.count,
                residual=flow.level_set.residual(correction.state.loss),
                reason="kkt",
            )
        correction.make()
    return Corrected(correction.state, correction.count)


class _Correction:
    """The state of a correction on its way."""

    def __init__(
        self, flow: RegularizingFlow, state: FlowState, memory: Learned, limit: float
    ) -> None:
        self.flow, self.state, self.memory, self.limit = flow, state, memory, limit
        self.count = 0
        # Whether the last move from here failed; and dθ/dL from here, where it is known.
        self.stuck = False
        self.tangent: Tensor | None = None

    def make(self) -> None:
        """Make one move or relaxation, and come to where it led if that is any better."""
        self.count += 1
        state, memory = self.state, self.memory
        distance = away(state.loss, self.flow.level_set.level)
        if abs(distance) <= NEAR * min(1.0, 1.5 * memory.reach):
            self._relax(onto_level=True)
        elif residual_of(state) >= TOO_MUCH or (self.stuck and residual_of(state) > 2 * self.limit):
            self._relax(onto_level=False)
        else:
            self._move(distance)

    @property
    def _unit(self) -> float:
        """Of changes of L: linear in log L, in which a loss is less curved than it is itself.

        Where L = 0 lies on the way no change in log L leads there.
        """
        loss, level = self.state.loss, self.flow.level_set.level
        return abs(loss) if same_side(loss, level) else max(abs(loss), abs(level))

    def _gone(self, loss: float) -> float:
        """How far a loss is above that of the state: in log L, or where 0 is on the way in L."""
        here, level = self.state.loss, self.flow.level_set.level
        if same_side(loss, here) and same_side(here, level):
            return away(loss, here)
        return (loss - here) / self._unit

    def _come_to(self, state: FlowState) -> None:
        self.state, self.stuck, self.tangent = state, False, None

    def _move(self, distance: float) -> None:
        """Towards the level, along the path as its linear model has it."""
        state, memory = self.state, self.memory
        part = math.copysign(min(abs(distance), memory.reach), distance)
        change = -part * self._unit
        if self.tangent is None:
            self.tangent = self._tangent(change)
        reached = _tried(self.flow, state.theta + change * self.tangent)
        fits = (
            reached is not None
            and reached.multiplier > 0
            and residual_of(reached) <= TOO_MUCH
            and abs(self._gone(reached.loss) + part) < FIRST_REACH
        )
        if reached is None or not fits:
            memory.reach = min(memory.reach, abs(part)) / 2
            self.stuck = True
            return
        if residual_of(reached) < GOOD:
            memory.reach = min(FARTHER * memory.reach, FURTHEST)
        self._come_to(reached)

    def _tangent(self, change: float) -> Tensor:
        """Return about dθ/dL along the path: along the normal, and what restores Π∇R = 0.

        Solved no better than a change of L by ``change`` needs.
        """
        state = self.state
        operator = TangentHessian(self.flow, state)
        size = 1 / state.gradient_norm
        image, of_loss = operator(operator.normal)
        if bool(torch.isfinite(of_loss).all()):
            self.memory.curvature.add(operator.normal, of_loss)
        norm = float(torch.linalg.vector_norm(state.regularizer_gradient))
        allowed = FORETOLD * norm / (abs(change) * size)
        if float(torch.linalg.vector_norm(image)) <= allowed:
            return operator.normal * size

        def enough(x: Tensor, left: Tensor) -> bool:
            return float(torch.linalg.vector_norm(left)) <= allowed

        shift = 1 / (MOVE_TIME * state.time_scale)
        solved = solve(operator, self.memory.curvature, -image, shift=shift, enough=enough)
        return (operator.normal + solved.solution) * size

    def _relax(self, *, onto_level: bool) -> None:
        """Towards the KKT point, and onto the level: some products and one evaluation."""
        state, memory = self.state, self.memory
        operator = TangentHessian(self.flow, state)
        time = self._time(operator)
        if residual_of(state) <= AIM * self.limit:
            self._return(operator, time)
            return
        solved = self._solved(operator, time)
        for _ in range(TRIES):
            if solved.indefinite and not bool(solved.solution.any()):
                memory.time = SHRINK * time / state.time_scale
                return
            normal = None
            if onto_level:
                normal = oblique_normal(operator, memory.curvature, 1 / time)
            if self._comes(solved, time, normal):
                return
            # The products hold for any τ: a shorter step costs its evaluation alone.
            time = SHRINK * time
            solved = solved.space.solve(1 / time)

    def _return(self, operator: TangentHessian, time: float) -> None:
        """Onto the level, where Π∇R is small enough already."""
        state, memory = self.state, self.memory
        normal = oblique_normal(operator, memory.curvature, 1 / time)
        excess = self.flow.level_set.residual(state.loss)
        reached = _tried(self.flow, torch.sub(state.theta, normal, alpha=excess))
        if reached is None or abs(self._gone(reached.loss)) > DRIFT:
            memory.time = SHRINK * time / state.time_scale
            return
        _learn(memory.curvature, state, reached)
        self._come_to(reached)

    def _comes(self, solved: Solved, time: float, normal: Tensor | None) -> bool:
        """Make a relaxation of flow time τ, along a normal too, and say whether it is any good."""
        state, memory = self.state, self.memory
        along, left = solved.solution, solved.residual
        step = along
        if normal is not None:
            # What the tangent step will add to the loss, by its second order, is taken off too:
            # without, one path of iris_ff in three costs 30% more.
            excess = self.flow.level_set.residual(state.loss) + solved.bend / 2
            step = torch.sub(along, normal, alpha=excess)
        reached = _tried(self.flow, state.theta + step)
        if reached is None or abs(self._gone(reached.loss)) > DRIFT:
            memory.time = SHRINK * time / state.time_scale
            return False
        _learn(memory.curvature, state, reached)
        # What the linear model has foretold is x/τ less the residual, and −velocity is Π∇R.
        wrong = reached.velocity - along / time - left
        error = float(torch.linalg.vector_norm(wrong)) / state.tangent_norm
        before, after = residual_of(state), residual_of(reached)
        foretold = error <= USABLE or after < AIM * before
        if not foretold and after < RAISED:
            foretold = self._lowered(reached, along, left, time)
        if after > max(LOST, before) or not foretold:
            memory.time = SHRINK * time / state.time_scale
            return False
        if error < RIGHT:
            taken = time / state.time_scale
            fast = error < RIGHT / 10 and taken > NEWTON
            memory.time = max(memory.time, taken * (GROW_FAST if fast else GROW))
        elif error > 1 and after >= RAISED:
            memory.time = SHRINK * time / state.time_scale
        self._come_to(reached)
        return True

    def _lowered(self, reached: FlowState, along: Tensor, left: Tensor, time: float) -> bool:
        """Whether R + λL fell by what its quadratic model has foretold.

        Its gradient is Π∇R: what that has of the stiff directions is much of a residual, next to
        nothing of R, and gone within a product or two. Saves 8% of a path of mpg_ff.
        """
        state = self.state
        ahead = state.velocity - left - along / time
        foretold = float(torch.dot(along, state.velocity)) - float(torch.dot(along, ahead)) / 2
        lam = state.multiplier
        fell = state.regularizer - reached.regularizer + lam * (state.loss - reached.loss)
        eps = torch.finfo(along.dtype).eps
        noise = NOISE * eps * (abs(state.regularizer) + abs(lam * state.loss))
        return foretold > noise and abs(fell / foretold - 1) < ALIKE

    def _time(self, operator: TangentHessian) -> float:
        """τ: no longer than it takes where A is as R alone is, which takes the longest."""
        needed = residual_of(self.state) / (AIM * self.limit) - 1
        time = self.memory.time * self.state.time_scale
        return min(time, needed / bulk_of(operator, self.state.velocity)) if needed > 0 else time

    def _solved(self, operator: TangentHessian, time: float) -> Solved:
        state, residual = self.state, residual_of(self.state)
        forcing = min(FORCING, math.sqrt(residual)) * state.tangent_norm
        wanted = AIM * self.limit * state.tangent_norm / residual

        def enough(x: Tensor, left: Tensor) -> bool:
            if float(torch.linalg.vector_norm(left)) <= forcing:
                return True
            return float(torch.linalg.vector_norm(x / time + left)) <= wanted

        return solve(operator, self.memory.curvature, state.velocity, shift=1 / time, enough=enough)


def _learn(curvature: LossCurvature, before: FlowState, after: FlowState) -> None:
    """Take in what two gradients say of ∇²L in between.

    Saves 6% of a path of mpg_ff; of small networks' some cost less without.
    """
    s = after.theta - before.theta
    size = resolved(s, after.theta)
    if size:
        curvature.add(s / size, (after.gradient - before.gradient) / size)


def _tried(flow: RegularizingFlow, theta: Tensor) -> FlowState | None:
    """State at a point, or None where the loss is not finite or flat."""
    try:
        return flow.evaluate(theta)
    except (ConvergenceError, CriticalPointError):
        return None
