"""geoflow: walk along training-loss level sets of neural networks."""

from __future__ import annotations

from importlib.metadata import version

from geoflow import accessor, baselines, experiments, regularizers, solvers
from geoflow.archive import open_trajectory, save_trajectory
from geoflow.diff import diff
from geoflow.ensemble import open_sweep
from geoflow.errors import (
    ArchiveError,
    ConvergenceError,
    CriticalPointError,
    DataError,
    GeoflowError,
    InputError,
    StorageError,
)
from geoflow.flows import FlowState, RegularizingFlow
from geoflow.level_set import LevelSet, Projection
from geoflow.problem import Problem
from geoflow.resume import resume
from geoflow.stopping import Plateau, Stationary
from geoflow.sweep import sweep, sweep_weight_decay
from geoflow.validation import validate
from geoflow.walk import walk

__version__ = version("geoflow")

__all__ = [
    "ArchiveError",
    "ConvergenceError",
    "CriticalPointError",
    "DataError",
    "FlowState",
    "GeoflowError",
    "InputError",
    "LevelSet",
    "Plateau",
    "Problem",
    "Projection",
    "RegularizingFlow",
    "Stationary",
    "StorageError",
    "__version__",
    "accessor",
    "baselines",
    "diff",
    "experiments",
    "open_sweep",
    "open_trajectory",
    "regularizers",
    "resume",
    "save_trajectory",
    "solvers",
    "sweep",
    "sweep_weight_decay",
    "validate",
    "walk",
]
