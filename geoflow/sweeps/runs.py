"""Many independent runs: walks of many seeds, trainings at many penalties."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cloudpickle

from geoflow import baselines, experiments
from geoflow.archive.saved import saved
from geoflow.errors import GeoflowError, InputError
from geoflow.manifold import regularizers
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.problems.checks import check_device_and_dtype
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.grouped import check_division, divided
from geoflow.solvers import Solver
from geoflow.sweeps import kept
from geoflow.sweeps.arguments import check_common, checked_seeds, named_dtype, several
from geoflow.sweeps.manifest import claimed, current
from geoflow.sweeps.tasks import Outcome, Task, run_tasks, settle
from geoflow.system import kinds
from geoflow.system.translation import reason
from geoflow.walking.ending import End
from geoflow.walking.loop import walk
from geoflow.walking.resuming import resume
from geoflow.walking.settings import DEFAULTS, WalkSettings
from geoflow.walking.stopping import Stationary, Stop


def sweep(
    experiment: str,
    seeds: kinds.Wholes,
    out: str | Path,
    *,
    regularizer: str = regularizers.DEFAULT,
    constraints: str | None = None,
    solver: str | Solver | Mapping[str, Any] = DEFAULTS.solver,
    rtol: float = DEFAULTS.rtol,
    atol: float = DEFAULTS.atol,
    t_end: float | None = DEFAULTS.t_end,
    stop: Stop | str | Mapping[str, Any] | None = DEFAULTS.stop,
    degrees: float | None = None,
    max_evaluations: float | None = DEFAULTS.max_evaluations,
    reproject_every: float | None = DEFAULTS.reproject_every,
    snapshot_times: kinds.Reals | None = DEFAULTS.snapshot_times,
    snapshot_every: float | None = DEFAULTS.snapshot_every,
    max_snapshots: int = DEFAULTS.max_snapshots,
    theta_dtype: str | None = DEFAULTS.theta_dtype,
    epochs: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
    data: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    progress: bool = False,
) -> list[Outcome]:
    """Walk an experiment from many seeds, each in a task of its own on Dask.

    Each walk's file appears in ``out``, whole, when the walk is done. Where a file is there
    already its walk is not done again, so that the same call after an interruption does what is
    missing; a walk that was cut off goes on from its last checkpoint. Of an experiment of one's own
    the first walk that is there is compared with what its function gives now: data, network and
    loss. A worker that dies costs its runs one more attempt; a run that fails is reported and does
    not stop the others.

    On the cluster that is started here a script needs the usual ``if __name__ == "__main__":``,
    since the workers are processes that import it. The function of an experiment that is
    registered here is carried to them by cloudpickle; what it imports they must find.

    Parameters
    ----------
    experiment : str
        Name of an experiment, one's own too.
    seeds : sequence of int
        One walk each.
    out : str or Path
        Folder, made where it is not there. One folder has one set of settings.
    regularizer : str
        R, by its name and options; see :func:`geoflow.regularizers.get`.
    constraints : str, optional
        ``"by_class"`` or ``"each_example"``: keep the loss of each class, or each example's own.
        None: that of all examples.
    solver, rtol, atol, t_end, stop, max_evaluations, reproject_every, snapshot_times, \
snapshot_every, max_snapshots, theta_dtype
        See :func:`geoflow.walk`; solver and stop are geoflow's own.
    degrees : float, optional
        Angle at which a walk ends: short for ``stop=Stationary(degrees)``.
    epochs, data
        See :meth:`geoflow.experiments.Experiment.prepare`.
    dtype, device : str, optional
        ``"float64"`` or ``"float32"``; the device of the workers. None: ``"float64"`` and
        ``"cpu"``, or what one's own experiment has.
    scheduler : str, optional
        Address of a Dask scheduler, such as ``tcp://host:8786``. Its workers need geoflow and
        the same file system. None: a cluster on this machine, for the length of the call.
    workers : int, optional
        Worker processes of the cluster on this machine. None: as many as processors allow.
    threads : int
        Threads of each run. Sums depend on their number in the last digits, and with them the
        steps of a walk: so it is set and not guessed from the machine.
    progress : bool
        Show a bar, and a line for each run that ends, on standard error.

    Returns
    -------
    list of Outcome
        In the order of ``seeds``.

    Raises
    ------
    InputError
        An argument that cannot be used, a folder with other settings, or no cluster there.
    ArchiveError
        A file of the folder that is not a walk.
    ClusterError
        The scheduler has gone; the same call on another goes on.
    """
    chosen = experiments.get(experiment)
    epochs, workers, threads = check_common(
        dtype, device, epochs, data, scheduler, workers, threads
    )
    kinds.check_switch(progress, "progress")
    regularizers.get(regularizer)
    check_division(constraints)
    checked = checked_seeds(seeds)
    if chosen.usual_dtype is not None:
        dtype, device = dtype or dtype_name(chosen.usual_dtype), device or "cpu"
    if dtype is not None or device is not None:
        check_device_and_dtype(device or "cpu", named_dtype(dtype or "float64"))
    if degrees is not None and stop is not DEFAULTS.stop:
        raise InputError(f"degrees={degrees}: stop is given too; choose one")
    walks = WalkSettings(
        solver=solver,
        rtol=rtol,
        atol=atol,
        t_end=t_end,
        stop=stop if degrees is None else Stationary(degrees),
        max_evaluations=max_evaluations,
        reproject_every=reproject_every,
        snapshot_times=snapshot_times,
        snapshot_every=snapshot_every,
        max_snapshots=max_snapshots,
        theta_dtype=theta_dtype,
    )
    if dtype is not None:
        walks = walks.resolved(named_dtype(dtype))
    # As the workers will.
    WalkSettings.from_config(walks.config)
    settings = {
        "experiment": experiment,
        **walks.config,
        "regularizer": regularizer,
        "constraints": constraints,
        "epochs": epochs,
        "dtype": dtype,
        "device": device,
        "data": data,
        "threads": threads,
    }
    carried: dict[str, Any] = {}
    source: dict[str, Any] = {}
    if isinstance(chosen, experiments.OwnExperiment):
        chosen.check_options(epochs=epochs, dtype=dtype, device=device, data=data)
        carried["carried"] = _carried(chosen)
        if chosen.source is not None:
            source["problem_sha256"] = chosen.source.sha256
    with claimed(out, {"kind": "walks", **settings, **source}) as (folder, outcomes):
        tasks: list[Task] = []
        finished: dict[str, End] = {}
        for seed in checked:
            name = f"seed-{seed:04d}"
            arguments = settings | {"seed": seed} | carried
            tasks.append(Task(name, folder / f"{name}.nc", _walk, arguments))
            end = kept.walk_of(tasks[-1].path, settings, seed, chosen)
            if end and end[0] != kept.CUT_OFF:
                if not finished and isinstance(chosen, experiments.OwnExperiment):
                    kept.check_experiment(tasks[-1].path, settings, seed, chosen)
                finished[name] = end
        outcomes += run_tasks(tasks, finished, scheduler, workers, threads, progress)
    return outcomes


def sweep_weight_decay(
    experiment: str,
    seeds: kinds.Wholes,
    out: str | Path,
    *,
    penalties: kinds.Reals = baselines.PENALTIES,
    epochs: int | None = None,
    validation: float = 0.2,
    dtype: str = "float64",
    device: str = "cpu",
    data: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    progress: bool = False,
) -> list[Outcome]:
    """Train with weight decay, each penalty, with all its seeds, in a task of its own on Dask.

    :func:`geoflow.baselines.open_weight_decay` joins the files. Everything else is as in
    :func:`sweep`.

    Parameters
    ----------
    experiment, seeds, out, dtype, device, data, scheduler, workers, threads, progress
        See :func:`sweep`.
    penalties, epochs, validation
        See :func:`geoflow.baselines.weight_decay <geoflow.baselines.decay_training.weight_decay>`.

    Returns
    -------
    list of Outcome
        In the order of ``penalties``.

    Raises
    ------
    InputError, ArchiveError
        See :func:`sweep`.
    """
    experiments.registry.of_paper(experiment)
    epochs, workers, threads = check_common(
        dtype, device, epochs, data, scheduler, workers, threads
    )
    kinds.check_switch(progress, "progress")
    penalties = [kinds.as_number(p, "penalties") for p in several(penalties, "penalties")]
    validation = kinds.as_number(validation, "validation")
    check_device_and_dtype(device, named_dtype(dtype))
    settings = {
        "experiment": experiment,
        "seeds": checked_seeds(seeds),
        "epochs": epochs,
        "validation": validation,
        "dtype": dtype,
        "device": device,
        "data": data,
        "threads": threads,
    }
    with claimed(out, {"kind": "weight decay", **settings}) as (folder, outcomes):
        tasks, finished = [], {}
        for penalty in penalties:
            name = f"penalty-{penalty!r}"
            arguments = settings | {"penalty": penalty}
            tasks.append(Task(name, folder / f"{name}.nc", _train, arguments))
            if end := kept.training_of(tasks[-1].path, settings, penalty):
                finished[name] = end
        outcomes += run_tasks(tasks, finished, scheduler, workers, threads, progress)
    return outcomes


def _walk(path: str, threads: int, seed: int, carried: bytes | None = None, **settings: Any) -> End:
    """Do one walk in a worker; the dataset stays in its file."""
    settle(threads)
    settings = current(settings)
    if carried is None:
        experiment = experiments.get(settings["experiment"])
    else:
        experiment = _unpacked(carried, settings["experiment"])
    prepare: Callable[..., experiments.PreparedExperiment] = experiment.prepare
    prepared = prepare(
        seed,
        data=settings["data"],
        epochs=settings["epochs"],
        dtype=None if settings["dtype"] is None else named_dtype(settings["dtype"]),
        device=settings["device"],
    )
    constraints = settings.get("constraints") or ""
    level_set = LevelSet(divided(prepared.problem, constraints))
    flow = RegularizingFlow(level_set, regularizers.get(settings["regularizer"]))
    walks = WalkSettings.from_config(settings)
    # A worker may die when its walk has been written, and before it could say so.
    end = kept.walk_of(Path(path), settings | {"threads": threads}, seed, experiment)
    if end and end[0] != kept.CUT_OFF:
        return end
    if end and _can_be_resumed(Path(path)):
        ds = resume(path, flow, observables=prepared.observables)
        return ds.attrs["status"], ds.attrs["status_message"]
    ds = walk(
        flow,
        **vars(walks),
        observables=prepared.observables,
        provenance=prepared.provenance,
        archive=path,
        # Only what cannot be gone on from: a finished walk is not done again.
        overwrite=True,
    )
    return ds.attrs["status"], ds.attrs["status_message"]


def _can_be_resumed(path: Path) -> bool:
    """Whether nothing that the walk would go on from is damaged."""
    try:
        saved(path)
    except GeoflowError:
        return False
    return True


def _carried(experiment: experiments.OwnExperiment) -> bytes:
    """Pack one's own experiment for the workers, where it is not registered."""
    try:
        return bytes(cloudpickle.dumps(experiment))
    # Whatever the function holds on to may refuse in its own way.
    except Exception as error:
        raise InputError(
            f"the function of {experiment.name!r} cannot be carried to the workers "
            f"({reason(error)}); let it make what it needs itself"
        ) from None


def _unpacked(carried: bytes, name: str) -> experiments.OwnExperiment:
    try:
        found: experiments.OwnExperiment = pickle.loads(carried)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"the function of {name!r} cannot be loaded by the worker ({reason(error)}); let the "
            "workers find what it imports"
        ) from None
    return found


def _train(path: str, threads: int, penalty: float, **settings: Any) -> End:
    """Train at one penalty in a worker."""
    settle(threads)
    # A worker may die when its trainings have been written, and before it could say so.
    if end := kept.training_of(Path(path), settings, penalty):
        return end
    ds = baselines.weight_decay(
        settings["experiment"],
        penalties=[penalty],
        seeds=settings["seeds"],
        epochs=settings["epochs"],
        validation=settings["validation"],
        data=settings["data"],
        dtype=named_dtype(settings["dtype"]),
        device=settings["device"],
    )
    # What has come meanwhile is never written over.
    if kept.training_of(Path(path), settings, penalty) is None:
        baselines.save_weight_decay(ds, path)
    return "trained", f"{ds.sizes['run']} runs of {int(ds['epoch'][-1])} epochs"
