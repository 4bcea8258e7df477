"""What a wanted accuracy costs: bdf, CVODE and exponential to t = 1 on three networks; seed 0.

python studies/precise.py [EXPERIMENT…] [--runs N] [--solvers NAME,…]

Each solver at each tolerance walks N times (7 where nothing is said), with rtol spread evenly by
±15%: a single count wobbles by several percent. Its error is the largest relative one of θ over
t = 0.1, 0.3, 1. The reference is bdf at 1e-10, and what it is worth is its distance from CVODE at
1e-10. CVODE needs scikit-sundae; its steps are recorded at the three times only, so that the
counts are its own. Writes the table of docs/accuracy.md, where rows of solvers not named stay as
they are.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

import geoflow as gf
from geoflow.solvers import BDF, CVODE, Exponential

SOLVERS = {
    "bdf": (lambda: BDF(), (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)),
    "cvode": (lambda: CVODE(internal_steps=10**6), (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)),
    "exponential": (lambda: Exponential(), (1e-3, 1e-4, 1e-5)),
}
EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff")
TIMES = (0.1, 0.3, 1.0)
REFERENCE_RTOL, REFERENCE_LEVEL_RTOL = 1e-10, 1e-11
MAX_EVALUATIONS = 4_000
JITTER = 0.15

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "accuracy.md"
BEGIN, END = "<!-- table: studies/precise.py -->", "<!-- end of table: studies/precise.py -->"


def walk(flow, solver, rtol, max_evaluations=None):
    """θ at the three times, or None where it does not come there; evaluations; worst level."""
    ds = gf.walk(
        flow,
        solver,
        rtol=rtol,
        atol=0.0,
        t_end=TIMES[-1],
        stop=None,
        snapshot_times=TIMES,
        max_evaluations=max_evaluations,
    )
    level = float(abs(ds["level_residual"]).max()) / abs(flow.level_set.level)
    cost = int(ds["n_gradient"][-1]) + 2 * int(ds["n_hvp"][-1])
    return (ds["theta"].values if ds.attrs["status"] == "t_end" else None), cost, level


def error(thetas, reference):
    """Largest relative error of θ over the three times."""
    off = np.linalg.norm(thetas - reference, axis=1)
    return float((off / np.linalg.norm(reference, axis=1)).max())


def spread(values, mean, deviation):
    """Mean ± deviation, or a single value."""
    shown = f"{np.mean(values):{mean}}"
    return f"{shown} ± {np.std(values):{deviation}}" if len(values) > 1 else shown


def section(name, runs, solvers, old):
    """Measure one experiment, and write its table; other solvers' rows are those of the old one."""
    problem = gf.experiments.get(name).prepare(seed=0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    tight = gf.RegularizingFlow(
        gf.LevelSet(problem, flow.level_set.level, REFERENCE_LEVEL_RTOL), flow.regularizer
    )
    reference, cost, _ = walk(tight, BDF(), REFERENCE_RTOL)
    check, check_cost, _ = walk(tight, CVODE(internal_steps=10**6), REFERENCE_RTOL)
    lines = [
        f"### {name}",
        "",
        f"Reference: bdf, rtol {REFERENCE_RTOL:g}, {cost:,} evaluations; its distance from CVODE "
        f"at {REFERENCE_RTOL:g} ({check_cost:,} evaluations) is {error(check, reference):.1e}. "
        + (f"Mean ± deviation over {runs} runs." if runs > 1 else "A single run of each."),
        "",
        "| solver | rtol | error in θ | error / rtol | \\|L − c\\|/c, worst | evaluations |",
        "|---|---|---|---|---|---|",
    ]
    factors = np.linspace(1 - JITTER, 1 + JITTER, runs) if runs > 1 else np.ones(1)
    for solver, (make, rtols) in SOLVERS.items():
        if solver not in solvers:
            lines += [line for line in old.split("\n") if line.startswith(f"| {solver} |")]
            continue
        for rtol in rtols:
            rows = []
            for factor in factors:
                thetas, cost, level = walk(flow, make(), rtol * factor, MAX_EVALUATIONS)
                if thetas is None:
                    break
                rows.append((error(thetas, reference), cost, level, rtol * factor))
            print(name, solver, rtol, rows, file=sys.stderr, flush=True)
            if len(rows) < runs:
                lines.append(f"| {solver} | {rtol:g} | – | – | – | over {MAX_EVALUATIONS:,} |")
                continue
            errors, costs, levels, used = map(np.array, zip(*rows, strict=True))
            lines.append(
                f"| {solver} | {rtol:g} | {spread(errors, '.1e', '.0e')} "
                f"| {np.mean(errors / used):.2g} | {levels.max():.0e} "
                f"| {spread(costs, ',.0f', ',.0f')} |"
            )
    return [*lines, ""]


def sections_of(page):
    """What is before the table, its sections by experiment, and what is after it."""
    before, rest = page.split(BEGIN)
    table, after = rest.split(END)
    return before, {part.split("\n")[0]: part for part in table.split("### ")[1:]}, after


def main():
    """Measure each experiment and write its section, the others left as they are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--show", action="store_true", help="print and leave the page as it is")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.experiments:
        old = sections_of(PAGE.read_text())[1].get(name, "")
        text = "\n".join(section(name, given.runs, given.solvers.split(","), old))
        if given.show:
            print(text)
            continue
        before, sections, after = sections_of(PAGE.read_text())
        sections[name] = text[4:]
        ordered = "".join(
            "### " + sections[n].rstrip() + "\n\n" for n in EXPERIMENTS if n in sections
        )
        PAGE.write_text(before + BEGIN + "\n\n" + ordered + END + after)


if __name__ == "__main__":
    main()
