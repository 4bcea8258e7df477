"""Evaluations of the exponential solver with Krylov vectors in float64 and in float32.

    OMP_NUM_THREADS=1 python studies/krylov_basis.py [RUNS]

Walks to 175° at RUNS tolerances spread over ±15% of the default, since a count wobbles with
rounding. Prints the table of docs/performance.md: mean ± deviation of the evaluations.
"""

from __future__ import annotations

import sys

import numpy as np

import geoflow as gf

CASES = (("iris_ff", 0), ("iris_ff", 1), ("mpg_ff", 0), ("mpg_ff", 1), ("mnist_ff", 0))
RTOL, JITTER = 1e-3, 0.15


def evaluations(flow: gf.RegularizingFlow, rtol: float, basis: str | None) -> int:
    """Walk, and say what it took."""
    solver = gf.solvers.Exponential(basis=basis)
    ds = gf.walk(flow, solver, rtol=rtol, stop=gf.Stationary(175.0), max_snapshots=2)
    return int(ds["n_gradient"][-1]) + 2 * int(ds["n_hvp"][-1])


def main() -> None:
    """Print a row for each experiment and seed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print("| experiment | seed | in float64 | in float32 |\n|---|---|---|---|")
    for experiment, seed in CASES:
        problem = gf.experiments.get(experiment).prepare(seed).problem
        flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
        rtols = RTOL * np.linspace(1 - JITTER, 1 + JITTER, runs)
        cells = []
        for basis in (None, "float32"):
            found = np.array([evaluations(flow, float(rtol), basis) for rtol in rtols])
            cells.append(f"{found.mean():.0f} ± {found.std(ddof=1):.0f}")
        print(f"| {experiment} | {seed} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
