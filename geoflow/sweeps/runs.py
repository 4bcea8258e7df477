"""Many independent runs: walks of many seeds, trainings at many penalties."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from geoflow import baselines, experiments, solvers
from geoflow.archive.trajectory_files import open_trajectory
from geoflow.errors import InputError
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.regularizers import squared_norm
from geoflow.problems.checks import check_device_and_dtype
from geoflow.sweeps.tasks import Outcome, Task, run_tasks, settle
from geoflow.system import files
from geoflow.walking.loop import walk
from geoflow.walking.stopping import Stationary

MANIFEST = "sweep.json"
FORMAT = "1.0"


def sweep(
    experiment: str,
    seeds: Sequence[int],
    out: str | Path,
    *,
    solver: str = solvers.DEFAULT,
    rtol: float = 1e-3,
    atol: float = 1e-6,
    degrees: float = 175.0,
    t_end: float | None = None,
    max_evaluations: int | None = None,
    max_snapshots: int = 100,
    epochs: int | None = None,
    dtype: str = "float64",
    device: str = "cpu",
    data: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    threads: int = 1,
    progress: bool = False,
) -> list[Outcome]:
    """Walk an experiment from many seeds, each in a task of its own on Dask.

    Each walk's file appears in ``out``, whole, when the walk is done. Where a file is there
    already its walk is not done again, so that the same call after an interruption does what is
    missing. A worker that dies costs its runs one more attempt; a run that fails is reported and
    does not stop the others.

    On the cluster that is started here a script needs the usual ``if __name__ == "__main__":``,
    since the workers are processes that import it.

    Parameters
    ----------
    experiment : str
        Name of an experiment.
    seeds : sequence of int
        One walk each.
    out : str or Path
        Folder, made where it is not there. One folder has one set of settings.
    solver, rtol, atol, t_end, max_evaluations, max_snapshots
        See :func:`geoflow.walk`.
    degrees : float
        Angle at which a walk ends.
    epochs, data
        See :meth:`geoflow.experiments.Experiment.prepare`.
    dtype, device : str
        ``"float64"`` or ``"float32"``; the device of the workers.
    scheduler : str, optional
        Address of a Dask scheduler, such as ``tcp://host:8786``. Its workers need geoflow and
        the same file system. None: a cluster on this machine, for the length of the call.
    workers : int, optional
        Worker processes of that cluster. None: as many as processors allow.
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
    """
    experiments.get(experiment)
    solvers.get(solver)
    checked = _seeds(seeds)
    check_device_and_dtype(device, _dtype(dtype))
    solvers.Tolerance.checked(rtol, atol, _dtype(dtype))
    Stationary(degrees)
    settings = {
        "experiment": experiment,
        "solver": solver,
        "rtol": float(rtol),
        "atol": float(atol),
        "degrees": float(degrees),
        "t_end": t_end,
        "max_evaluations": max_evaluations,
        "max_snapshots": max_snapshots,
        "epochs": epochs,
        "dtype": dtype,
        "device": device,
        "data": data,
        "threads": threads,
    }
    folder = _folder(out, {"kind": "walks", **settings})
    tasks = [
        Task(f"seed-{s:04d}", folder / f"seed-{s:04d}.nc", _walk, settings | {"seed": s})
        for s in checked
    ]
    done = {t.name: _walked(t.path) for t in tasks if t.path.is_file()}
    finished = {name: end for name, end in done.items() if end[0] != "interrupted"}
    return run_tasks(tasks, finished, scheduler, workers, threads, progress)


def sweep_weight_decay(
    experiment: str,
    seeds: Sequence[int],
    out: str | Path,
    *,
    penalties: Sequence[float] = baselines.PENALTIES,
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
        See :func:`geoflow.baselines.decay_training`.

    Returns
    -------
    list of Outcome
        In the order of ``penalties``.

    Raises
    ------
    InputError, ArchiveError
        See :func:`sweep`.
    """
    experiments.get(experiment)
    check_device_and_dtype(device, _dtype(dtype))
    settings = {
        "experiment": experiment,
        "seeds": _seeds(seeds),
        "epochs": epochs,
        "validation": validation,
        "dtype": dtype,
        "device": device,
        "data": data,
        "threads": threads,
    }
    folder = _folder(out, {"kind": "weight decay", **settings})
    tasks = []
    for penalty in penalties:
        name = f"penalty-{float(penalty)!r}"
        arguments = settings | {"penalty": float(penalty)}
        tasks.append(Task(name, folder / f"{name}.nc", _train, arguments))
    finished = {}
    for task in tasks:
        if task.path.is_file():
            baselines.open_weight_decay(task.path).close()
            finished[task.name] = ("trained", "trained before")
    return run_tasks(tasks, finished, scheduler, workers, threads, progress)


def _walk(path: str, threads: int, seed: int, **settings: Any) -> tuple[str, str]:
    """Do one walk in a worker; the dataset stays in its file."""
    settle(threads)
    prepared = experiments.get(settings["experiment"]).prepare(
        seed,
        data=settings["data"],
        epochs=settings["epochs"],
        dtype=_dtype(settings["dtype"]),
        device=settings["device"],
    )
    ds = walk(
        RegularizingFlow(LevelSet(prepared.problem), squared_norm),
        settings["solver"],
        rtol=settings["rtol"],
        atol=settings["atol"],
        t_end=settings["t_end"],
        stop=Stationary(settings["degrees"]),
        max_evaluations=settings["max_evaluations"],
        max_snapshots=settings["max_snapshots"],
        observables=prepared.observables,
        provenance=prepared.provenance,
        archive=path,
        # Only of a walk that was cut off: a finished one is not done again.
        overwrite=True,
    )
    return ds.attrs["status"], ds.attrs["status_message"]


def _train(path: str, threads: int, penalty: float, **settings: Any) -> tuple[str, str]:
    """Train at one penalty in a worker."""
    settle(threads)
    ds = baselines.weight_decay(
        settings["experiment"],
        penalties=[penalty],
        seeds=settings["seeds"],
        epochs=settings["epochs"],
        validation=settings["validation"],
        data=settings["data"],
        dtype=_dtype(settings["dtype"]),
        device=settings["device"],
    )
    baselines.save_weight_decay(ds, path, overwrite=True)
    return "trained", f"{ds.sizes['run']} runs of {int(ds['epoch'][-1])} epochs"


def _folder(out: str | Path, settings: Mapping[str, Any]) -> Path:
    """Make the folder, or check that what is in it has the same settings."""
    folder = Path(out).absolute()
    manifest = folder / MANIFEST
    content = {"geoflow_sweep": FORMAT, **settings}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            with files.replacing(manifest, follow=False) as temporary:
                temporary.write_text(json.dumps(content, indent=2) + "\n")
        there = json.loads(manifest.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"out={folder} cannot be used ({reason}); choose another") from None
    if not isinstance(there, dict):
        raise InputError(f"{manifest} is not a sweep's; choose another folder")
    # As JSON has them: what was written and read is compared with the same.
    content = json.loads(json.dumps(content))
    for key in content:
        if there.get(key) != content[key]:
            raise InputError(
                f"{folder} holds a sweep with {key}={there.get(key)!r}, not {content[key]!r}; "
                "choose another folder"
            )
    return folder


def _walked(path: Path) -> tuple[str, str]:
    with open_trajectory(path) as ds:
        return ds.attrs["status"], ds.attrs["status_message"]


def _seeds(seeds: Sequence[int]) -> list[int]:
    checked = [int(s) for s in seeds]
    if not checked or min(checked) < 0 or len(set(checked)) < len(checked):
        raise InputError(f"seeds={checked}; use at least one, none negative, each once")
    return checked


def _dtype(name: str) -> torch.dtype:
    if name not in ("float64", "float32"):
        raise InputError(f"dtype={name!r}; use 'float64' or 'float32'")
    return torch.float64 if name == "float64" else torch.float32
