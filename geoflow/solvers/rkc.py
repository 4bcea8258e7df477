"""Runge–Kutta–Chebyshev: explicit, second order, for stiff flows with a real spectrum.

The damped second-order method, its error estimate and its step-size control are those of
Sommeijer, Shampine & Verwer, "RKC: an explicit solver for parabolic PDEs" (J. Comput. Appl. Math.
88, 1998, section 2). A step of s stages is stable to h·ρ ≈ 0.65 s², ρ being the
spectral radius of the flow's Jacobian, which is −A on the level set: symmetric, so that its
spectrum is real. The stages leave the level set; each step ends with a re-projection, and what
that has to move counts as part of the step's error.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import StepSizeError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.solvers.base import REGULARIZER, Carry, StepResult, Tolerance, norm
from geoflow.solvers.carried import check_numbers, check_tensor
from geoflow.solvers.control import (
    TOO_FAR,
    TOO_INACCURATE,
    Elementary,
    check_step,
    clip_step,
)
from geoflow.solvers.interpolation import hermite
from geoflow.solvers.nearing import SMALL, nearer
from geoflow.system.described import Described

DAMPING = 2 / 13
MAX_STAGES = 250
CONTROL = Elementary(order=3, safety=0.8, shrink=0.1, grow=10.0, retry=(0.1, 1.0))

# What an error in a stiff direction may add to the speed, over the speed or this part of ‖∇R‖.
STIFF_SPEED, STIFF_FLOOR = 3.0, 2e-3

# The power method stops at this relative change and is scaled up by as much again and more.
RADIUS_RTOL, RADIUS_SAFETY, MAX_POWER = 0.05, 1.2, 50
# Velocities that differ by less than so many units of their rounding tell no radius.
UNRESOLVED = 100


class Coefficients(NamedTuple):
    """μ̃₁, and (μ, ν, μ̃, γ̃) of each stage from the second on."""

    first: float
    rest: tuple[tuple[float, float, float, float], ...]


@functools.cache
def coefficients(stages: int) -> Coefficients:
    """Coefficients of the damped second-order method of ``stages`` ≥ 2 stages."""
    w0 = 1 + DAMPING / stages**2
    t, dt, ddt = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        ddt.append(4 * dt[-1] + 2 * w0 * ddt[-1] - ddt[-2])
        dt.append(2 * t[-1] + 2 * w0 * dt[-1] - dt[-2])
        t.append(2 * w0 * t[-1] - t[-2])
    w1 = dt[stages] / ddt[stages]
    b = [ddt[2] / dt[2] ** 2, 1 / w0] + [ddt[j] / dt[j] ** 2 for j in range(2, stages + 1)]
    rest = []
    for j in range(2, stages + 1):
        mu_tilde = 2 * b[j] * w1 / b[j - 1]
        gamma_tilde = -(1 - b[j - 1] * t[j - 1]) * mu_tilde
        rest.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], mu_tilde, gamma_tilde))
    return Coefficients(b[1] * w1, tuple(rest))


def advance(
    field: Callable[[Tensor], Tensor], theta: Tensor, velocity: Tensor, step: float, stages: int
) -> Tensor:
    """Make one step of dθ/dt = ``field``: ``stages`` − 1 evaluations.

    Parameters
    ----------
    field : callable
        Tensor (P,) → Tensor (P,).
    theta, velocity : Tensor, shape (P,)
        Where it starts, and the field there.
    step : float
        Flow time.
    stages : int
        At least 2.
    """
    first, rest = coefficients(stages)
    before, now = theta, theta + (first * step) * velocity
    for mu, nu, mu_tilde, gamma_tilde in rest:
        following = (1 - mu - nu) * theta + mu * now + nu * before
        following += (step * mu_tilde) * field(now) + (step * gamma_tilde) * velocity
        before, now = now, following
    return now


def stages_for(step_times_radius: float) -> int:
    """Stages whose stability interval, 0.65 s², holds h·ρ."""
    return max(2, 1 + math.isqrt(int(1 + 1.54 * step_times_radius)))


class RKC(Described):
    """Runge–Kutta–Chebyshev method, second order; see the module's text."""

    name = "rkc"
    order = 2
    dense = True
    needs: tuple[str, ...] = (REGULARIZER,)
    # The power method's, three stages, their sum, and velocities of two of them.
    vectors = 7

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments: none."""
        return {}

    def init(self, flow: RegularizingFlow, state: FlowState, tolerance: Tolerance) -> Carry:
        """Start the power method in the direction of the flow."""
        return {
            "step_size": 0.0,
            "radius": 0.0,
            "vector": state.velocity,
        }

    def taken_up(self, carry: Carry, theta: Tensor) -> Carry:
        """A carry out of a checkpoint, with its vector where θ is.

        Raises
        ------
        ArchiveError
            Names the first entry that cannot have been carried.
        """
        check_numbers(carry, "step_size", "radius")
        vector = check_tensor(carry, "vector", (theta.numel(),), theta.dtype)
        return {**carry, "vector": vector.to(theta.device)}

    def step(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        carry: Carry,
        tolerance: Tolerance,
        max_time: float,
    ) -> StepResult:
        """Make one accepted step and re-project."""
        radius, vector = _spectral_radius(flow, state, carry)
        scale = tolerance.scale(state.theta)
        # A step ends as far from the level set as it began, which would count as its error.
        state, n_newton = nearer(flow, state, min(scale, _stiff_scale(state, radius)))
        wanted = float(carry["step_size"]) or _starting_step(flow, state, radius, scale)
        wanted = min(wanted, ((MAX_STAGES - 1) ** 2 - 1) / 1.54 / radius)
        step = clip_step(wanted, max_time)
        n_rejected = 0
        while True:
            try:
                end, error, iterations = _attempt(flow, state, step, radius, tolerance)
                n_newton += iterations
                cause = TOO_INACCURATE
            except TOO_FAR as failure:
                n_newton += getattr(failure, "iterations", 0)
                # How much too long the step was is known of neither.
                error = math.inf if getattr(failure, "reason", "") == "not_finite" else 8.0
                cause = str(failure)
            if error <= 1:
                break
            n_rejected += 1
            step *= CONTROL.rejected(error)
            check_step(step, state, cause)
        following = step * CONTROL.accepted(error)
        if step < wanted and not n_rejected:
            # A step cut short by max_time says little about how long a step could be.
            following = max(following, wanted)
        return StepResult(
            state=end,
            carry={
                "step_size": following,
                "radius": radius,
                "vector": vector,
            },
            time=step,
            error_estimate=error,
            n_rejected=n_rejected,
            n_reprojection=n_newton,
            # The paper's own choice (section 4).
            interpolant=hermite(state, end, step),
        )


def _attempt(
    flow: RegularizingFlow, state: FlowState, step: float, radius: float, tolerance: Tolerance
) -> tuple[FlowState, float, int]:
    """Return where a step ends, its error over the error allowed, and Newton's iterations."""
    stages = stages_for(step * radius)
    theta = advance(lambda y: flow.evaluate(y).velocity, state.theta, state.velocity, step, stages)
    ahead = flow.evaluate(theta)
    scale = tolerance.scale(state.theta)
    allowed = min(scale, _stiff_scale(state, radius))
    # The embedded estimate of the paper's section 2: third order, bounded where the flow is stiff.
    local = 0.8 * (state.theta - theta) + 0.4 * step * (state.velocity + ahead.velocity)
    residuals = flow.level_set.residuals(ahead.values)
    # Where rounding lets a step begin no nearer, what it ends with of that is no error of its own.
    left = flow.level_set.residuals(state.values)
    beside = state.normals.distance(left)
    if beside > SMALL * allowed:
        residuals = residuals - left
    distance = ahead.normals.distance(residuals)
    # NumPy's maximum is NaN where either is, as where they overflow.
    error = float(np.maximum(norm(local), distance)) / allowed
    if not error <= 1:
        return ahead, error, 0
    furthest = 2 * (scale + beside)
    end, projection = flow.project(theta, evaluated=ahead.evaluated, max_displacement=furthest)
    return end, error, projection.iterations


def _stiff_scale(state: FlowState, radius: float) -> float:
    """Displacement along the stiffest direction whose velocity is comparable to the flow's own.

    A larger one, which rtol·‖θ‖ may allow, throws a walk off its slow manifold: the way back is
    a transient that long steps do not follow. Near the end, where the flow itself vanishes, a part
    of ‖∇R‖ stands for it.
    """
    floor = STIFF_FLOOR * norm(state.regularizer_gradient)
    return STIFF_SPEED * max(norm(state.velocity), floor) / radius


def _spectral_radius(
    flow: RegularizingFlow, state: FlowState, carry: Carry
) -> tuple[float, Tensor]:
    """Spectral radius of the flow's Jacobian by the nonlinear power method, and its vector.

    The method starts from the vector of the step before, so that one or two evaluations do. Where
    the flow ends on one side of θ, it looks to the other. It looks over a part of ‖θ‖; where θ is
    nearer to zero than the flow varies, so that velocities so close differ by rounding alone, over
    that part of one.

    Raises
    ------
    StepSizeError
        It ends on both.
    """
    vector = carry["vector"]
    assert isinstance(vector, Tensor)
    eps = torch.finfo(state.theta.dtype).eps
    longest = math.sqrt(eps)
    size = longest * (norm(state.theta) or 1.0)
    radius = float(carry["radius"]) / RADIUS_SAFETY
    for _ in range(MAX_POWER):
        length = norm(vector)
        if length == 0:
            break
        try:
            ahead = flow.evaluate(state.theta + vector * (size / length))
        except TOO_FAR:
            try:
                ahead = flow.evaluate(state.theta - vector * (size / length))
            except TOO_FAR as failure:
                raise StepSizeError(f"within {size:.1e} of θ: {failure}") from failure
        change = ahead.velocity - state.velocity
        # Of velocities, whose rounding is that of ∇R.
        if size < longest and not norm(change) > UNRESOLVED * eps * norm(
            state.regularizer_gradient
        ):
            size = longest
            continue
        vector = change
        before, radius = radius, norm(vector) / size
        if abs(radius - before) <= RADIUS_RTOL * radius:
            break
    return max(RADIUS_SAFETY * radius, torch.finfo(state.theta.dtype).tiny), vector


def _starting_step(flow: RegularizingFlow, state: FlowState, radius: float, scale: float) -> float:
    """Return a tenth of the step an explicit Euler step of 1/ρ says is allowed.

    Raises
    ------
    StepSizeError
        The flow ends however short that step is.
    """
    step = 1 / radius
    while True:
        try:
            ahead = flow.evaluate(state.theta + step * state.velocity)
            break
        except TOO_FAR as failure:
            step *= CONTROL.retry[0]
            check_step(step, state, str(failure))
    error = step * norm(ahead.velocity - state.velocity) / scale
    return 0.1 * step / math.sqrt(error) if error > 0 else step
