"""The command line: arguments in, library calls, tables out.

Each subcommand is a function that takes the parsed arguments and returns an exit status; its
options stand in ``_parser``.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from rich.console import Console
from rich.table import Table
from rich.text import Text

import geoflow as gf
from geoflow import archive, baselines, experiments, parts, plots, solvers
from geoflow.bench import ANGLES
from geoflow.bench import bench as run_bench
from geoflow.comparison import (
    DEFAULT_TIMES,
    REFERENCE_RTOL,
    REFERENCE_SOLVER,
    compare_experiment,
)
from geoflow.comparison_dataset import save_comparison
from geoflow.errors import GeoflowError, InputError, StorageError
from geoflow.report import report as write_report
from geoflow.rerun import Run, like
from geoflow.saved import check_target, saved
from geoflow.trajectory import DTYPES

DONE, DIFFERENT, BAD_INPUT, ENDED_EARLY, INTERRUPTED = 0, 1, 2, 3, 130
REACHED = ("stationary", "t_end", "plateau")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.command(args))
    except GeoflowError as error:
        print(f"geoflow: error: {error}", file=sys.stderr)
        return ENDED_EARLY if isinstance(error, StorageError) else BAD_INPUT
    except KeyboardInterrupt:
        print(f"geoflow: interrupted{_hint(args)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        sys.stderr.close()
        return DONE


def list_experiments(args: argparse.Namespace) -> int:
    """Show the experiments of the paper and what each needs."""
    table = Table("name", "data", "network", "loss", "parameters", "needs")
    for name in experiments.names():
        e = experiments.get(name)
        table.add_row(e.name, e.data, e.network, e.loss_name, f"{e.n_parameters:,}", e.needs)
    _console().print(table)
    return DONE


def run(args: argparse.Namespace) -> int:
    """Train, walk, and archive."""
    if args.out:
        check_target(args.out, overwrite=args.force)
    settings = _settings(args)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    prepared = settings.prepare(progress=not args.quiet)
    ds = gf.walk(
        settings.flow(prepared),
        **settings.walk,
        observables=prepared.observables,
        archive=args.out,
        progress=not args.quiet,
        provenance=prepared.provenance,
        overwrite=args.force,
    )
    figures = plots.save_figures(ds, args.figures, _stem(args, ds)) if args.figures else []
    if not args.quiet:
        _note_end(ds)
        for path in [args.out] * bool(args.out) + [str(f) for f in figures]:
            print(f"wrote {path}", file=sys.stderr)
    return _exit_status(ds)


def _settings(args: argparse.Namespace) -> Run:
    """What to run: as the file of --like says, changed by the options that are given."""
    if (args.experiment is None) == (args.like is None):
        raise InputError("name either an EXPERIMENT or a file, with --like FILE.nc")
    settings = like(args.like) if args.like else Run(args.experiment)
    preparation, walk = settings.preparation, settings.walk
    if args.snapshots is not None and args.snapshots < 2:
        raise InputError(f"--snapshots {args.snapshots}; use at least 2, the first and the last")
    for name in ("seed", "data", "device"):
        if getattr(args, name) is not None:
            preparation[name] = getattr(args, name)
            settings.data_sha256 = ""
    if args.dtype:
        preparation["dtype"] = DTYPES[args.dtype]
    if args.solver:
        walk["solver"] = solvers.get(args.solver)
    if args.angle is not None:
        walk["stop"] = gf.Stationary(args.angle)
    for name in ("rtol", "atol", "t_end", "max_evaluations", "theta_dtype"):
        if getattr(args, name) is not None:
            walk[name] = getattr(args, name)
    if args.snapshots is not None:
        walk |= {"max_snapshots": args.snapshots, "snapshot_times": None, "snapshot_every": None}
    # Before the training, which takes its time.
    experiments.get(settings.experiment)
    dtype = preparation.get("dtype", torch.float64)
    solvers.Tolerance.checked(walk.get("rtol", 1e-3), walk.get("atol", 1e-6), dtype)
    return settings


def resume(args: argparse.Namespace) -> int:
    """Go on with a walk: an interrupted one to its end, a finished one to a further goal."""
    path = Path(args.file)
    threads = saved(path).config.get("threads")
    if isinstance(threads, int) and threads > 0:
        torch.set_num_threads(threads)
    with warnings.catch_warnings(record=True) as caught:
        ds = gf.resume(
            path,
            t_end=args.t_end,
            stop=None if args.angle is None else gf.Stationary(args.angle),
            max_evaluations=args.max_evaluations,
            progress=not args.quiet,
        )
    for warning in caught:
        print(f"geoflow: warning: {warning.message}", file=sys.stderr)
    if not args.quiet:
        _note_end(ds)
        print(f"wrote {path}", file=sys.stderr)
    return _exit_status(ds)


def validate(args: argparse.Namespace) -> int:
    """Check a file's bytes, checksums, schema and values; one line a defect."""
    defects = gf.validate(args.file)
    for defect in defects:
        print(f"{args.file}: {_plain_text(defect)}")
    return BAD_INPUT if defects else DONE


def diff(args: argparse.Namespace) -> int:
    """Compare two trajectories, variable by variable."""
    with gf.open_trajectory(args.a) as a, gf.open_trajectory(args.b) as b:
        differences = gf.diff(a, b, rtol=args.rtol, atol=args.atol)
    agree = all(d.agrees for d in differences)
    if args.json:
        rows = {d.name: {"agrees": d.agrees, "result": d.text} for d in differences}
        print(json.dumps({"agree": agree, "differences": rows}, indent=2))
    else:
        table = Table("variable", "result")
        for d in differences:
            table.add_row(_plain_text(d.name), _plain_text(d.text))
        _console().print(table)
    return DONE if agree else DIFFERENT


def info(args: argparse.Namespace) -> int:
    """Show provenance, status, first and last values of every scalar."""
    with gf.open_trajectory(args.file) as ds:
        content = describe(ds)
    if args.json:
        print(json.dumps(content, indent=2))
        return DONE
    console = _console()
    header = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in content["attributes"].items():
        if name != "config":
            header.add_row(_plain_text(name), _plain_text(value))
    for name, size in content["sizes"].items():
        header.add_row(f"n_{name}", f"{size:,}")
    console.print(header)
    table = Table("scalar", "units", "first", "last")
    for name, row in content["scalars"].items():
        cells = (name, row["units"], _number(row["first"]), _number(row["last"]))
        table.add_row(*(_plain_text(cell) for cell in cells))
    console.print(table)
    return DONE


def plot(args: argparse.Namespace) -> int:
    """Write the figures of a walk."""
    with gf.open_trajectory(args.file) as ds:
        paths = plots.save_figures(ds, args.out, Path(args.file).stem)
    for path in paths:
        print(path)
    return DONE


def bench(args: argparse.Namespace) -> int:
    """Count evaluations and wall time to each angle, per method, in one process."""

    def note(name: str) -> None:
        print(f"{experiment}: {name}", file=sys.stderr)

    report = {}
    for name in args.experiments:
        experiments.get(name)
    for experiment in args.experiments:
        report[experiment] = run_bench(experiment, args.seed, args.max_evaluations, note)
    if args.json:
        print(json.dumps(report, indent=2))
        return DONE
    table = Table("experiment", "method", *(f"to {a}°" for a in ANGLES), "to the loop's R", "s")
    for experiment, methods in report.items():
        for method, entry in methods.items():
            counts = [entry["evaluations"][str(a)] for a in ANGLES]
            counts.append(entry["to_regularizer"]["evaluations"])
            seconds = entry["wall_time"][str(ANGLES[2])]
            cells = ["not reached" if n is None else f"{n:,}" for n in counts]
            table.add_row(experiment, method, *cells, "–" if seconds is None else f"{seconds:.1f}")
    console = _console()
    console.print(table)
    console.print("evaluations; s: wall time to 175°; the loop's R: least ‖θ‖² of the paper's loop")
    return DONE


def compare(args: argparse.Namespace) -> int:
    """Compare solvers and tolerances with a tight reference, at equal flow times."""

    def note(text: str) -> None:
        if not args.quiet:
            print(f"{args.experiment}: {text}", file=sys.stderr)

    archive.check_target(args.out, overwrite=args.force)
    ds = compare_experiment(
        args.experiment,
        args.solvers.split(","),
        args.rtols,
        args.times,
        args.max_evaluations,
        seed=args.seed,
        data=args.data,
        reference=args.reference,
        reference_rtol=args.reference_rtol,
        note=note,
    )
    save_comparison(ds, args.out, overwrite=args.force)
    stem = Path(args.out).stem
    figures = plots.save_work_precision(ds, args.figures, stem) if args.figures else []
    last = ds.isel(snapshot=-1)
    table = Table(
        "solver", "rtol", "θ", "R", "test loss", "|L − c|/c", "evaluations", "s", "status"
    )
    errors = ("theta_error", "regularizer_error", "test_loss_error", "level_error")
    for solver in ds["solver"].values:
        for rtol in ds["rtol"].values:
            cell = last.sel(solver=solver, rtol=rtol)
            cells = [_number(_plain(cell[n])) for n in errors]
            cells += [_number(_plain(cell[n])) for n in ("evaluations", "wall_time")]
            table.add_row(solver, f"{rtol:g}", *cells, cell["status"].item())
    console = _console()
    console.print(table)
    console.print(
        f"errors at t = {float(last['snapshot_time']):g}: of θ relative, of R and test loss "
        f"absolute; the reference's own in θ: {float(last['reference_theta_error']):.1e}"
    )
    if not args.quiet:
        for path in [args.out, *figures]:
            print(f"wrote {path}", file=sys.stderr)
    return INTERRUPTED if ds.attrs["status"] == "interrupted" else DONE


def baseline(args: argparse.Namespace) -> int:
    """Train with weight decay, over the paper's penalties."""
    archive.check_target(args.out, overwrite=args.force)
    if args.runs < 1:
        raise InputError(f"--runs {args.runs}; use a positive number")
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
            print(f"best by {by}: {baselines.best_penalty(ds, by):g}", file=sys.stderr)
        print(f"wrote {args.out}", file=sys.stderr)
    return DONE


def sweep(args: argparse.Namespace) -> int:
    """Walk from many seeds, on all processors or on a Dask cluster."""
    common: dict[str, Any] = {
        "epochs": args.epochs,
        "scheduler": args.scheduler,
        "workers": args.workers,
        "threads": args.threads,
        "progress": not args.quiet,
    } | _given(args, "dtype", "device", "data")
    walk = _given(args, "solver", "rtol", "atol", "angle", "t_end", "max_evaluations", "snapshots")
    if args.baseline:
        for name in walk:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is for walks; leave it out with --baseline")
        outcomes = gf.sweep_weight_decay(args.experiment, args.seeds, args.out, **common)
    else:
        names = {"angle": "degrees", "snapshots": "max_snapshots"}
        walk = {names.get(name, name): value for name, value in walk.items()}
        outcomes = gf.sweep(args.experiment, args.seeds, args.out, **walk, **common)
    if not args.quiet:
        new = sum(o.new for o in outcomes)
        print(f"{len(outcomes)} runs, {new} of them new, in {args.out}", file=sys.stderr)
    for o in outcomes:
        if o.status == "failed":
            print(f"geoflow: {o.name} failed: {o.message}", file=sys.stderr)
    ended = all(o.status in (*REACHED, "trained") for o in outcomes)
    return DONE if ended else ENDED_EARLY


def report(args: argparse.Namespace) -> int:
    """Write one self-contained page about walks and baselines."""
    write_report(args.files, args.out, overwrite=args.force)
    print(f"wrote {args.out}", file=sys.stderr)
    return DONE


def describe(ds: xr.Dataset) -> dict[str, Any]:
    """Collect a trajectory's attributes, sizes, and the first and last value of every scalar."""
    attributes = {str(k): v.item() if hasattr(v, "item") else v for k, v in ds.attrs.items()}
    attributes["config"] = json.loads(attributes["config"])
    scalars = {}
    for name, variable in ds.variables.items():
        if variable.dims in (("step",), ("snapshot",)) and variable.size:
            first, last = (_plain(variable.values[i]) for i in (0, -1))
            scalars[str(name)] = {"units": variable.attrs["units"], "first": first, "last": last}
    sizes = {str(k): int(v) for k, v in ds.sizes.items()}
    return {"attributes": attributes, "sizes": sizes, "scalars": scalars}


def _plain(value: Any) -> float | int | None:
    """As JSON has it: no NaN."""
    number: float | int = value.item()
    return None if number != number else number


def _number(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _plain_text(value: object) -> Text:
    """Text from a file as it is: no markup, and nothing a terminal would obey."""
    return Text("".join(c if c.isprintable() else "�" for c in str(value)))


def _hint(args: argparse.Namespace) -> str:
    """Say how to go on where a walk is kept."""
    path = args.out if args.command is run else getattr(args, "file", None)
    if not path or not parts.is_resumable(Path(path)):
        return ""
    return f"; the walk is kept up to its last checkpoint: geoflow resume {path}"


def _note_end(ds: xr.Dataset) -> None:
    last = ds.isel(step=-1)
    evaluations = int(last["n_gradient"]) + 2 * int(last["n_hvp"])
    print(
        f"{ds.attrs['status']}: {ds.attrs['status_message']}\n"
        f"angle {float(ds['angle'][0]):.1f}° → {float(last['angle']):.1f}°, "
        f"R {float(ds['regularizer'][0]):.4g} → {float(last['regularizer']):.4g}, "
        f"flow time {float(last['time']):.4g}, {ds.sizes['step'] - 1} steps, "
        f"{evaluations} evaluations, {float(last['wall_time']):.1f} s",
        file=sys.stderr,
    )


def _exit_status(ds: xr.Dataset) -> int:
    status = ds.attrs["status"]
    if status == "interrupted":
        return INTERRUPTED
    return DONE if status in REACHED else ENDED_EARLY


def _stem(args: argparse.Namespace, ds: xr.Dataset) -> str:
    return Path(args.out).stem if args.out else f"{ds.attrs['experiment']}-{ds.attrs['seed']}"


def _console() -> Console:
    # A pipe has no width of its own: never fold a row there.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geoflow", description="Walk along training-loss level sets of neural networks."
    )
    parser.add_argument("--version", action="version", version=f"geoflow {gf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any) -> argparse.ArgumentParser:
        text = command.__doc__.splitlines()[0]
        child = commands.add_parser(name, help=text, description=text)
        child.set_defaults(command=command)
        return child

    add("experiments", list_experiments)

    p = add("run", run)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    p.add_argument("--like", metavar="FILE.nc", help="run again what a file holds")
    _add_walk_options(p)
    p.add_argument("--out", metavar="FILE.nc", help="write the trajectory here")
    p.add_argument("--figures", metavar="DIR", help="write the figures of the walk here")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

    p = add("resume", resume)
    p.add_argument("file", metavar="FILE.nc", help="as it was given to run, there or not yet")
    p.add_argument("--angle", type=float, help="end at this angle, in degrees")
    p.add_argument("--t-end", type=float, help="end at this flow time")
    p.add_argument("--max-evaluations", type=int, metavar="N", help="budget, from the start on")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

    p = add("validate", validate)
    p.add_argument("file", metavar="FILE.nc")

    p = add("diff", diff)
    p.add_argument("a", metavar="A.nc")
    p.add_argument("b", metavar="B.nc")
    p.add_argument("--rtol", type=float, default=0.0, help="relative difference allowed")
    p.add_argument("--atol", type=float, default=0.0, help="absolute difference allowed")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")

    p = add("info", info)
    p.add_argument("file", metavar="FILE.nc")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")

    p = add("plot", plot)
    p.add_argument("file", metavar="FILE.nc")
    p.add_argument("--out", metavar="DIR", required=True, help="folder for the figures")

    p = add("bench", bench)
    p.add_argument("experiments", metavar="EXPERIMENT", nargs="+")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--max-evaluations", type=int, default=20_000, metavar="N", help="each method")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")

    p = add("compare", compare)
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    names = ", ".join(solvers.names())
    help_solvers = f"of {names}; with :float32 after a name, in float32"
    p.add_argument("--solvers", metavar="A,B,…", required=True, help=help_solvers)
    p.add_argument("--rtols", type=_floats, metavar="X,Y,…", required=True, help="tolerances")
    p.add_argument("--out", metavar="FILE.nc", required=True, help="write the dataset here")
    p.add_argument("--times", type=_floats, default=DEFAULT_TIMES, metavar="T,…", help="flow times")
    p.add_argument("--max-evaluations", type=int, metavar="N", help="each walk (100,000)")
    p.add_argument(
        "--reference", default=REFERENCE_SOLVER, metavar="SOLVER", help="of the reference"
    )
    p.add_argument("--reference-rtol", type=float, default=REFERENCE_RTOL, metavar="X")
    p.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
    p.add_argument("--figures", metavar="DIR", help="write the work–precision diagram here")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no notes on standard error")

    p = add("baseline", baseline)
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    p.add_argument("--out", metavar="FILE.nc", required=True, help="write the dataset here")
    p.add_argument("--penalties", type=_floats, metavar="A,B,…", help="default: the paper's 14")
    p.add_argument("--runs", type=int, default=15, metavar="N", help="for each penalty")
    p.add_argument("--seed", type=int, default=0, help="of the first run; the others count up")
    p.add_argument("--epochs", type=int, metavar="N", help="default: the paper's")
    p.add_argument("--validation", type=float, default=0.2, metavar="PART", help="0 for none")
    p.add_argument("--dtype", choices=DTYPES, default="float64")
    p.add_argument("--device", default="cpu")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

    p = add("sweep", sweep)
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    _add_walk_options(p, many=True)
    p.add_argument(
        "--out",
        metavar="DIR",
        required=True,
        help="folder of the runs' files; what is there already is not done again",
    )
    p.add_argument("--baseline", action="store_true", help="train with weight decay, not walk")
    p.add_argument("--epochs", type=int, metavar="N", help="of training; default: the paper's")
    p.add_argument("--scheduler", metavar="tcp://…", help="of a Dask cluster; default: one here")
    p.add_argument("--workers", type=int, metavar="N", help="processes; default: all processors")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="of each run (default 1)")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

    p = add("report", report)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, baselines, or their folders")
    p.add_argument("--out", metavar="PAGE.html", required=True, help="write the page here")
    p.add_argument("--force", action="store_true", help="replace PAGE.html where it exists")
    return parser


def _given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that are given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _seeds(text: str) -> list[int]:
    """Read ``0:5``, the seeds 0 to 4, or ``0,3,7``."""
    try:
        if ":" in text:
            first, end = text.split(":")
            return list(range(int(first), int(end)))
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use 0:5 for 0 to 4, or 0,3,7") from None


def _floats(text: str) -> list[float]:
    """Read numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers with commas between") from None


def _add_walk_options(p: argparse.ArgumentParser, many: bool = False) -> None:
    # No defaults here: what is not given is left to --like, or to walk's own defaults.
    if many:
        p.add_argument("--seeds", type=_seeds, required=True, metavar="0:5", help="a run each")
    else:
        p.add_argument("--seed", type=int, help="decides everything (default 0)")
        p.add_argument("--theta-dtype", choices=DTYPES, help="float32: keep θ in half the space")
    p.add_argument("--solver", help=f"one of {', '.join(solvers.names())}")
    p.add_argument("--rtol", type=float, help="local error, relative to the norm (1e-3)")
    p.add_argument("--atol", type=float, help="local error, absolute (1e-6)")
    p.add_argument("--angle", type=float, help="end at this angle, in degrees (175)")
    p.add_argument("--t-end", type=float, help="end at this flow time")
    p.add_argument("--max-evaluations", type=int, metavar="N", help="budget in gradients (100,000)")
    p.add_argument("--snapshots", type=int, metavar="N", help="keep at most N θ (100)")
    p.add_argument("--dtype", choices=DTYPES, help="of the computation (float64)")
    p.add_argument("--device", help="of the computation (cpu)")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
