"""What the default solver and bdf take on three experiments, seeds 0 to 2, and how they keep to M.

python studies/default_solver.py [RUNS] [SOLVER…]

Rows of a solver that is not named, where any is, stay as they are. Each row is the mean and the
deviation of RUNS walks (7), at tolerances spread evenly over ±15% of the default: a single count
wobbles with rounding. Prints a table of docs/performance.md, which it also writes there.
"""

import sys
from pathlib import Path

import numpy as np

import geoflow as gf

SOLVERS = ("exponential", "bdf")
EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff")
ANGLES = (150, 175, 179)
RTOL, JITTER = 1e-3, 0.15
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- table: studies/default_solver.py -->", "<!-- end of seeds -->"


def measure(flow: gf.RegularizingFlow, solver: str, rtol: float) -> list[float]:
    """Walk to 179° and say what it took."""
    ds = gf.walk(flow, solver, rtol=rtol, stop=gf.Stationary(179.0), max_snapshots=2)
    angle = ds["angle"].values
    evaluations = (ds["n_gradient"] + 2 * ds["n_hvp"]).values
    highest = np.maximum.accumulate(angle)
    fall = (highest - angle)[highest > 160].max()
    worst = float(abs(ds["level_residual"]).max()) / abs(ds.attrs["level"])
    counts = [float(evaluations[np.argmax(angle >= a)]) for a in ANGLES]
    return [*counts, ds.sizes["step"] - 1, int(ds["n_rejected"][-1]), fall, worst]


def row(experiment: str, seed: int, solver: str, runs: int) -> str:
    """Walk at each of the tolerances."""
    prepared = gf.experiments.get(experiment).prepare(seed)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    rtols = RTOL * np.linspace(1 - JITTER, 1 + JITTER, runs)
    found = np.array([measure(flow, solver, rtol) for rtol in rtols])
    mean, deviation = found.mean(axis=0), found.std(axis=0, ddof=1 if runs > 1 else 0)
    counts = [f"{m:,.0f} ± {d:.0f}" for m, d in zip(mean[:5], deviation[:5], strict=True)]
    fall, worst = found[:, 5].max(), found[:, 6].max()
    return f"| {experiment} | {seed} | {solver} | {' | '.join(counts)} | {fall:.1f} | {worst:.1e} |"


def main() -> None:
    """Measure every row, then write the table."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    solvers = sys.argv[2:] or SOLVERS
    before, rest = PAGE.read_text().split(BEGIN)
    table, after = rest.split(END)
    old = {tuple(line.split(" | ")[:3]): line for line in table.strip().split("\n")[2:]}
    lines = [
        "| experiment | seed | solver | to 150° | to 175° | to 179° | steps | rejected "
        "| fall beyond 160° / ° | worst \\|L − c\\|/c |",
        "|" + "---|" * 10,
    ]
    for experiment in EXPERIMENTS:
        for seed in range(3):
            for solver in SOLVERS:
                if solver in solvers:
                    lines.append(row(experiment, seed, solver, runs))
                else:
                    lines.append(old[(f"| {experiment}", str(seed), solver)])
                print(lines[-1], flush=True)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
