"""geoflow: walk along training-loss level sets of neural networks."""

from __future__ import annotations

from importlib.metadata import version

from geoflow import baselines, experiments, regularizers, solvers
from geoflow.archive import open_trajectory, save_trajectory
from geoflow.ensemble import open_sweep
from geoflow.errors import (
    ArchiveError,
    ConvergenceError,
    CriticalPointError,
    DataError,
    GeoflowError,
    InputError,
)
from geoflow.flows import FlowState, RegularizingFlow
from geoflow.level_set import LevelSet, Projection
from geoflow.problem import Problem
from geoflow.stopping import Plateau, Stationary
from geoflow.sweep import sweep, sweep_weight_decay
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
    "__version__",
    "baselines",
    "experiments",
    "open_sweep",
    "open_trajectory",
    "regularizers",
    "save_trajectory",
    "solvers",
    "sweep",
    "sweep_weight_decay",
    "walk",
]
