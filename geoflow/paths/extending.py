"""Going on with a path: an unfinished one to its end, a finished one to further levels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from geoflow import experiments
from geoflow.archive import path_files, seal
from geoflow.errors import ArchiveError, InputError
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.protocol import apart_from
from geoflow.paths.arguments import check_tolerances, checked_budget, checked_levels
from geoflow.paths.following import Settings, follow
from geoflow.paths.recording import counted, points_of
from geoflow.problems import arithmetic
from geoflow.problems.earlier import same_data, same_data_apart
from geoflow.system import files, kinds
from geoflow.system.translation import reason
from geoflow.trajectories import path_schema, records, schema
from geoflow.trajectories.layout import layout_in
from geoflow.trajectories.path_dataset import PathPoint
from geoflow.trajectories.records import Observable, Observed
from geoflow.walking import configuration, counting
from geoflow.walking.fitting import tensors_differ

# A path that ended so goes on to the levels that it did not reach.
CUT_SHORT = ("max_evaluations", "interrupted")


@arithmetic.without_autocast()
def resume_path(
    path: str | Path,
    flow: RegularizingFlow | None = None,
    levels: kinds.Reals = (),
    *,
    observables: Mapping[str, Observed] | None = None,
    max_evaluations: float | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Go on with the regularisation path of an archive, and return the whole path.

    A path that was cut short goes on from its last point, and becomes what it would have been. A
    path that has ended goes on to further levels, each from the point so far whose level is
    nearest; what its levels had taught of the curvature is not in the file, so that the points
    are found anew, and are not to the last bit those of one path over all levels.

    Parameters
    ----------
    path : str or Path
        The file that was given as ``archive``, whether it is there yet or not.
    flow : RegularizingFlow, optional
        That of the path: same data, network, level and regularisation function. None: it is made
        anew, without training, where the path was of an experiment that is registered here.
    levels : sequence of float
        Further levels, in the order in which they are to be reached.
    observables : mapping of str to callable, problem or regularizer, optional
        Needed, by the same names, where the path had some and ``flow`` is given. They are
        compared with what was recorded at its last point, at no cost to the path.
    max_evaluations : int or float, optional
        Budget of the whole path, what it has spent included. None: as before.
    progress : bool
        Show the path on standard error, where that is a terminal or a notebook's.

    Returns
    -------
    xarray.Dataset
        As :func:`geoflow.regularization_path` returns it.

    Raises
    ------
    InputError
        An argument that cannot be used, or a path that has ended and no further level.
    ArchiveError
        Nothing to go on from, another loss, network, regularisation function or observable than
        the path's at its points, settings that cannot be used, or damage.
    ConvergenceError, CriticalPointError, BranchError
        There is no point yet and the first is not reached; see
        :func:`geoflow.regularization_path`.
    """
    path = files.file_named(path)
    give = f"{kinds.A_FLOW}, that of the path, or None; further levels go by name, levels=[…]"
    kinds.check_kind(flow, RegularizingFlow | None, "flow", give)
    kinds.check_kind(observables, Mapping | None, "observables", "a dict of functions of theta")
    kinds.check_switch(progress, "progress")
    none = isinstance(levels, Sequence) and not levels
    levels = [] if none else checked_levels(levels)
    if max_evaluations is not None:
        max_evaluations = checked_budget(max_evaluations)
    unfinished = path_files.kept_settings(path)
    if unfinished is not None:
        configuration.check_path(path, unfinished)
    attributes, taken = _ended(path) if unfinished is None else (unfinished, [])
    if unfinished is not None and path.exists():
        # Further levels of a path that had ended.
        taken = _ended(path)[1]
    config = json.loads(attributes["config"])
    _check_threads(path, config, begun=unfinished is not None)
    wanted = _wanted(path, attributes, taken, levels, max_evaluations)
    budget = max_evaluations or config["max_evaluations"]
    _refuse_spent(attributes, taken, budget)
    if flow is None:
        if observables:
            raise InputError("flow: observables go with a flow; give it too")
        rebuilt = _of_experiment(path, attributes)
        flow, observables = rebuilt.flow, rebuilt.observables
    observables = records.as_observables(observables, flow.problem)
    _check(flow, attributes, observables)
    check_tolerances(levels, flow)
    # A level that was not reached, and is not asked for again, is given up.
    reached = {float(point.values["level"]) for point in taken}
    asked = [level for level in config["levels"] if level in reached or level in wanted]
    settings = Settings(
        [*asked, *(level for level in wanted if level not in asked)],
        float(attributes["degrees"]),
        budget,
        config["smallest_eigenvalue"],
        config["provenance"],
        # Points that have it not are no part of a file that has.
        cost_of_r=attributes[path_schema.PATH] == path_schema.WITH_COST_OF_R,
    )
    return follow(
        flow,
        settings,
        wanted,
        observables,
        path,
        overwrite=bool(taken),
        shown=progress,
        taken=taken,
    )


def _ended(path: Path) -> tuple[dict[str, Any], list[PathPoint]]:
    """Attributes of a path's file, its tensors among them as an unfinished one has them; points."""
    with path_files.open_path(path) as ds:
        defect = seal.defect(path)
        if defect:
            raise ArchiveError(f"{path}: {defect}; follow the path again")
        attributes = {k: v.item() if hasattr(v, "item") else v for k, v in ds.attrs.items()}
        configuration.check_path(path, attributes, ds)
        return attributes | {"tensors": layout_in(ds)}, points_of(ds.load())


def kept_attributes(path: Path) -> dict[str, Any]:
    """Attributes of a path that has ended, or of one that was begun.

    Raises
    ------
    ArchiveError
        There is none, or its settings cannot be used.
    """
    unfinished = path_files.kept_settings(path)
    if unfinished is None:
        return _ended(path)[0]
    configuration.check_path(path, unfinished)
    return unfinished


def _check_threads(path: Path, config: Mapping[str, Any], *, begun: bool) -> None:
    """Refuse to go on with points of another number of threads, which round otherwise."""
    if begun and config["threads"] != torch.get_num_threads():
        raise InputError(
            f"{path}: its points were computed with threads={config['threads']}, and torch has "
            f"{torch.get_num_threads()}; call torch.set_num_threads({config['threads']}) first"
        )


def _of_experiment(path: Path, attributes: Mapping[str, Any]) -> experiments.RebuiltWalk:
    """Make what an experiment's path was a path of again, where it was computed."""
    try:
        return experiments.rebuild(attributes, device=attributes["device"])
    except (KeyError, TypeError) as error:
        raise ArchiveError(
            f"{path}: its config cannot be used ({reason(error)}); follow the path again"
        ) from None


def _wanted(
    path: Path,
    attributes: Mapping[str, Any],
    taken: Sequence[PathPoint],
    levels: Sequence[float],
    max_evaluations: float | None,
) -> list[float]:
    """Levels that are still to be reached."""
    asked = [float(level) for level in json.loads(attributes["config"])["levels"]]
    reached = {float(point.values["level"]) for point in taken}
    if "status" not in attributes:
        if levels or max_evaluations:
            raise InputError(
                f"{path}: an unfinished path lies beside it; go on with that first, without levels "
                "or a budget"
            )
        return [level for level in asked if level not in reached]
    cut_short = attributes["status"] in CUT_SHORT
    left = [level for level in asked if level not in reached] if cut_short else []
    again = sorted(reached & set(levels))
    if again:
        raise InputError(f"levels: {again[0]} was reached; name further ones")
    wanted = [*left, *(level for level in levels if level not in left)]
    if not wanted:
        raise InputError(
            f"{path}: the path has ended ({attributes['status']}); name further levels"
        )
    return wanted


def _refuse_spent(attributes: Mapping[str, Any], taken: Sequence[PathPoint], budget: int) -> None:
    """Refuse a budget that would end the path where it stands."""
    if not taken or "status" not in attributes:
        return
    values = taken[-1].values
    costs = counting.spent({name: int(values[f"n_{name}"]) for name in counted(values)})
    spent = max(costs.values())
    if attributes["status"] == "max_evaluations":
        # What it spent on the level that it did not reach is in no point.
        spent = max(spent, json.loads(attributes["config"])["max_evaluations"])
    if budget <= spent:
        raise InputError(
            f"max_evaluations={budget}: the path has spent {spent} already; allow more, from its "
            "start on"
        )


def _check(
    flow: RegularizingFlow, attributes: Mapping[str, Any], observables: Mapping[str, Observable]
) -> None:
    """Refuse what the path is not of."""
    here = {
        "regularizer_name": flow.regularizer_name,
        "level": flow.level_set.level,
        "level_rtol": flow.level_set.level_rtol,
        "dtype": str(flow.problem.dtype).removeprefix("torch."),
    }
    for name, value in here.items():
        if value != attributes[name]:
            raise InputError(f"flow: its {name} is {value!r}, the path's is {attributes[name]!r}")
    config = json.loads(attributes["config"])
    atol = config.get("level_atol", 0.0)
    if flow.level_set.level_atol != atol:
        raise InputError(
            f"flow: its level_atol is {flow.level_set.level_atol!r}, the path's is {atol!r}; "
            "use that"
        )
    if not same_data(flow.problem, attributes["data_sha256"]):
        raise InputError("flow: its data are not those of the path; use the same data")
    if not same_data_apart(apart_from(flow), attributes.get(schema.REGULARIZER_DATA, "")):
        raise InputError("flow: the data of its regularizer are not the path's; use the same data")
    different = tensors_differ(flow.problem, attributes["tensors"])
    if different:
        raise InputError(
            f"flow: its network's tensors are not those of the path ({different}); give the flow "
            "that the path started with"
        )
    names = config["observables"]
    if sorted(observables) != names:
        raise InputError(
            f"observables: the path has {names}, given are {sorted(observables)}; give the same"
        )
