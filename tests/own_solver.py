"""A solver in one file, as CONTRIBUTING.md says: Heun's method with the Euler step as its error."""

from __future__ import annotations

from typing import Any

import torch

from geoflow.errors import ConvergenceError
from geoflow.manifold.protocol import Flow, State
from geoflow.solvers.base import Carry, StepResult, Tolerance
from geoflow.solvers.control import Elementary, check_step, clip_step

CONTROL = Elementary(order=2)


class Heun:
    name = "heun"
    order = 2
    dense = False
    needs: tuple[str, ...] = ()
    vectors = 4
    options: dict[str, Any] = {}  # noqa: RUF012

    def init(self, flow: Flow, state: State, tolerance: Tolerance) -> Carry:
        return {"step_size": 1e-3}

    def step(
        self, flow: Flow, state: State, carry: Carry, tolerance: Tolerance, max_time: float
    ) -> StepResult:
        step, n_rejected, n_newton = clip_step(float(carry["step_size"]), max_time), 0, 0
        while True:
            euler = state.flat + step * state.velocity
            slope = (state.velocity + flow.evaluate(euler).velocity) / 2
            error = float(torch.linalg.vector_norm(step * (slope - state.velocity)))
            error, cause = error / tolerance.scale(state.flat), "the local error is too large"
            try:
                if error <= 1:
                    end, projection = flow.project(state.flat + step * slope)
                    n_newton += projection.iterations
                    break
            except ConvergenceError as failure:
                error, cause = 8.0, str(failure)
            n_rejected += 1
            step *= CONTROL.rejected(error)
            check_step(step, state, cause)
        following = {"step_size": step * CONTROL.accepted(error)}
        return StepResult(end, following, step, error, n_rejected, n_newton)
