"""Going on with a walk: after a crash from its last checkpoint, after its end to a further goal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from geoflow import experiments
from geoflow.archive import trajectory_files
from geoflow.archive.checkpoint import Checkpoint
from geoflow.archive.saved import Saved, saved
from geoflow.errors import ArchiveError, InputError
from geoflow.manifold import protocol
from geoflow.manifold.protocol import Flow, apart_from
from geoflow.problems import arithmetic, dtypes
from geoflow.problems.earlier import same_data, same_data_apart
from geoflow.solvers import Solver, is_dense
from geoflow.system import files, kinds
from geoflow.system.translation import reason
from geoflow.trajectories import consistency, records, schema
from geoflow.trajectories.layout import layout_of
from geoflow.trajectories.records import Observed, StepRecords
from geoflow.walking import configuration, rerunning
from geoflow.walking.counting import APART, spent, uncounted
from geoflow.walking.crossings import Seeker
from geoflow.walking.events import Event, from_config
from geoflow.walking.fitting import check_fit, observed_otherwise
from geoflow.walking.memory import check_walk_memory
from geoflow.walking.settings import CHECKPOINT_SECONDS, WalkSettings
from geoflow.walking.steps import Walk
from geoflow.walking.stopping import Goals, Record, Stop
from geoflow.walking.stream import Stream

# The goal of a walk by the status that says it was reached.
GOALS = {
    **dict.fromkeys(schema.REACHED, "stop"),
    "t_end": "t_end",
    "max_evaluations": "max_evaluations",
}

# Snapshots at which observables are compared.
COMPARED = 5


@arithmetic.without_autocast()
def resume(
    path: str | Path,
    flow: Flow | None = None,
    *,
    solver: str | Solver | Mapping[str, Any] | None = None,
    t_end: float | None = None,
    stop: Stop | str | Mapping[str, Any] | None = None,
    max_evaluations: float | None = None,
    observables: Mapping[str, Observed] | None = None,
    progress: bool = False,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    events: Sequence[Event] | None = None,
) -> xr.Dataset:
    """Continue the walk of an archive, and return the whole trajectory.

    A walk that was cut short goes on from its last checkpoint, and becomes what it would have
    been, bit for bit, ``wall_time`` and ``created`` aside; ``cvode``, which starts afresh there, to
    its tolerance only. A walk that has ended goes on to the
    goals given here; the goal that ended it falls away. One that an event or an angle ended within
    a step, or exactly at the end of one, makes that step again, whole: it becomes what it would
    have been without that goal.

    Parameters
    ----------
    path : str or Path
        The file that was given as ``archive``, whether it is there yet or not.
    flow : Flow, optional
        The flow of that walk: same data, network, loss, level and regularisation function. None:
        it is made anew, where the walk was of an experiment that is registered in this process.
    solver : str or Solver or mapping, optional
        That of the walk, as :func:`geoflow.walk` takes it. Needed only where it is not geoflow's
        own.
    t_end, stop, max_evaluations
        As for :func:`geoflow.walk`; None: as before.
    observables : mapping of str to callable, problem or regularizer, optional
        Needed, by the same names, where the walk had some and ``flow`` is given. They are
        compared with what was recorded at some snapshots, at no cost to the walk.
    progress : bool
        Show the walk on standard error, where that is a terminal or a notebook's.
    checkpoint_seconds : float
        Seconds between checkpoints.
    events : sequence of Event, optional
        Needed, the same as before, only where one is of a function of one's own. Such a function,
        unless it is for its rate, is compared with what it was at the checkpoint.

    Returns
    -------
    xarray.Dataset
        As :func:`geoflow.walk` returns it.

    Raises
    ------
    InputError
        An argument that cannot be used, a goal that the walk has passed, or a walk that has ended
        and no further goal.
    ArchiveError
        Nothing to go on from; other data, another network, observable or schema than the walk's;
        damage; or another process is writing there.
    StorageError
        The disk does not take what is streamed; what was streamed is kept.
    """
    path = files.file_named(path)
    kinds.check_switch(progress, "progress")
    if flow is not None:
        protocol.check_flow(flow)
    kept = saved(path)
    configuration.check(path, kept.attributes)
    if flow is None:
        if observables or solver or events:
            raise InputError("flow: observables, events and solver go with a flow; give it too")
        rebuilt = _of_experiment(path, kept)
        flow, observables = rebuilt.flow, rebuilt.observables
    observables = records.as_observables(observables, flow.problem)
    check_flow(flow, kept)
    names = kept.config.get("observables")
    if sorted(observables) != names:
        raise InputError(
            f"observables: the walk has {names}, given are {sorted(observables)}; give the same"
        )
    given = {"t_end": t_end, "stop": stop, "max_evaluations": max_evaluations}
    settings = _settings(path, kept, solver, **given)
    tolerance = settings.tolerance(flow.problem.dtype)
    goals, rule, recorded = settings.goals(), settings.rule(), _events(kept, events)
    chosen, theta_dtype = settings.make_solver(), dtypes.DTYPES[str(settings.theta_dtype)]
    check_fit(flow, chosen, goals, observables, recorded)
    check_walk_memory(flow, chosen, rule, theta_dtype, in_memory=False)
    n_records = check_further(kept, path, goals)
    header = {k: v for k, v in kept.attributes.items() if k not in ("status", "status_message")}
    config = kept.config | settings.config
    stream, checkpoint = Stream.reopen(
        path,
        flow.problem,
        {
            **header,
            "geoflow_schema": schema.version_of(config, header, dense=is_dense(chosen)),
            "config": json.dumps(config, sort_keys=True),
        },
        look_back=goals.look_back,
        interval=checkpoint_seconds,
        rule=rule,
    )
    with stream:
        seeker = Seeker(flow, observables, recorded, goals.crossing)
        walk = Walk(flow, chosen, tolerance, rule, observables, stream, theta_dtype, seeker)
        try:
            _check_counts(path, checkpoint, stream.records)
            _check_level(path, kept, stream.records)
            # A walk that was cut off at its own goals only has its file to be written.
            if kept.has_ended or any(kept.config[k] != v for k, v in goals.config.items()):
                _refuse_passed(goals, stream.records, checkpoint.counts)
            _check_observables(walk, stream, checkpoint)
            same_stop = settings.config["stop"] == kept.config.get("stop")
            _check_events(walk, checkpoint, same_stop=same_stop)
            walk.restore(checkpoint, same_stop=same_stop)
            return walk.run(goals, progress, n_records)
        except BaseException:
            # What the archive holds stays there, where no more than that was walked.
            if stream.n_steps <= n_records:
                stream.give_up()
            raise


def check_further(kept: Saved, path: Path, goals: Goals) -> int:
    """Refuse goals that a walk which has an archive has passed; return how many records it has.

    Raises
    ------
    InputError
        Names the goal.
    ArchiveError
        The records of the file are of another level.
    """
    if "status" not in kept.attributes:
        return 0
    with trajectory_files.open_trajectory(path) as ds:
        configuration.check(path, ds.attrs, ds)
        last = {str(n): float(v[-1]) for n, v in ds.variables.items() if v.dims == ("step",)}
        n_records = ds.sizes["step"]
    if kept.has_ended:
        counts = {name: int(last[f"n_{name}"]) for name in kept.checkpoint.counts}
        _refuse_passed(goals, [last], counts)
        # What was left of a budget that ended the walk was less than its next step takes.
        budget = kept.config.get("max_evaluations", 0)
        if kept.attributes["status"] == "max_evaluations" and goals.max_evaluations <= budget:
            raise InputError(
                f"max_evaluations={goals.max_evaluations}: the walk has come to its end with "
                f"{budget}; allow more, from its start on"
            )
    return n_records


def _check_counts(path: Path, checkpoint: Checkpoint, records: StepRecords) -> None:
    """Refuse a checkpoint that counts fewer evaluations than the record it stands at."""
    if not records:
        return
    last = records[-1]
    try:
        checkpoint.check_counts(
            {name: last[f"n_{name}"] for name in checkpoint.counts if f"n_{name}" in last}
        )
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}; walk again") from None


def _check_level(path: Path, kept: Saved, records: StepRecords) -> None:
    """Refuse a walk whose last records are of another level than its flow keeps."""
    found = consistency.level_defects(kept.attributes, records.columns)
    if found:
        raise ArchiveError(
            f"{path}: {found[0]}: the archive was changed since; `geoflow validate` says more, "
            "or walk again"
        )


def _check_observables(walk: Walk, stream: Stream, checkpoint: Checkpoint) -> None:
    """Refuse functions whose values at some snapshots are not those that were recorded there.

    At one alone, one that takes few values, as an accuracy does, may have that of another.
    """
    measured, sizes = stream.snapshots.measured(COMPARED)
    full = checkpoint.theta.cpu().numpy()
    for number, (theta, then) in enumerate(measured):
        # Where θ is kept rounded, a function may be another; the checkpoint has it as it was.
        rounded = full.dtype != theta.dtype
        if rounded and number:
            return
        rounded = rounded and np.array_equal(full.astype(theta.dtype), theta)
        for name, function in walk.observables.items():
            here = {name: function}
            different = observed_otherwise(here, theta, walk.start, then, sizes)
            if different and rounded:
                different = observed_otherwise(here, full, walk.start, then, sizes)
            if different:
                raise ArchiveError(
                    f"{different}; go on with the functions that the walk started with"
                )


def _check_events(walk: Walk, checkpoint: Checkpoint, *, same_stop: bool) -> None:
    """Refuse events whose functions are others at the checkpoint than where it was written.

    Of a rate it has none that a point could tell of.
    """
    sought = walk.seeker.sought if same_stop else walk.seeker.sought[: walk.seeker.n_recorded]
    # Of a walk that looked for no event there is nothing to compare.
    for event, level in zip(sought, checkpoint.levels, strict=False):
        if not isinstance(event, Event) or event.rate or isinstance(event.function, str):
            continue
        then = level + event.value
        different = observed_otherwise(
            {event.name: uncounted(walk.flow, event.function)},
            checkpoint.theta.cpu().numpy(),
            walk.start,
            {event.name: then},
            {event.name: max(abs(then), abs(event.value))},
            "the function of event {!r}",
        )
        if different:
            raise ArchiveError(
                f"{different} at the checkpoint; give that of the walk, or as another stop one by "
                "a name of its own"
            )


def check_flow(flow: Flow, kept: Saved) -> None:
    """Refuse another problem than the walk's.

    Raises
    ------
    ArchiveError
        Other data, another network, level or regularisation function; says which.
    """
    problem, attributes = flow.problem, kept.attributes
    kept_levels = schema.levels(attributes) or [attributes["level"]]
    apart, kept_apart = apart_from(flow), attributes.get(schema.REGULARIZER_DATA, "")
    pairs = {
        "dtype": (dtypes.dtype_name(problem.dtype), attributes["dtype"]),
        "data (SHA-256)": (
            attributes["data_sha256"]
            if same_data(problem, attributes["data_sha256"])
            else problem.data_sha256,
            attributes["data_sha256"],
        ),
        "network's tensors": (layout_of(problem), kept.tensors),
        "level": (flow.level_set.levels.tolist(), kept_levels),
        "level_atol": (flow.level_set.level_atol, kept.config.get("level_atol", 0.0)),
        "level_rtol": (flow.level_set.level_rtol, attributes["level_rtol"]),
        "regularizer": (flow.regularizer_name, attributes["regularizer_name"]),
        "regularizer's data (SHA-256)": (
            kept_apart
            if same_data_apart(apart, kept_apart)
            else " ".join(p.data_sha256 for p in apart),
            kept_apart,
        ),
        "kind": (
            schema.flow_attributes(type(flow).__name__, flow.scalars),
            {n: attributes[n] for n in (schema.FLOW, schema.FLOW_SCALARS) if n in attributes},
        ),
    }
    for name, (now, then) in pairs.items():
        if now != then:
            raise ArchiveError(
                f"flow: its {name} is not that of the walk: {kinds.shown(now)} where the walk has "
                f"{kinds.shown(then)}; give the flow that the walk started with"
            )


def _settings(
    path: Path,
    kept: Saved,
    solver: str | Solver | Mapping[str, Any] | None,
    **goals: Any,
) -> WalkSettings:
    """Take up the settings of a walk with the goals given, the one that ended it falling away."""
    status = kept.attributes.get("status")
    if kept.has_ended and all(value is None for value in goals.values()):
        raise InputError(
            f"the walk has ended, {status}: {kept.attributes.get('status_message')}; "
            "name a further goal (--angle, --t-end or --max-evaluations)"
        )
    instead = {k: v for k, v in goals.items() if v is not None or GOALS.get(str(status)) == k}
    if solver is not None:
        there = kept.config.get("solver", {})
        every = None
        # Beside a text gf.walk takes this option by itself; the file has it with the others.
        if isinstance(solver, str) and "reproject_every" not in solver:
            same = solver.partition(":")[0] == there.get("name")
            every = there.get("reproject_every") if same else None
        given = WalkSettings(solver, reproject_every=every).make_solver()
        instead["solver"] = given
        if {"name": given.name, **given.options} != there:
            raise InputError(f"solver: the walk's is {there}; give the same, or leave it out")
    return rerunning.settings_of(path, kept.config, **instead)


def _refuse_passed(goals: Goals, records: Sequence[Record], counts: Mapping[str, int]) -> None:
    """Refuse goals that would end the walk where it stands, or before."""
    # R has as much for itself; the names are in the order in which they are to be told.
    for name, cost in spent(counts).items():
        if cost >= goals.max_evaluations:
            who = "R" if name == APART else "the walk"
            raise InputError(
                f"max_evaluations={goals.max_evaluations}: {who} has spent {cost} already; allow "
                "more, from its start on"
            )
    end = goals.judge(records) if records else None
    # Another end than at a goal comes again where the walk is taken up.
    if end and end[0] in GOALS:
        status, message = end
        raise InputError(
            f"{GOALS[status]}: {message}, so it has ended already; name a further goal"
        )


def _events(kept: Saved, given: Sequence[Event] | None) -> tuple[Event, ...]:
    """The events of a walk, made again where they are of names, and given again where not."""
    there = kept.config.get("events", [])
    if given is not None and [event.config for event in from_config(given)] != there:
        raise InputError(f"events: the walk's are {there}; give the same")
    return from_config(there if given is None else given)


def _of_experiment(path: Path, kept: Saved) -> experiments.RebuiltWalk:
    """Make what an experiment's walk was a walk of again, where it was computed."""
    try:
        rerunning.known_experiment(kept.config["provenance"])
        return experiments.rebuild(kept.attributes, device=kept.attributes["device"])
    except (KeyError, TypeError) as error:
        raise ArchiveError(
            f"{path}: its config cannot be used ({reason(error)}); run again"
        ) from None
