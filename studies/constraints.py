"""What a walk costs that keeps the loss, that of each class, or every example's own: iris_ff.

python studies/constraints.py
"""

import math
import time

import torch

import geoflow as gf

T_END, SEED = 0.05, 0
# Walks of which the fastest is shown: the first of a process loads libraries.
TIMES = 3
KEPT = {
    "the loss": lambda problem: gf.LevelSet(problem),
    "each class": lambda problem: gf.LevelSet(gf.by_class(problem)),
    "each example": lambda problem: gf.LevelSet(
        gf.each_example(problem), level_rtol=1e-10, level_atol=5e-9
    ),
}


def main() -> None:
    """Walk with each solver to one flow time and print a table."""
    torch.set_num_threads(1)
    problem = gf.experiments.get("iris_ff").prepare(SEED).problem
    heads = (
        "kept",
        "constraints",
        "solver",
        "steps",
        "evaluations a step",
        "s a step",
        "R at the end",
    )
    print(f"| {' | '.join(heads)} | worst absolute residual |")
    print("|---|---|---|---|---|---|---|---|")
    for kept, make in KEPT.items():
        for solver in ("exponential", "bdf", "rkc"):
            level_set = make(problem)
            flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
            seconds = math.inf
            for _ in range(TIMES):
                start = time.perf_counter()
                ds = gf.walk(flow, solver, t_end=T_END, stop=None, max_evaluations=2000)
                seconds = min(seconds, time.perf_counter() - start)
            assert ds.attrs["status"] == "t_end", ds.attrs["status_message"]
            steps = ds.sizes["step"] - 1
            name = "constraint_residual" if level_set.n_constraints > 1 else "level_residual"
            print(
                f"| {kept} | {level_set.n_constraints} | {solver} | {steps} "
                f"| {int(ds['n_gradient'][-1]) / steps:.1f} | {seconds / steps:.3f} "
                f"| {float(ds['regularizer'][-1]):.1f} | {float(abs(ds[name]).max()):.0e} |"
            )


if __name__ == "__main__":
    main()
