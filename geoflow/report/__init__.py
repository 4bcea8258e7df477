"""A self-contained page of walks."""

from __future__ import annotations

from geoflow.report.page import mean_std, penalty_table, report

__all__ = ["mean_std", "penalty_table", "report"]


def __dir__() -> list[str]:
    return sorted(__all__)
