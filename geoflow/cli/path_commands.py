"""``geoflow path``: what it does with its arguments."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import experiments
from geoflow.archive.pieces import check_free
from geoflow.cli.own_problem import check_own, named_experiment
from geoflow.cli.results import shown_in_any_case
from geoflow.cli.terminal import DONE, ENDED_EARLY, INTERRUPTED, number, or_dash, show, show_json
from geoflow.errors import InputError
from geoflow.manifold import regularizers
from geoflow.paths.extending import kept_attributes
from geoflow.problems.dtypes import DTYPES
from geoflow.system import files
from geoflow.system.messages import note
from geoflow.walking.rerunning import Run
from geoflow.walking.stopping import Stationary

COLUMNS = {
    "level": "level",
    "penalty": "penalty",
    "R": "regularizer",
    "angle": "angle",
    "test loss": "test_loss",
    "test accuracy": "test_accuracy",
    "smallest eigenvalue": "smallest_eigenvalue",
}


def path(args: argparse.Namespace) -> int:
    """Follow the regularisation path of an experiment from level to level."""
    experiment = named_experiment(args)
    if (args.levels is None) == (args.levels_to is None):
        raise InputError("name either --levels A,B,… or --levels-to C with --points N")
    if args.points is not None and args.levels_to is None:
        raise InputError(f"--points {args.points} goes with --levels-to C")
    if args.out is not None:
        check_free(args.out, overwrite=args.force)
    run = Run(experiment, {"seed": args.seed})
    for name in ("data", "device"):
        if getattr(args, name) is not None:
            run.preparation[name] = getattr(args, name)
    if args.dtype is not None:
        run.preparation["dtype"] = DTYPES[args.dtype]
    if args.regularizer is not None:
        run.regularizer = regularizers.get(args.regularizer)
    # Before the training, which takes its time.
    Stationary(args.degrees)
    experiments.get(experiment)
    prepared = run.prepare(progress=not args.quiet)
    flow = run.flow(prepared)
    levels = args.levels
    if levels is None:
        levels = _spaced(flow.level_set.level, args.levels_to, args.points)
    ds = gf.regularization_path(
        flow,
        levels,
        args.degrees,
        prepared.observables,
        args.out,
        max_evaluations=args.max_evaluations,
        smallest_eigenvalue=args.eigenvalues,
        provenance=prepared.provenance,
        overwrite=args.force,
        progress=not args.quiet,
    )
    with shown_in_any_case() as attempt:
        attempt(_draw, ds, args)
        if args.json:
            show_json(_content(ds))
        else:
            _show(ds)
    return _exit_status(ds)


def resume(args: argparse.Namespace, further: dict[str, Any]) -> int:
    """Continue a path: an unfinished one to its end, a finished one to further levels."""
    refused = sorted(set(further) - {"max_evaluations"})
    if refused:
        option = refused[0].replace("_", "-")
        raise InputError(f"--{option}: {args.file} is a path; give --levels A,B,… to go on with it")
    attributes = kept_attributes(Path(args.file))
    check_own(args, attributes["experiment"], "path")
    torch.set_num_threads(json.loads(attributes["config"])["threads"])
    ds = gf.resume_path(
        args.file,
        levels=args.levels or (),
        max_evaluations=further.get("max_evaluations"),
        progress=not args.quiet,
    )
    if not args.quiet:
        note(f"{ds.attrs['status']}: {ds.attrs['status_message']}")
        note(f"wrote {args.file}")
    _show(ds)
    return _exit_status(ds)


def _exit_status(ds: xr.Dataset) -> int:
    status = ds.attrs["status"]
    if status == "interrupted":
        return INTERRUPTED
    return DONE if status == "complete" else ENDED_EARLY


def _spaced(level: float, to: float, points: int | None) -> list[float]:
    """So many levels from the experiment's own to another, both among them, evenly in log c."""
    n = 10 if points is None else points
    if n < 2:
        raise InputError(f"--points {n}; use 2 or more")
    if not (math.isfinite(to / level) and to / level > 0 and to != level):
        raise InputError(
            f"--levels-to {to}: the level of the trained network is {level:.6g}; name another of "
            "its sign"
        )
    ratios = np.geomspace(1.0, to / level, n)
    return [float(level * ratio) for ratio in ratios[:-1]] + [to]


def _draw(ds: xr.Dataset, args: argparse.Namespace) -> None:
    stem = args.out and files.resolved(args.out).stem
    stem = stem or f"{ds.attrs['experiment']}-{ds.attrs['seed']}-path"
    if not args.quiet:
        note(f"{ds.attrs['status']}: {ds.attrs['status_message']}")
        if args.out:
            note(f"wrote {args.out}")
    for file in gf.plots.save_figures(ds, args.figures, stem) if args.figures else []:
        if not args.quiet:
            note(f"wrote {file}")


def _content(ds: xr.Dataset) -> dict[str, object]:
    columns = {str(n): v.values for n, v in ds.variables.items() if v.dims == ("level",)}
    points = [
        {name: values[i] for name, values in columns.items()} for i in range(len(ds["level"]))
    ]
    status = {name: ds.attrs[name] for name in ("status", "status_message")}
    return {**status, "points": points}


def _show(ds: xr.Dataset) -> None:
    columns = {head: name for head, name in COLUMNS.items() if name in ds}
    table = Table(*columns, "evaluations", "by")
    for i in range(ds.sizes["level"]):
        point = ds.isel(level=i)
        evaluations = int(point["n_gradient"]) + 2 * int(point["n_hvp"])
        cells = [or_dash(point[name]) for name in columns.values()]
        table.add_row(*cells, number(evaluations), str(point["method"].item()))
    show(table)
