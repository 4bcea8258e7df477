"""torchdiffeq's ``odeint``, left after one accepted step.

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

from geoflow.errors import StepSizeError
from geoflow.manifold.protocol import Flow, State
from geoflow.manifold.values import as_values
from geoflow.solvers.base import Tolerance, norm
from geoflow.solvers.control import TOO_FAR, TOO_INACCURATE, check_step, clip_step

# What a step that came to no velocity is shortened by.
RETRY_FACTOR = 0.25
FAR = 1e300
NOT_FINITE = "L or the velocity is not finite at a trial point"


def fixed_steps(
    field: Field,
    step: float,
    method: str,
    *,
    max_time: float,
    left: float,
    max_order: int | None = None,
) -> tuple[float, Tensor]:
    """Make the steps of one size until re-projection is due; returns their time and where they end.

    Parameters
    ----------
    field : Field
        The velocity, and where they begin.
    step : float
        Their size, in flow time.
    method : str
        torchdiffeq's name.
    max_time : float
        They do not go beyond it.
    left : float
        Flow time until re-projection is due; 0 where it is after every step.
    max_order : int, optional
        Of the formulas of a multistep method.

    Raises
    ------
    StepSizeError
        The flow has no velocity at a trial point.
    """
    start = field.start.flat
    # Re-projection ends a multistep method's history: keep its steps in one call.
    n = max(1, math.ceil(left / step * (1 - 1e-9)))
    # A remainder of rounding size is no step of its own.
    time = n * step if n * step < max_time * (1 - 1e-9) else max_time
    times = torch.tensor([0.0, time], dtype=torch.float64, device=start.device)
    options: dict[str, Any] = {"step_size": min(step, time)}
    if max_order is not None:
        options["max_order"] = max_order
    try:
        with torch.no_grad():
            # Without its callbacks, which a fixed-step method would warn about.
            theta = _odeint()(
                lambda t, y: field(t, y), start, times, method=method, options=options
            )[-1]
    except _TooFarError as error:
        raise too_far(method, options["step_size"], str(error)) from None
    return time, theta


def adaptive_step(
    field: Field,
    step: float,
    method: str,
    tolerance: Tolerance,
    *,
    max_time: float,
    by_coordinate: bool,
) -> tuple[float, Tensor, float]:
    """Make one accepted step; returns its time, where it ends, and the size of the next.

    Parameters
    ----------
    field : Field
        The velocity, and where it begins.
    step : float
        The size to try first, in flow time; 0 leaves it to torchdiffeq.
    method : str
        torchdiffeq's name.
    tolerance : Tolerance
        Local error allowed.
    max_time : float
        It does not go beyond it.
    by_coordinate : bool
        Weigh the error of each coordinate by its own size.

    Raises
    ------
    StepSizeError
        No step is short enough.
    """
    start = field.start.flat
    clipped = clip_step(step, max_time) if step else 0.0
    finite = math.isfinite(max_time)
    ends = [0.0, 2 * max_time if finite else FAR]
    times = torch.tensor(ends, dtype=torch.float64, device=start.device)
    options: dict[str, Any] = {"norm": field.norm}
    if finite:
        options["step_t"] = [max_time]
    # torchdiffeq's tolerance is of each coordinate: the same for all here, and where each has
    # its own, one that is 0 would have none.
    rtol, atol = 0.0, tolerance.scale(start) / math.sqrt(len(start))
    if by_coordinate:
        rtol, atol = tolerance.rtol, tolerance.atol or (0.0 if start.all() else atol)
    attempt = clipped
    while True:
        if attempt:
            options["first_step"] = attempt
        try:
            with torch.no_grad():
                _odeint()(
                    field,
                    start,
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
            check_step(attempt, field.start, str(error))


class Field:
    """The velocity as torchdiffeq calls it; never evaluates the same θ twice.

    Parameters
    ----------
    flow : Flow
        Whose velocity it is.
    state : State
        Where a step begins.
    keeps_stages : bool
        Keep the derivatives of the step.

    Attributes
    ----------
    start : State
        Where it begins.
    n_rejected : int
        Attempts that were none.
    error_ratio : float
        Of the latest attempt, the error estimated over what is allowed; NaN before.
    attempted : float
        Size of that attempt, in flow time.
    stages : list of Tensor
        Derivatives of it, where they are kept.
    """

    def __init__(self, flow: Flow, state: State, *, keeps_stages: bool) -> None:
        self.flow, self.keeps_stages = flow, keeps_stages
        self.start = state
        self.last = state
        self.n_rejected = 0
        self.error_ratio = math.nan
        self.attempted = 0.0
        self.stages: list[Tensor] = []

    def __call__(self, t: Tensor, theta: Tensor) -> Tensor:
        """The velocity at θ, whatever the time."""
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
        """What is known at θ, where that is one of the latest two."""
        for state in (self.last, self.start):
            if state.flat is theta or torch.equal(state.flat, theta):
                return state
        return None

    def norm(self, ratio: Tensor) -> Tensor:
        """The norm by which torchdiffeq accepts, of errors over what is allowed of them."""
        value = ratio.pow(2).mean().sqrt()
        self.error_ratio = float(value)
        return value

    def callback_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        """Before an attempt: leave ``odeint`` where a step has been accepted."""
        if float(t0) > 0:
            raise _AcceptedError(float(t0), theta, float(dt))
        self.attempted = float(dt)
        self.stages = [self.start.velocity]
        if self.n_rejected:
            check_step(self.attempted, self.start, TOO_INACCURATE)

    def callback_reject_step(self, t0: Tensor, theta: Tensor, dt: Tensor) -> None:
        """After an attempt that is rejected."""
        self.n_rejected += 1


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


def too_far(method: str, step: float, cause: str) -> StepSizeError:
    """What a method cannot mend that keeps to its step; the remedy is another than the cause's."""
    return StepSizeError(
        f"{method} fails at step_size={step:.3g}: {cause.split(';')[0]}; use a smaller step_size "
        "or an adaptive solver"
    )
