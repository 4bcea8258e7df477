"""The files of a page, read and put together by what they are of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xarray as xr

from geoflow import baselines
from geoflow.archive.inputs import existing
from geoflow.archive.netcdf import checked, open_lazily
from geoflow.archive.path_files import open_path
from geoflow.archive.trajectory_files import open_trajectory, other_kind
from geoflow.errors import ArchiveError, InputError
from geoflow.system import translation
from geoflow.system.memory import check_memory
from geoflow.trajectories import path_schema, schema


@dataclass
class Runs:
    """Walks that belong together, and the files they are of."""

    walks: list[xr.Dataset] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)


@dataclass
class Given:
    """All that a page is of.

    Attributes
    ----------
    walks : dict
        By what they have in common, their subject first.
    trainings : dict
        Files of baselines, by subject.
    followed : list
        Paths: subject, file, dataset.
    compared : list
        Comparisons of solvers: file, dataset.
    """

    walks: dict[tuple[str, ...], Runs] = field(default_factory=dict)
    trainings: dict[str, list[Path]] = field(default_factory=dict)
    followed: list[tuple[str, Path, xr.Dataset]] = field(default_factory=list)
    compared: list[tuple[Path, xr.Dataset]] = field(default_factory=list)

    def baseline(self, subject: str) -> xr.Dataset | None:
        """Trainings with weight decay of a subject, or None where there are none."""
        paths = self.trainings.get(subject)
        return baselines.open_weight_decay(paths) if paths else None


def read(paths: Sequence[Path]) -> Given:
    """Read all files but those of baselines, and sort them.

    Raises
    ------
    InputError
        A walk without a snapshot, or more than fits into memory.
    ArchiveError
        A file that is nothing a page can show.
    """
    given = Given()
    for path in paths:
        kind, subject = _kind_of(path)
        if kind == "baseline":
            given.trainings.setdefault(subject, []).append(path)
            continue
        if kind == "comparison":
            with (
                translation.reading(path, "what a page can show"),
                open_lazily(checked(existing(path))) as ds,
            ):
                check_memory(ds.nbytes, f"{path}: its errors", "leave it out")
                given.compared.append((path, ds.load()))
            continue
        if kind == path_schema.KIND:
            with translation.reading(path, "what a page can show"), open_path(path) as ds:
                check_memory(ds.nbytes, f"{path}: its points", "leave it out")
                given.followed.append((_subject(ds.attrs, "path"), path, ds.load()))
            continue
        with translation.reading(path, "what a page can show"), open_trajectory(path) as ds:
            if not ds.sizes["snapshot"]:
                raise InputError(f"{path} holds no snapshot; leave it out, or walk again with some")
            check_memory(ds.nbytes, f"{path}: its snapshots", "give fewer walks")
            runs = given.walks.setdefault(_in_common(ds.load()), Runs())
        runs.walks.append(ds)
        runs.paths.append(path)
    for runs in given.walks.values():
        order = sorted(range(len(runs.walks)), key=lambda i: int(runs.walks[i].attrs["seed"]))
        runs.walks = [runs.walks[i] for i in order]
        runs.paths = [runs.paths[i] for i in order]
    given.followed.sort(key=lambda one: (one[0], int(one[2].attrs["seed"])))
    return given


def _in_common(ds: xr.Dataset) -> tuple[str, ...]:
    """What walks must have in common to have a mean: the subject, and all that a seed leaves."""
    a = ds.attrs
    # What gf.walk did not write may have no options of a solver.
    solver = json.dumps(json.loads(a["config"]).get("solver", a["solver"]), sort_keys=True)
    tensors = (ds[f"tensor_{name}"].values.tolist() for name in ("name", "shape"))
    # An experiment may split its data by the seed; walks without one are known by what they have.
    of = ["", ""]
    if not a["experiment"]:
        level = str([float(a["level"]), *schema.levels(a)])
        # Of several problems without data, it is of as many empty ones.
        without = ("", hashlib.sha256(b" " * (n_constraints(a) - 1)).hexdigest())
        data = a["data_sha256"]
        of = [level if data in without else data, a.get(schema.REGULARIZER_DATA, "")]
    return (
        *(_subject(a), solver, f"{a['rtol']:g}", f"{a['atol']:g}", a["dtype"]),
        # R of different functions has no mean, nor have scalars of different flows.
        *(a["regularizer_name"], a.get(schema.FLOW, ""), str(n_constraints(a))),
        *(json.dumps(list(tensors)), *of),
    )


def n_constraints(attributes: Mapping[str, Any]) -> int:
    """How many constraints a walk is on."""
    return len(json.loads(attributes.get(schema.LEVELS, "[0]")))


def _subject(attributes: Mapping[str, Any], unnamed: str = "walk") -> str:
    """Experiment, and whether its images are CIFAR-10's or made up."""
    made_up = ", synthetic images" if "synthetic" in attributes["title"] else ""
    return f"{attributes['experiment'] or unnamed}{made_up}"


def _kind_of(path: Path) -> tuple[str, str]:
    """Whether a file is of a baseline, a path or anything else, and the subject of a baseline."""
    with translation.reading(path), open_lazily(checked(existing(path))) as ds:
        if "geoflow_baseline" in ds.attrs:
            return "baseline", _subject(ds.attrs)
        if ds.attrs.get("kind") == "comparison":
            return "comparison", ""
        if path_schema.is_path(ds):
            return path_schema.KIND, ""
        if other := other_kind(ds):
            raise ArchiveError(
                f"{path} is of the kind {other}; give walks, paths, comparisons or baselines"
            )
        return "walk", ""
