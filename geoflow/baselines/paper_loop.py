"""The predictor/corrector loop of Tahir & Katz (IJCNN 2021, arXiv 2011.04189), as published."""

from __future__ import annotations

import math
import time as clock
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from geoflow.errors import CriticalPointError, EvaluationLimitError, InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow, check_single
from geoflow.problems import arithmetic
from geoflow.system import kinds
from geoflow.trajectories import dataset, records
from geoflow.trajectories.records import Snapshot, StepRecords
from geoflow.trajectories.storable import storable
from geoflow.walking import ending
from geoflow.walking.advancing import after_step
from geoflow.walking.counting import budgets, counts_of
from geoflow.walking.events import Event
from geoflow.walking.stopping import Goals, Stop

NAME = "predictor_corrector"
CLOSE = 1e-10
LARGEST_STEP = 0.1
TURN_DEGREES = 0.1
GROW, SHRINK = 1.1, 0.1


@arithmetic.without_autocast()
def predictor_corrector(
    flow: RegularizingFlow,
    *,
    steps: int | None = None,
    predictor_min: float = 1e-4,
    corrector_min: float = 1e-4,
    adaptive_corrector: bool = False,
    stop: Stop | None = None,
    max_evaluations: float = 20_000,
) -> xr.Dataset:
    """Walk as the paper does: fixed-length steps down R, corrections back to the level set.

    Where (L − c)² ≤ 1e-10, predict: θ ← θ − η d with d = Π∇R/‖Π∇R‖. Otherwise correct: step
    along the gradient of (L − c)², its component along the last d removed, normalised. The
    predictor's η is at its minimum after a correction; after consecutive predictions it is
    multiplied by 1.1 where d turned by less than 0.1°, else by 0.1, up to 0.1.

    Parameters
    ----------
    flow : RegularizingFlow
        The walk starts at ``flow.problem.theta0``.
    steps : int, optional
        Predictor steps after which the loop ends. None: no limit but ``max_evaluations``.
    predictor_min, corrector_min : float
        Least step lengths, in units of θ.
    adaptive_corrector : bool
        Adapt the corrector's step like the predictor's, as the paper's text means it; its
        published program leaves it at the minimum.
    stop : Stop, optional
        A further criterion.
    max_evaluations : int or float
        Budget in gradient evaluations. Never exceeded. Where R is the loss of another problem that
        has as many again for itself.

    Returns
    -------
    xarray.Dataset
        Schema 1.0, or 1.2 where R counts its evaluations apart, a record for each predictor and
        corrector step. A predictor step of length η covers the flow time η/‖Π∇R‖; a correction
        is given η/‖∇R‖, since time must increase. The first and the last θ are kept. What fails
        on the way ends the loop with the statuses of :func:`geoflow.walk`, as
        ``evaluation_failed`` where L, R or ``stop`` raised.

    Raises
    ------
    InputError
        An argument that cannot be used, as a number that is not positive.
    """
    kinds.check_kind(flow, RegularizingFlow, "flow", kinds.A_FLOW)
    check_single(flow, "the paper's loop")
    kinds.check_switch(adaptive_corrector, "adaptive_corrector")
    predictor_min = _positive(predictor_min, "predictor_min")
    corrector_min = _positive(corrector_min, "corrector_min")
    goals = _goals(flow, stop, kinds.as_count(max_evaluations, "max_evaluations", 1))
    steps = None if steps is None else kinds.as_count(steps, "steps", 1)
    config = {
        "solver": {
            "name": NAME,
            "predictor_min": predictor_min,
            "corrector_min": corrector_min,
            "adaptive_corrector": bool(adaptive_corrector),
        },
        "steps": steps,
        "max_evaluations": goals.max_evaluations,
        "provenance": {},
    }
    header = dataset.attributes(flow, solver=NAME, rtol=0.0, atol=0.0, config=config)
    loop = _Loop(flow, predictor_min, corrector_min, adaptive_corrector, StepRecords(header))
    status, message = loop.run(steps, goals)
    header |= {"status": status, "status_message": storable(message)}
    return dataset.to_dataset(flow.problem, loop.records, loop.snapshots, [], header)


def _positive(value: Any, name: str) -> float:
    number = kinds.as_number(value, name)
    if not (math.isfinite(number) and number > 0):
        raise InputError(f"{name}={value}; use a positive number")
    return number


def _goals(flow: RegularizingFlow, stop: Any, max_evaluations: int) -> Goals:
    # An event is looked for inside a step, where the loop does not look: it would end nothing.
    if stop is not None and (isinstance(stop, type | Event) or not callable(stop)):
        raise InputError(
            f"stop={kinds.shown(stop)} cannot end the loop; use Stationary(…), Plateau(…) or None"
        )
    goals = Goals.checked(None, stop, max_evaluations)
    goals.check_scalars(flow.scalars)
    return goals


class _Loop:
    def __init__(
        self,
        flow: RegularizingFlow,
        predictor_min: float,
        corrector_min: float,
        adaptive: bool,
        step_records: StepRecords,
    ) -> None:
        self.flow, self.adaptive = flow, adaptive
        self.least = {"predict": predictor_min, "correct": corrector_min}
        self.size = dict(self.least)
        self.direction: dict[str, Tensor] = {}
        self.previous = ""
        self.records = step_records
        self.snapshots: list[Snapshot] = []
        self.time = self.arc_length = 0.0
        self.n_corrections = self.n_predictions = 0
        self.counts0 = counts_of(flow)
        self.clock0 = clock.perf_counter()

    def run(self, steps: int | None, goals: Goals) -> ending.End:
        state: FlowState | None = None
        try:
            with budgets(self.flow, dict.fromkeys(self.counts0, 0), goals.max_evaluations):
                state = self.flow.evaluate(self.flow.problem.theta0)
                self.record(state, 0.0)
                while True:
                    end = goals.judge(self.records)
                    if end is None and steps is not None and self.n_predictions >= steps:
                        end = "max_steps", f"{steps} predictor steps are made"
                    if end is not None:
                        break
                    state = self.step(state)
        except KeyboardInterrupt:
            if state is None:
                raise
            end = "interrupted", "interrupted by the user"
        except Exception as error:
            # Whatever a user's loss, R or criterion raised; nothing is lost where nothing was made.
            unusable = isinstance(error, InputError) and len(self.records) == 1
            if state is None or unusable:
                if isinstance(error, EvaluationLimitError):
                    raise ending.spent_before(
                        goals.max_evaluations, "the start is evaluated"
                    ) from error
                raise
            end = ending.of_error(error, goals.max_evaluations)
        if len(self.records) > 1:
            self.snapshots.append(Snapshot(len(self.records) - 1, self.time, state.theta, {}))
        return end

    def step(self, state: FlowState) -> FlowState:
        """Predict or correct, whichever is due: one gradient."""
        residual = self.flow.level_set.residual(state.loss)
        kind = "predict" if residual**2 <= CLOSE else "correct"
        if kind == "predict":
            direction = -state.velocity
            speed = state.tangent_norm
        else:
            direction = state.gradient * residual
            last = self.direction.get("predict")
            if last is not None:
                direction = direction - last * torch.dot(last, direction)
            speed = float(torch.linalg.vector_norm(state.regularizer_gradient))
        norm = float(torch.linalg.vector_norm(direction))
        if norm == 0 or not math.isfinite(norm):
            raise CriticalPointError(f"the {kind}or has no direction at loss {state.loss:.6g}")
        direction = direction / norm
        self._adapt(kind, direction)
        size = self.size[kind]
        step_size = size / speed if speed else math.inf
        time = after_step(self.time, step_size, math.inf)
        if math.isinf(time):
            raise CriticalPointError(
                f"R is stationary at loss {state.loss:.6g}, where a step of the {kind}or takes no "
                "finite flow time; start elsewhere"
            )
        end = self.flow.evaluate(state.theta - size * direction)
        self.n_predictions += kind == "predict"
        self.n_corrections += kind == "correct"
        self.time = time
        self.arc_length += size
        self.record(end, step_size)
        return end

    def _adapt(self, kind: str, direction: Tensor) -> None:
        """Adapt the step after one of the same kind; start anew after one of the other."""
        if self.previous != kind or (kind == "correct" and not self.adaptive):
            self.size[kind] = self.least[kind]
        else:
            cosine = float(torch.dot(self.direction[kind], direction))
            turned = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
            factor = GROW if turned < TURN_DEGREES else SHRINK
            self.size[kind] = min(max(factor * self.size[kind], self.least[kind]), LARGEST_STEP)
        self.direction[kind] = direction
        self.previous = kind

    def record(self, state: FlowState, step_size: float) -> None:
        counts = counts_of(self.flow)
        self.records.append(
            records.step_record(
                self.flow,
                state,
                time=self.time,
                arc_length=self.arc_length,
                step_size=step_size,
                error_estimate=math.nan,
                n_rejected=0,
                n_reprojection=self.n_corrections,
                counts={name: counts[name] - self.counts0[name] for name in counts},
                wall_time=clock.perf_counter() - self.clock0,
            )
        )
        if len(self.records) == 1:
            self.snapshots.append(Snapshot(0, 0.0, state.theta, {}))
