"""Runs as tasks on Dask: what is missing, as many at once as there is room, one retry."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from geoflow.errors import ClusterError, GeoflowError, InputError
from geoflow.system import interrupts
from geoflow.system.messages import note
from geoflow.system.progress import progress_bar
from geoflow.system.translation import importing, kind_and_reason, reason
from geoflow.walking.ending import End

if TYPE_CHECKING:
    from distributed import Client, LocalCluster

SECONDS_TO_CONNECT = 30
# That workers have to end; they take some seconds.
SECONDS_TO_END = 60
LOOPBACK = "127.0.0.1"

# Status of a run that has no file.
FAILED = "failed"


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
class Task:
    """A run to do: ``function(path, **arguments)`` in a worker writes ``path``."""

    name: str
    path: Path
    function: Callable[..., End]
    arguments: Mapping[str, Any]


def run_tasks(
    tasks: Sequence[Task],
    finished: Mapping[str, End],
    scheduler: str | None,
    workers: int | None,
    threads: int,
    progress: bool,
) -> list[Outcome]:
    """Do the tasks that are not finished.

    Parameters
    ----------
    tasks : sequence of Task
        All of them.
    finished : mapping of str to (str, str)
        Status and message of those that were done before, by name.
    scheduler, workers, threads, progress
        See :func:`geoflow.sweeps.runs.sweep`.

    Returns
    -------
    list of Outcome
        In the order of ``tasks``.

    Raises
    ------
    InputError
        No cluster there.
    ClusterError
        The scheduler has gone.
    """
    outcomes = {
        t.name: Outcome(t.name, t.path, *finished[t.name], new=False)
        for t in tasks
        if t.name in finished
    }
    missing = {t.name: t for t in tasks if t.name not in finished}
    # disable=None: shown on a terminal only; the lines are shown anywhere.
    bar = progress_bar(
        progress,
        total=len(tasks),
        initial=len(outcomes),
        desc="sweep",
        unit="run",
    )

    def say(text: str) -> None:
        if progress:
            with bar.external_write_mode(sys.stderr):
                note(text)

    # Closed here, as what is raised while a generator is thrown away is shown at length.
    with bar, closing(_results(missing, scheduler, workers, threads, say)) as results:
        for name, status, message in results:
            task = missing[name]
            outcomes[name] = Outcome(name, task.path, status, message, new=True)
            bar.update()
            failed = sum(o.status == FAILED for o in outcomes.values())
            bar.set_postfix_str(f"{failed} failed" if failed else "", refresh=False)
            say(f"{name}: {status}: {message}")
    return [outcomes[t.name] for t in tasks]


def _results(
    missing: Mapping[str, Task],
    scheduler: str | None,
    workers: int | None,
    threads: int,
    say: Callable[[str], None],
) -> Generator[tuple[str, str, str], None, None]:
    """Name, status and message of each run, as it ends."""
    if not missing:
        return
    with importing("distributed"):
        from distributed import as_completed

    waiting = list(missing.items())
    with _client(scheduler, workers, threads, len(missing), say) as client:
        names: dict[Any, str] = {}
        completed = as_completed(loop=client.loop)

        def submit() -> None:
            # As many as can run and no more: a worker's death counts against all it was given.
            while waiting and completed.count() < max(1, sum(client.nthreads().values())):
                name, task = waiting.pop(0)
                attempt = task.function, str(task.path), dict(task.arguments)
                future = client.submit(_attempt, *attempt, pure=False)
                names[future] = name
                completed.add(future)

        try:
            submit()
            for future in completed:
                # Its scheduler has gone, or has forgotten it.
                if future.status == "cancelled":
                    raise _gone(len(names) + len(waiting))
                # Its worker has died with the answer: another finds the file and says it again.
                if future.status == "lost":
                    completed.add(future)
                    continue
                name = names[future]
                end = _end(future, missing[name])
                # With the answer here, before the next run can take its worker's life.
                del names[future]
                future.release()
                submit()
                yield name, *end
        # CommClosedError is one.
        except OSError:
            raise _gone(len(names) + len(waiting)) from None
        finally:
            # On somebody else's cluster nothing of an interrupted sweep goes on.
            if client.status == "running":
                client.cancel(list(names))


def _gone(n_runs: int) -> ClusterError:
    return ClusterError(
        f"the scheduler has gone, with {n_runs} runs to do; what is done is kept, and the same "
        "command does the rest"
    )


def _attempt(function: Callable[..., End], path: str, arguments: Mapping[str, Any]) -> End:
    """Do a run in a worker; an error ends it in words, since what is raised has to be carried."""
    try:
        return function(path, **arguments)
    # Whatever the function of one's own experiment may raise too.
    except Exception as error:
        return _failed(error)


def _failed(error: BaseException) -> End:
    ours = isinstance(error, GeoflowError)
    return FAILED, str(error) if ours else kind_and_reason(error)


def _end(future: Any, task: Task) -> End:
    """Status and message of a run that has ended."""
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        status, message = future.result()
        if status != FAILED and not task.path.is_file():
            return FAILED, "its worker does not write to this file system"
        return status, message
    error = future.exception()
    if isinstance(error, KilledWorker):
        return FAILED, (
            f"its workers died, {error.allowed_failures + 1} of them (killed, or out of memory); "
            "the same call tries it again"
        )
    return _failed(error)


def settle(n_threads: int) -> None:
    """Make a worker's process ready for a run."""
    import dask.config

    torch.set_num_threads(n_threads)
    # Between threads only: a semaphore of the system would outlive a worker that is killed.
    tqdm.set_lock(threading.RLock())
    # xarray would ask the cluster for a lock on each file it writes; each is one worker's alone.
    dask.config.set(scheduler="threads")


@contextmanager
def _client(
    scheduler: str | None,
    workers: int | None,
    threads: int,
    n_runs: int,
    say: Callable[[str], None],
) -> Iterator[Client]:
    # Imported here, since it takes as long as all the rest of geoflow.
    import dask.config
    from distributed import Client, LocalCluster, WorkerPlugin

    class IgnoreInterrupts(WorkerPlugin):
        """Leave Ctrl-C, which a terminal sends to the workers too, to the process that asked."""

        def setup(self, worker: Any) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    if scheduler is not None:
        try:
            client = Client(scheduler, set_as_default=False, timeout=SECONDS_TO_CONNECT)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"scheduler={scheduler!r} cannot be reached ({reason(error)})"
            ) from None
        with _quiet(), _closed_whole() as stack:
            stack.enter_context(client)
            try:
                client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
            except TimeoutError:
                raise InputError(f"scheduler={scheduler!r} has no workers; start some") from None
            yield client
        return
    _check_main()
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
    with dask.config.set(quiet), _closed_whole(lambda: say("ending the workers…")) as stack:
        try:
            # What is interrupted while it starts cannot be closed.
            with interrupts.put_off(), interrupts.kept_from_children():
                cluster = LocalCluster(
                    n_workers=min(workers, n_runs),
                    threads_per_worker=1,
                    processes=True,
                    # Tasks are code: nobody else's machine may send any, nor see them.
                    host=LOOPBACK,
                    dashboard_address=f"{LOOPBACK}:0",
                    silence_logs=logging.CRITICAL,
                )
                stack.callback(_end_workers, cluster)
        except RuntimeError as error:
            raise InputError(
                f"the workers could not be started ({reason(error)}); they import the script that "
                'calls for them: put the call under `if __name__ == "__main__":`'
            ) from None
        client = stack.enter_context(Client(cluster, set_as_default=False))
        client.register_plugin(IgnoreInterrupts())
        yield client


@contextmanager
def _closed_whole(interrupted: Callable[[], None] = lambda: None) -> Iterator[ExitStack]:
    """Close what the block enters, however often Ctrl-C comes meanwhile.

    What is left half closed Dask closes as Python ends, and says at length where that is
    interrupted.
    """
    stack = ExitStack()
    try:
        yield stack
    except KeyboardInterrupt:
        interrupted()
        raise
    finally:
        with interrupts.put_off():
            stack.close()


def _end_workers(cluster: LocalCluster) -> None:
    # What hangs must not do so for ever.
    with suppress(TimeoutError):
        cluster.close(timeout=SECONDS_TO_END)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Dask logs of a scheduler that has gone: one line says that."""
    handlers = [(h, h.level) for h in logging.getLogger("distributed").handlers]
    for handler, _ in handlers:
        handler.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for handler, level in handlers:
            handler.setLevel(level)


def _check_main() -> None:
    """End a worker that imports a script without a main guard, before it starts its own workers.

    Without a word: the process that started it says what is wrong.
    """
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        # As a process that is spawned names the script that it imports.
        if frame.f_code.co_name == "<module>" and frame.f_globals["__name__"] == "__mp_main__":
            raise SystemExit(1)
