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

from geoflow.errors import ConvergenceError
from geoflow.manifold.flows import FlowState, RegularizingFlow
from geoflow.manifold.linearization import TangentHessian
from geoflow.paths.tangent_solver import LossCurvature, solve
from geoflow.solvers.multistep.corrector import evaluate

# Farther from its level than this, in log L, a point is brought there along the normal alone.
NEAR = 0.1
# A relaxation is solved to this part of Π∇R, or until it promises this part of what is wanted.
FORCING, GOAL = 0.3, 0.75
# Flow time of the first relaxation, and by how much one of which the linear model was right is
# lengthened and one that failed shortened.
FIRST_TIME, GROW, SHRINK = 0.05, 2.0, 0.3
RIGHT, WRONG = 0.3, 1.0
# Where the model was ten times better than that, it is lengthened by more.
GROW_FAST = 10.0
# Change of log L that a move may make, the first and the most.
FIRST_REACH, FURTHEST = math.log(2.0), math.log(4.0)
# By how much the loss may change in a relaxation, in log L.
DRIFT = 0.3
# Shorter than this no step is worth an evaluation.
SHORTEST = 1e-9


@dataclass
class Memory:
    """What one level has taught for the next.

    Attributes
    ----------
    curvature : LossCurvature
        Of ∇²L.
    time : float
        τ, flow time of the next relaxation.
    reach : float
        Change of log L that one move may make.
    """

    curvature: LossCurvature
    time: float = FIRST_TIME
    reach: float = FIRST_REACH

    @classmethod
    def unknown(cls, n_parameters: int) -> Memory:
        """Nothing is known yet."""
        return cls(LossCurvature.unknown(n_parameters))


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
    """‖Π∇R‖/‖∇R‖."""
    norm = float(torch.linalg.vector_norm(state.regularizer_gradient))
    return state.tangent_norm / norm if norm else math.inf


def correct(
    flow: RegularizingFlow, state: FlowState, memory: Memory, limit: float, patience: int
) -> Corrected:
    """Come from a state, on another level, to a KKT point on the level of ``flow``.

    Parameters
    ----------
    flow : RegularizingFlow
        Evaluates; its level is where to come to.
    state : FlowState
        Where to start.
    memory : Memory
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
    spent0, count = flow.problem.evaluations, 0
    while not is_kkt(flow, state, limit):
        if flow.problem.evaluations - spent0 >= patience or memory.time < SHORTEST:
            break
        count += 1
        away = _away(state.loss, flow.level_set.level)
        if abs(away) > min(NEAR, 1.5 * memory.reach):
            state = _move(flow, state, memory)
        else:
            state = _relax(flow, state, memory, limit)
        if memory.reach < SHORTEST:
            break
    else:
        return Corrected(state, count)
    memory.time, memory.reach = FIRST_TIME, FIRST_REACH
    raise ConvergenceError(
        f"no KKT point on L = {flow.level_set.level:.6g} is reached from L = {state.loss:.6g}",
        iterations=count,
        residual=flow.level_set.residual(state.loss),
        reason="kkt",
    )


def _away(loss: float, level: float) -> float:
    """How far a loss is above its level: in log L, or relative to the level where L ≤ 0."""
    return math.log(loss / level) if loss / level > 0 else (loss - level) / abs(level)


def _move(flow: RegularizingFlow, state: FlowState, memory: Memory) -> FlowState:
    """Towards the level, along the normal: one evaluation."""
    away = _away(state.loss, flow.level_set.level)
    part = math.copysign(min(abs(away), memory.reach), away)
    # Linear in log L, in which a loss is less curved than it is itself.
    change = -part * abs(state.loss)
    step = state.gradient * (change / state.gradient_norm**2)
    reached = _tried(flow, state.theta + step)
    if reached is None or abs(_away(reached.loss, state.loss) + part) > max(abs(part), 0.1):
        memory.reach = abs(part) / 2
        return state
    memory.reach = min(max(memory.reach, 1.2 * abs(part)), FURTHEST)
    return reached


def _relax(flow: RegularizingFlow, state: FlowState, memory: Memory, limit: float) -> FlowState:
    """Towards the KKT point and onto the level at once: some products and one evaluation."""
    operator = TangentHessian(flow, state)
    norm = float(torch.linalg.vector_norm(state.regularizer_gradient))
    residual = residual_of(state)
    along = left = torch.zeros_like(state.theta)
    relaxed = residual > limit
    if relaxed:
        forcing = min(FORCING, math.sqrt(residual))
        wanted = GOAL * limit * norm

        def enough(x: Tensor, left: Tensor) -> bool:
            # What the linear model leaves of Π∇R itself is x/τ less the residual.
            return float(torch.linalg.vector_norm(left)) <= forcing * state.tangent_norm or (
                float(torch.linalg.vector_norm(x / memory.time + left)) <= wanted
            )

        solved = solve(
            operator, memory.curvature, state.velocity, shift=1 / memory.time, enough=enough
        )
        if solved.indefinite and not bool(solved.solution.any()):
            memory.time *= SHRINK
            return state
        along, left = solved.solution, solved.residual
    onto = state.gradient * (flow.level_set.residual(state.loss) / state.gradient_norm**2)
    reached = _tried(flow, state.theta + along - onto)
    if not relaxed:
        if reached is None:
            raise ConvergenceError(
                "the loss is not finite beside the level",
                iterations=0,
                residual=math.nan,
                reason="diverged",
            )
        return reached
    worse = reached is None or residual_of(reached) > residual
    if reached is None or worse or abs(_away(reached.loss, state.loss)) > DRIFT:
        memory.time *= SHRINK
        return state
    # What the linear model had foretold: −velocity is Π∇R.
    foretold = along / memory.time + left
    error = float(torch.linalg.vector_norm(reached.velocity - foretold)) / state.tangent_norm
    if error < RIGHT:
        memory.time *= GROW_FAST if error < RIGHT / 10 else GROW
    elif error > WRONG:
        memory.time *= SHRINK
    return reached


def _tried(flow: RegularizingFlow, theta: Tensor) -> FlowState | None:
    """State at a point, or None where the loss is not finite."""
    try:
        return evaluate(flow, theta)
    except ConvergenceError:
        return None
