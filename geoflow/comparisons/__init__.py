"""Methods compared on one problem, in one process."""

from __future__ import annotations

from geoflow.comparisons.cost import ANGLES, bench
from geoflow.comparisons.work_precision import compare, compare_experiment

__all__ = ["ANGLES", "bench", "compare", "compare_experiment"]


def __dir__() -> list[str]:
    return sorted(__all__)
