"""Which part of a walk's time is spent outside the loss and its gradient: three networks, seed 0.

    OMP_NUM_THREADS=1 python studies/overhead.py

Walks to 175° with two solvers in turn, one thread, and counts the time of the process: what others
do on the machine counts only where they take the caches and the memory.
"""

import time

import torch

import geoflow as gf

EXPERIMENTS, SOLVERS = ("iris_ff", "mpg_ff", "mnist_ff"), ("exponential", "bdf")


def row(name: str, solver: str) -> str:
    """Walk, and say where the time went."""
    problem = gf.experiments.get(name).prepare(seed=0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    # What torch imports and compiles on first use is paid once, by the first steps of any walk.
    gf.walk(flow, solver, max_evaluations=30, max_snapshots=2)
    spent = {"value_and_gradient": 0.0, "regularizer": 0.0}

    def timed(part, function):
        def call(*args):
            start = time.process_time()
            result = function(*args)
            spent[part] += time.process_time() - start
            return result

        return call

    problem.value_and_gradient = timed("value_and_gradient", problem.value_and_gradient)
    make = flow.regularizer_hessian
    flow.regularizer_hessian = lambda *args: timed("regularizer", make(*args))
    start = time.process_time()
    ds = gf.walk(flow, solver, max_snapshots=2)
    total = time.process_time() - start
    evaluations = int(ds["n_gradient"][-1])
    rest = total - sum(spent.values())
    return (
        f"| {name} | {solver} | {evaluations} | {total:.1f} "
        f"| {1e3 * spent['value_and_gradient'] / evaluations:.1f} "
        f"| {1e3 * rest / evaluations:.1f} | {100 * rest / total:.0f}% |"
    )


def main() -> None:
    """Print the table of docs/performance.md."""
    torch.set_num_threads(1)
    print("| experiment | solver | evaluations | s | ms: an evaluation | the rest | of the whole |")
    print("|" + "---|" * 7)
    for name in EXPERIMENTS:
        for solver in SOLVERS:
            print(row(name, solver), flush=True)


if __name__ == "__main__":
    main()
