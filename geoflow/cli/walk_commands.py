"""What each subcommand does: a function of the parsed arguments that returns an exit status."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import baselines, experiments
from geoflow.archive import netcdf, parts, pieces
from geoflow.archive.path_files import is_path, open_walk_or_path
from geoflow.archive.saved import Saved, check_target, saved
from geoflow.cli import path_commands, processes
from geoflow.cli.own_problem import check_own, named_experiment
from geoflow.cli.terminal import (
    BAD_INPUT,
    DIFFERENT,
    DONE,
    ENDED_EARLY,
    INTERRUPTED,
    number,
    say,
    show,
    show_json,
)
from geoflow.comparisons.cost import ANGLES
from geoflow.comparisons.cost import bench as run_bench
from geoflow.comparisons.work_precision import compare_experiment
from geoflow.errors import InputError
from geoflow.manifold import regularizers
from geoflow.problems.dtypes import DTYPES
from geoflow.system import files
from geoflow.system.limits import EPOCHS
from geoflow.system.messages import note
from geoflow.trajectories.schema import REACHED
from geoflow.walking import configuration, events
from geoflow.walking.rerunning import Run, like
from geoflow.walking.settings import OPTIONS, by_setting


def list_experiments(args: argparse.Namespace) -> int:
    """Show the experiments of the paper and what each needs."""
    table = Table("name", "data", "network", "loss", "parameters", "needs")
    for name in experiments.names():
        e = experiments.get(name)
        if isinstance(e, experiments.OwnExperiment):
            table.add_row(e.name, *["–"] * 4, "registered here")
            continue
        table.add_row(e.name, e.data, e.network, e.loss_name, f"{e.n_parameters:,}", e.needs)
    show(table)
    return DONE


def run(args: argparse.Namespace) -> int:
    """Train, walk, and archive."""
    if args.out is not None:
        check_target(args.out, overwrite=args.force)
    settings = _settings(args)
    with processes.joined(args, settings.preparation.get("device", "cpu")) as own:
        return _run(own, settings)


def _run(args: argparse.Namespace, settings: Run) -> int:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    prepared = processes.divided(settings.prepare(progress=not args.quiet))
    ds = gf.walk(
        settings.flow(prepared),
        **vars(settings.walk),
        observables=prepared.observables,
        events=settings.events,
        archive=args.out,
        progress=not args.quiet,
        provenance=prepared.provenance,
        overwrite=args.force,
    )
    figures = gf.plots.save_figures(ds, args.figures, _stem(args, ds)) if args.figures else []
    if not args.quiet:
        _note_end(ds)
        for path in [args.out] * bool(args.out) + [str(f) for f in figures]:
            note(f"wrote {path}")
    return _exit_status(ds)


def _settings(args: argparse.Namespace) -> Run:
    """What to run: as the file of --like says, changed by the options that are given."""
    if args.like:
        if args.experiment is not None:
            raise InputError("name either an EXPERIMENT or a file, with --like FILE.nc")
        settings = like(args.like)
        check_own(args, settings.experiment)
    elif args.experiment is None and args.own is None:
        raise InputError(
            "name either an EXPERIMENT or a file, with --like FILE.nc, or your own experiment, "
            "with --problem FILE.py:FUNCTION"
        )
    else:
        settings = Run(named_experiment(args))
    preparation = settings.preparation
    for name in ("seed", "data", "device"):
        if getattr(args, name) is not None:
            preparation[name] = getattr(args, name)
            settings.data_sha256 = ""
    if args.data is not None:
        # As many inputs as these have.
        settings.tensors = []
    if args.dtype:
        preparation["dtype"] = DTYPES[args.dtype]
    if args.regularizer is not None:
        settings.regularizer = regularizers.get(args.regularizer)
    if args.constraints:
        settings.constraints = args.constraints
    if args.event:
        settings.events = events.from_config([events.from_text(text) for text in args.event])
    settings.walk = settings.walk.changed(**_given(args, *OPTIONS))
    # Before the training, which takes its time.
    experiment = experiments.get(settings.experiment)
    dtype = preparation.get("dtype", experiment.usual_dtype)
    if dtype is not None:
        settings.walk.resolved(dtype)
    return settings


def resume(args: argparse.Namespace) -> int:
    """Go on with a walk or path: an interrupted one to its end, a finished one further."""
    if is_path(args.file):
        return path_commands.resume(args, _given(args, *(n for n in OPTIONS if hasattr(args, n))))
    if args.levels:
        if not parts.is_resumable(Path(args.file)):
            open_walk_or_path(args.file).close()  # says what is damaged
        raise InputError("--levels: the file is a walk's, not a path's; give --t-end, for example")
    device = _checked(args).attributes["device"]
    with processes.joined(args, device) as own:
        return _resume(own)


def _checked(args: argparse.Namespace) -> Saved:
    """What is kept of a walk, where it can be gone on with from here."""
    path = Path(args.file)
    kept = saved(path)
    configuration.check(path, kept.attributes)
    check_own(args, kept.attributes["experiment"])
    return kept


def _resume(args: argparse.Namespace) -> int:
    path, kept = Path(args.file), _checked(args)
    torch.set_num_threads(kept.config.get("threads", torch.get_num_threads()))
    goals = _given(args, *(n for n in OPTIONS if hasattr(args, n)))
    several: dict[str, Any] = {}
    if processes.number() > 1:
        rebuilt = experiments.rebuild(kept.attributes, device=kept.attributes["device"])
        flow = processes.divided_flow(rebuilt.flow)
        several = {"flow": flow, "observables": rebuilt.observables}
    ds = gf.resume(path, **several, **by_setting(goals), progress=not args.quiet)
    if not args.quiet:
        _note_end(ds)
        note(f"wrote {path}")
    return _exit_status(ds)


def validate(args: argparse.Namespace) -> int:
    """Check a file's bytes, checksums, schema and values; one line a defect."""
    defects = gf.validate(args.file)
    for defect in defects:
        say(f"{args.file}: {defect}")
    return BAD_INPUT if defects else DONE


def diff(args: argparse.Namespace) -> int:
    """Compare two trajectories, or two paths, variable by variable."""
    with open_walk_or_path(args.a) as a, open_walk_or_path(args.b) as b:
        differences = gf.diff(a, b, rtol=args.rtol, atol=args.atol)
    agree = all(d.agrees for d in differences)
    if args.json:
        rows = {d.name: {"agrees": d.agrees, "result": d.text} for d in differences}
        show_json({"agree": agree, "differences": rows})
    else:
        table = Table("variable", "result")
        for d in differences:
            table.add_row(d.name, d.text)
        show(table)
    return DONE if agree else DIFFERENT


def info(args: argparse.Namespace) -> int:
    """Show provenance, status, first and last values of every scalar."""
    with open_walk_or_path(args.file) as ds:
        content = describe(ds)
    if args.json:
        show_json(content)
        return DONE
    header = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in content["attributes"].items():
        if name != "config":
            header.add_row(name, str(value))
    for name, size in content["sizes"].items():
        header.add_row(f"n_{name}", f"{size:,}")
    show(header)
    table = Table("scalar", "units", "first", "last")
    for name, row in content["scalars"].items():
        cells = (name, row["units"], number(row["first"]), number(row["last"]))
        table.add_row(*(str(cell) for cell in cells))
    show(table)
    return DONE


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
    files.check_target(args.out, overwrite=args.force)
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
    netcdf.save_dataset(ds, args.out, overwrite=args.force)
    stem = Path(args.out).stem
    figures = gf.plots.save_figures(ds, args.figures, stem) if args.figures else []
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
            cells += [number(_plain(ratio)), number(_plain(cell["level_error_worst"]))]
            cells += [with_deviation(cell, "evaluations"), number(_plain(cell["wall_time"]))]
            table.add_row(solver, f"{rtol:g}", *cells, cell["status"].item())
    show(table)
    show(
        f"errors at t = {float(last['snapshot_time']):g}: of θ relative, of R and test loss "
        f"absolute; the reference's ({ds.attrs['reference_solver']}) own in θ: "
        f"{float(last['reference_theta_error']):.1e}; mean ± deviation of {args.runs} walks"
    )
    if not args.quiet:
        for path in [args.out, *figures]:
            note(f"wrote {path}")
    return INTERRUPTED if ds.attrs["status"] == "interrupted" else DONE


def with_deviation(cell: xr.Dataset, name: str) -> str:
    """Write a mean, and where there are several runs and it is kept, their deviation."""
    spread = float(cell.get(f"{name}_deviation", math.nan))
    mean = number(_plain(cell[name]))
    return mean if math.isnan(spread) else f"{mean} ± {spread:.2g}"


def baseline(args: argparse.Namespace) -> int:
    """Train with weight decay, over the paper's penalties."""
    files.check_target(args.out, overwrite=args.force)
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
    baselines.save_weight_decay(ds, args.out, overwrite=args.force)
    if not args.quiet:
        for by in ("test_loss", "validation_loss")[: 1 + (args.validation > 0)]:
            note(f"best by {by}: {baselines.best_penalty(ds, by):g}")
        note(f"wrote {args.out}")
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
    } | _given(args, "dtype", "device", "data")
    walk = _given(args, "regularizer", "constraints", *OPTIONS)
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


def describe(ds: xr.Dataset) -> dict[str, Any]:
    """Collect a trajectory's attributes, sizes, and the first and last value of every scalar."""
    attributes = {str(k): v.tolist() if hasattr(v, "tolist") else v for k, v in ds.attrs.items()}
    attributes["config"] = json.loads(attributes["config"])
    scalars = {}
    for name, variable in ds.variables.items():
        alone = variable.dims in (("step",), ("snapshot",), ("level",))
        if alone and variable.size and variable.dtype.kind in "fi":
            first, last = (_plain(variable.values[i]) for i in (0, -1))
            scalars[str(name)] = {"units": variable.attrs["units"], "first": first, "last": last}
    sizes = {str(k): int(v) for k, v in ds.sizes.items()}
    return {"attributes": attributes, "sizes": sizes, "scalars": scalars}


def _plain(value: Any) -> float | int | None:
    """As JSON has it: no NaN."""
    number: float | int = value.item()
    return None if number != number else number


def hint(args: argparse.Namespace) -> str:
    """Say how to go on where a walk, or what is done of an analysis, is kept."""
    out = getattr(args, "out", None)
    if out and pieces.are_kept(Path(out)):
        return "; what is done is kept, and the same command goes on with it"
    path = args.out if args.command is run else getattr(args, "file", None)
    if not path or not parts.is_resumable(Path(path)):
        return ""
    return f"; the walk is kept up to its last checkpoint: geoflow resume {path}"


def _note_end(ds: xr.Dataset) -> None:
    last = ds.isel(step=-1)
    evaluations = f"{int(last['n_gradient']) + 2 * int(last['n_hvp'])} evaluations"
    if "n_regularizer_gradient" in ds:
        evaluations += f" and {int(last['n_regularizer_gradient'])} of R"
    note(f"{ds.attrs['status']}: {ds.attrs['status_message']}")
    note(
        f"angle {float(ds['angle'][0]):.1f}° → {float(last['angle']):.1f}°, "
        f"R {float(ds['regularizer'][0]):.4g} → {float(last['regularizer']):.4g}, "
        f"flow time {float(last['time']):.4g}, {ds.sizes['step'] - 1} steps, "
        f"{evaluations}, {float(last['wall_time']):.1f} s"
    )


def _exit_status(ds: xr.Dataset) -> int:
    status = ds.attrs["status"]
    if status == "interrupted":
        return INTERRUPTED
    return DONE if status in REACHED else ENDED_EARLY


def _stem(args: argparse.Namespace, ds: xr.Dataset) -> str:
    return Path(args.out).stem if args.out else f"{ds.attrs['experiment']}-{ds.attrs['seed']}"


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that are given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}
