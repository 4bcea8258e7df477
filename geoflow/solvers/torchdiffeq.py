"""torchdiffeq's explicit solvers, one accepted step at a time, with re-projection."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from geoflow.errors import ConvergenceError, InputError
from geoflow.manifold.protocol import Flow, State
from geoflow.solvers.base import Carry, Interpolant, StepResult, Tolerance, norm
from geoflow.solvers.carried import check_numbers
from geoflow.solvers.control import TOO_FAR, check_step
from geoflow.solvers.interpolation import dormand_prince, hermite, moved_end
from geoflow.solvers.odeint import RETRY_FACTOR, Field, adaptive_step, fixed_steps, too_far
from geoflow.system import kinds
from geoflow.system.described import Described

ADAPTIVE = {"dopri5": 5, "dopri8": 8, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4, "explicit_adams": 4}

# Derivatives that torchdiffeq keeps of a step.
STAGES = {"dopri5": 7, "dopri8": 14, "bosh3": 4, "fehlberg2": 3, "adaptive_heun": 2}

# The first is the one that all solvers have.
ERROR_NORMS = ("state", "coordinate")
# Of explicit_adams, whose formulas have one order less. The first is as stable as RK4 roughly is;
# the other, torchdiffeq's own, is hardly stable at all.
MULTISTEP, MAX_ORDERS = "explicit_adams", (5, 12)
# Whose interpolant takes all stages, which are kept for it.
WITH_STAGES = "dopri5"


class TorchDiffEq(Described):
    """One of torchdiffeq's explicit methods, by torchdiffeq's own name.

    Parameters
    ----------
    method : str
        ``dopri5``, ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun``; or, with a fixed
        step, ``euler``, ``midpoint``, ``heun2``, ``heun3``, ``rk4``, ``explicit_adams``.
    step_size : float, optional
        Step of a fixed-step method, in flow time. None: the starting step that Hairer,
        Nørsett & Wanner (Solving ODEs I, section II.4) give for the tolerance. Such a method
        estimates no error: the tolerance has no other part in it, and bounds nothing.
    reproject_every : float, optional
        Flow time between re-projections. None: every accepted step. ``explicit_adams`` starts
        afresh after each, with RK4: re-projected at every step, **it is RK4**, and it is itself
        only where this is several steps long.
    error_norm : str, optional
        Of an adaptive method: ``"state"``, as for every other solver, has
        ‖error‖ ≤ rtol·‖θ‖ + atol·√P; ``"coordinate"`` weighs each coordinate by its own size, as
        torchdiffeq does by itself. None: ``"state"``. Walks archived before there was a choice
        go on by ``"coordinate"``.
    max_order : int, optional
        Of ``explicit_adams``: 5 is torchdiffeq's option for formulas of up to order 4. 12, which
        torchdiffeq has by itself, takes longer ones the longer it goes without re-projection, up to
        order 11, and **diverges** over more than some ten steps, however short these are. None: 5.
        Walks archived before there was a choice go on by 12.

    Attributes
    ----------
    order : int
        Order of convergence in the step size, that of an adaptive method at a fixed one.

    Raises
    ------
    InputError
        Unknown method, or a setting that is not positive or does not apply.
    """

    needs: tuple[str, ...] = ()

    def __init__(
        self,
        method: str = "dopri5",
        *,
        step_size: float | None = None,
        reproject_every: float | None = None,
        error_norm: str | None = None,
        max_order: int | None = None,
    ) -> None:
        kinds.check_choice(method, [*ADAPTIVE, *FIXED], "method")
        step_size = _duration(step_size, "step_size")
        reproject_every = _duration(reproject_every, "reproject_every")
        if step_size is not None and method in ADAPTIVE:
            raise InputError(f"step_size={step_size}: {method} chooses its own steps; leave it out")
        is_norm = isinstance(error_norm, str) and error_norm in ERROR_NORMS
        if error_norm is not None and (method in FIXED or not is_norm):
            known = f"one of {', '.join(ERROR_NORMS)}" if method in ADAPTIVE else "None"
            raise InputError(f"error_norm={kinds.shown(error_norm)}: {method} takes {known}")
        max_order = None if max_order is None else kinds.as_whole(max_order, "max_order")
        if max_order is not None and (method != MULTISTEP or max_order not in MAX_ORDERS):
            known = " or ".join(map(str, MAX_ORDERS)) if method == MULTISTEP else "None"
            raise InputError(f"max_order={max_order!r}: {method} takes {known}")
        self.name = method
        self.error_norm = error_norm or (ERROR_NORMS[0] if method in ADAPTIVE else None)
        self.max_order = max_order or (MAX_ORDERS[0] if method == MULTISTEP else None)
        self.order = ADAPTIVE.get(method) or FIXED[method]
        self.step_size = step_size
        self.reproject_every = reproject_every
        # Of dopri8 a cubic would fall far short, and a fixed step is cut at no cost.
        self.dense = method in ADAPTIVE and self.order <= ADAPTIVE[WITH_STAGES]
        self.vectors = self._vectors()

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        found = {
            "method": self.name,
            "step_size": self.step_size,
            "reproject_every": self.reproject_every,
        }
        own = {"error_norm": self.error_norm, "max_order": self.max_order}
        return found | {name: value for name, value in own.items() if value is not None}

    def init(self, flow: Flow, state: State, tolerance: Tolerance) -> Carry:
        """Choose the fixed step; an adaptive method chooses its first step itself."""
        if self.name in ADAPTIVE:
            return {"step_size": 0.0, "since_projection": 0.0}
        step = self.step_size or _starting_step(flow, state, tolerance, self.order)
        return {"step_size": step, "since_projection": 0.0}

    def taken_up(self, carry: Carry, theta: Tensor) -> Carry:
        """A carry out of a checkpoint.

        Raises
        ------
        ArchiveError
            One of its numbers is missing, or is none.
        """
        # An adaptive method that has none yet chooses it by itself.
        least = 0.0 if self.name in ADAPTIVE else math.ulp(0.0)
        check_numbers(carry, "step_size", least=least)
        check_numbers(carry, "since_projection")
        return carry

    def step(
        self,
        flow: Flow,
        state: State,
        carry: Carry,
        tolerance: Tolerance,
        max_time: float,
    ) -> StepResult:
        """Make one accepted step and, where it is due, re-project."""
        step = float(carry["step_size"])
        since = float(carry["since_projection"])
        n_rejected = n_newton = 0
        while True:
            field = Field(flow, state, keeps_stages=self.name == WITH_STAGES)
            time, theta, next_step = self._attempt(field, step, tolerance, max_time, since)
            n_rejected += field.n_rejected
            due = self.reproject_every is None or time >= self._left(since) * (1 - 1e-9)
            evaluated = field.evaluated_at(theta)
            known = None if evaluated is None else evaluated.evaluated
            try:
                if due:
                    end, projection = flow.project(theta, evaluated=known)
                    n_newton += projection.iterations
                else:
                    end = evaluated or flow.evaluate(theta)
                break
            except TOO_FAR as error:
                if self.name in FIXED:
                    # Newton's own failures have a status of their own.
                    if due and isinstance(error, ConvergenceError):
                        raise
                    raise too_far(self.name, step, str(error)) from error
                n_newton += getattr(error, "iterations", 0)
                n_rejected += 1
                step = time * RETRY_FACTOR
                check_step(step, state, str(error))
        return StepResult(
            state=end,
            carry={"step_size": next_step, "since_projection": self._since(since + time)},
            time=time,
            error_estimate=field.error_ratio,
            n_rejected=n_rejected,
            n_reprojection=n_newton,
            interpolant=self._interpolant(field, state, end, time),
        )

    def _attempt(
        self, field: Field, step: float, tolerance: Tolerance, max_time: float, since: float
    ) -> tuple[float, Tensor, float]:
        """The time of a step before re-projection, where it ends, and the size of the next."""
        if self.name in ADAPTIVE:
            # One step, however long it is until re-projection is due.
            by_coordinate = self.error_norm == "coordinate"
            return adaptive_step(
                field, step, self.name, tolerance, max_time=max_time, by_coordinate=by_coordinate
            )
        left, order = self._left(since), self.max_order
        return *fixed_steps(
            field, step, self.name, max_time=max_time, left=left, max_order=order
        ), step

    def _interpolant(
        self, field: Field, start: State, end: State, time: float
    ) -> Interpolant | None:
        """A cubic, or dopri5's own of order 4."""
        if not self.dense:
            return None
        if self.name == WITH_STAGES:
            return moved_end(dormand_prince(start, field.stages, time), end.flat, time)
        return hermite(start, end, time)

    def _vectors(self) -> int:
        if self.name in ADAPTIVE:
            # Beside its stages their products with weights, or what the interpolant takes.
            n = STAGES[self.name]
            return n + max(n + 2, 8) + (n if self.name == WITH_STAGES else 0)
        if self.name == "euler":
            return 2
        history = (self.max_order or 1) - 1
        return 7 + (0 if self.reproject_every is None else history)

    def _left(self, since: float) -> float:
        """Flow time to the next multiple of ``reproject_every``; 0 where every step is one."""
        return 0.0 if self.reproject_every is None else self.reproject_every - since

    def _since(self, time: float) -> float:
        """Flow time since that multiple: what a step passes it by is not lost."""
        every = self.reproject_every
        if every is None:
            return 0.0
        since = math.fmod(time, every)
        return 0.0 if since > every * (1 - 1e-9) else since


def _duration(value: float | None, name: str) -> float | None:
    """A flow time, as a float.

    Raises
    ------
    InputError
        It is none, or not positive.
    """
    found = None if value is None else kinds.as_number(value, name)
    if found is not None and not (math.isfinite(found) and found > 0):
        raise InputError(f"{name}={value}; use a positive flow time or None")
    return found


def _starting_step(flow: Flow, state: State, tolerance: Tolerance, order: int) -> float:
    """Hairer, Nørsett & Wanner, Solving ODEs I, section II.4: one evaluation, mostly."""
    scale = tolerance.scale(state.flat)
    d0 = norm(state.flat) / scale
    d1 = norm(state.velocity) / scale
    h0 = 0.01 * d0 / d1 if min(d0, d1) > 1e-5 else 1e-6
    while True:
        try:
            ahead = flow.evaluate(state.flat + h0 * state.velocity)
            break
        except TOO_FAR as failure:
            h0 *= RETRY_FACTOR
            check_step(h0, state, str(failure))
    d2 = norm(ahead.velocity - state.velocity) / scale / h0
    largest = max(d1, d2)
    h1 = (0.01 / largest) ** (1 / (order + 1)) if largest > 1e-15 else max(1e-6, h0 * 1e-3)
    return min(100 * h0, h1)
