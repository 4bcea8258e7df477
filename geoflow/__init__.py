"""geoflow: walk along training-loss level sets of neural networks."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING

# Before all else, as it takes care of what the rest may raise while it is loaded.
import geoflow.system.starting  # noqa: F401

# isort: split

from geoflow import accessor as accessor
from geoflow import baselines, experiments, solvers
from geoflow.archive.path_files import open_path
from geoflow.archive.trajectory_files import open_trajectory, save_trajectory
from geoflow.errors import (
    ArchiveError,
    ConvergenceError,
    CriticalPointError,
    DataError,
    GeoflowError,
    InputError,
    StorageError,
)
from geoflow.manifold import regularizers
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.manifold.projection import Projection
from geoflow.paths.choosing import best_on_path
from geoflow.paths.extending import resume_path
from geoflow.paths.following import regularization_path
from geoflow.problems.distributed import DistributedProblem
from geoflow.problems.grouped import by_class, each_example
from geoflow.problems.problem import Problem
from geoflow.sweeps.ensemble import open_sweep
from geoflow.sweeps.runs import sweep, sweep_weight_decay
from geoflow.trajectories.difference import diff
from geoflow.trajectories.loading import load_into
from geoflow.walking.events import Event
from geoflow.walking.interpolating import interpolate
from geoflow.walking.loop import walk
from geoflow.walking.resuming import resume
from geoflow.walking.stopping import Plateau, Stationary
from geoflow.walking.validation import validate

if TYPE_CHECKING:
    from geoflow import analysis as analysis
    from geoflow import comparisons as comparisons
    from geoflow import plots as plots
    from geoflow import report as report

__version__ = version("geoflow")

__all__ = [
    "ArchiveError",
    "ConvergenceError",
    "CriticalPointError",
    "DataError",
    "DistributedProblem",
    "Event",
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
    "baselines",
    "best_on_path",
    "by_class",
    "diff",
    "each_example",
    "experiments",
    "interpolate",
    "load_into",
    "open_path",
    "open_sweep",
    "open_trajectory",
    "regularization_path",
    "regularizers",
    "resume",
    "resume_path",
    "save_trajectory",
    "solvers",
    "sweep",
    "sweep_weight_decay",
    "validate",
    "walk",
]

# Imported when they are asked for: with them come matplotlib and SciPy.
_WHEN_USED = ("analysis", "comparisons", "plots", "report")


def __getattr__(name: str) -> ModuleType:
    if name in _WHEN_USED:
        return import_module(f"geoflow.{name}")
    raise AttributeError(f"module 'geoflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    # What a user types; the rest of the folders is found by who looks for it.
    return sorted({*__all__, *_WHEN_USED})
