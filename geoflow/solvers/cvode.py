"""SUNDIALS' CVODE through scikit-sundae: the peer that geoflow's own solvers are held against."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import InputError, StepSizeError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.solvers.base import (
    REGULARIZER,
    Carry,
    Interpolant,
    StepResult,
    Tolerance,
)
from geoflow.solvers.carried import check_numbers, check_wholes
from geoflow.solvers.control import TOO_FAR
from geoflow.solvers.interpolation import hermite
from geoflow.system.described import Described
from geoflow.system.kinds import as_whole

# Rate at which L − c decays along the normal, times the flow's own scale of time.
KAPPA = 30.0
KRYLOV_VECTORS = 20
# CVODE multiplies flow times by one another, which of shorter ones underflows.
SHORTEST = 1e-150


class CVODE(Described):
    """CVODE's variable-order BDF, with GMRES on differences of gradients (Hindmarsh et al. 2005).

    It integrates dθ/dt = −Π∇R − κ(L − c)g/(g·g) in all of R^P, with several constraints
    −κNᵀ(NNᵀ)⁻¹(L − c) for the last term, so that θ is drawn to the level set but lies on it to the
    tolerance only: the level residual of a step is what CVODE leaves. Where a walk ends at a time
    asked for it is re-projected, and so are snapshots and events within a step, had from CVODE's
    own interpolant; CVODE itself goes on from where it was. κ is 15‖∇R‖/‖θ‖ at CVODE's start, 30
    for R = ‖θ‖², and ‖θ‖ in the error allowed is that there.

    CVODE keeps its history to itself. So a walk that is resumed starts CVODE afresh from the
    checkpoint, at order 1: it meets the same tolerance, but **it does not become the same bits** as
    a walk that was not interrupted.

    Parameters
    ----------
    internal_steps : int
        Steps of CVODE that make one of the walk. Each step of the walk costs an evaluation for
        what is recorded of it. With more than one, an event within a step starts CVODE afresh.

    Raises
    ------
    InputError
        scikit-sundae is not installed, or ``internal_steps`` is not positive.
    """

    name = "cvode"
    order = 5
    needs: tuple[str, ...] = (REGULARIZER,)
    # Krylov vectors, CVODE's history of up to six, and what it works in.
    vectors = KRYLOV_VECTORS + 1 + 6 + 12

    def __init__(self, *, internal_steps: int = 1) -> None:
        _cvode()
        internal_steps = as_whole(internal_steps, "internal_steps")
        if internal_steps < 1:
            raise InputError(f"internal_steps={internal_steps!r}; use a positive whole number")
        self.internal_steps = internal_steps
        self.dense = internal_steps == 1
        self._serials = itertools.count(1)
        self._running: _Running | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"internal_steps": self.internal_steps}

    def init(self, flow: RegularizingFlow, state: FlowState, tolerance: Tolerance) -> Carry:
        """Nothing yet: CVODE is started by the first step.

        Raises
        ------
        InputError
            The problem is not in float64.
        """
        if flow.problem.dtype != torch.float64:
            raise InputError(
                f"solver='cvode' works in float64 and the problem is in {flow.problem.dtype}; make "
                "the problem in torch.float64"
            )
        return {"serial": 0, "n_steps": 0, "time": 0.0}

    def taken_up(self, carry: Carry, theta: Tensor) -> Carry:
        """A carry out of a checkpoint, by which CVODE is seen to be another.

        Raises
        ------
        ArchiveError
            Names the first entry that cannot have been carried.
        """
        check_wholes(carry, "serial", "n_steps")
        check_numbers(carry, "time")
        return carry

    def step(
        self,
        flow: RegularizingFlow,
        state: FlowState,
        carry: Carry,
        tolerance: Tolerance,
        max_time: float,
    ) -> StepResult:
        """Go on by ``internal_steps`` steps of CVODE, or to ``max_time``."""
        if max_time < SHORTEST:
            return _at_once(flow, state, carry, max_time)
        running = self._running
        # Out of use until the step is done: an exception leaves CVODE in the middle of one.
        self._running = None
        if running is None or not running.is_at(flow, carry):
            running = _Running.start(next(self._serials), flow, state, tolerance)
        begin = running.time
        end = begin + max_time
        for _ in range(self.internal_steps):
            theta = running.advance(end)
            if running.time >= end:
                break
        point = torch.from_numpy(theta).to(flow.problem.device)
        n_newton = 0
        if running.time >= end:
            reached, projection = flow.project(point)
            n_newton = projection.iterations
        else:
            reached = flow.evaluate(point)
        self._running = running
        return StepResult(
            state=reached,
            carry={"serial": running.serial, "n_steps": running.n_steps, "time": running.time},
            time=min(running.time - begin, max_time) if running.time < end else max_time,
            error_estimate=math.nan,
            n_rejected=0,
            n_reprojection=n_newton,
            interpolant=self._interpolant(running, begin, flow),
        )

    def _interpolant(
        self, running: _Running, begin: float, flow: RegularizingFlow
    ) -> Interpolant | None:
        """CVODE's own, which it has of its last step."""
        if not self.dense:
            return None
        return lambda time: torch.from_numpy(running.inside(begin + time)).to(flow.problem.device)


def _at_once(flow: RegularizingFlow, state: FlowState, carry: Carry, time: float) -> StepResult:
    """A step too short for CVODE, along the velocity: its error is below any rounding."""
    end, projection = flow.project(state.theta + time * state.velocity)
    return StepResult(
        state=end,
        carry=dict(carry),
        time=time,
        error_estimate=math.nan,
        n_rejected=0,
        n_reprojection=projection.iterations,
        interpolant=hermite(state, end, time),
    )


@dataclass
class _Running:
    """CVODE in the middle of a walk, and where it stands."""

    serial: int
    flow: RegularizingFlow
    solver: Any
    time: float = 0.0
    n_steps: int = 0
    # Why the flow had no velocity where, in the last step, CVODE first asked for one in vain.
    cause: str = ""

    @classmethod
    def start(
        cls, serial: int, flow: RegularizingFlow, state: FlowState, tolerance: Tolerance
    ) -> _Running:
        """Start at order 1 from a state."""
        rate_of_return = KAPPA / state.time_scale

        def velocity(_: float, theta: NDArray[np.float64], rate: NDArray[np.float64]) -> None:
            there = torch.from_numpy(theta.copy())
            try:
                rate[:] = _stabilised(flow, there, rate_of_return).cpu().numpy()
            except TOO_FAR as failure:
                # By it CVODE's iteration does not converge, and it takes a shorter step.
                rate[:] = math.nan
                running.cause = running.cause or str(failure)

        allowed = tolerance.scale(state.theta) / math.sqrt(state.theta.numel())
        solver = _cvode()(
            velocity,
            method="BDF",
            linsolver="gmres",
            krylov_dim=KRYLOV_VECTORS,
            rtol=1e-14,
            atol=allowed,
        )
        running = cls(serial, flow, solver)
        solver.init_step(0.0, state.theta.cpu().numpy())
        return running

    def is_at(self, flow: RegularizingFlow, carry: Carry) -> bool:
        """Tell whether this is where a carry was made."""
        here = (self.serial, self.n_steps, self.time)
        return self.flow is flow and here == (carry["serial"], carry["n_steps"], carry["time"])

    def advance(self, end: float) -> NDArray[np.float64]:
        """Make one step of CVODE, to ``end`` at most, and return θ there.

        Raises
        ------
        StepSizeError
            CVODE can make no step.
        """
        before, self.cause = self.time, ""
        # What it is to come to only tells it the direction, and has to be finite.
        finite = end < math.inf
        result = self.solver.step(
            end if finite else self.time + 1, "onestep", end if finite else None
        )
        self.time = float(result.t)
        # Before where the flow ends its steps shrink below the rounding of the time.
        stuck = self.cause and self.time - before <= 4 * np.finfo(np.float64).eps * self.time
        if stuck or not result.success:
            why = self.cause or f"{result.message}; loosen rtol, or use solver='exponential'"
            raise StepSizeError(f"CVODE stopped at flow time {before:.6g} of its own: {why}")
        self.n_steps += 1
        return np.array(result.y, dtype=np.float64)

    def inside(self, time: float) -> NDArray[np.float64]:
        """θ at a time within the last step, by the polynomial that CVODE holds; no evaluation."""
        theta = np.array(self.solver.step(time, "normal", None).y, dtype=np.float64)
        # Its next step begins where the last one ended, once that has been asked for.
        self.solver.step(self.time, "normal", None)
        return theta


def _stabilised(flow: RegularizingFlow, theta: Tensor, kappa: float) -> Tensor:
    """The flow's velocity, and along the normal back to the level set."""
    state = flow.evaluate(theta.to(flow.problem.device))
    back = state.normals.step(flow.level_set.residuals(state.values))
    return torch.sub(state.velocity, back, alpha=kappa)


def _cvode() -> Any:
    """scikit-sundae's CVODE, imported when it is asked for."""
    try:
        from sksundae.cvode import CVODE as SUNDIALS
    except ImportError:
        raise InputError(
            "solver='cvode' needs scikit-sundae, which is not installed: "
            "pip install 'geoflow[sundials]'"
        ) from None
    return SUNDIALS
