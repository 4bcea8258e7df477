"""The bar of a walk or a path: where it stands, and what it has cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from geoflow.system.progress import progress_bar

SHOWN = {"angle": "angle {:.1f}°", "regularizer": "R {:.5g}", "level_residual": "L−c {:+.1e}"}


class Progress:
    """Angle, R, L − c, evaluations and their rate."""

    def __init__(self, wanted: bool) -> None:
        self.bar = progress_bar(wanted, desc="walk", unit="eval", mininterval=0.2)

    def __enter__(self) -> None:
        self.bar.__enter__()

    def __exit__(self, *details: Any) -> None:
        self.bar.__exit__(*details)

    def show(self, record: Mapping[str, float]) -> None:
        """Show the latest accepted step, or the latest point of a path."""
        if self.bar.disable:
            return
        # A flow of one's own need not record all of these.
        shown = [text.format(record[name]) for name, text in SHOWN.items() if name in record]
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(record["n_gradient"] + 2 * record["n_hvp"] - self.bar.n)
