"""From an archive alone back to what ``geoflow run`` needs to walk it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from geoflow import experiments
from geoflow.archive import trajectory_files
from geoflow.errors import ArchiveError, GeoflowError, InputError
from geoflow.experiments import PreparedExperiment
from geoflow.experiments.rebuilding import constraints_of
from geoflow.manifold import regularizers
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.level_set import LevelSet
from geoflow.problems import dtypes
from geoflow.problems.earlier import same_data
from geoflow.problems.grouped import divided
from geoflow.system.translation import reason
from geoflow.trajectories.layout import layout_in
from geoflow.walking import configuration, events
from geoflow.walking.events import Event
from geoflow.walking.fitting import tensors_differ
from geoflow.walking.settings import DEFAULTS, WalkSettings


@dataclass
class Run:
    """A walk of an experiment, before it is walked.

    Attributes
    ----------
    experiment : str
        Its name.
    preparation : dict
        Keyword arguments of :meth:`geoflow.experiments.Experiment.prepare`.
    walk : WalkSettings
        How it is walked.
    regularizer : callable or Regularizer
        R, as :func:`geoflow.regularizers.get` gives it.
    level_rtol, level_atol : float
        See :class:`geoflow.LevelSet`.
    constraints : str
        Of :data:`geoflow.problems.grouped.DIVISIONS`, where the level set keeps the losses of parts
        of the examples; empty for the loss.
    events : tuple of Event
        What it records on its way.
    threads : int, optional
        Number of threads it was computed with: another gives other last digits.
    data_sha256 : str
        SHA-256 that the training data must have; empty for any.
    tensors : list
        Name and shape of each tensor that the network must have; empty for any.
    """

    experiment: str
    preparation: dict[str, Any] = field(default_factory=dict)
    walk: WalkSettings = DEFAULTS
    regularizer: Any = field(default_factory=lambda: regularizers.get(regularizers.DEFAULT))
    level_rtol: float = 1e-6
    level_atol: float = 0.0
    constraints: str = ""
    events: tuple[Event, ...] = ()
    threads: int | None = None
    data_sha256: str = ""
    tensors: list[list[Any]] = field(default_factory=list)

    def prepare(self, progress: bool = False) -> PreparedExperiment:
        """Load the data and train.

        Raises
        ------
        ArchiveError
            The data or the network's tensors are not those of the archive.
        """
        experiment = experiments.get(self.experiment)
        # Each takes other options, and refuses those it does not take.
        prepare: Callable[..., PreparedExperiment] = experiment.prepare
        prepared = prepare(**self.preparation, progress=progress)
        if self.data_sha256 and not same_data(prepared.problem, self.data_sha256):
            raise ArchiveError(
                f"the data of {self.experiment} are not those of the archive: SHA-256 "
                f"{prepared.problem.data_sha256}, not {self.data_sha256}; name the data with --data"
            )
        different = self.tensors and tensors_differ(prepared.problem, self.tensors)
        if different:
            raise ArchiveError(
                f"the network of {self.experiment} is not that of the archive (of its tensors "
                f"{different}); name the experiment instead of --like"
            )
        return prepared

    def flow(self, prepared: PreparedExperiment) -> RegularizingFlow:
        """Return the flow on the level set that the training ended on."""
        kept = divided(prepared.problem, self.constraints)
        level_set = LevelSet(kept, level_rtol=self.level_rtol, level_atol=self.level_atol)
        return RegularizingFlow(level_set, self.regularizer)


def like(path: str | Path) -> Run:
    """Read from an archive all that is needed to walk it again.

    Raises
    ------
    ArchiveError
        It is no trajectory.
    InputError
        Its experiment is not registered here, its solver or stopping criterion is not geoflow's
        own, or an event is of a function of one's own.
    """
    with trajectory_files.open_trajectory(path) as ds:
        attributes = dict(ds.attrs)
        tensors = layout_in(ds)
        configuration.check(Path(path), attributes, ds)
    config = json.loads(attributes["config"])
    settings = settings_of(path, config)
    try:
        provenance = config["provenance"]
        name = known_experiment(provenance)
        return Run(
            experiment=name,
            preparation=experiments.get(name).preparation(
                provenance,
                dtype=dtypes.DTYPES[attributes["dtype"]],
                device=attributes["device"],
            ),
            # That of the walk, whatever it is: so that another one can be asked for.
            walk=replace(settings, theta_dtype=None)
            if settings.theta_dtype == attributes["dtype"]
            else settings,
            regularizer=regularizers.get(attributes["regularizer_name"]),
            level_rtol=attributes["level_rtol"],
            level_atol=float(config.get("level_atol", 0.0)),
            constraints=constraints_of(attributes),
            events=events.from_config(config.get("events", [])),
            threads=int(config["threads"]),
            data_sha256=attributes["data_sha256"],
            tensors=tensors,
        )
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise ArchiveError(
            f"{path} does not say how to walk it again ({reason(error)}); name an experiment "
            "instead"
        ) from None


def settings_of(path: str | Path, config: Mapping[str, Any], **instead: Any) -> WalkSettings:
    """Read an archive's settings; see :meth:`WalkSettings.from_config`.

    Raises
    ------
    ArchiveError, InputError
        As there, with the file's name.
    """
    try:
        return WalkSettings.from_config(config, **instead)
    except GeoflowError as error:
        raise type(error)(f"{path}: {error}") from None


def known_experiment(provenance: Mapping[str, Any]) -> str:
    """Return the name of the experiment.

    Raises
    ------
    InputError
        There is none, or none of that name is registered in this process.
    TypeError
        The provenance is no mapping.
    """
    if not isinstance(provenance, Mapping):
        raise TypeError("provenance is no mapping")
    name = provenance.get("experiment")
    if not name or not isinstance(name, str):
        raise InputError(
            "flow: the walk is not of one of geoflow's experiments, nor of one with a name; use "
            "geoflow.resume or geoflow.walk from Python and give the flow"
        )
    if name not in experiments.names():
        raise InputError(
            f"flow: the walk is of {name!r}, which is no experiment of geoflow's; register it "
            "first, or name its file with --problem; from Python, give the flow"
        )
    return name
