"""What an archive says of its walk: that it fits the schema's types and itself, before it is used.

Files are not trusted: every command that makes a walk again, or goes on with one, asks here first,
and so does :func:`geoflow.validate`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from geoflow import solvers
from geoflow.archive.pieces import folder_beside
from geoflow.errors import ArchiveError, GeoflowError
from geoflow.manifold.level_set import LARGEST_RTOL
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.grouped import DIVISIONS
from geoflow.solvers import Tolerance
from geoflow.trajectories import consistency, path_schema, schema, storable
from geoflow.walking import events, stopping
from geoflow.walking.settings import DEFAULTS, WalkSettings

# No machine has more; one thread each of this many still starts.
MOST_THREADS = 1024

# What the settings of every walk and path have, and those of a path beside that.
COMMON = ("observables", "threads", "provenance")
OF_PATH = ("levels", "degrees", "max_evaluations", "smallest_eigenvalue")

# What `geoflow run` says of an experiment, by its type. Others may be there.
PROVENANCE: Mapping[str, tuple[type, ...]] = {
    "title": (str,),
    "experiment": (str,),
    "seed": (int,),
    "data": (str, type(None)),
    "data_source": (str,),
    "data_sha256": (str,),
    "n_train": (int,),
    "n_test": (int,),
    "network": (str,),
    "n_parameters": (int,),
    "loss": (str,),
    "training": (dict,),
    "options": (dict,),
    "problem_sha256": (str,),
}


def defects(attributes: Mapping[str, Any]) -> list[str]:
    """Say what in a walk's attributes and settings cannot be used, one line each.

    Parameters
    ----------
    attributes : mapping
        Global attributes of a trajectory, of the types that the schema has, or of a walk that is
        not finished, without its status.
    """
    attributes = {"status": "interrupted", "status_message": "", **attributes}
    found = schema.attribute_defects(attributes)
    if not found:
        found = [*_attribute_defects(attributes), *_config_defects(attributes)]
    return found


def path_defects(attributes: Mapping[str, Any]) -> list[str]:
    """Say what in a regularisation path's attributes and settings cannot be used, one line each.

    Parameters
    ----------
    attributes : mapping
        Of the types that the schema of paths has.
    """
    found = list(_value_defects(attributes, ("level", "level_rtol")))
    return [*found, *_path_config_defects(attributes)]


def path_variable_defects(ds: xr.Dataset) -> list[str]:
    """Say which variables of a path are not as its settings have them, one line each.

    Parameters
    ----------
    ds : xarray.Dataset
        In the schema of paths, without :func:`path_defects`.
    """
    config, found = json.loads(ds.attrs["config"]), []
    observables = sorted(str(n) for n in ds.variables if path_schema.is_observable(str(n)))
    if observables != config["observables"]:
        found.append("the observables are not those that its config names")
    if ("smallest_eigenvalue" in ds.variables) != config["smallest_eigenvalue"]:
        found.append("smallest_eigenvalue is not there as its config has it")
    return found


def check_path(path: Path, attributes: Mapping[str, Any], ds: xr.Dataset | None = None) -> None:
    """Refuse a path whose attributes, settings or, of a file, variables cannot be used.

    Raises
    ------
    ArchiveError
        Names the first defect.
    """
    found = path_defects(attributes)
    if not found and ds is not None:
        found = [*path_variable_defects(ds), *path_schema.level_defects(ds)]
    if found:
        where = "`geoflow validate` says more, or follow the path again"
        if ds is None:
            where = f"remove the folder {folder_beside(path)} to start over"
        raise ArchiveError(f"{path}: {found[0]}; {where}")


def check(path: Path, attributes: Mapping[str, Any], ds: xr.Dataset | None = None) -> None:
    """Refuse a walk whose attributes or settings cannot be used, or in another schema.

    Of a file, ``ds``, also one whose records are of another level.

    Raises
    ------
    ArchiveError
        Names the first defect, or the version of geoflow to go on with.
    """
    version = attributes.get("geoflow_schema")
    if version not in schema.VERSIONS:
        raise ArchiveError(
            f"{path} is in schema {version!r}, and this geoflow reads and writes "
            f"{', '.join(schema.VERSIONS)}; go on with the geoflow that wrote it "
            f"({attributes.get('geoflow_version')})"
        )
    found = defects(attributes)
    if not found and ds is not None:
        found = consistency.level_defects(attributes, consistency.records_of(ds))
    if found:
        raise ArchiveError(f"{path}: {found[0]}; `geoflow validate` says more, or walk again")


def _attribute_defects(attributes: Mapping[str, Any]) -> Iterator[str]:
    return _value_defects(attributes, ("level", "level_rtol", "rtol", "atol"))


def _value_defects(attributes: Mapping[str, Any], numbers: Sequence[str]) -> Iterator[str]:
    for name in numbers:
        value = attributes[name]
        if not math.isfinite(value):
            yield f"attribute {name} is not finite"
        elif value < 0 and name != "level":
            yield f"attribute {name} is negative"
        elif name == "level_rtol" and value > LARGEST_RTOL:
            yield f"attribute {name} is {value:g}, above {LARGEST_RTOL}"
    if attributes["dtype"] not in DTYPES:
        yield "attribute dtype is neither float32 nor float64"
    try:
        torch.device(attributes["device"])
    except RuntimeError:
        yield f"attribute device is {attributes['device'][:40]!r}, which torch does not know"
    if attributes["seed"] < -1:
        yield "attribute seed is negative"
    digest = attributes["data_sha256"]
    if digest and (len(digest) != 64 or set(digest) - set("0123456789abcdef")):
        yield "attribute data_sha256 is no SHA-256"


def _config_defects(attributes: Mapping[str, Any]) -> Iterator[str]:
    config = json.loads(attributes["config"])
    if "rtol" not in config:
        # Of another loop than a walk's, as the paper's is; it can only be looked at.
        return
    missing = [n for n in COMMON if n not in config]
    if missing:
        yield f"its config has no {missing[0]!r}"
        return
    if deep := storable.depth_defects(attributes):
        yield from deep
        return
    yield from _common_defects(config)
    yield from _event_defects(config, attributes)
    division = config.get("constraints", "")
    if division != "" and division not in list(DIVISIONS):
        yield f"config: constraints are {str(division)[:40]!r}, not one of {', '.join(DIVISIONS)}"
    yield from _provenance_defects(config["provenance"], attributes)
    yield from _settings_defects(config, attributes)


def _common_defects(config: Mapping[str, Any]) -> Iterator[str]:
    names = config["observables"]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        yield "config: observables are not a list of names"
    elif sorted(set(names)) != names:
        yield "config: observables are not in order, each once"
    threads = config["threads"]
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        yield f"config: threads is {str(threads)[:40]!r}, not a number up to {MOST_THREADS}"
    atol = config.get("level_atol", 0.0)
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol < math.inf:
        yield f"config: level_atol is {str(atol)[:40]!r}, not a number from 0 on"
    processes = config.get("processes", 1)
    if type(processes) is not int or processes < 1:
        yield f"config: processes is {str(processes)[:40]!r}, not a positive whole number"


def _event_defects(config: Mapping[str, Any], attributes: Mapping[str, Any]) -> Iterator[str]:
    kept = config.get("events", [])
    try:
        names = [event.name for event in events.of_archive(kept)]
        if names != schema.event_names(attributes):
            yield "config: events are not those of the attribute"
    except GeoflowError as error:
        yield f"config: {error}"


def _path_config_defects(attributes: Mapping[str, Any]) -> Iterator[str]:
    config, degrees = json.loads(attributes["config"]), attributes["degrees"]
    if not 90 < degrees < 180:
        yield f"attribute degrees is {degrees}, not between 90 and 180"
    missing = [n for n in (*COMMON, *OF_PATH) if n not in config]
    if missing:
        yield f"its config has no {missing[0]!r}"
        return
    if deep := storable.depth_defects(attributes):
        yield from deep
        return
    yield from _common_defects(config)
    levels = config["levels"]
    if not isinstance(levels, list) or not levels or not all(map(_is_number, levels)):
        yield f"config: levels are {str(levels)[:40]!r}, not a list of finite numbers"
    elif 0 in levels or len(set(levels)) < len(levels):
        yield "config: levels are not different numbers, none of them zero"
    if config["degrees"] != degrees:
        yield "config: degrees is another than the attribute"
    budget = config["max_evaluations"]
    if type(budget) is not int or budget < 1:
        yield f"config: max_evaluations is {str(budget)[:40]!r}, not a positive whole number"
    if not isinstance(config["smallest_eigenvalue"], bool):
        yield "config: smallest_eigenvalue is neither true nor false"
    yield from _provenance_defects(config["provenance"], attributes)


def _is_number(value: Any) -> bool:
    """Whether it is a number that a float can be."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _provenance_defects(provenance: Any, attributes: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(provenance, dict):
        yield "config: provenance is no JSON object"
        return
    for name, kinds in PROVENANCE.items():
        value = provenance.get(name)
        if name in provenance and (not isinstance(value, kinds) or isinstance(value, bool)):
            yield f"config: provenance has {name} = {str(value)[:40]!r}, of another type"
    for name in ("title", "experiment", "seed"):
        if name in provenance and provenance[name] != attributes[name]:
            yield f"config: provenance has another {name} than the attribute"
    options = provenance.get("options")
    if isinstance(options, dict) and str(options.get("dtype", "float64")) not in DTYPES:
        yield f"config: provenance has the dtype {str(options['dtype'])[:40]!r} among its options"
    training = provenance.get("training")
    epochs = training.get("epochs", 1) if isinstance(training, dict) else 1
    if type(epochs) is not int or epochs < 1:
        yield f"config: provenance has {str(epochs)[:40]!r} epochs of training"


def _settings_defects(config: Mapping[str, Any], attributes: Mapping[str, Any]) -> Iterator[str]:
    instead: dict[str, Any] = {}
    for name in ("solver", "stop"):
        value = config.get(name)
        if value is None and name == "stop":
            continue
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            yield f"config: {name} is no JSON object with a name"
            return
        if not _is_ours(name, value["name"]) or "function_of_ones_own" in value:
            # One of the user's own, or of a package that is not installed here.
            instead[name] = getattr(DEFAULTS, name)
    try:
        settings = WalkSettings.from_config(config, **instead)
        if attributes["dtype"] in DTYPES:
            Tolerance.checked(settings.rtol, settings.atol, DTYPES[attributes["dtype"]])
    except GeoflowError as error:
        yield f"config: {error}"
        return
    if settings.theta_dtype is None:
        yield "config: theta_dtype is null"
    for name in ("rtol", "atol"):
        if getattr(settings, name) != attributes[name]:
            yield f"config: {name} is another than the attribute"
    if config["solver"]["name"] != attributes["solver"]:
        yield "config: solver is another than the attribute"


def _is_ours(setting: str, name: str) -> bool:
    return name in stopping.NAMED if setting == "stop" else solvers.is_installed(name)
