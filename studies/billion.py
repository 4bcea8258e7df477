"""On paper: a walk of 10⁹ parameters in memory, traffic and time on n devices; seed 0.

    OMP_NUM_THREADS=1 python studies/billion.py [--flops F --memory B --network A]

Four numbers are measured where this runs: floating-point operations a second of an evaluation (a
perceptron of WIDTH, 6 operations a parameter and example), bytes a second at which Krylov vectors
are read, bytes a second of an all-reduce over two processes, and the bytes of a walk by geoflow's
own estimate, which counts no activations here. Evaluations to 150° are those of docs/performance.md
at its largest network, carried on by its exponent. F, B and A replace the first three by those of a
device that is not here, as its maker has them. Prints the table of memory of docs/performance.md,
and those of time, which are extrapolated and on no page.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scaling
import torch
import torch.distributed as dist
from torch.nn import functional as F

from geoflow.manifold.basis import Basis
from geoflow.problems.footprint import EVALUATION
from geoflow.solvers import Exponential, bytes_of
from geoflow.walking.memory import STATE

P, EXAMPLES, DEVICES = 10**9, 10**5, (1, 8, 64, 512)
WIDTH, FEW, SIZE, REPEATS = 2_500, 200, 4_000_000, 15
# Of docs/performance.md: evaluations at the largest network measured, and their exponent in P.
MEASURED, AT, EXPONENT = 198, 6_440_010, 0.17
# Krylov vectors: at the most, and how often each is read for one that is added.
VECTORS, READ = 12, 4
# All-reduced in float64: the gradient; twice as one vector and once more on arrival.
REDUCED, REDUCED_COPIES = 8, 3


def seconds(function: Callable[[], Any]) -> float:
    """Least time of a call, which other programs disturb the least."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def operations() -> float:
    """Floating-point operations a second of an evaluation in float32."""
    inputs, targets = scaling.examples(FEW)
    torch.manual_seed(scaling.SEED)
    module = scaling.perceptron(WIDTH).float()
    inputs, parameters = inputs.float(), list(module.parameters())
    once = seconds(
        lambda: torch.autograd.grad(F.cross_entropy(module(inputs), targets), parameters)
    )
    return 6 * sum(p.numel() for p in parameters) * FEW / once


def reading() -> float:
    """Bytes a second at which Krylov vectors are read."""
    v = torch.randn(SIZE)
    basis = Basis(v, torch.float32)
    for _ in range(8):
        basis.append(v, 1.0)
    return 8 * 4 * SIZE / seconds(lambda: basis.inner(v, 8))


def _reduce(rank: int, store: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    v = torch.ones(SIZE, dtype=torch.float64)
    once = seconds(lambda: dist.all_reduce(v.fill_(1.0)))
    if rank == 0:
        queue.put(once)
    dist.destroy_process_group()


def reducing() -> float:
    """Bytes a second and process of an all-reduce: of two, each sends as much as it holds."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [context.Process(target=_reduce, args=(r, store, queue)) for r in range(2)]
        for process in processes:
            process.start()
        once = queue.get(timeout=300)
        for process in processes:
            process.join()
    return 8 * SIZE / once


def main() -> None:
    """Measure, then print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("flops", "memory", "network"):
        parser.add_argument(f"--{name}", type=float)
    given = parser.parse_args()
    flops, memory, network = (
        asked or measured()
        for asked, measured in (
            (given.flops, operations),
            (given.memory, reading),
            (given.network, reducing),
        )
    )
    print(f"{flops:.2g} operations/s, {memory:.2g} B/s read, {network:.2g} B/s reduced\n")
    theta = torch.empty(P, dtype=torch.float32, device="meta")
    print("| solver | bytes a parameter | GiB on each device |\n|---|---|---|")
    for solver in (Exponential(), Exponential(max_vectors=VECTORS)):
        each = bytes_of(solver, theta) / P + 4 * (STATE + EVALUATION) + REDUCED * REDUCED_COPIES
        print(f"| {solver.max_vectors} Krylov vectors | {each:.0f} | {each * P / 2**30:,.0f} |")
    n_evaluations = MEASURED * (P / AT) ** EXPONENT
    print(
        f"\n{n_evaluations:,.0f} evaluations, {EXAMPLES:,} examples\n\n"
        "| devices | computing, s | reading vectors, s | all-reduce, s "
        "| GB sent by each, an evaluation | a walk, h |\n|---|---|---|---|---|---|"
    )
    for n in DEVICES:
        computing = 6 * P * EXAMPLES / n / flops
        vectors = READ * VECTORS / 2 * 4 * P / memory
        sent = 2 * (n - 1) / n * REDUCED * P
        hours = n_evaluations * (computing + vectors + sent / network) / 3600
        cells = [f"{x:.3g}" for x in (computing, vectors, sent / network, sent / 1e9)]

        print(f"| {n} | {' | '.join(cells)} | {hours:,.4g} |")


if __name__ == "__main__":
    main()
