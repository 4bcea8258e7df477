"""The five experiments of Tahir & Katz (2021), ready to walk."""

from __future__ import annotations

from geoflow.experiments.rebuilding import RebuiltWalk, rebuild
from geoflow.experiments.registry import Experiment, PreparedExperiment, get, names

__all__ = ["Experiment", "PreparedExperiment", "RebuiltWalk", "get", "names", "rebuild"]
