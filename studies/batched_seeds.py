"""Compare many seeds at once, by torch.func.vmap, with processes of their own.

Measures, with one thread a process, the time that a network takes for

- a full-batch gradient, which is what a walk is made of: one at a time in each of two processes
  side by side, as a sweep on two cores has it, and stacked in one process by vmap;
- a training step on 32 examples with Adam, which is what a weight-decay run is made of.

Each number is the median of several repeats.

    OMP_NUM_THREADS=1 python studies/batched_seeds.py
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
from torch.func import functional_call, grad, vmap

import geoflow as gf

SEEDS = (1, 5, 15)
REPEATS = 15
PROCESSES = 2


def median(function: Callable[[], object]) -> float:
    """Median time of a call, in ms, after one that warms up."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def stacked(
    name: str, n: int, batch: int | None
) -> tuple[dict, torch.Tensor, torch.Tensor, object]:
    """Parameters, inputs and targets of n seeds, and the loss of one."""
    experiment = gf.experiments.get(name)
    starts = [experiment.start(seed) for seed in range(n)]
    named = [dict(s.module.named_parameters()) for s in starts]
    parameters = {k: torch.stack([p[k].detach() for p in named]) for k in named[0]}
    inputs = torch.stack([s.train.inputs[:batch] for s in starts])
    targets = torch.stack([s.train.targets[:batch] for s in starts])
    module = starts[0].module

    def loss(p: dict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return experiment.loss_fn(functional_call(module, p, (x,)), y)

    return parameters, inputs, targets, loss


def gradient(name: str, n: int) -> float:
    """Time of a full-batch gradient of each of n seeds at once, in ms a seed."""
    torch.set_num_threads(1)
    parameters, inputs, targets, loss = stacked(name, n, None)
    function = vmap(grad(loss))
    return median(lambda: function(parameters, inputs, targets)) / n


def alone(name: str, barrier: object, results: object) -> None:
    """Time of a full-batch gradient as a walk makes it, beside other processes doing the same."""
    torch.set_num_threads(1)
    experiment = gf.experiments.get(name)
    start = experiment.start(0)
    problem = gf.Problem.from_module(start.module, experiment.loss_fn, *start.train)
    barrier.wait()
    results.put(median(lambda: problem.value_and_gradient(problem.theta0)))


def side_by_side(name: str) -> float:
    """Time of one gradient in each of two processes at once, in ms."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(PROCESSES), context.Queue()
    workers = [
        context.Process(target=alone, args=(name, barrier, results)) for _ in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    times = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return statistics.mean(times)


def training_step(name: str, n: int) -> float:
    """Time of a training step of each of n seeds at once, in ms a seed."""
    torch.set_num_threads(1)
    parameters, inputs, targets, loss = stacked(name, n, 32)
    parameters = {k: p.clone().requires_grad_() for k, p in parameters.items()}
    optimizer = torch.optim.Adam(list(parameters.values()), lr=1e-3, eps=1e-7, fused=True)
    function = vmap(loss)

    def step() -> None:
        optimizer.zero_grad()
        function(parameters, inputs, targets).sum().backward()
        optimizer.step()

    return median(step) / n


def main() -> None:
    """Print two tables in Markdown."""
    print(f"| full-batch gradient, ms a seed | {PROCESSES} processes, a seed each", end="")
    print("".join(f" | vmap, {n} seed{'s'[: n > 1]}" for n in SEEDS), "|")
    print("|---" * (2 + len(SEEDS)) + "|")
    for name in ("iris_ff", "mnist_ff"):
        # Two are done in the time of one.
        cells = [side_by_side(name) / PROCESSES, *(gradient(name, n) for n in SEEDS)]
        print(f"| {name} |", " | ".join(f"{c:.2f}" for c in cells), "|", flush=True)
    print()
    print(
        "| training step, ms a seed",
        "".join(f" | vmap, {n} seed{'s'[: n > 1]}" for n in SEEDS),
        "|",
    )
    print("|---" * (1 + len(SEEDS)) + "|")
    for name in ("iris_ff", "mnist_ff", "mnist_conv"):
        cells = [training_step(name, n) for n in SEEDS]
        print(f"| {name} |", " | ".join(f"{c:.2f}" for c in cells), "|", flush=True)


if __name__ == "__main__":
    main()
