"""What standard error shows of long work as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

SHOWN = {"angle": "angle {:.1f}°", "regularizer": "R {:.5g}", "level_residual": "L−c {:+.1e}"}


class Progress:
    """One line on standard error: angle, R, L − c, evaluations and their rate."""

    def __init__(self, wanted: bool) -> None:
        # disable=None: shown on a terminal only.
        self.bar: tqdm[Any] = tqdm(
            desc="walk", unit="eval", disable=None if wanted else True, mininterval=0.2
        )

    def __enter__(self) -> None:
        self.bar.__enter__()

    def __exit__(self, *details: Any) -> None:
        self.bar.__exit__(*details)

    def show(self, record: Mapping[str, float]) -> None:
        """Show the latest accepted step."""
        if self.bar.disable:
            return
        # A flow of one's own need not record all of these.
        shown = [text.format(record[name]) for name, text in SHOWN.items() if name in record]
        self.bar.set_postfix_str(", ".join(shown), refresh=False)
        self.bar.update(record["n_gradient"] + 2 * record["n_hvp"] - self.bar.n)


def duration(seconds: float) -> str:
    """A time to wait, to two digits or so, in the unit people think in."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:,.1f} h"
