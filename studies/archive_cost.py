"""What recording costs: wall time of an mnist_ff walk, and peak memory against snapshots kept.

    python studies/archive_cost.py

Time: walks mnist_ff (seed 0) with the default solver to 175°, and with dopri5 for 3,000
evaluations, archived with at most 100 snapshots, and adds up the seconds spent inside the recorder.
Memory: keeps 100 and 1,000 snapshots of P = 100,000 parameters, each walk in a process of its own,
and reads its peak resident set. One thread. Prints what docs/archive.md says.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import geoflow as gf
from geoflow.solvers import TorchDiffEq
from geoflow.walking.stream import Stream

SEED, SNAPSHOTS = 0, 100
# To 175°, which takes fewer steps than there may be snapshots; and a walk of more.
WALKS: dict[str, dict[str, Any]] = {
    "exponential": {},
    "dopri5": {"stop": None, "max_evaluations": 3_000},
}
N_PARAMETERS = 100_000
MEMORY = (100, 1_000)


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    cost_of_time()
    for archived in (True, False):
        peaks = [peak_memory(n, archived) for n in MEMORY]
        where = "archived" if archived else "in memory"
        text = ", ".join(f"{n:,} snapshots {p:.0f} MiB" for n, p in zip(MEMORY, peaks, strict=True))
        print(f"peak memory, {where}: {text}")


def cost_of_time() -> None:
    """Print the seconds that the recorder takes of each walk."""
    prepared = gf.experiments.get("mnist_ff").prepare(seed=SEED)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    seconds = dict.fromkeys(("record", "keep", "accepted", "finish"), 0.0)
    for name in seconds:
        setattr(Stream, name, timed(getattr(Stream, name), name, seconds))
    for solver, goals in WALKS.items():
        seconds |= dict.fromkeys(seconds, 0.0)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            ds = gf.walk(
                flow,
                solver,
                **goals,
                max_snapshots=SNAPSHOTS,
                archive=Path(folder) / "walk.nc",
                observables=prepared.observables,
            )
            total, recording = time.perf_counter() - start, sum(seconds.values())
            print(
                f"mnist_ff, {solver}, {ds.sizes['step']} steps, {ds.sizes['snapshot']} snapshots: "
                f"{recording:.2f} s of {total:.1f} s ({100 * recording / total:.1f}%)"
            )
            ds.close()


def timed(method: Any, name: str, seconds: dict[str, float]) -> Any:
    """Add the time that a method takes to an account."""

    def measured(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args)
        finally:
            seconds[name] += time.perf_counter() - start

    return measured


def peak_memory(snapshots: int, archived: bool) -> float:
    """Peak resident set, in MiB, of a process that keeps so many snapshots."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=walk_and_weigh, args=(send, snapshots, archived))
    process.start()
    send.close()
    peak: float = receive.recv()
    process.join()
    return peak


def walk_and_weigh(connection: Any, snapshots: int, archived: bool) -> None:
    """Walk on an ellipsoid with fixed steps, every one of which is kept."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)
    start = torch.randn(N_PARAMETERS, generator=generator, dtype=torch.float64)
    axes = torch.linspace(1, 2, N_PARAMETERS, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: 0.5 * torch.dot(t, axes * t), start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    step = 1e-4
    with tempfile.TemporaryDirectory() as folder:
        gf.walk(
            flow,
            TorchDiffEq("euler", step_size=step),
            stop=None,
            t_end=step * (snapshots - 1),
            max_snapshots=snapshots + 1,
            archive=Path(folder) / "walk.nc" if archived else None,
        ).close()
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    main()
