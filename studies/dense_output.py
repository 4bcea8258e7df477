"""What a thousand snapshots cost, and how true those between the steps are: iris_ff, seed 0.

python studies/dense_output.py

Walks to t = 1 without snapshots on the way and with 1,000 of them at even times, and says how far
these are off, relative to ‖θ‖, beside the ends of steps: against a walk by `bdf` at rtol 10⁻⁹, the
level kept to 10⁻¹¹. Prints a table of docs/performance.md.
"""

import numpy as np
import torch

import geoflow as gf

SOLVERS = (("exponential", 1e-3), ("bdf", 1e-3), ("bdf", 1e-5), ("bdf", 1e-7))
T_END, N = 1.0, 1000


def main() -> None:
    """Walk, and print a row for each solver."""
    problem = gf.experiments.get("iris_ff").prepare(seed=0).problem
    level = gf.LevelSet(problem)
    flow = gf.RegularizingFlow(level, gf.regularizers.squared_norm)
    fine = gf.RegularizingFlow(gf.LevelSet(problem, level.level, 1e-11), flow.regularizer)
    times = np.linspace(0, T_END, N + 1)[1:].tolist()
    end = {"t_end": T_END, "stop": None, "atol": 0.0}
    reference = gf.walk(fine, "bdf", rtol=1e-9, snapshot_times=times, **end)["theta"].values
    print(
        "| solver | rtol | evaluations without | with 1,000 snapshots | steps "
        "| median error between steps | worst | worst \\|L − c\\|/c |\n|" + "---|" * 8
    )
    for solver, rtol in SOLVERS:
        without = gf.walk(flow, solver, rtol=rtol, max_snapshots=2, **end)
        ds = gf.walk(flow, solver, rtol=rtol, snapshot_times=times, **end)
        # The start is a snapshot too.
        off = np.linalg.norm(ds["theta"].values[-N:] - reference[-N:], axis=1)
        off /= np.linalg.norm(reference[-N:], axis=1)
        losses = np.array([float(problem.loss(p)) for p in torch.from_numpy(ds["theta"].values)])
        print(
            f"| {solver} | {rtol:.0e} | {int(without['n_gradient'][-1]):,} "
            f"| {int(ds['n_gradient'][-1]):,} | {ds.sizes['step'] - 1} | {np.median(off):.1e} "
            f"| {off.max():.1e} | {(abs(losses - level.level) / level.level).max():.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
