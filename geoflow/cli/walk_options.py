"""The options of the commands that walk, and of those that look at files."""

from __future__ import annotations

import argparse

from geoflow import solvers
from geoflow.cli import completion, path_commands, walk_commands
from geoflow.cli.reading import add_problem, floats, folder, seeds
from geoflow.comparisons.work_precision import DEFAULT_TIMES, JITTER
from geoflow.manifold import regularizers
from geoflow.manifold.regularizers import REGULARIZERS
from geoflow.problems.dtypes import DTYPES
from geoflow.problems.grouped import DIVISIONS
from geoflow.walking.settings import DEFAULTS, OPTIONS
from geoflow.walking.stopping import DEFAULT_MAX_EVALUATIONS, Stationary


def _experiments(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.list_experiments)


def _run(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.run)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    p.add_argument("--like", metavar="FILE.nc", help="run again what a file holds")
    _add_walk_options(p)
    p.add_argument("--out", metavar="FILE.nc", help="write the trajectory here")
    p.add_argument(
        "--figures", type=folder, metavar="DIR", help="write the figures of the walk here"
    )
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _resume(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.resume)
    p.add_argument("file", metavar="FILE.nc", help="as it was given to run, there or not yet")
    add_problem(p)
    _add_settings(p, "t_end", "stop", "max_evaluations")
    p.add_argument("--levels", type=floats, metavar="A,B,…", help="further ones, of a path")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _validate(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.validate)
    p.add_argument("file", metavar="FILE.nc")


def _diff(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.diff)
    p.add_argument("a", metavar="A.nc")
    p.add_argument("b", metavar="B.nc")
    p.add_argument("--rtol", type=float, default=0.0, help="relative difference allowed")
    p.add_argument("--atol", type=float, default=0.0, help="absolute difference allowed")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _info(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.info)
    p.add_argument("file", metavar="FILE.nc")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _bench(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.bench)
    p.add_argument("experiments", metavar="EXPERIMENT", nargs="*")
    add_problem(p)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--max-evaluations", type=int, default=20_000, metavar="N", help="each method")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")


def _compare(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.compare)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    names = ", ".join(solvers.names())
    help_solvers = f"of {names}; with :float32 after a name, in float32"
    p.add_argument("--solvers", metavar="A,B,…", required=True, help=help_solvers)
    p.add_argument("--rtols", type=floats, metavar="X,Y,…", required=True, help="tolerances")
    p.add_argument("--out", metavar="FILE.nc", required=True, help="write the dataset here")
    p.add_argument("--times", type=floats, default=DEFAULT_TIMES, metavar="T,…", help="flow times")
    help_budget = f"each walk ({DEFAULT_MAX_EVALUATIONS:,})"
    p.add_argument("--max-evaluations", type=int, metavar="N", help=help_budget)
    p.add_argument(
        "--reference", metavar="SOLVER", help="of the reference (cvode where it is, or dopri5)"
    )
    help_rtol = "of the reference (a hundredth of the tightest, at most 1e-7)"
    p.add_argument("--reference-rtol", type=float, metavar="X", help=help_rtol)
    help_runs = f"walks each, at tolerances over ±{JITTER:.0%}% (default 7)"
    p.add_argument("--runs", type=int, default=7, metavar="N", help=help_runs)
    p.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
    p.add_argument(
        "--figures", type=folder, metavar="DIR", help="write the work–precision diagram here"
    )
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no notes on standard error")


def _baseline(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.baseline)
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    p.add_argument("--out", metavar="FILE.nc", required=True, help="write the dataset here")
    p.add_argument("--penalties", type=floats, metavar="A,B,…", help="default: the paper's 14")
    p.add_argument("--runs", type=int, default=15, metavar="N", help="for each penalty")
    p.add_argument("--seed", type=int, default=0, help="of the first run; the others count up")
    p.add_argument("--epochs", type=int, metavar="N", help="default: the paper's")
    p.add_argument("--validation", type=float, default=0.2, metavar="PART", help="0 for none")
    p.add_argument("--dtype", choices=DTYPES, default="float64")
    p.add_argument("--device", default="cpu")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _sweep(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.sweep)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    _add_walk_options(p, many=True)
    p.add_argument(
        "--out",
        type=folder,
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


def _path(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=path_commands.path)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    p.add_argument("--levels", type=floats, metavar="A,B,…", help="of the loss, in this order")
    p.add_argument("--levels-to", type=float, metavar="C", help="from the trained network's to C")
    p.add_argument("--points", type=int, metavar="N", help="so many, evenly in log c (10)")
    p.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    help_regularizer = f"R, of {', '.join(REGULARIZERS)} ({regularizers.DEFAULT})"
    p.add_argument("--regularizer", metavar="NAME[:option=value,…]", help=help_regularizer)
    usual = Stationary().degrees
    p.add_argument(
        *("--degrees", "--angle"),
        type=float,
        default=usual,
        metavar="DEGREES",
        help=f"angle between ∇R and ∇L of each point, at the least ({usual:g})",
    )
    help_budget = f"budget in gradients, from the start on ({DEFAULT_MAX_EVALUATIONS:,})"
    p.add_argument("--max-evaluations", type=int, metavar="N", help=help_budget)
    p.add_argument(
        "--eigenvalues", action="store_true", help="the smallest eigenvalue of A at each point"
    )
    p.add_argument("--out", metavar="FILE.nc", required=True, help="write the path here")
    p.add_argument("--figures", type=folder, metavar="DIR", help="write its figures here")
    p.add_argument("--dtype", choices=DTYPES, help="of the computation (float64)")
    p.add_argument("--device", help="of the computation (cpu)")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no notes")


def _completion(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=completion.completion)
    p.add_argument("shell", choices=completion.SHELLS, help="that is to complete")


def _add_walk_options(p: argparse.ArgumentParser, many: bool = False) -> None:
    # No defaults here: what is not given is left to --like, or to walk's own defaults.
    if many:
        p.add_argument("--seeds", type=seeds, required=True, metavar="0:5", help="a run each")
    else:
        p.add_argument("--seed", type=int, help="decides everything (default 0)")
    help_regularizer = f"R, of {', '.join(REGULARIZERS)} ({regularizers.DEFAULT})"
    p.add_argument("--regularizer", metavar="NAME[:option=value,…]", help=help_regularizer)
    help_constraints = "keep the loss of each class, or each example's own (that of all examples)"
    p.add_argument("--constraints", choices=DIVISIONS, help=help_constraints)
    _add_settings(p)
    p.add_argument("--dtype", choices=DTYPES, help="of the computation (float64)")
    p.add_argument("--device", help="of the computation (cpu)")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")


def _add_settings(p: argparse.ArgumentParser, *settings: str) -> None:
    """Add the options of these settings of a walk, or of all, as they are declared."""
    for name, (setting, option) in OPTIONS.items():
        if settings and setting not in settings:
            continue
        default = getattr(DEFAULTS, setting)
        usual = f" ({default})" if isinstance(default, (str, int, float)) else ""
        flags = (f"--{name.replace('_', '-')}", *option.also)
        p.add_argument(
            *flags,
            dest=name,
            type=option.read,
            metavar=option.metavar,
            help=option.help + usual,
        )


ADD = {
    "experiments": _experiments,
    "run": _run,
    "resume": _resume,
    "validate": _validate,
    "diff": _diff,
    "info": _info,
    "bench": _bench,
    "compare": _compare,
    "baseline": _baseline,
    "sweep": _sweep,
    "path": _path,
    "completion": _completion,
}
