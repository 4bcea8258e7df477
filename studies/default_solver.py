"""What the default solver takes on three experiments, seeds 0 to 2, and how it keeps to M.

python studies/default_solver.py

Prints a table of docs/performance.md, which it also writes there.
"""

from pathlib import Path

import numpy as np

import geoflow as gf

EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- table: studies/default_solver.py -->", "<!-- end of seeds -->"


def row(experiment: str, seed: int) -> str:
    """Walk to 179° and say what it took."""
    prepared = gf.experiments.get(experiment).prepare(seed)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, stop=gf.Stationary(179.0), max_snapshots=2)
    angle = ds["angle"].values
    evaluations = (ds["n_gradient"] + 2 * ds["n_hvp"]).values
    highest = np.maximum.accumulate(angle)
    fall = (highest - angle)[highest > 160].max()
    worst = float(abs(ds["level_residual"]).max()) / abs(ds.attrs["level"])
    counts = " | ".join(f"{evaluations[np.argmax(angle >= a)]:,}" for a in (150, 175, 179))
    return (
        f"| {experiment} | {seed} | {counts} | {ds.sizes['step'] - 1} | "
        f"{int(ds['n_rejected'][-1])} | {fall:.1f} | {worst:.1e} |"
    )


def main() -> None:
    """Measure every row, then write the table."""
    lines = [
        "| experiment | seed | to 150° | to 175° | to 179° | steps | rejected "
        "| fall beyond 160° / ° | worst \\|L − c\\|/c |",
        "|" + "---|" * 9,
    ]
    for experiment in EXPERIMENTS:
        for seed in range(3):
            lines.append(row(experiment, seed))
            print(lines[-1], flush=True)
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
