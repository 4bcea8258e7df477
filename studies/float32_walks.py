"""What a walk in float32 takes beside one in float64, by either solver: iris_ff, seeds 0 to 2.

python studies/float32_walks.py

From the same weights, the level kept to 10⁻⁵ c in both; mean ± deviation of three walks at
tolerances spread over ±15% of 10⁻³. Prints a table of docs/accuracy.md.
"""

import numpy as np
import torch

import geoflow as gf

EXPERIMENT, SEEDS, LEVEL_RTOL, ANGLES = "iris_ff", (0, 1, 2), 1e-5, (150, 175, 179)
SOLVERS, DTYPES, RTOLS = ("exponential", "bdf"), ("float64", "float32"), (0.85e-3, 1e-3, 1.15e-3)


def counts(problem: gf.Problem, solver: str, rtol: float) -> list[int]:
    """Evaluations to each of the angles."""
    level_set = gf.LevelSet(problem, level_rtol=LEVEL_RTOL)
    flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    ds = gf.walk(flow, solver, rtol=rtol, stop=gf.Stationary(179.0), max_snapshots=2)
    evaluations = (ds["n_gradient"] + 2 * ds["n_hvp"]).values
    return [int(evaluations[np.argmax(ds["angle"].values >= angle - 0.01)]) for angle in ANGLES]


def main() -> None:
    """Walk, and print a row for each seed, dtype and solver."""
    torch.set_num_threads(1)
    print("| seed | dtype | solver | to 150° | to 175° | to 179° |\n" + "|---" * 6 + "|")
    for seed in SEEDS:
        for dtype in DTYPES:
            prepared = gf.experiments.get(EXPERIMENT).prepare(seed, dtype=getattr(torch, dtype))
            for solver in SOLVERS:
                found = np.array([counts(prepared.problem, solver, rtol) for rtol in RTOLS])
                both = zip(found.mean(axis=0), found.std(axis=0, ddof=1), strict=True)
                cells = " | ".join(f"{mean:,.0f} ± {deviation:.0f}" for mean, deviation in both)
                print(f"| {seed} | {dtype} | {solver} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
