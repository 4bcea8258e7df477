"""What the regularisation path costs after its first walk, beside restarts of the flow.

python studies/path_cost.py [EXPERIMENT[:SEED]…]

For each experiment and seed: evaluations from level to level at 175°, by gf.regularization_path and
by walking to 175° again by two solvers from each end, re-projected onto the next level.
Counts of the path are of three runs, the trained weights changed by 10⁻¹⁰ of themselves from one to
the next, since a last digit decides whether a step is made again. Prints a table of docs/path.md,
in Markdown.
"""

import math
import sys
from itertools import chain

import numpy as np
import torch

import geoflow as gf

# By how much the level rises from one to the next, and how often.
LEVELS = {"iris_ff": (1.5, 6), "mpg_ff": (1.2, 7), "mnist_ff": (2.0, 9)}
SEEDS = range(3)
SOLVERS = ("bdf", "exponential")
RUNS, JITTER = 3, 1e-10


def by_path(prepared: gf.experiments.PreparedExperiment, levels: list[float]) -> list[str]:
    """Evaluations of the first walk and after it, and how the path ended."""
    firsts, afters, walks, best, statuses = [], [], [], [], set()
    loss, theta0 = prepared.problem.loss, prepared.problem.theta0
    for number in range(RUNS):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(theta0.shape, generator=generator, dtype=theta0.dtype)
        problem = gf.Problem.from_function(loss, theta0 * (1 + (number > 0) * JITTER * noise))
        level_set = gf.LevelSet(problem, levels[0])
        flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
        ds = gf.regularization_path(flow, levels, observables=prepared.observables)
        counts = ds["n_gradient"].values + 2 * ds["n_hvp"].values
        firsts.append(counts[0])
        afters.append(counts[-1] - counts[0])
        walks.append(int((ds["method"][1:] == "walk").sum()))
        best.append(float(ds["test_loss"].min()))
        statuses.add(ds.attrs["status"])
    runs = ", ".join(f"{n}" for n in afters)
    mean = f"**{np.mean(afters):.0f}** ({runs})"
    cells = [f"{np.mean(firsts):.0f}", mean, f"{max(walks)}", f"{np.mean(best):.4f}"]
    return [*cells, ", ".join(sorted(statuses))]


def by_restarts(
    prepared: gf.experiments.PreparedExperiment, levels: list[float], solver: str
) -> list[str]:
    """Evaluations of a walk on each level, from the end of the one before."""
    loss, theta, counts, best = prepared.problem.loss, prepared.problem.theta0, [], math.inf
    for level in levels:
        problem = gf.Problem.from_function(loss, theta)
        flow = gf.RegularizingFlow(gf.LevelSet(problem, level), gf.regularizers.squared_norm)
        before = problem.evaluations
        ds = gf.walk(flow, solver, max_snapshots=2, observables=prepared.observables)
        counts.append(problem.evaluations - before)
        best = min(best, float(ds["test_loss"][-1]))
        theta = torch.from_numpy(ds["theta"][-1].values)
    return [f"{sum(counts[1:])}", f"{best:.4f}"]


def main() -> None:
    """Measure every row."""
    print(
        "| experiment | seed | levels | first walk | path | by the flow | least test loss | status "
        "| restarts: bdf | least test loss | exponential | least test loss |"
    )
    print("|" + "---|" * 12)
    for asked in sys.argv[1:] or LEVELS:
        experiment, _, only = asked.partition(":")
        factor, n = LEVELS[experiment]
        for seed in [int(only)] if only else SEEDS:
            prepared = gf.experiments.get(experiment).prepare(seed)
            c = gf.LevelSet(prepared.problem).level
            levels = [c * factor**k for k in range(n + 1)]
            restarts = (by_restarts(prepared, levels, solver) for solver in SOLVERS)
            cells = [*by_path(prepared, levels), *chain.from_iterable(restarts)]
            spaced = f"{c:.3g} · {factor:g}^(0 … {n})"
            print(f"| {experiment} | {seed} | {spaced} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
