"""What the subcommands of one walk do: functions of the arguments that return an exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from rich.table import Table

import geoflow as gf
from geoflow import experiments
from geoflow.archive import parts, pieces
from geoflow.archive.path_files import is_path, open_walk_or_path
from geoflow.archive.saved import Saved, check_target, saved
from geoflow.cli import path_commands, processes
from geoflow.cli.own_problem import check_own, named_experiment
from geoflow.cli.reading import given
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
from geoflow.errors import InputError
from geoflow.manifold import regularizers
from geoflow.problems.dtypes import DTYPES
from geoflow.system import files
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
    if not args.quiet:
        _note_end(ds)
        if args.out:
            note(f"wrote {args.out}")
    for path in gf.plots.save_figures(ds, args.figures, _stem(args, ds)) if args.figures else []:
        if not args.quiet:
            note(f"wrote {path}")
    return _exit_status(ds)


def _settings(args: argparse.Namespace) -> Run:
    """What to run: as the file of --like says, changed by the options that are given."""
    if args.like is not None:
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
    if args.dtype is not None:
        preparation["dtype"] = DTYPES[args.dtype]
    if args.regularizer is not None:
        settings.regularizer = regularizers.get(args.regularizer)
    if args.constraints is not None:
        settings.constraints = args.constraints
    if args.event is not None:
        settings.events = events.from_config([events.from_text(text) for text in args.event])
    settings.walk = settings.walk.changed(**given(args, *OPTIONS))
    # Before the training, which takes its time.
    experiment = experiments.get(settings.experiment)
    dtype = preparation.get("dtype", experiment.usual_dtype)
    if dtype is not None:
        settings.walk.resolved(dtype)
    return settings


def resume(args: argparse.Namespace) -> int:
    """Continue a walk or a path: an interrupted one to its end, a finished one further."""
    files.file_named(args.file, "FILE.nc")
    if is_path(args.file):
        return path_commands.resume(args, given(args, *(n for n in OPTIONS if hasattr(args, n))))
    if args.levels is not None:
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
    goals = given(args, *(n for n in OPTIONS if hasattr(args, n)))
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
    """Check a file's bytes, checksums, schema and values; one line per defect."""
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


def describe(ds: xr.Dataset) -> dict[str, Any]:
    """Collect a trajectory's attributes, sizes, and the first and last value of every scalar."""
    attributes = {str(k): v.tolist() if hasattr(v, "tolist") else v for k, v in ds.attrs.items()}
    attributes["config"] = json.loads(attributes["config"])
    scalars = {}
    for name, variable in ds.variables.items():
        alone = variable.dims in (("step",), ("snapshot",), ("level",))
        if alone and variable.size and variable.dtype.kind in "fi":
            first, last = (variable.values[i].item() for i in (0, -1))
            scalars[str(name)] = {"units": variable.attrs["units"], "first": first, "last": last}
    sizes = {str(k): int(v) for k, v in ds.sizes.items()}
    return {"attributes": attributes, "sizes": sizes, "scalars": scalars}


def hint(args: argparse.Namespace) -> str:
    """Say how to go on where a walk, or what is done of an analysis, is kept."""
    out = getattr(args, "out", None)
    if out and pieces.are_kept(Path(out)):
        return "; what is done is kept, and the same command goes on with it"
    path = args.out if args.command is run else getattr(args, "file", None)
    if path and parts.is_resumable(Path(path)):
        return f"; the walk is kept up to its last checkpoint: geoflow resume {path}"
    if out and files.is_file(out) and not getattr(args, "force", False):
        # None was there when the command began: Ctrl-C came as it had been written.
        return f"; {out} is there"
    return ""


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
