"""Walks in processes of their own, so that they can be killed."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import geoflow as gf
import references
from geoflow.walking.stream import Stream

OBSERVABLES = {"norm": lambda theta: float(theta.norm())}
SETTINGS: dict[str, dict[str, Any]] = {
    "exponential": {"rtol": 2e-5, "t_end": 1.0},
    "bdf": {"rtol": 1e-7, "t_end": 1.0},
    "dopri5": {"rtol": 1e-11, "atol": 0.0, "t_end": 1.0},
    "rk4": {"reproject_every": 0.02, "t_end": 1.0, "snapshot_every": 0.05},
}


def context() -> Any:
    """Processes that start within milliseconds, and never from a process with threads."""
    context = multiprocessing.get_context("forkserver")
    # The server imports before it is told where the tests are.
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    context.set_forkserver_preload(["warm"])
    return context


def start(target: Callable[..., None], *args: Any) -> tuple[Any, Connection]:
    """Run a function in a process of its own; what it sends is received here."""
    receive, send = context().Pipe(duplex=False)
    process = context().Process(target=target, args=(send, *args), daemon=True)
    process.start()
    # So that a process that ends without a word is the end of it here too.
    send.close()
    return process, receive


def walk(solver: str, path: Path, **kwargs: Any) -> Any:
    """A walk of some dozens of steps that takes about a second."""
    torch.set_num_threads(1)
    kwargs = {"stop": None, "max_snapshots": 30, **SETTINGS[solver], **kwargs}
    return gf.walk(references.ellipsoid(), solver, observables=OBSERVABLES, archive=path, **kwargs)


def resume(path: Path, **kwargs: Any) -> Any:
    return gf.resume(path, references.ellipsoid(), observables=OBSERVABLES, **kwargs)


def report_steps(connection: Connection, solver: str, path: Path, interval: float) -> None:
    """Walk, and tell of each accepted step once it is taken note of."""
    accepted = Stream.accepted

    def reporting(self: Stream, checkpoint: Any) -> None:
        accepted(self, checkpoint)
        connection.send((self.n_steps, self.records[-1]["wall_time"]))

    Stream.accepted = reporting  # type: ignore[method-assign]
    walk(solver, path, checkpoint_seconds=interval)


def fail_at(
    k: int, fail: Callable[[], None] | None, patch: Callable[..., None] = setattr
) -> Callable[[], int]:
    """Fail instead of the k-th operation that changes the disk; returns the counter of them."""
    count = 0

    def counting(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == k and fail:
                fail()
            return operation(*args, **kwargs)

        return counted

    for name in ("fsync", "replace", "unlink", "mkdir", "rmdir"):
        patch(os, name, counting(getattr(os, name)))
    return lambda: count


def die_at(connection: Connection, k: int, solver: str, path: Path, t_end: float) -> None:
    """Walk, and be killed before the k-th operation that changes the disk."""
    fail_at(k, lambda: os.kill(os.getpid(), signal.SIGKILL))
    walk(solver, path, checkpoint_seconds=0, t_end=t_end)


def walk_on_a_small_disk(connection: Connection, limit: int, path: Path) -> None:
    """Walk where no file may grow past a limit, and tell of the error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        walk("exponential", path, checkpoint_seconds=0)
        connection.send("no error")
    except gf.GeoflowError as error:
        connection.send(repr(error))


def try_read_only(connection: Connection, path: Path) -> None:
    """Write into a folder that nobody may write to, and tell of the errors."""
    path.parent.chmod(0o555)
    if os.getuid() == 0:
        # For root no folder is read-only.
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    errors = []
    for attempt in (lambda: walk("rk4", path.with_name("new.nc")), lambda: resume(path, t_end=9.0)):
        try:
            attempt()
        except gf.GeoflowError as error:
            errors.append((type(error).__name__, str(error)))
    connection.send(errors)


def weigh(connection: Connection, n_parameters: int, n_snapshots: int, path: Path) -> None:
    """Walk with every step kept, and tell of the peak resident set, in bytes."""
    start = torch.ones(n_parameters, dtype=torch.float64)
    axes = torch.linspace(1, 2, n_parameters, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: 0.5 * torch.dot(t, axes * t), start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    solver = gf.solvers.TorchDiffEq("euler", step_size=2**-12)
    kept = {"max_snapshots": n_snapshots + 1, "t_end": (n_snapshots - 1) * 2**-12}
    with gf.walk(flow, solver, stop=None, archive=path, **kept) as ds:
        assert ds.sizes["snapshot"] == n_snapshots
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
