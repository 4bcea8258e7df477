"""Damped second-order Runge–Kutta–Chebyshev: explicit, for stiff flows with a real spectrum."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, InputError, StepSizeError
from geoflow.flows import FlowState, RegularizingFlow
from geoflow.solvers.base import Carry, StepResult, Tolerance
from geoflow.solvers.control import clip_step

DAMPING = 2 / 13
DEBUG = False


class Coefficients(NamedTuple):
    first: float
    rest: tuple[tuple[float, float, float, float], ...]


@functools.cache
def coefficients(stages: int) -> Coefficients:
    w0 = 1 + DAMPING / stages**2
    t, dt, ddt = [1.0, w0], [0.0, 1.0], [0.0, 0.0]
    for _ in range(2, stages + 1):
        ddt.append(4 * dt[-1] + 2 * w0 * ddt[-1] - ddt[-2])
        dt.append(2 * t[-1] + 2 * w0 * dt[-1] - dt[-2])
        t.append(2 * w0 * t[-1] - t[-2])
    w1 = dt[stages] / ddt[stages]
    b = [0.0, 0.0] + [ddt[j] / dt[j] ** 2 for j in range(2, stages + 1)]
    b[0], b[1] = b[2], 1 / w0
    rest = []
    for j in range(2, stages + 1):
        mu, nu = 2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2]
        mu_tilde = 2 * b[j] * w1 / b[j - 1]
        rest.append((mu, nu, mu_tilde, -(1 - b[j - 1] * t[j - 1]) * mu_tilde))
    return Coefficients(b[1] * w1, tuple(rest))


def advance(field, theta, velocity, step, stages):
    first, rest = coefficients(stages)
    before, now = theta, theta + (first * step) * velocity
    for mu, nu, mu_tilde, gamma_tilde in rest:
        following = (1 - mu - nu) * theta + mu * now + nu * before
        following += step * mu_tilde * field(now) + step * gamma_tilde * velocity
        before, now = now, following
    return now


def n_stages(h_rho: float) -> int:
    return max(2, 1 + int(math.sqrt(1 + 1.54 * h_rho)))


class RKC:
    name = "rkc"
    order = 2

    def __init__(self, *, max_stages: int = 250, variant: str = "") -> None:
        self.max_stages = max_stages
        self.variant = variant

    @property
    def options(self) -> dict[str, Any]:
        return {"max_stages": self.max_stages}

    def init(self, flow, state, tolerance):
        return {
            "step_size": 0.0,
            "previous_step": 0.0,
            "previous_error": 0.0,
            "radius": 0.0,
            "vector": state.velocity,
        }

    def spectral_radius(self, flow, state, radius, vector):
        eps = math.sqrt(torch.finfo(state.theta.dtype).eps) * float(state.theta.norm())
        sigma = radius / 1.2
        for i in range(50):
            norm = float(vector.norm())
            dv = vector * (eps / norm)
            vector = flow.evaluate(state.theta + dv).velocity - state.velocity
            new = float(vector.norm()) / eps
            if abs(new - sigma) <= 0.05 * new:
                sigma = new
                break
            sigma = new
        return 1.2 * sigma, vector, i + 1

    def step(self, flow, state, carry, tolerance, max_time):
        scale = tolerance.scale(state.theta)
        radius, vector, n_power = self.spectral_radius(
            flow, state, carry["radius"], carry["vector"]
        )
        h = carry["step_size"]
        if not h:
            h = 1 / radius
            ahead = flow.evaluate(state.theta + h * state.velocity)
            est = h * float((ahead.velocity - state.velocity).norm()) / scale
            h = 0.1 * h / math.sqrt(est)
        n_rejected = n_newton = 0
        limit = ((self.max_stages - 1) ** 2 - 1) / 1.54 / radius
        while True:
            h = min(h, limit)
            dt = clip_step(h, max_time)
            s = n_stages(dt * radius)
            n0 = flow.problem.evaluations
            theta = advance(lambda y: flow.evaluate(y).velocity, state.theta, state.velocity, dt, s)
            ahead = flow.evaluate(theta)
            local = 0.8 * (state.theta - theta) + 0.4 * dt * (state.velocity + ahead.velocity)
            e1 = float(local.norm()) / scale
            e2 = flow.level_set.distance(ahead.loss, ahead.gradient) / scale
            err = max(e1, e2) if math.isfinite(e1) else 1e6
            why = ""
            if err <= 1:
                try:
                    end, proj = flow.project(
                        theta, evaluated=(ahead.loss, ahead.gradient), max_displacement=2 * scale
                    )
                    n_newton += proj.iterations
                    if end.regularizer > state.regularizer + tolerance.rtol * abs(
                        state.regularizer
                    ):
                        err, why = 2.0, "R"
                    else:
                        why = f"newton {proj.iterations}"
                except ConvergenceError as error:
                    n_newton += error.iterations
                    err, why = 8.0, error.reason
            if DEBUG:
                print(
                    f"h {dt:.4f} rho {radius:.0f}({n_power}) s {s} e1 {e1:.3f} e2 {e2:.3f} |v| {state.tangent_norm:.3f}->{ahead.tangent_norm:.3f} R {state.regularizer:.3f} {ahead.angle:.1f} {why} n {flow.problem.evaluations}"
                )
            if err <= 1:
                break
            n_rejected += 1
            h = dt * max(0.1, 0.8 / err ** (1 / 3))
        err = max(err, 1e-10)
        fac = 0.8 / err ** (1 / 3)
        if carry["previous_step"] and n_rejected == 0:
            fac2 = (
                0.8
                * (carry["previous_error"] ** (1 / 3) * dt)
                / (carry["previous_step"] * err ** (2 / 3))
            )
            fac = min(fac, fac2)
        fac = min(10.0, max(0.1, fac))
        nxt = dt * fac
        if dt < h:
            nxt = max(nxt, h)
        return StepResult(
            end,
            {
                "step_size": nxt,
                "previous_step": dt,
                "previous_error": err,
                "radius": radius,
                "vector": vector,
            },
            dt,
            err,
            n_rejected,
            n_newton,
        )
