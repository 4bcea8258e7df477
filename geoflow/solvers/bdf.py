"""Backward differentiation on the level set: variable order and step.

Each step solves the implicit equation of a formula of order 1 to 5 on the level set; see
:mod:`geoflow.solvers.multistep.history` for the formulas and
:mod:`geoflow.solvers.multistep.corrector` for their solution. All points of the history lie on the
level set, since every step ends there.

An implicit equation is solved by images of A taken between one correction and the next. Where the
level set bends within a step, as that of a small transformer does, they are far from A, and steps
have to be short although A itself would allow longer ones; an exponential method, whose images are
taken at a point, makes those. So after many attempts in vain some steps are made by
:class:`geoflow.solvers.exponential.Exponential`, and their ends are points of the history like all
others.

Of a network trained to a low loss the level set is curved so much that what an implicit equation
leaves at a loose tolerance is not small beside its radius of curvature. Once a re-projection has
failed after an equation that counts as solved, or several attempts were in vain, less is left for
the rest of the walk; the others do not pay for it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from geoflow.errors import ArchiveError, InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.solvers.base import REGULARIZER, Carry, StepResult, Tolerance, check_descent
from geoflow.solvers.carried import called, check_numbers, check_tensor, check_wholes
from geoflow.solvers.control import (
    TOO_FAR,
    TOO_INACCURATE,
    check_step,
    clip_step,
    first_step,
)
from geoflow.solvers.exponential import Exponential
from geoflow.solvers.multistep.corrector import (
    MAX_ITERATIONS,
    Corrected,
    IndefiniteError,
    LandingError,
    correct,
)
from geoflow.solvers.multistep.history import MAX_ORDER, History
from geoflow.solvers.multistep.secant import BLOCK, BLOCKS, SecantPairs
from geoflow.system.described import Described
from geoflow.system.kinds import as_whole

SAFETY = 0.85
# Growth of the step from one to the next, while the order is being found and afterwards.
GROW_AT_START, GROW = 3.0, 1.5
START_STEPS, START_ORDER = 10, 2
# And of one of order 1 after it, when what made the step short is passed.
GROW_AGAIN = 2.0
# A higher order has to promise this much more.
RAISE = 0.9
# Followed closely, a step is as long as its equation can be solved, not as its error allows. The
# order is then that which would be best at so small a part of the tolerance: it predicts better.
TIGHTER = 1e-3
# The next step after an implicit equation that could not be solved, and the most that it may grow
# after one that took more than so many corrections. What a correction costs is spent best by steps
# of seven to ten; near to where the equation can be solved no more they grow slowly.
UNSOLVED = 0.5
# At the least, where the equation has told how much too long its step was.
SHORTEST = 0.25
# And while no step has been made: from the start on, what is known of A is learned anew by each
# attempt, and too long a step by a hundredfold is the rule at a low loss.
AT_FIRST = 0.1
GROW_BY_CORRECTIONS = ((10, 0.9), (7, 1.0), (4, 1.1))
# Where ‖∇L‖ has fallen to less than this part over a step, the walk goes around an end of the level
# set, and λ has grown as much as the gradient has fallen: the next step is no longer than that part
# of this one. What is known of A is that of the smaller λ.
FALLEN = 0.7
# Attempts in vain, those of each step before counting for so much less, from which on the level set
# is followed closely, and the next steps are made by the exponential method: how many at first,
# twice as many each time after, and at most. Walks of iris_ff, mpg_ff and mnist_ff stay below both.
FADING, SOME_IN_VAIN, MANY_IN_VAIN = 0.9, 2.5, 5.0
ASIDE, LONGEST_ASIDE = 8, 64
# Errors of so many steps add up, as many as a method of the highest order takes at this power of it
# as rtol.
MANY_STEPS = 10.0
# Rejections in a row after which the order is lowered too.
PATIENCE = 2


class BDF(Described):
    """Backward differentiation formulas of order 1 to 5 on the level set.

    Parameters
    ----------
    pairs : int
        Directions that the curvature is known by at the most, beside the newest pairs of vectors;
        each takes half as much memory as one θ in float64. There are as many as differ from what
        is beside them: a dozen on ``iris_ff``, and up to forty on ``mpg_ff`` and ``mnist_ff``.
    max_order : int
        Highest order taken, from 1 to 5.

    Raises
    ------
    InputError
        ``pairs`` is not positive, ``max_order`` not from 1 to 5, or one no whole number.
    """

    name = "bdf"
    dense = True
    needs: tuple[str, ...] = (REGULARIZER,)

    def __init__(self, *, pairs: int = 40, max_order: int = MAX_ORDER) -> None:
        pairs = as_whole(pairs, "pairs")
        max_order = as_whole(max_order, "max_order")
        if pairs < 1:
            raise InputError(f"pairs={pairs!r}; use a positive whole number such as 40")
        if not 1 <= max_order <= MAX_ORDER:
            raise InputError(f"max_order={max_order!r}; use a whole number from 1 to {MAX_ORDER}")
        self.pairs = pairs
        self.order = max_order
        # In single precision: directions and those that they are made into, pairs and their copy,
        # the corrections of a step and their images.
        self.singles = 2 * pairs + 2 * BLOCK * (BLOCKS + 2) + 2 * MAX_ITERATIONS
        # Beside these the history and the next one; states and what goes between them.
        self.vectors = self.singles + 2 * (MAX_ORDER + 1) + 8

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"pairs": self.pairs, "max_order": self.order}

    def bytes_at(self, theta: Tensor) -> int:
        """Bytes of all vectors at the most."""
        others = self.vectors - self.singles
        each = self.singles * torch.float32.itemsize + others * theta.element_size()
        return theta.numel() * each

    def init(self, flow: RegularizingFlow, state: FlowState, tolerance: Tolerance) -> Carry:
        """Start at order 1, with a step about as long as the error allowed."""
        check_descent(self, state)
        return {
            "step_size": first_step(state, tolerance.scale(state.theta)),
            "order": 1,
            "n_steps": 0,
            "n_since_order": 0,
            "points": state.theta[None].clone(),
            "ages": torch.zeros(1, dtype=torch.float64, device="cpu"),
        }

    def taken_up(self, carry: Carry, theta: Tensor) -> Carry:
        """A carry out of a checkpoint, with points, pairs and directions where θ is.

        Raises
        ------
        ArchiveError
            Names the first entry that cannot have been carried.
        """
        check_numbers(carry, "step_size", least=math.ulp(0.0))
        check_wholes(carry, "order", least=1, most=MAX_ORDER)
        check_wholes(carry, "n_steps", "n_since_order")
        # Archives of earlier versions do not have all of these.
        check_numbers(carry, "in_vain", "closely", optional=True)
        check_wholes(carry, "aside", least=1, optional=True)
        check_wholes(carry, "n_aside", optional=True)
        points = check_tensor(carry, "points", (None, theta.numel()), theta.dtype)
        ages = check_tensor(carry, "ages", (len(points),), torch.float64).cpu()
        if not (len(ages) and ages[0] == 0 and bool((ages.diff() > 0).all())):
            raise ArchiveError(f"{called('ages')} does not increase from 0")
        # Of the steps that the exponential method has made, or is to make.
        found = Exponential().taken_up(carry, theta)
        found |= {"points": points.to(theta.device), "ages": ages}
        return found | SecantPairs.taken_up(carry, theta)

    def step(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        carry: Carry,
        tolerance: Tolerance,
        max_time: float,
    ) -> StepResult:
        """Make one accepted step; one cut short by ``max_time`` leaves the history in order."""
        wanted = float(carry["step_size"])
        step = asked = clip_step(wanted, max_time)
        if carry.get("n_aside", 0):
            return _aside(flow, state, carry, tolerance, max_time)
        history = _history(carry)
        n_pairs = min(self.pairs, state.theta.numel())
        pairs = SecantPairs.unpack(carry, n_pairs)
        allowed = tolerance.per_step(state.theta, self.order, MANY_STEPS ** -(self.order + 1))
        order, since = int(carry["order"]), int(carry["n_since_order"])
        n_rejected = n_corrections = 0
        closely = bool(carry.get("closely", False))
        in_vain = FADING * float(carry.get("in_vain", 0.0))
        while True:
            order = min(order, max(len(history) - 1, 1))
            formula = history.formula(order, step, state.velocity)
            try:
                corrected = correct(flow, formula, pairs, allowed, closely)
                n_corrections += corrected.iterations
                moved = corrected.state.theta - formula.predicted
                error = formula.error_constant * float(torch.linalg.vector_norm(moved)) / allowed
                if error <= 1:
                    break
                factor, cause = max(0.2, SAFETY * error ** (-1 / (order + 1))), TOO_INACCURATE
            except TOO_FAR as failure:
                n_corrections += getattr(failure, "iterations", 0)
                factor, cause = UNSOLVED, str(failure)
                if isinstance(failure, IndefiniteError):
                    # As far as where the smallest eigenvalue found of I + cA would be zero.
                    factor = min(UNSOLVED, max(SHORTEST, 1 / (1 - failure.least)))
                if not int(carry["n_steps"]):
                    factor = min(factor, AT_FIRST)
                # So far off it has learned a curvature that misleads a shorter step.
                pairs = SecantPairs.unpack(carry, n_pairs)
                # Where there is no loss, or no gradient, an exponential step ends too.
                in_vain += getattr(failure, "reason", "") == "iterations"
                closely = closely or isinstance(failure, LandingError) or in_vain > SOME_IN_VAIN
                if in_vain > MANY_IN_VAIN:
                    length = int(carry.get("aside", ASIDE))
                    start = {**carry, "step_size": asked, "n_aside": length, "closely": closely}
                    start["aside"] = min(2 * length, LONGEST_ASIDE)
                    done = _aside(flow, state, start, tolerance, max_time)
                    return replace(
                        done,
                        n_rejected=n_rejected + 1 + done.n_rejected,
                        n_reprojection=n_corrections + done.n_reprojection,
                    )
            n_rejected += 1
            step *= factor
            if n_rejected > PATIENCE:
                order = max(order - 1, 1)
            check_step(step, state, cause)
        chosen, following = _following(
            history, corrected, carry, order, step, error, allowed, self.order, closely
        )
        if n_rejected:
            following = min(following, step)
        fallen = float((corrected.state.gradient_norms / state.gradient_norms).min())
        if fallen < FALLEN:
            following = min(following, step * fallen)
        following = min(following, _longest(corrected.state))
        if step == asked < wanted and following >= step:
            # A step cut short by max_time says little about how long a step could be.
            following = max(following, wanted)
        extended = history.extended(corrected.state.theta, step, following)
        passed = history.through(corrected.state.theta, step, order)
        return StepResult(
            state=corrected.state,
            carry={
                "step_size": following,
                "order": chosen,
                # A rejection ends the start: where it came from another is near.
                "n_steps": START_STEPS if n_rejected else int(carry["n_steps"]) + 1,
                "n_since_order": 0 if n_rejected or chosen != order else since + 1,
                "in_vain": in_vain,
                "closely": closely,
                "aside": int(carry.get("aside", ASIDE)),
                "points": extended.points,
                "ages": torch.from_numpy(extended.ages),
                **pairs.pack(),
            },
            time=step,
            error_estimate=error,
            n_rejected=n_rejected,
            n_reprojection=n_corrections,
            interpolant=lambda time: passed.at(step - time, order + 1),
        )

    def interpolate(self, carry: Carry, age: float) -> Tensor:
        """θ within the last step, shape (P,), to the accuracy of the step but not re-projected.

        Parameters
        ----------
        carry : dict
            That of the step's end.
        age : float
            Flow time before that end.
        """
        return _history(carry).at(age, int(carry["order"]))


def _aside(
    flow: RegularizingFlow, state: FlowState, carry: Carry, tolerance: Tolerance, max_time: float
) -> StepResult:
    """Make one step by the exponential method; after the last of them order 1 goes on."""
    done = Exponential().step(flow, state, carry, tolerance, max_time)
    extended = _history(carry).extended(done.state.theta, done.time, float(done.carry["step_size"]))
    following: Carry = {
        "n_aside": int(carry["n_aside"]) - 1,
        "in_vain": 0.0,
        "order": 1,
        "n_steps": START_STEPS,
        "n_since_order": 0,
        "points": extended.points,
        "ages": torch.from_numpy(extended.ages),
    }
    return replace(done, carry={**carry, **done.carry, **following})


def _history(carry: Carry) -> History:
    points, ages = carry["points"], carry["ages"]
    assert isinstance(points, Tensor), "points are a tensor"
    assert isinstance(ages, Tensor), "ages are a tensor"
    return History(points, ages.cpu().numpy())


def _longest(state: FlowState) -> float:
    """Flow time in which ∇R would change θ by so much that all of it is lost to rounding.

    Beyond it an implicit step is the same whatever its length; near rest they would grow for ever.
    """
    size = float(torch.linalg.vector_norm(state.theta))
    # ∇R may vanish on the level set.
    least = torch.finfo(state.theta.dtype).tiny
    speed = max(float(torch.linalg.vector_norm(state.regularizer_gradient)), least)
    return size / (torch.finfo(state.theta.dtype).eps * speed)


def _following(
    history: History,
    corrected: Corrected,
    carry: Carry,
    order: int,
    step: float,
    error: float,
    allowed: float,
    max_order: int,
    closely: bool,
) -> tuple[int, float]:
    """Order and size of the next step: those that promise the longest."""
    factors = {order: max(error, 1e-10) ** (-1 / (order + 1))}
    theta = corrected.state.theta
    others = [other for other in (order - 1, order + 1) if other <= max_order]
    for other, size in history.errors(others, theta, step).items():
        factors[other] = max(size / allowed, 1e-10) ** (-1 / (other + 1))
    chosen = order
    if int(carry["n_since_order"]) >= order:
        part = TIGHTER if closely else 1.0
        promise = {o: f * part ** (1 / (o + 1)) for o, f in factors.items()}
        chosen = max(promise, key=lambda o: promise[o] * (RAISE if o > order else 1))
    starting = order <= START_ORDER and int(carry["n_steps"]) < START_STEPS
    again = GROW_AGAIN if order == 1 else GROW
    factor = min(SAFETY * factors[chosen], GROW_AT_START if starting else again)
    for corrections, most in GROW_BY_CORRECTIONS:
        if corrected.iterations > corrections:
            factor = min(factor, most)
    return chosen, step * factor
