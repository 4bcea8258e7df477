"""From an archive alone back to what ``geoflow run`` needs to walk it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from geoflow import experiments, solvers
from geoflow.archive import trajectory_files
from geoflow.errors import ArchiveError, InputError
from geoflow.experiments import PreparedExperiment
from geoflow.manifold import regularizers
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.problems import dtypes
from geoflow.walking import stopping

Regularizer = Callable[[Tensor], Tensor]

# Of a walk's config, what goes to walk() as it is.
PASSED_ON = (
    *("rtol", "atol", "t_end", "max_evaluations"),
    *("snapshot_times", "snapshot_every", "max_snapshots", "theta_dtype"),
)


@dataclass
class Run:
    """A walk of one of geoflow's experiments, before it is walked.

    Attributes
    ----------
    experiment : str
        Its name.
    preparation : dict
        Keyword arguments of :meth:`geoflow.experiments.Experiment.prepare`.
    walk : dict
        Keyword arguments of :func:`geoflow.walk`.
    regularizer : callable
        R.
    level_rtol : float
        See :class:`geoflow.LevelSet`.
    threads : int, optional
        Number of threads it was computed with: another gives other last digits.
    data_sha256 : str
        SHA-256 that the training data must have; empty for any.
    """

    experiment: str
    preparation: dict[str, Any] = field(default_factory=dict)
    walk: dict[str, Any] = field(default_factory=dict)
    regularizer: Regularizer = regularizers.squared_norm
    level_rtol: float = 1e-6
    threads: int | None = None
    data_sha256: str = ""

    def prepare(self, progress: bool = False) -> PreparedExperiment:
        """Load the data and train.

        Raises
        ------
        ArchiveError
            The data are not those of the archive.
        """
        experiment = experiments.get(self.experiment)
        prepared = experiment.prepare(**self.preparation, progress=progress)
        found = prepared.problem.data_sha256
        if self.data_sha256 not in ("", found):
            raise ArchiveError(
                f"the data of {self.experiment} are not those of the archive: SHA-256 {found}, "
                f"not {self.data_sha256}; name the data with --data"
            )
        return prepared

    def flow(self, prepared: PreparedExperiment) -> RegularizingFlow:
        """Return the flow on the level set that the training ended on."""
        level_set = LevelSet(prepared.problem, level_rtol=self.level_rtol)
        return RegularizingFlow(level_set, self.regularizer)


def like(path: str | Path) -> Run:
    """Read from an archive all that is needed to walk it again.

    Raises
    ------
    ArchiveError
        It is no trajectory, or not of a walk of one of geoflow's experiments.
    InputError
        Its solver or stopping criterion is not geoflow's own.
    """
    with trajectory_files.open_trajectory(path) as ds:
        attributes = dict(ds.attrs)
    config = json.loads(attributes["config"])
    try:
        provenance = config["provenance"]
        stop = config["stop"]
        run = Run(
            experiment=known_experiment(provenance),
            preparation={
                "seed": provenance["seed"],
                "data": provenance["data"],
                "epochs": provenance["training"]["epochs"],
                "dtype": dtypes.DTYPES[attributes["dtype"]],
                "device": attributes["device"],
            },
            walk={name: config[name] for name in PASSED_ON}
            | {
                "solver": solvers.from_config(config["solver"]),
                "stop": None if stop is None else stopping.from_config(stop),
            },
            regularizer=regularizers.get(attributes["regularizer_name"]),
            level_rtol=attributes["level_rtol"],
            threads=int(config["threads"]),
            data_sha256=attributes["data_sha256"],
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ArchiveError(
            f"{path} does not say how to walk it again ({error!r}); name an experiment instead"
        ) from None
    return run


def known_experiment(provenance: Mapping[str, Any]) -> str:
    """Return the name of the experiment.

    Raises
    ------
    InputError
        It is not one of geoflow's.
    TypeError
        The provenance is no mapping.
    """
    if not isinstance(provenance, Mapping):
        raise TypeError("provenance is no mapping")
    name = provenance.get("experiment")
    if name not in experiments.names():
        raise InputError(
            f"flow: the walk is not of one of geoflow's experiments ({name!r}); use "
            "geoflow.resume or geoflow.walk from Python and give the flow"
        )
    return str(name)
