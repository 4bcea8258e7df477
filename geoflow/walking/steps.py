"""The only loop: step, record, keep θ, stop."""

from __future__ import annotations

import itertools
import math
import time as clock
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import (
    EvaluationLimitError,
    GeoflowError,
    InputError,
    NumericalError,
    ObservableError,
    StepSizeError,
    StorageError,
)
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.protocol import Flow, State, check_unchanged, flatten
from geoflow.solvers import Carry, Solver, Tolerance, is_dense
from geoflow.system import interrupts
from geoflow.system.threads import one_blas_thread
from geoflow.system.translation import numerics
from geoflow.trajectories import records
from geoflow.trajectories.records import Observable, Snapshot
from geoflow.trajectories.storable import storable
from geoflow.walking import ending, jumps
from geoflow.walking.advancing import after_step
from geoflow.walking.bar import Progress
from geoflow.walking.counting import budgets, counts_of, uncounted
from geoflow.walking.crossings import Seeker
from geoflow.walking.fitting import check_same, earlier_values
from geoflow.walking.inside import FEW, Inside
from geoflow.walking.minimum import is_at_the_level, no_gradient_left
from geoflow.walking.recorder import Recorder
from geoflow.walking.snapshots import SnapshotRule, between
from geoflow.walking.stopping import Goals

# A point to record, and what the walk knows of it beside its flow.
Row = tuple[State, Mapping[str, Any]]

# What has been covered where a walk starts.
START: Mapping[str, Any] = {
    "time": 0.0,
    "arc_length": 0.0,
    "step_size": 0.0,
    "error_estimate": math.nan,
    "n_rejected": 0,
}

INTERRUPTED: ending.End = ("interrupted", "interrupted by the user")


class Walk:
    """What changes along one walk, from its start or from a checkpoint.

    Parameters
    ----------
    flow, solver, tolerance, rule, observables
        What to walk, how, and what to keep; see :func:`geoflow.walk`.
    recorder : Recorder
        Takes the records.
    theta_dtype : torch.dtype
        In which θ is kept.
    seeker : Seeker
        Looks for events in the steps.
    start : Tensor, shape (P,), optional
        Where it starts. None: at the problem's θ0.
    """

    def __init__(
        self,
        flow: Flow,
        solver: Solver,
        tolerance: Tolerance,
        rule: SnapshotRule,
        observables: Mapping[str, Observable],
        recorder: Recorder,
        theta_dtype: torch.dtype,
        seeker: Seeker,
        start: Tensor | None = None,
    ) -> None:
        self.flow, self.solver, self.tolerance = flow, solver, tolerance
        self.rule = rule
        self.observables = {n: uncounted(flow, f) for n, f in observables.items()}
        self.recorder, self.theta_dtype, self.seeker = recorder, theta_dtype, seeker
        self.start = flow.problem.theta0 if start is None else start
        self.state: State | None = None
        self.carry: Carry | None = None
        # The latest record, and the evaluations up to where the walk could go on from.
        self.last: Mapping[str, Any] = {}
        self.counts0 = counts_of(flow)
        self.counts = dict.fromkeys(self.counts0, 0)
        self.n_at_floor0 = flow.level_set.n_at_floor
        self.clock0 = clock.perf_counter()
        # Of a walk that has ended by what was looked for in a step: the start of that step.
        self.goes_on_from: Checkpoint | None = None
        # What the seeker found at the end of the last step.
        self.levels: list[float] = []
        # Whether the recorder is at work: a user's own function can raise a StorageError too.
        self.storing = False

    def restore(self, checkpoint: Checkpoint, *, same_stop: bool) -> None:
        """Go back to a checkpoint; the recorder and the rule have been restored before.

        With another stop than before, where that stood at the checkpoint is of no use.
        """
        self.levels = list(checkpoint.levels)
        if not same_stop:
            del self.levels[self.seeker.n_recorded :]
        problem = self.flow.problem
        tensors = {n: t.to(problem.device) for n, t in checkpoint.tensors.items()}
        self.carry = checkpoint.carry_for(self.solver, tensors["theta"])
        self.counts |= checkpoint.counts
        if checkpoint.n_steps:
            check_unchanged(self.flow)
            self.state = self.flow.evaluate(flatten(tensors))
            self.last = self.recorder.records[-1]
            now, state = self.flow.values(self.state), self.state
            check_same(now, self.last, problem.dtype, lambda: earlier_values(self.flow, state))
            self.clock0 -= self.last["wall_time"]
        else:
            self.start = tensors["theta"]
        self.counts0 = {n: k - self.counts[n] for n, k in counts_of(self.flow).items()}

    @property
    def checkpoint(self) -> Checkpoint:
        """What is needed to go on from here."""
        if self.goes_on_from:
            return self.goes_on_from
        tensors = self._state().tensors
        return Checkpoint(self.recorder.n_steps, tensors, self.carry, self.counts, self.levels)

    def run(self, goals: Goals, progress: bool, n_records: int = 0) -> xr.Dataset:
        """Walk to an end, and return the trajectory.

        Parameters
        ----------
        goals : Goals
            What ends it.
        progress : bool
            Show it.
        n_records : int
            As many as there are in its archive: a failure or Ctrl-C before so many is raised, and
            ends nothing.
        """
        shown = Progress(progress)
        with shown, budgets(self.flow, self.counts, goals.max_evaluations):
            try:
                self._prepare()
                end = self._judge(goals)
                while end is None:
                    end = self._step(goals) or self._judge(goals)
                    shown.show(self.last)
            except KeyboardInterrupt:
                if self.state is None or self.recorder.n_steps < n_records:
                    raise
                end = INTERRUPTED
            except Exception as error:
                if isinstance(error, StorageError) and self.storing:
                    # What was streamed is kept, and nothing more can be.
                    raise
                # Nothing is lost where nothing was walked.
                unusable = isinstance(error, InputError) and self.recorder.n_steps == 1
                # What no status tells of ends nothing that had an end before.
                unusable |= not isinstance(error, GeoflowError) and (
                    self.recorder.n_steps <= n_records
                )
                if self.state is None or unusable or self.recorder.n_steps < n_records:
                    if isinstance(error, EvaluationLimitError):
                        where = (
                            "a further step is made" if n_records else "the level set is reached"
                        )
                        raise ending.spent_before(goals.max_evaluations, where) from error
                    # As it is: an error that is its own cause has no end to who follows causes.
                    raise
                end = ending.of_error(error, goals.max_evaluations)
                if isinstance(error, StepSizeError):
                    try:
                        if no_gradient_left(self.flow, self._state()):
                            end = ending.at_the_minimum(self.last["multiplier"])
                        else:
                            end = ending.of_jump(end, jumps.beside(self.flow, self._state()))
                    except KeyboardInterrupt:
                        end = INTERRUPTED
        status, message = self._keep_last(end, n_records)
        level_set = self.flow.level_set
        n_at_floor = level_set.n_at_floor - self.n_at_floor0
        message += ending.how_close(level_set, n_at_floor, self.recorder.records.furthest)
        ended = {"status": status, "status_message": storable(message)}
        return self.recorder.finish(self.checkpoint, ended)

    def _judge(self, goals: Goals) -> ending.End | None:
        """Say how the walk ends here, where it does."""
        end = goals.judge(self.recorder.records)
        if end is None and self.flow.at_rest(self._state()):
            end = ending.of_rest(self.last.get("angle"), self.last.get("multiplier"))
        if (end[0] == "negative_multiplier" if end else self._stands_still()) and is_at_the_level(
            self.flow, self._state()
        ):
            end = ending.at_the_minimum(self.last["multiplier"])
        # A step costs an evaluation at least; one of a solver that makes none is no progress.
        if end is None and self.recorder.n_steps > goals.max_evaluations:
            end = (
                "max_steps",
                f"{goals.max_evaluations} steps were made, as many as evaluations allowed",
            )
        return end

    def _stands_still(self) -> bool:
        """Whether the last step left θ where it was, to the last bit or so."""
        lengths = [record["arc_length"] for record in self.recorder.records[-2:]]
        return len(lengths) > 1 and lengths[1] <= lengths[0]

    def _keep_last(self, end: ending.End, n_records: int) -> ending.End:
        """Keep θ where the walk ends, where the rule has it so, and say how that ends it.

        Observables that fail there, or that Ctrl-C breaks off, are NaN: nothing is lost for them.
        """
        step = self.recorder.n_steps - 1
        if not self.rule.keeps_last or self.recorder.last_kept == step:
            return end
        try:
            snapshot = self._snapshot(self._state(), step, self.last)
        except (ObservableError, KeyboardInterrupt) as error:
            if isinstance(error, KeyboardInterrupt):
                if self.recorder.n_steps < n_records:
                    raise
                end = INTERRUPTED
            nothing = dict.fromkeys(self.observables, records.unknown)
            theta = self._state().theta
            snapshot = Snapshot(step, self.last["time"], theta, nothing, self.theta_dtype)
        self.recorder.keep(snapshot)
        return end

    def _prepare(self) -> None:
        """Come to the level set and record the start, where that is still to be done."""
        if self.state is None:
            if not isinstance(self.flow, RegularizingFlow):  # which looks itself
                check_unchanged(self.flow)
            state, projection = self.flow.start(self.start)
            start = {**START, "n_reprojection": projection.iterations}
            self._accept([(state, start)], [[]], None, [])
        if self.carry is None:
            with numerics(), one_blas_thread():
                carry = self.solver.init(self.flow, self._state(), self.tolerance)
            self.carry, self.counts = carry, self._counts()

    def _step(self, goals: Goals) -> ending.End | None:
        """Make a step, and record what lies in it; say how the walk ends, where it does inside."""
        state, last = self._state(), self.last
        assert self.carry is not None, "a walk is prepared before its first step"
        # Where a step has no interpolant, it ends at the time of a snapshot.
        snapshot = math.inf if is_dense(self.solver) else self.rule.next_time(last["time"])
        target = min(snapshot, goals.t_end)
        left = target - last["time"]
        with numerics(f" in the step from flow time {last['time']:.6g}"), one_blas_thread():
            result = self.solver.step(self.flow, state, self.carry, self.tolerance, left)
            whole = after_step(last["time"], result.time, target)
            inside = Inside(self.flow, state, result, self._shorter)
            points, end, levels = self._points(inside, whole)
            kept = self._between(inside, list(points))
        progress = {
            "error_estimate": result.error_estimate,
            "n_rejected": last["n_rejected"] + result.n_rejected,
            "n_reprojection": last["n_reprojection"] + result.n_reprojection + inside.n_newton,
        }
        rows: list[Row] = []
        before = last
        for time, (reached, events) in points.items():
            chord = float(torch.linalg.vector_norm(reached.theta - state.theta))
            arc_length = max(last["arc_length"] + chord, before["arc_length"])
            size = result.time if time == whole and not rows else time - before["time"]
            before = {"time": time, "arc_length": arc_length, "step_size": size, **progress}
            rows.append((reached, {**before, "event": events}))
        # Where the walk ends here by what was looked for in the step, it goes on from its start,
        # at the step's end too: to look has cost evaluations.
        self._accept(rows, kept, None if end else result.carry, levels)
        return end

    def _points(
        self, inside: Inside, whole: float
    ) -> tuple[dict[float, tuple[State, int]], ending.End | None, list[float]]:
        """What to record of a step, by flow time: state and events; and what the seeker says.

        A few snapshots are records of their own, since their gradients are evaluated anyhow.
        """
        begin = self.last["time"]
        found, end, levels = self.seeker.look(inside, self.levels)
        points: dict[float, tuple[State, int]] = {}
        for point in found:
            # Times that differ by rounding may come to one: what occurred at either is of it.
            time = max(begin + point.time, math.nextafter(begin, math.inf))
            time = time if time < whole and point.time < inside.duration else whole
            state = point.state if time < whole else inside.state(inside.duration)
            points[time] = state, points.get(time, (state, 0))[1] | point.events
        wanted = between(self.rule, begin, max(points))
        if len(wanted) <= FEW:
            for time in wanted:
                points.setdefault(time, (inside.state(time - begin), 0))
        return dict(sorted(points.items())), end, levels

    def _shorter(self, time: float) -> tuple[State, int]:
        """Steps from where the walk stands to a flow time within the step that it has made."""
        state, carry, done, n_newton = self._state(), self.carry, 0.0, 0
        while done < time:
            assert carry is not None, "a walk is prepared before its first step"
            result = self.solver.step(self.flow, state, carry, self.tolerance, time - done)
            state, carry, n_newton = result.state, result.carry, n_newton + result.n_reprojection
            done = after_step(done, result.time, time, self.last["time"])
        return state, n_newton

    def _between(self, inside: Inside, times: Sequence[float]) -> list[list[Snapshot]]:
        """Snapshots in a step that lie between its records, by the record that they come before."""
        begin, step = self.last["time"], self.recorder.n_steps
        spans = list(itertools.pairwise([begin, *times]))
        wanted = [between(self.rule, *span) for span in spans]
        flats = inside.flats([time - begin for some in wanted for time in some])
        n = self.flow.problem.n_parameters
        return [
            [
                Snapshot(
                    step + i, t, next(flats)[:n], self.observables, self.theta_dtype, between=k
                )
                for k, t in enumerate(some)
            ]
            for i, some in enumerate(wanted)
        ]

    def _accept(
        self,
        rows: Sequence[Row],
        snapshots_before: Sequence[list[Snapshot]],
        carry: Carry | None,
        levels: list[float],
    ) -> None:
        """Record an accepted step and what lies in it, whole or not at all.

        Parameters
        ----------
        rows : sequence of (State, mapping)
            Points to record, with what the walk knows of them, in order of time.
        snapshots_before : sequence of list of Snapshot
            Of each of the points: those that lie in the step before it.
        carry : dict, optional
            The solver's, at the last of the points. None: the walk starts there, or ends there by
            what was looked for in a step, and goes on from the start of that step.
        levels : list of float
            What the seeker has found at the end of the step.
        """
        counts, step = self._counts(), self.recorder.n_steps
        inside = self.carry is not None and carry is None
        wall_time = clock.perf_counter() - self.clock0
        made, time = [], self.last.get("time", 0.0)
        for i, ((state, advance), kept) in enumerate(zip(rows, snapshots_before, strict=True)):
            record = records.step_record(
                self.flow, state, **advance, counts=counts, wall_time=wall_time
            )
            _check_finite(record)
            keep, dropped = bool(record["event"]), list[int]()
            if inside:
                # What a rule is offered it may drop others for, and this step is made again.
                keep |= self.rule.next_time(time) == record["time"]
            elif not keep:
                keep, dropped = self.rule.offer(step + i, record["time"], record["arc_length"])
            time = record["time"]
            own = [self._snapshot(state, step + i, record)] if keep else []
            made.append((record, dropped, kept + own))
        with interrupts.put_off():
            self.storing = True
            if inside:
                self.goes_on_from = self.checkpoint
            for record, dropped, snapshots in made:
                self.recorder.record(record, dropped)
                for snapshot in snapshots:
                    self.recorder.keep(snapshot)
            self.state, self.last = rows[-1][0], made[-1][0]
            if not inside:
                self.carry, self.counts, self.levels = carry, counts, levels
                self.recorder.accepted(self.checkpoint)
            self.storing = False

    def _snapshot(self, state: State, step: int, record: Mapping[str, float]) -> Snapshot:
        return Snapshot(step, record["time"], state.theta, self.observables, self.theta_dtype)

    def _state(self) -> State:
        assert self.state is not None, "a walk has a state from its first record on"
        return self.state

    def _counts(self) -> dict[str, int]:
        counts = counts_of(self.flow)
        return {name: counts[name] - self.counts0[name] for name in counts}


def _check_finite(record: Mapping[str, float]) -> None:
    """Refuse a point of which no walk goes on.

    Raises
    ------
    NumericalError
        L, R or one of their gradients is no number there.
    """
    for name in ("train_loss", "regularizer", "gradient_norm", "tangent_norm"):
        if not math.isfinite(record.get(name, 0.0)):
            raise NumericalError(
                f"{name} is {record[name]} at flow time {record['time']:.6g}; the walk ends before"
            )
