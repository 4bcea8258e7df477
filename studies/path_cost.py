"""What the regularisation path costs after its first walk, beside restarts of the flow.

python studies/path_cost.py [EXPERIMENT…]

For each experiment and seed: evaluations from level to level at 175°, by gf.regularization_path and
by walking to 175° again from each end, re-projected onto the next level. Prints a table of
docs/path.md, in Markdown.
"""

import math
import sys

import torch

import geoflow as gf

# By how much the level rises from one to the next, and how often.
LEVELS = {"iris_ff": (1.5, 6), "mpg_ff": (1.2, 7), "mnist_ff": (2.0, 9)}
SEEDS = range(3)


def by_path(prepared: gf.experiments.PreparedExperiment, levels: list[float]) -> list[str]:
    """Evaluations of the first walk and after it, and how the path ended."""
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    ds = gf.regularization_path(flow, levels, observables=prepared.observables)
    first, last = int(ds["n_gradient"][0]), int(ds["n_gradient"][-1])
    walks = int((ds["method"][1:] == "walk").sum())
    best = float(ds["test_loss"].min())
    return [f"{first}", f"**{last - first}**", f"{walks}", f"{best:.4f}", ds.attrs["status"]]


def by_restarts(prepared: gf.experiments.PreparedExperiment, levels: list[float]) -> list[str]:
    """Evaluations of a walk on each level, from the end of the one before."""
    loss, theta, counts, best = prepared.problem.loss, prepared.problem.theta0, [], math.inf
    for level in levels:
        problem = gf.Problem.from_function(loss, theta)
        flow = gf.RegularizingFlow(gf.LevelSet(problem, level), gf.regularizers.squared_norm)
        before = problem.evaluations
        ds = gf.walk(flow, max_snapshots=2, observables=prepared.observables)
        counts.append(problem.evaluations - before)
        best = min(best, float(ds["test_loss"][-1]))
        theta = torch.from_numpy(ds["theta"][-1].values)
    return [f"{sum(counts[1:])}", f"{best:.4f}"]


def main() -> None:
    """Measure every row."""
    print(
        "| experiment | seed | levels | first walk | path | by the flow | least test loss | status "
        "| restarts | least test loss |"
    )
    print("|" + "---|" * 10)
    for experiment in sys.argv[1:] or LEVELS:
        factor, n = LEVELS[experiment]
        for seed in SEEDS:
            prepared = gf.experiments.get(experiment).prepare(seed)
            c = gf.LevelSet(prepared.problem).level
            levels = [c * factor**k for k in range(n + 1)]
            cells = [*by_path(prepared, levels), *by_restarts(prepared, levels)]
            spaced = f"{c:.3g} · {factor:g}^(0 … {n})"
            print(f"| {experiment} | {seed} | {spaced} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
