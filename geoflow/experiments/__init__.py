"""The five experiments of Tahir & Katz (2021), ready to walk, and one's own beside them."""

from __future__ import annotations

from geoflow.experiments.own import OwnExperiment
from geoflow.experiments.prepared import Data, PreparedExperiment
from geoflow.experiments.rebuilding import RebuiltWalk, rebuild
from geoflow.experiments.registry import get, names, register
from geoflow.experiments.trained import Experiment

__all__ = [
    "Data",
    "Experiment",
    "OwnExperiment",
    "PreparedExperiment",
    "RebuiltWalk",
    "get",
    "names",
    "rebuild",
    "register",
]


def __dir__() -> list[str]:
    return sorted(__all__)
