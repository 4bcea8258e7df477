"""The way into a walk: its arguments checked, its recorder chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from geoflow.archive.saved import check_target
from geoflow.errors import (
    InputError,
)
from geoflow.manifold.protocol import Flow, check_flow
from geoflow.problems import arithmetic, dtypes
from geoflow.solvers import Solver, is_dense
from geoflow.system.kinds import Reals, as_number, check_kind, check_switch
from geoflow.trajectories import dataset, records
from geoflow.trajectories.records import Observable, Observed
from geoflow.walking.crossings import Seeker
from geoflow.walking.events import Event, from_config
from geoflow.walking.fitting import check_fit
from geoflow.walking.memory import check_walk_memory
from geoflow.walking.recorder import Memory, Recorder, check_recorder
from geoflow.walking.settings import CHECKPOINT_SECONDS, DEFAULTS, WalkSettings
from geoflow.walking.steps import Walk
from geoflow.walking.stopping import Goals, Stop
from geoflow.walking.stream import Stream


@arithmetic.without_autocast()
def walk(
    flow: Flow,
    solver: str | Solver | Mapping[str, Any] = DEFAULTS.solver,
    rtol: float = DEFAULTS.rtol,
    atol: float = DEFAULTS.atol,
    t_end: float | None = DEFAULTS.t_end,
    stop: Stop | str | Mapping[str, Any] | None = DEFAULTS.stop,
    max_evaluations: float | None = DEFAULTS.max_evaluations,
    reproject_every: float | None = DEFAULTS.reproject_every,
    snapshot_times: Reals | None = DEFAULTS.snapshot_times,
    snapshot_every: float | None = DEFAULTS.snapshot_every,
    observables: Mapping[str, Observed] | None = None,
    archive: str | Path | None = None,
    progress: bool = False,
    *,
    events: Sequence[Event] | None = (),
    max_snapshots: int = DEFAULTS.max_snapshots,
    theta_dtype: str | None = DEFAULTS.theta_dtype,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """Walk along the level set, down R, and return the trajectory.

    Parameters
    ----------
    flow : Flow
        The vector field, a :class:`geoflow.RegularizingFlow` or your own; the walk starts at
        ``flow.problem.theta0``, re-projected.
    solver : str or Solver
        A name of :func:`geoflow.solvers.names`, with its options too as in
        ``"exponential:max_vectors=12"``; a solver with settings of its own; or what ``config`` has
        of one.
    rtol, atol : float
        Local error allowed in θ, relative to ‖θ‖ and absolute. With an ``rtol`` below 10⁻⁵ also set
        ``atol`` to 10⁻³ of it; otherwise the default ``atol`` dominates.
    t_end : float, optional
        Flow time at which the walk ends.
    stop : Stop, optional
        A further criterion; the default ends the walk at an angle of 175° between ∇R and ∇L. This
        and an :class:`Event <geoflow.walking.events.Event>` end it inside a step. A name with
        options is accepted too: ``"Plateau:window=2"``.
    max_evaluations : int or float, optional
        Budget in gradient evaluations, a Hessian-vector product counting 2. Never exceeded. If R
        evaluates other problems, they have a separate budget of the same size, shared by all of
        them. None: 100,000.
    reproject_every : float, optional
        Flow time between re-projections for torchdiffeq's solvers. None: every accepted step.
    snapshot_times : sequence or array of float, optional
        Keep θ at exactly these flow times, of which one at least is no later than ``t_end``. A
        dense solver makes the same steps without them: θ between their ends comes from its
        interpolant, re-projected.
    snapshot_every : float, optional
        Keep θ at the multiples of this flow time. With neither, at most ``max_snapshots``
        accepted steps are kept, evenly in arc length, the first and the last among them.
    observables : mapping of str to callable, problem or regularizer, optional
        Functions θ → float, evaluated where θ is kept; one variable each. Of a problem it is its
        loss, and one of ``gf.regularizers`` is made for the flow's problem. Their evaluations do
        not count in ``n_gradient`` or ``max_evaluations``.
    archive : str or Path, optional
        netCDF-4 file to write the trajectory to. The walk is streamed beside it, with memory
        flat however long it is, and the dataset returned reads the file lazily. Should the
        process end, :func:`geoflow.resume` goes on.
    progress : bool
        Show the walk on standard error, where that is a terminal or a notebook's.
    events : sequence of Event, optional
        What to record on the way: the scalars, θ and observables where each occurs, beside those
        of the steps, which they change in nothing. To locate one takes a few evaluations, which
        count; what its function evaluates does not. None: nothing.
    max_snapshots : int
        See ``snapshot_every``.
    theta_dtype : str, optional
        ``"float32"`` keeps θ in half the space. None: the dtype of the walk.
    checkpoint_seconds : float
        Seconds between checkpoints of an archived walk: what a crash can cost.
    provenance : mapping, optional
        Where the problem comes from, JSON-able; kept in ``config``. Its ``title``,
        ``experiment`` and ``seed`` become attributes.
    overwrite : bool
        Replace ``archive`` where it exists.
    recorder : Recorder, optional
        Takes the records in place of geoflow's own, and what it makes of them is returned; not
        with ``archive``. See :class:`geoflow.walking.recorder.Recorder`.

    Returns
    -------
    xarray.Dataset
        Schema 1.0, or 1.1 with snapshots between the steps or events, or 1.2 on several
        constraints and where R counts its evaluations apart. Its ``status`` says how the
        walk ended: ``stationary``, ``event``, ``t_end``, ``plateau``, ``max_evaluations``,
        ``max_steps``; ``at_rest`` or ``negative_multiplier`` where the flow has no velocity left;
        ``step_size_underflow``, ``projection_failed``, ``level_not_kept``, ``critical_point``,
        ``numerical_failure``, ``evaluation_failed`` or ``observable_failed`` where it could not go
        on; ``process_lost`` or ``processes_diverged`` of several; ``interrupted`` after Ctrl-C.

    Raises
    ------
    InputError
        An argument that cannot be used.
    ConvergenceError, CriticalPointError
        θ0 cannot be projected onto the level set, so there is no walk to keep.
    ArchiveError
        The disk no longer takes what is streamed, or another process is writing there.

    Examples
    --------
    >>> theta0 = torch.tensor([-1.2, 1.6], dtype=torch.float64)
    >>> problem = gf.Problem.from_function(lambda theta: theta.square().sum(), theta0)
    >>> there = torch.tensor([3.0, 0.0], dtype=torch.float64)
    >>> flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - there).square().sum())
    >>> ds = gf.walk(flow, stop=gf.Stationary(degrees=179.9))
    >>> ds.status
    'stationary'
    >>> ds.theta[-1].values.round(2) + 0.0  # the point of the circle nearest (3, 0)
    array([2., 0.])
    """
    check_flow(flow)
    observables = records.as_observables(observables, flow.problem)
    settings = WalkSettings(
        solver=solver,
        rtol=rtol,
        atol=atol,
        t_end=t_end,
        stop=stop,
        max_evaluations=max_evaluations,
        reproject_every=reproject_every,
        snapshot_times=snapshot_times,
        snapshot_every=snapshot_every,
        max_snapshots=max_snapshots,
        theta_dtype=theta_dtype,
    ).resolved(flow.problem.dtype)
    if not as_number(checkpoint_seconds, "checkpoint_seconds") >= 0:
        raise InputError(f"checkpoint_seconds={checkpoint_seconds}; use zero or more")
    check_kind(provenance, Mapping | None, "provenance", "a dict")
    check_switch(overwrite, "overwrite")
    check_switch(progress, "progress")
    chosen, goals = settings.make_solver(), settings.goals()
    recorded = from_config(() if events is None else events)
    check_fit(flow, chosen, goals, observables, recorded)
    if recorder is not None:
        check_recorder(recorder)
    if recorder is not None and archive is not None:
        raise InputError(f"recorder and archive={str(archive)!r} are both given; choose one")
    records.check_observables(observables, flow.problem.theta0)
    for event in (*recorded, *([goals.stop] if isinstance(goals.stop, Event) else [])):
        event.check_at(flow.problem.theta0)
    target = check_target(archive, overwrite=overwrite) if archive is not None else None

    header = _header(flow, settings, chosen, sorted(observables), recorded, provenance)
    _check_memory(flow, settings, chosen, in_memory=recorder is None and target is None)

    def walk_with(recorder: Recorder) -> xr.Dataset:
        theta = flow.problem.theta0
        return _run(flow, theta, settings, chosen, goals, recorder, observables, recorded, progress)

    if recorder is not None:
        return walk_with(recorder)
    if target is None:
        return walk_with(Memory(flow.problem, sorted(observables), header))
    with Stream.create(
        target,
        flow.problem,
        header,
        look_back=goals.look_back,
        interval=checkpoint_seconds,
        overwrite=overwrite,
    ) as stream:
        try:
            return walk_with(stream)
        except Exception as error:
            # Refused before its first step or in it: what lies there would be taken for an
            # unfinished walk.
            if stream.n_steps == 0 or (stream.n_steps == 1 and isinstance(error, InputError)):
                stream.lock.remove()
            raise


@arithmetic.without_autocast()
def walk_from(flow: Flow, theta: Tensor, settings: WalkSettings) -> xr.Dataset:
    """Walk as :func:`walk` does, in memory, from another point than the problem's θ0.

    Parameters
    ----------
    flow : Flow
        What to walk.
    theta : Tensor, shape (P,)
        Where to start; re-projected.
    settings : WalkSettings
        How.

    Returns
    -------
    xarray.Dataset
        The trajectory.

    Raises
    ------
    InputError, ConvergenceError, CriticalPointError
        As there.
    """
    settings = settings.resolved(flow.problem.dtype)
    solver, goals = settings.make_solver(), settings.goals()
    check_fit(flow, solver, goals, {})
    header = _header(flow, settings, solver, (), (), None)
    _check_memory(flow, settings, solver, in_memory=True)
    recorder = Memory(flow.problem, (), header)
    return _run(flow, theta, settings, solver, goals, recorder, {}, (), progress=False)


def _run(
    flow: Flow,
    theta: Tensor,
    settings: WalkSettings,
    solver: Solver,
    goals: Goals,
    recorder: Recorder,
    observables: Mapping[str, Observable],
    events: Sequence[Event],
    progress: bool,
) -> xr.Dataset:
    """Walk from θ to an end."""
    walk = Walk(
        flow,
        solver,
        settings.tolerance(flow.problem.dtype),
        settings.rule(),
        observables,
        recorder,
        _kept_dtype(settings),
        Seeker(flow, observables, events, goals.crossing),
        start=theta,
    )
    return walk.run(goals, progress)


def _kept_dtype(settings: WalkSettings) -> torch.dtype:
    """In which θ is kept."""
    return dtypes.DTYPES[str(settings.theta_dtype)]


def _check_memory(flow: Flow, settings: WalkSettings, solver: Solver, *, in_memory: bool) -> None:
    """Refuse a walk that would not fit, before its first evaluation."""
    kept = _kept_dtype(settings)
    check_walk_memory(flow, solver, settings.rule(), kept, in_memory=in_memory)


def _header(
    flow: Flow,
    settings: WalkSettings,
    solver: Solver,
    observables: Sequence[str],
    events: Sequence[Event],
    provenance: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Attributes of a trajectory, as they are before the walk."""
    config = {
        **settings.config,
        "observables": list(observables),
        **_of_level_set(flow),
        **({"events": [event.config for event in events]} if events else {}),
        "threads": torch.get_num_threads(),
        **({"processes": n} if (n := getattr(flow.problem, "n_processes", 1)) > 1 else {}),
        "provenance": dict(provenance or {}),
    }
    return dataset.attributes(
        flow,
        solver=solver.name,
        rtol=settings.rtol,
        atol=settings.atol,
        config=config,
        dense=is_dense(solver),
    )


def _of_level_set(flow: Flow) -> dict[str, Any]:
    """What ``config`` has of a level set beside ``level`` and ``level_rtol``: what is not usual."""
    level_set = flow.level_set
    division = getattr(flow.problem, "division", "")
    return {
        **({"level_atol": level_set.level_atol} if level_set.level_atol else {}),
        **({"constraints": division} if division else {}),
    }
