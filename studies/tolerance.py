"""Error over tolerance, and its cost, on eight flows that SciPy can integrate to 1e-11.

python studies/tolerance.py [SOLVER…]

Writes a table of docs/accuracy.md: the worst relative error in θ over a walk's times, in units of
rtol, and the gradient evaluations, each the mean of walks at three rtols close together, and the
powers of steps and evaluations that the error of all these walks goes with.
Rows of a solver not named, where any is, stay as they are. The flows are those of
tests/references.py, seeds and all.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import geoflow as gf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import references  # noqa: E402 - from the tests' folder

SOLVERS = ("exponential", "bdf")
RTOLS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
JITTER = (0.85, 1.0, 1.15)
# Where a walk takes fewer, its count says little of an order: the first ones, which grow from a
# guess, and the last have lengths of their own.
MANY_STEPS = 30
FRACTIONS = (0.1, 0.3, 1.0)
MAX_EVALUATIONS = 20_000
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- table: studies/tolerance.py -->", "<!-- end of tolerances -->"


def cell(
    flow: gf.RegularizingFlow, solver: str, rtol: float, times: list[float], exact: np.ndarray
) -> tuple[float, int, int, str]:
    """Worst error over rtol, NaN where the walk ended early; steps; evaluations; status."""
    # The level is kept well below the errors compared.
    level_set = gf.LevelSet(flow.problem, level_rtol=max(min(1e-6, rtol / 100), 1e-13))
    ds = gf.walk(
        gf.RegularizingFlow(level_set, flow.regularizer),
        solver,
        rtol=rtol,
        atol=rtol / 1000,
        t_end=times[-1],
        stop=None,
        snapshot_times=times,
        max_evaluations=MAX_EVALUATIONS,
    )
    spent, steps = int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]), ds.sizes["step"] - 1
    if ds.attrs["status"] != "t_end":
        return np.nan, steps, spent, ds.attrs["status"]
    errors = np.linalg.norm(ds["theta"].values - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return float(errors.max()) / rtol, steps, spent, "t_end"


def main() -> None:
    """Measure every flow, then write the table."""
    torch.set_num_threads(1)
    solvers = sys.argv[1:] or SOLVERS
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    old = {tuple(line.split(" | ")[:2]): line for line in table.strip().split("\n")[2:]}
    header = " | ".join(f"{rtol:.0e}" for rtol in RTOLS)
    lines = [
        f"| flow | solver | {header} | error ∝ steps to the | evaluations to the |",
        "|" + "---|" * (len(RTOLS) + 4),
    ]
    for name, (make, t_end) in references.PROBLEMS.items():
        flow = make()
        times = [fraction * t_end for fraction in FRACTIONS]
        exact = references.tight(flow, times)
        for solver in SOLVERS:
            if solver not in solvers:
                lines.append(old[(f"| {name}", solver)])
                continue
            shown, good = [], []
            for rtol in RTOLS:
                near = [rtol * factor for factor in JITTER]
                cells = [cell(flow, solver, each, times, exact) for each in near]
                ended = [status for *_, status in cells if status != "t_end"]
                spent = np.mean([spent for _, _, spent, _ in cells])
                ratio = np.mean([ratio for ratio, *_ in cells])
                shown.append(f"{ended[0] if ended else f'{ratio:.2g}'} ({spent:,.0f})")
                good += [
                    (steps, spent, ratio * each)
                    for (ratio, steps, spent, status), each in zip(cells, near, strict=True)
                    if status == "t_end" and rtol <= 1e-4 and steps >= MANY_STEPS
                ]
            *counts, errors = map(list, zip(*good, strict=True))
            orders = [references.order_of_convergence(count, errors) for count in counts]
            ends = " | ".join(f"{order:.2f}" for order in orders)
            lines.append(f"| {name} | {solver} | {' | '.join(shown)} | {ends} |")
            print(lines[-1], flush=True)
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
