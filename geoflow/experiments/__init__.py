"""The five experiments of Tahir & Katz (2021), ready to walk."""

from __future__ import annotations

from geoflow.experiments.rebuild import rebuild
from geoflow.experiments.registry import Experiment, PreparedExperiment, get, names

__all__ = ["Experiment", "PreparedExperiment", "get", "names", "rebuild"]
