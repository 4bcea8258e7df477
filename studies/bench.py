"""Measure every method on three experiments, seed 0, and write the table of docs/performance.md.

python studies/bench.py
"""

import sys
from pathlib import Path

from geoflow.comparisons.cost import ANGLES, bench

EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff")
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- table: studies/bench.py -->", "<!-- end of table -->"


def count(n: int | None) -> str:
    """Write a count, or say that there is none."""
    return "not reached" if n is None else f"{n:,}"


def main() -> None:
    """Run every comparison, one experiment after the other."""
    angles = " | ".join(f"to {a}°" for a in ANGLES)
    lines = [
        f"| experiment | method | {angles} | to the loop's ‖θ‖² "
        "| worst \\|L − c\\|/c | s to 175° |",
        "|" + "---|" * (6 + len(ANGLES) - 1),
    ]
    for experiment in EXPERIMENTS:
        print(experiment, file=sys.stderr)
        entries = bench(experiment, note=lambda name: print(f"  {name}", file=sys.stderr))
        for method, entry in entries.items():
            cells = [count(entry["evaluations"][str(a)]) for a in ANGLES]
            goal = entry["to_regularizer"]
            seconds = entry["wall_time"]["175"]
            cells.append(f"{count(goal['evaluations'])} (to {goal['target']:.1f})")
            cells.append(f"{entry['worst_level_residual']:.1e}")
            cells.append("–" if seconds is None else f"{seconds:.1f}")
            lines.append(f"| {experiment} | {method} | " + " | ".join(cells) + " |")
        # After each experiment, so that what has been measured is kept.
        before, rest = PAGE.read_text().split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
