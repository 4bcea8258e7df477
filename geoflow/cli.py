"""The command line: arguments in, library calls, tables out.

Each subcommand is a function that takes the parsed arguments and returns an exit status; its
options stand in ``_parser``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from rich.console import Console
from rich.table import Table

import geoflow as gf
from geoflow import archive, baselines, experiments, plots, solvers
from geoflow.analysis import spectra
from geoflow.bench import ANGLES
from geoflow.bench import bench as run_bench
from geoflow.errors import GeoflowError, InputError
from geoflow.report import report as write_report

DONE, BAD_INPUT, ENDED_EARLY, INTERRUPTED = 0, 2, 3, 130
REACHED = ("stationary", "t_end", "plateau")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.command(args))
    except GeoflowError as error:
        print(f"geoflow: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("geoflow: interrupted", file=sys.stderr)
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
        archive.check_target(args.out, overwrite=args.force)
    if args.snapshots < 2:
        raise InputError(f"--snapshots {args.snapshots}; use at least 2, the first and the last")
    solver = solvers.get(args.solver)
    stop = gf.Stationary(args.angle)
    solvers.Tolerance.checked(args.rtol, args.atol, DTYPES[args.dtype])
    prepared = experiments.get(args.experiment).prepare(
        args.seed,
        data=args.data,
        dtype=DTYPES[args.dtype],
        device=args.device,
        progress=not args.quiet,
    )
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    ds = gf.walk(
        flow,
        solver,
        rtol=args.rtol,
        atol=args.atol,
        t_end=args.t_end,
        stop=stop,
        max_evaluations=args.max_evaluations,
        observables=prepared.observables,
        archive=args.out,
        progress=not args.quiet,
        max_snapshots=args.snapshots,
        provenance=prepared.provenance,
        overwrite=args.force,
    )
    figures = plots.save_figures(ds, args.figures, _stem(args)) if args.figures else []
    if not args.quiet:
        _note_end(ds)
        for path in [args.out] * bool(args.out) + [str(f) for f in figures]:
            print(f"wrote {path}", file=sys.stderr)
    return _exit_status(ds)


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
            header.add_row(name, str(value))
    for name, size in content["sizes"].items():
        header.add_row(f"n_{name}", f"{size:,}")
    console.print(header)
    table = Table("scalar", "units", "first", "last")
    for name, row in content["scalars"].items():
        table.add_row(name, row["units"], _number(row["first"]), _number(row["last"]))
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
        "dtype": args.dtype,
        "device": args.device,
        "data": args.data,
        "scheduler": args.scheduler,
        "workers": args.workers,
        "threads": args.threads,
        "progress": not args.quiet,
    }
    if args.baseline:
        walks_only = ("solver", "rtol", "atol", "angle", "t_end", "max_evaluations", "snapshots")
        default = _parser().parse_args(["sweep", args.experiment, "--seeds", "0", "--out", "."])
        for name in walks_only:
            if getattr(args, name) != getattr(default, name):
                option = name.replace("_", "-")
                raise InputError(f"--{option} is for walks; leave it out with --baseline")
        outcomes = gf.sweep_weight_decay(args.experiment, args.seeds, args.out, **common)
    else:
        outcomes = gf.sweep(
            args.experiment,
            args.seeds,
            args.out,
            solver=args.solver,
            rtol=args.rtol,
            atol=args.atol,
            degrees=args.angle,
            t_end=args.t_end,
            max_evaluations=args.max_evaluations,
            max_snapshots=args.snapshots,
            **common,
        )
    if not args.quiet:
        new = sum(o.new for o in outcomes)
        print(f"{len(outcomes)} runs, {new} of them new, in {args.out}", file=sys.stderr)
    for o in outcomes:
        if o.status == "failed":
            print(f"geoflow: {o.name} failed: {o.message}", file=sys.stderr)
    ended = all(o.status in (*REACHED, "trained") for o in outcomes)
    return DONE if ended else ENDED_EARLY


def spectrum(args: argparse.Namespace) -> int:
    """Compute curvature spectra at snapshots of a walk of an experiment."""
    if args.out:
        archive.check_target(args.out, overwrite=args.force)
    with gf.open_trajectory(args.file) as ds:
        found = spectra.along(
            ds,
            experiments.rebuild(ds, device=args.device),
            snapshots=args.snapshots,
            tensors=args.tensors,
            k=args.eigenvalues,
            n_probes=args.probes,
            n_steps=args.steps,
            max_products=args.max_products,
            seed=args.seed,
            progress=not args.quiet,
        )
    if args.out:
        spectra.save(found, args.out, overwrite=args.force)
    table = Table("time", "operator", "largest", "smallest", "trace", "overlap", "curvature")
    for row in found["snapshot"].values:
        for operator in found["operator"].values:
            cell = found.isel(snapshot=row).sel(operator=operator)
            table.add_row(
                f"{float(cell['snapshot_time']):.4g}",
                str(operator),
                f"{float(cell['largest_eigenvalue'][0]):.5g}",
                f"{float(cell['smallest_eigenvalue'][0]):.4g}",
                f"{float(cell['trace']):.5g} ± {float(cell['trace_error']):.3g}",
                f"{float(cell['velocity_overlap']):.3g}",
                f"{float(cell['normal_curvature']):.4g}",
            )
    _console().print(table)
    if args.out and not args.quiet:
        print(f"wrote {args.out}", file=sys.stderr)
    return DONE


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


def _stem(args: argparse.Namespace) -> str:
    return Path(args.out).stem if args.out else f"{args.experiment}-{args.seed}"


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
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    _add_walk_options(p)
    p.add_argument("--out", metavar="FILE.nc", help="write the trajectory here")
    p.add_argument("--figures", metavar="DIR", help="write the figures of the walk here")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

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

    p = add("spectrum", spectrum)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    p.add_argument("--snapshots", type=_integers, metavar="I,J,…", help="default: five, evenly")
    p.add_argument("--tensors", type=_names, metavar="A,B,…", help="restrict to; default: all")
    p.add_argument("--eigenvalues", type=int, default=5, metavar="K", help="at each end")
    p.add_argument("--probes", type=int, default=8, metavar="N", help="of the density")
    p.add_argument("--steps", type=int, default=64, metavar="N", help="of Lanczos for each probe")
    p.add_argument(
        "--max-products", type=int, default=1000, metavar="N", help="for the eigenvalues of an end"
    )
    p.add_argument("--seed", type=int, default=0, help="of the probes")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", metavar="FILE.nc", help="write the spectra here")
    p.add_argument("--force", action="store_true", help="replace the file where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress")

    p = add("report", report)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, baselines, or their folders")
    p.add_argument("--out", metavar="PAGE.html", required=True, help="write the page here")
    p.add_argument("--force", action="store_true", help="replace PAGE.html where it exists")
    return parser


def _seeds(text: str) -> list[int]:
    """Read ``0:5``, the seeds 0 to 4, or ``0,3,7``."""
    try:
        if ":" in text:
            first, end = text.split(":")
            return list(range(int(first), int(end)))
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use 0:5 for 0 to 4, or 0,3,7") from None


def _integers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use whole numbers, as in 0,5,-1") from None


def _names(text: str) -> list[str]:
    return text.split(",")


def _floats(text: str) -> list[float]:
    """Read numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers with commas between") from None


def _add_walk_options(p: argparse.ArgumentParser, many: bool = False) -> None:
    if many:
        p.add_argument("--seeds", type=_seeds, required=True, metavar="0:5", help="a run each")
    else:
        p.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    p.add_argument("--solver", default=solvers.DEFAULT, help=f"one of {', '.join(solvers.names())}")
    p.add_argument("--rtol", type=float, default=1e-3, help="local error, relative to the norm")
    p.add_argument("--atol", type=float, default=1e-6, help="local error, absolute")
    p.add_argument("--angle", type=float, default=175.0, help="end at this angle, in degrees")
    p.add_argument("--t-end", type=float, help="end at this flow time")
    p.add_argument("--max-evaluations", type=int, metavar="N", help="budget in gradients")
    p.add_argument("--snapshots", type=int, default=100, metavar="N", help="keep at most N θ")
    p.add_argument("--dtype", choices=DTYPES, default="float64")
    p.add_argument("--device", default="cpu")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
