"""Measure every method on three experiments, seed 0, and write the table of docs/performance.md.

python studies/bench.py [SOLVER…]

Rows of a method not named, where any is, stay as they are; how far the paper's loop came is then
what they say.
"""

import re
import sys
from pathlib import Path
from typing import Any

import geoflow as gf
from geoflow.comparisons.cost import ANGLES, SOLVERS, bench, summarise

EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- table: studies/bench.py -->", "<!-- end of table -->"


def count(n: int | None) -> str:
    """Write a count, or say that there is none."""
    return "not reached" if n is None else f"{n:,}"


def row(experiment: str, method: str, entry: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [count(entry["evaluations"][str(a)]) for a in ANGLES]
    goal, seconds = entry["to_regularizer"], entry["wall_time"]["175"]
    cells.append(f"{count(goal['evaluations'])} (to {goal['target']:.1f})")
    cells.append(f"{entry['worst_level_residual']:.1e}")
    cells.append("–" if seconds is None else f"{seconds:.1f}")
    return f"| {experiment} | {method} | " + " | ".join(cells) + " |"


def again(experiment: str, method: str, old: str) -> str:
    """A row measured anew, the others of its experiment left as they are."""
    found = re.search(r"\(to ([\d.]+)\)", old)
    assert found, old
    problem = gf.experiments.get(experiment).prepare(0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    stop = gf.Stationary(float(ANGLES[-1]))
    ds = gf.walk(flow, method, rtol=SOLVERS[method], stop=stop, max_snapshots=2)
    return row(experiment, method, summarise(ds, float(found[1])))


def main() -> None:
    """Run every comparison, one experiment after the other."""
    methods = sys.argv[1:]
    angles = " | ".join(f"to {a}°" for a in ANGLES)
    lines = [
        f"| experiment | method | {angles} | to the loop's ‖θ‖² "
        "| worst \\|L − c\\|/c | s to 175° |",
        "|" + "---|" * (6 + len(ANGLES) - 1),
    ]
    before, rest = PAGE.read_text().split(BEGIN)
    table, after = rest.split(END)
    for experiment in EXPERIMENTS:
        print(experiment, file=sys.stderr)
        if methods:
            for old in table.split("\n"):
                if old.startswith(f"| {experiment} |"):
                    method = old.split(" | ")[1]
                    new = method in methods
                    lines.append(again(experiment, method, old) if new else old)
            continue
        entries = bench(experiment, note=lambda name: print(f"  {name}", file=sys.stderr))
        lines += [row(experiment, method, entry) for method, entry in entries.items()]
        # After each experiment, so that what has been measured is kept.
        PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
