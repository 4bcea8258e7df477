"""torchdiffeq's explicit solvers, one accepted step at a time, with re-projection.

torchdiffeq's callbacks cannot change the state, and its own limits count per output interval.
So each step is an ``odeint`` call of its own, left from ``callback_step`` once a step has been
accepted: there torchdiffeq tells where it stands and which step size it would take next. The
derivative it caches is dropped with the call, since re-projection moves the state.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, InputError, StepSizeError
from geoflow.manifold.protocol import Flow, State
from geoflow.manifold.values import as_values
from geoflow.solvers.base import Carry, Interpolant, StepResult, Tolerance, norm
from geoflow.solvers.carried import check_numbers
from geoflow.solvers.control import TOO_FAR, TOO_INACCURATE, check_step, clip_step
from geoflow.solvers.interpolation import dormand_prince, hermite, moved_end
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

RETRY_FACTOR = 0.25
FAR = 1e300
NOT_FINITE = "L or the velocity is not finite at a trial point"


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
        """A carry out of a checkpoint."""
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
        attempt = self._adaptive if self.name in ADAPTIVE else self._fixed
        step = float(carry["step_size"])
        since = float(carry["since_projection"])
        n_rejected = n_newton = 0
        while True:
            field = _Field(flow, state, keeps_stages=self.name == WITH_STAGES)
            time, theta, next_step = attempt(
                self.name, field, state, step, tolerance, max_time, self._left(since)
            )
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
                    raise _too_far(self.name, step, str(error)) from error
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

    def _interpolant(
        self, field: _Field, start: State, end: State, time: float
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

    def _fixed(
        self,
        method: str,
        field: _Field,
        state: State,
        step: float,
        tolerance: Tolerance,
        max_time: float,
        left: float,
    ) -> tuple[float, Tensor, float]:
        # Re-projection ends a multistep method's history: keep its steps in one call.
        n = max(1, math.ceil(left / step * (1 - 1e-9)))
        # A remainder of rounding size is no step of its own.
        time = n * step if n * step < max_time * (1 - 1e-9) else max_time
        times = torch.tensor([0.0, time], dtype=torch.float64, device=state.flat.device)
        options: dict[str, Any] = {"step_size": min(step, time)}
        if self.max_order is not None:
            options["max_order"] = self.max_order
        try:
            with torch.no_grad():
                # Without its callbacks, which a fixed-step method would warn about.
                theta = _odeint()(
                    lambda t, y: field(t, y), state.flat, times, method=method, options=options
                )[-1]
        except _TooFarError as error:
            raise _too_far(method, options["step_size"], str(error)) from None
        return time, theta, step

    def _adaptive(
        self,
        method: str,
        field: _Field,
        state: State,
        step: float,
        tolerance: Tolerance,
        max_time: float,
        left: float,
    ) -> tuple[float, Tensor, float]:
        """Accept one step; returns its time, where it ended, and the next step size.

        Its steps are single, whatever is ``left`` until the next re-projection.
        """
        clipped = clip_step(step, max_time) if step else 0.0
        finite = math.isfinite(max_time)
        ends = [0.0, 2 * max_time if finite else FAR]
        times = torch.tensor(ends, dtype=torch.float64, device=state.flat.device)
        options: dict[str, Any] = {"norm": field.norm}
        if finite:
            options["step_t"] = [max_time]
        # torchdiffeq's tolerance is of each coordinate: the same for all here, and where each has
        # its own, one that is 0 would have none.
        rtol, atol = 0.0, tolerance.scale(state.flat) / math.sqrt(len(state.flat))
        if self.error_norm == "coordinate":
            rtol, atol = tolerance.rtol, tolerance.atol or (0.0 if state.flat.all() else atol)
        attempt = clipped
        while True:
            if attempt:
                options["first_step"] = attempt
            try:
                with torch.no_grad():
                    _odeint()(
                        field,
                        state.flat,
                        times,
                        rtol=rtol,
                        atol=atol,
                        method=method,
                        options=options,
                    )
            except _AcceptedError as accepted:
                # A step cut short by max_time says little about how long a step could be.
                whole = field.n_rejected == 0 and accepted.time >= clipped > 0
                next_step = max(accepted.next_step, step) if whole else accepted.next_step
                return accepted.time, accepted.theta, next_step
            except _TooFarError as error:
                field.n_rejected += 1
                attempt = field.attempted * RETRY_FACTOR
                check_step(attempt, state, str(error))


@functools.cache
def _odeint() -> Callable[..., Tensor]:
    # Imported where it is needed, since with it comes all of scipy.integrate; its coefficients are
    # tensors that are made as it is.
    with torch.device("cpu"):
        from torchdiffeq import odeint
    found: Callable[..., Tensor] = odeint
    return found


class _AcceptedError(Exception):
    """Leaves ``odeint`` after one accepted step."""

    def __init__(self, time: float, theta: Tensor, next_step: float) -> None:
        super().__init__()
        self.time, self.theta, self.next_step = time, theta, next_step


class _TooFarError(Exception):
    """Leaves ``odeint`` where the flow has no velocity: the step was too long."""


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


def _too_far(method: str, step: float, cause: str) -> StepSizeError:
    """What a method cannot mend that keeps to its step; the remedy is another than the cause's."""
    return StepSizeError(
        f"{method} fails at step_size={step:.3g}: {cause.split(';')[0]}; use a smaller step_size "
        "or an adaptive solver"
    )


class _Field:
    """The velocity as torchdiffeq calls it; never evaluates the same θ twice."""

    def __init__(self, flow: Flow, state: State, *, keeps_stages: bool) -> None:
        self.flow, self.keeps_stages = flow, keeps_stages
        self.start = state
        self.last = state
        self.n_rejected = 0
        self.error_ratio = math.nan
        self.attempted = 0.0
        self.stages: list[Tensor] = []

    def __call__(self, t: Tensor, theta: Tensor) -> Tensor:
        known = self.evaluated_at(theta)
        if known is None:
            # Before the first attempt torchdiffeq looks ahead, to choose its size.
            self.attempted = self.attempted or float(t)
            try:
                known = self.flow.evaluate(theta)
            except TOO_FAR as failure:
                raise _TooFarError(str(failure)) from None
            # A flow of one's own may tell nothing.
            finite = np.isfinite(as_values(known.evaluated[0])).all()
            if not finite or not math.isfinite(norm(known.velocity)):
                raise _TooFarError(NOT_FINITE)
            self.last = known
        if self.keeps_stages:
            self.stages.append(known.velocity)
        return known.velocity

    def evaluated_at(self, theta: Tensor) -> State | None:
        for state in (self.last, self.start):
            if state.flat is theta or torch.equal(state.flat, theta):
                return state
        return None

    def norm(self, ratio: Tensor) -> Tensor:
        value = ratio.pow(2).mean().sqrt()
        self.error_ratio = float(value)
        return value

    def callback_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        if float(t0) > 0:
            raise _AcceptedError(float(t0), theta, float(dt))
        self.attempted = float(dt)
        self.stages = [self.start.velocity]
        if self.n_rejected:
            check_step(self.attempted, self.start, TOO_INACCURATE)

    def callback_reject_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.n_rejected += 1


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
