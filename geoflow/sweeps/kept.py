"""What lies in a sweep's folder already: taken for a run of it only where it is that run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from geoflow import baselines, experiments
from geoflow.archive import parts, seal
from geoflow.archive.saved import saved
from geoflow.archive.trajectory_files import open_trajectory
from geoflow.errors import ArchiveError, GeoflowError, InputError
from geoflow.experiments.own import OPTIONS
from geoflow.experiments.rebuilding import constraints_of
from geoflow.manifold import regularizers
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems import earlier
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.grouped import divided
from geoflow.system import files, kinds
from geoflow.trajectories import schema
from geoflow.trajectories.layout import layout_in, layout_of
from geoflow.walking import configuration
from geoflow.walking.ending import End
from geoflow.walking.rerunning import Run
from geoflow.walking.settings import WalkSettings

OURS = RegularizingFlow.__name__

CUT_OFF = "interrupted"

ELSEWHERE = "move it elsewhere, or choose another folder"

Chosen = experiments.Experiment | experiments.OwnExperiment


def walk_of(path: Path, settings: Mapping[str, Any], seed: int, experiment: Chosen) -> End | None:
    """How far a walk of a sweep is, finished or cut off; None where there is none.

    Parameters
    ----------
    path : Path
        Its file, there or not yet.
    settings : mapping
        The sweep's.
    seed : int
        That of the walk.
    experiment : Experiment or OwnExperiment
        Of the sweep.

    Raises
    ------
    InputError
        A walk is there, and it is another: of another experiment, seed, data or settings.
    ArchiveError
        What is there is no walk.
    """
    place = path
    if files.is_file(path):
        try:
            if (defect := seal.defect(path)) == seal.BROKEN:
                raise ArchiveError(f"{path}: {defect}")
            with open_trajectory(path) as ds:
                attributes = dict(ds.attrs)
        except ArchiveError as error:
            raise ArchiveError(f"{error}; {ELSEWHERE}") from None
    elif parts.is_resumable(path):
        place = parts.folder_beside(path)
        try:
            attributes = saved(path).attributes
        except GeoflowError:
            # Damage: nobody's run can go on from it, and it is done anew.
            return None
        attributes = {"status": CUT_OFF, "status_message": "", **attributes}
    else:
        return None
    found = configuration.defects(attributes)
    if found:
        raise ArchiveError(f"{place}: {found[0]}; {ELSEWHERE}")
    try:
        pairs = _of_walk(attributes, settings, seed, experiment)
    except GeoflowError as error:
        # Another loop than a walk's, or a level set that no sweep has.
        raise InputError(f"{place}: {error}; {ELSEWHERE}") from None
    _refuse_other(place, pairs)
    return str(attributes["status"]), str(attributes["status_message"])


def check_experiment(
    path: Path, settings: Mapping[str, Any], seed: int, experiment: experiments.OwnExperiment
) -> None:
    """Refuse a finished walk of an experiment of one's own that is another by now.

    Its function is called once, for this seed: of data and loss there is nothing else to tell of.

    Raises
    ------
    InputError
        The data, the network's tensors or the loss are not those of the walk.
    """
    dtype = settings["dtype"] and DTYPES[settings["dtype"]]
    given = {name: settings[name] for name in ("data", "epochs", "device")}
    # It may set the generator that the caller draws from.
    with torch.random.fork_rng(devices=[]):
        try:
            whole = experiment.prepare(seed, dtype=dtype, **given).problem
            problem = divided(whole, settings.get("constraints") or "")
        # What the workers are to evaluate, this process may not be able to; they say why.
        except Exception:
            return
    with open_trajectory(path) as ds:
        then = str(ds.attrs["data_sha256"])
        now = then if earlier.same_data(problem, then) else problem.data_sha256
        pairs: dict[str, tuple[Any, Any]] = {
            "data_sha256": (then, now),
            "network": (layout_in(ds), layout_of(problem)),
        }
        _refuse_other(path, pairs)
        step = int(ds["snapshot_step"][0]) if ds.sizes["snapshot"] else -1
        # Within a step nothing is recorded.
        if step < 0 or ds["snapshot_time"][0] != ds["time"][step]:
            return
        theta = torch.from_numpy(ds["theta"][0].values.copy())
        recorded = float(ds["train_loss"][step])
    # Of several constraints the mean is recorded.
    loss = float(problem.value_and_gradient(theta.to(problem.theta0))[0].mean())
    # By other threads, on another device, or of a θ that was rounded.
    if not math.isclose(loss, recorded, rel_tol=1e3 * torch.finfo(theta.dtype).eps ** 0.75):
        _refuse_other(path, {"loss at its first snapshot": (recorded, loss)})


def training_of(path: Path, settings: Mapping[str, Any], penalty: float) -> End | None:
    """The same of the trainings at one penalty.

    Raises
    ------
    InputError
        They are others: of another experiment, other seeds, data or settings.
    ArchiveError
        What is there are no trainings.
    """
    if not files.is_file(path):
        return None
    try:
        opened = baselines.open_weight_decay(path)
    except ArchiveError as error:
        raise ArchiveError(f"{error}; {ELSEWHERE}") from None
    with opened as ds:
        # Numbers from a file's attributes are NumPy's.
        a = {n: v.item() if hasattr(v, "item") else v for n, v in ds.attrs.items()}
        epochs = settings["epochs"]
        if epochs is None:
            epochs = experiments.registry.of_paper(settings["experiment"]).decay_epochs
        pairs = {
            "experiment": (a.get("experiment"), settings["experiment"]),
            "penalty": (ds["penalty"].values.tolist(), [penalty]),
            "seeds": (ds["run"].values.tolist(), list(settings["seeds"])),
            "epochs": (a.get("epochs"), epochs),
            "validation": (a.get("validation"), settings["validation"]),
            "data": (a.get("data"), settings["data"] or ""),
            "dtype": (a.get("dtype"), settings["dtype"]),
            "device": (_kind(str(a.get("device"))), _kind(settings["device"])),
        }
    _refuse_other(path, pairs)
    return "trained", "trained before"


def _refuse_other(place: Path, pairs: Mapping[str, Sequence[Any]]) -> None:
    for name, (there, wanted) in pairs.items():
        if there != wanted:
            raise InputError(
                f"{place}: what lies there is not of this sweep: its {name} is "
                f"{kinds.shown(there)}, not {kinds.shown(wanted)}; {ELSEWHERE}"
            )


def _of_walk(
    attributes: Mapping[str, Any], settings: Mapping[str, Any], seed: int, experiment: Chosen
) -> dict[str, tuple[Any, Any]]:
    """What a walk has, and what one of the sweep would have, by name."""
    config = json.loads(attributes["config"])
    dtype = settings["dtype"] or attributes["dtype"]
    here = WalkSettings.from_config(settings).resolved(DTYPES[dtype]).config
    # What earlier versions did not write was not yet to be chosen.
    there = WalkSettings.from_config({**here, **config}).config
    return {
        "experiment": (attributes["experiment"], settings["experiment"]),
        "seed": (int(attributes["seed"]), seed),
        "flow": (attributes.get(schema.FLOW, OURS), OURS),
        "dtype": (attributes["dtype"], dtype),
        "device": (
            _kind(attributes["device"]),
            _kind(settings["device"] or attributes["device"]),
        ),
        "regularizer": (
            attributes["regularizer_name"],
            regularizers.get(settings["regularizer"]).__name__,
        ),
        "constraints": (constraints_of(attributes), settings.get("constraints") or ""),
        "level_rtol": (float(attributes["level_rtol"]), Run.level_rtol),
        "level_atol": (float(config.get("level_atol", 0.0)), Run.level_atol),
        "events": (config.get("events", []), []),
        **{name: (there[name], here[name]) for name in here},
        "threads": (config.get("threads", settings["threads"]), settings["threads"]),
        "processes": (config.get("processes", 1), 1),
        **_of_preparation(config.get("provenance", {}), settings, experiment),
    }


def _of_preparation(
    provenance: Mapping[str, Any], settings: Mapping[str, Any], experiment: Chosen
) -> dict[str, tuple[Any, Any]]:
    """The same of data and training, as a walk's provenance says."""
    if isinstance(experiment, experiments.OwnExperiment):
        options = {name: settings[name] for name in OPTIONS if settings[name] is not None}
        found: dict[str, tuple[Any, Any]] = {}
        found["options"] = (provenance.get("options", {}), options)
        if experiment.source is not None:
            then = provenance.get("problem_sha256")
            found["problem_sha256"] = (then, experiment.source.sha256)
        return found
    training = provenance.get("training", {})
    epochs = experiment.epochs if settings["epochs"] is None else settings["epochs"]
    return {
        "data": (provenance.get("data"), settings["data"]),
        "epochs": (training.get("epochs"), epochs),
    }


def _kind(device: str) -> str:
    """Which of the machine's devices it is does not matter, and of what kind does."""
    return torch.device(device).type
