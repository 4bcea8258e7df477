"""What the subcommands of many walks or trainings do: bench, compare, baseline and sweep."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import baselines, experiments
from geoflow.archive import netcdf
from geoflow.archive.parts import check_free
from geoflow.cli.own_problem import named_experiment
from geoflow.cli.reading import given
from geoflow.cli.results import shown_in_any_case, write
from geoflow.cli.terminal import (
    DONE,
    ENDED_EARLY,
    INTERRUPTED,
    number,
    show,
    show_json,
)
from geoflow.comparisons.cost import ANGLES
from geoflow.comparisons.cost import bench as run_bench
from geoflow.comparisons.work_precision import compare_experiment
from geoflow.errors import InputError
from geoflow.problems.dtypes import DTYPES
from geoflow.system.limits import EPOCHS
from geoflow.system.messages import note
from geoflow.trajectories.schema import REACHED
from geoflow.walking.settings import OPTIONS


def bench(args: argparse.Namespace) -> int:
    """Count evaluations and wall time to each angle, per method, in one process."""

    def progress(name: str) -> None:
        note(f"{experiment}: {name}")

    report = {}
    names = [*args.experiments, *([args.own.name] if args.own else [])]
    if not names:
        raise InputError("name an EXPERIMENT, or your own with --problem FILE.py:FUNCTION")
    for name in names:
        experiments.get(name)
    for experiment in names:
        report[experiment] = run_bench(experiment, args.seed, args.max_evaluations, progress)
    if args.json:
        show_json(report)
        return DONE
    table = Table("experiment", "method", *(f"to {a}°" for a in ANGLES), "to the loop's R", "s")
    for experiment, methods in report.items():
        for method, entry in methods.items():
            counts = [entry["evaluations"][str(a)] for a in ANGLES]
            counts.append(entry["to_regularizer"]["evaluations"])
            seconds = entry["wall_time"][str(ANGLES[2])]
            cells = ["not reached" if n is None else f"{n:,}" for n in counts]
            table.add_row(experiment, method, *cells, "–" if seconds is None else f"{seconds:.1f}")
    show(table)
    show("evaluations; s: wall time to 175°; the loop's R: least ‖θ‖² of the paper's loop")
    return DONE


def compare(args: argparse.Namespace) -> int:
    """Compare solvers and tolerances with a tight reference, at equal flow times."""

    def progress(text: str) -> None:
        if not args.quiet:
            note(f"{experiment}: {text}")

    experiment = named_experiment(args)
    check_free(args.out, overwrite=args.force)
    ds = compare_experiment(
        experiment,
        args.solvers.split(","),
        args.rtols,
        args.times,
        args.max_evaluations,
        seed=args.seed,
        data=args.data,
        reference=args.reference,
        reference_rtol=args.reference_rtol,
        runs=args.runs,
        note=progress,
    )
    with shown_in_any_case() as attempt:
        attempt(_keep, netcdf.save_dataset, ds, args)
        attempt(_draw, ds, args)
        last = ds.isel(snapshot=-1)
        errors = {
            "θ": "theta_error",
            "R": "regularizer_error",
            "test loss": "test_loss_error",
            "|L − c|/c": "level_error",
        }
        errors = {head: name for head, name in errors.items() if name in ds}
        head = ["solver", "rtol", *errors, "θ's worst / rtol", "worst |L − c|/c"]
        table = Table(*head, "evaluations", "s", "status")
        for solver in ds["solver"].values:
            for rtol in ds["rtol"].values:
                cell = last.sel(solver=solver, rtol=rtol)
                cells = [with_deviation(cell, n) for n in errors.values()]
                # Of those flow times to which the walk came.
                ratio = ds["theta_error"].sel(solver=solver, rtol=rtol).max() / rtol
                cells += [number(ratio.item()), number(cell["level_error_worst"].item())]
                cells += [with_deviation(cell, "evaluations"), number(cell["wall_time"].item())]
                table.add_row(solver, f"{rtol:g}", *cells, cell["status"].item())
        show(table)
        show(
            f"errors at t = {float(last['snapshot_time']):g}: of θ relative, of R and test loss "
            f"absolute; the reference's ({ds.attrs['reference_solver']}) own in θ: "
            f"{float(last['reference_theta_error']):.1e}; mean ± deviation of {args.runs} walks"
        )
    return INTERRUPTED if ds.attrs["status"] == "interrupted" else DONE


def _keep(save: Callable[..., None], ds: xr.Dataset, args: argparse.Namespace) -> None:
    write(save, ds, args.out, args.force)
    if not args.quiet:
        note(f"wrote {args.out}")


def _draw(ds: xr.Dataset, args: argparse.Namespace) -> None:
    if args.figures:
        for path in gf.plots.save_figures(ds, args.figures, Path(args.out).stem):
            if not args.quiet:
                note(f"wrote {path}")


def with_deviation(cell: xr.Dataset, name: str) -> str:
    """Write a mean, and where there are several runs and it is kept, their deviation."""
    spread = float(cell.get(f"{name}_deviation", math.nan))
    mean = number(cell[name].item())
    return mean if math.isnan(spread) else f"{mean} ± {spread:.2g}"


def baseline(args: argparse.Namespace) -> int:
    """Train with weight decay, over the paper's penalties."""
    check_free(args.out, overwrite=args.force)
    if not 1 <= args.runs <= EPOCHS:
        raise InputError(f"--runs {args.runs}; use 1 to {EPOCHS:,}")
    ds = baselines.weight_decay(
        args.experiment,
        penalties=args.penalties or baselines.PENALTIES,
        seeds=range(args.seed, args.seed + args.runs),
        epochs=args.epochs,
        validation=args.validation,
        data=args.data,
        dtype=DTYPES[args.dtype],
        device=args.device,
        progress=not args.quiet,
    )
    with shown_in_any_case() as attempt:
        attempt(_keep, baselines.save_weight_decay, ds, args)
        if not args.quiet:
            for by in ("test_loss", "validation_loss")[: 1 + (args.validation > 0)]:
                note(f"best by {by}: {baselines.best_penalty(ds, by):g}")
    return DONE


def sweep(args: argparse.Namespace) -> int:
    """Walk from many seeds, on all processors or on a Dask cluster."""
    experiment = named_experiment(args)
    common: dict[str, Any] = {
        "epochs": args.epochs,
        "scheduler": args.scheduler,
        "workers": args.workers,
        "threads": args.threads,
        "progress": not args.quiet,
    } | given(args, "dtype", "device", "data")
    walk = given(args, "regularizer", "constraints", *OPTIONS)
    if args.baseline:
        for name in walk:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is for walks; leave it out with --baseline")
        outcomes = gf.sweep_weight_decay(experiment, args.seeds, args.out, **common)
    else:
        outcomes = gf.sweep(experiment, args.seeds, args.out, **walk, **common)
    if not args.quiet:
        new = sum(o.new for o in outcomes)
        note(f"{len(outcomes)} runs, {new} of them new, in {args.out}")
    for o in outcomes:
        if o.status == "failed":
            note(f"geoflow: {o.name} failed: {o.message}")
    ended = all(o.status in (*REACHED, "trained") for o in outcomes)
    return DONE if ended else ENDED_EARLY
