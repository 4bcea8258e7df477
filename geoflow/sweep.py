"""Many independent runs as tasks on Dask: walks of many seeds, trainings at many penalties."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from geoflow import baselines, experiments, solvers
from geoflow.archive import open_trajectory
from geoflow.errors import GeoflowError, InputError
from geoflow.flows import RegularizingFlow
from geoflow.level_set import LevelSet
from geoflow.problem import check_device_and_dtype
from geoflow.regularizers import squared_norm
from geoflow.stopping import Stationary
from geoflow.walk import walk

if TYPE_CHECKING:
    from distributed import Client

MANIFEST = "sweep.json"
FORMAT = "1.0"
SECONDS_TO_CONNECT = 30


@dataclass(frozen=True)
class Outcome:
    """What became of one run of a sweep.

    Attributes
    ----------
    name : str
        ``seed-0003`` or ``penalty-0.001``.
    path : Path
        Its file, there unless the run failed.
    status : str
        That of the walk, ``trained`` for a training, or ``failed``.
    message : str
        The same in a sentence, or the error of a run that failed.
    new : bool
        False where the file was there before.
    """

    name: str
    path: Path
    status: str
    message: str
    new: bool


@dataclass(frozen=True)
class _Task:
    name: str
    path: Path
    function: Callable[..., tuple[str, str]]
    arguments: Mapping[str, Any]


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
        _Task(f"seed-{s:04d}", folder / f"seed-{s:04d}.nc", _walk, settings | {"seed": s})
        for s in checked
    ]
    done = {t.name: _walked(t.path) for t in tasks if t.path.is_file()}
    finished = {name: end for name, end in done.items() if end[0] != "interrupted"}
    return _run(tasks, finished, scheduler, workers, threads, progress)


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
        See :func:`geoflow.baselines.weight_decay`.

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
        tasks.append(_Task(name, folder / f"{name}.nc", _train, arguments))
    finished = {}
    for task in tasks:
        if task.path.is_file():
            baselines.open_weight_decay(task.path).close()
            finished[task.name] = ("trained", "trained before")
    return _run(tasks, finished, scheduler, workers, threads, progress)


def _walk(path: str, threads: int, seed: int, **settings: Any) -> tuple[str, str]:
    """Do one walk in a worker; the dataset stays in its file."""
    torch.set_num_threads(threads)
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
    torch.set_num_threads(threads)
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


def _run(
    tasks: Sequence[_Task],
    finished: Mapping[str, tuple[str, str]],
    scheduler: str | None,
    workers: int | None,
    threads: int,
    progress: bool,
) -> list[Outcome]:
    outcomes = {
        t.name: Outcome(t.name, t.path, *finished[t.name], new=False)
        for t in tasks
        if t.name in finished
    }
    missing = {t.name: t for t in tasks if t.name not in finished}
    # disable=None: shown on a terminal only; the lines are shown anywhere.
    bar = tqdm(
        total=len(tasks),
        initial=len(outcomes),
        desc="sweep",
        unit="run",
        disable=None if progress else True,
    )
    with bar:
        for name, status, message in _results(missing, scheduler, workers, threads):
            task = missing[name]
            outcomes[name] = Outcome(name, task.path, status, message, new=True)
            bar.update()
            failed = sum(o.status == "failed" for o in outcomes.values())
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            if progress:
                tqdm.write(f"{name}: {status}: {message}", file=sys.stderr)
    return [outcomes[t.name] for t in tasks]


def _results(
    missing: Mapping[str, _Task], scheduler: str | None, workers: int | None, threads: int
) -> Iterator[tuple[str, str, str]]:
    """Name, status and message of each run, as it ends."""
    if not missing:
        return
    from distributed import as_completed

    waiting = list(missing.items())
    with _client(scheduler, workers, threads, len(missing)) as client:
        names: dict[Any, str] = {}
        completed = as_completed(loop=client.loop)

        def submit() -> None:
            # As many as can run and no more: a worker's death counts against all it was given.
            while waiting and completed.count() < max(1, sum(client.nthreads().values())):
                name, task = waiting.pop(0)
                future = client.submit(task.function, str(task.path), pure=False, **task.arguments)
                names[future] = name
                completed.add(future)

        try:
            submit()
            for future in completed:
                submit()
                name = names.pop(future)
                yield name, *_end(future, missing[name])
        finally:
            # On somebody else's cluster nothing of an interrupted sweep goes on.
            client.cancel(list(names))


def _end(future: Any, task: _Task) -> tuple[str, str]:
    """Status and message of a run that has ended."""
    if future.status == "finished":
        if not task.path.is_file():
            return "failed", "its worker does not write to this file system"
        status, message = future.result()
        return status, message
    error = future.exception()
    reason = str(error).splitlines()[0] if str(error) else "no message"
    return "failed", reason if isinstance(
        error, GeoflowError
    ) else f"{type(error).__name__}: {reason}"


@contextmanager
def _client(
    scheduler: str | None, workers: int | None, threads: int, n_runs: int
) -> Iterator[Client]:
    # Imported here, since it takes as long as all the rest of geoflow.
    import dask.config
    from distributed import Client, LocalCluster

    if threads < 1 or (workers is not None and workers < 1):
        raise InputError(f"workers={workers}, threads={threads}; use positive numbers")
    if scheduler is not None:
        try:
            client = Client(scheduler, set_as_default=False, timeout=SECONDS_TO_CONNECT)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"scheduler={scheduler!r} cannot be reached ({reason})") from None
        with client:
            try:
                client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
            except TimeoutError:
                raise InputError(f"scheduler={scheduler!r} has no workers; start some") from None
            yield client
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if workers is None:
        workers = max(1, (cores or 1) // threads)
    quiet = {
        # A run whose worker has died is tried once more, then given up.
        "distributed.scheduler.allowed-failures": 1,
        "distributed.scheduler.worker-saturation": 1.0,
        # Memory is the operating system's to judge: Dask's guesses pause and kill workers.
        "distributed.worker.memory.terminate": False,
        "distributed.worker.memory.pause": False,
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
    }
    with (
        dask.config.set(quiet),
        LocalCluster(
            n_workers=min(workers, n_runs),
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _folder(out: str | Path, settings: Mapping[str, Any]) -> Path:
    """Make the folder, or check that what is in it has the same settings."""
    folder = Path(out).absolute()
    manifest = folder / MANIFEST
    content = {"geoflow_sweep": FORMAT, **settings}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not manifest.exists():
            temporary = manifest.with_name(f".{MANIFEST}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(content, indent=2) + "\n")
            os.replace(temporary, manifest)
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
