"""The options of the commands that walk, and of those that look at files."""

from __future__ import annotations

import argparse
from typing import Any

from geoflow import solvers
from geoflow.cli import completion, path_commands, study_commands, walk_commands
from geoflow.cli.reading import add_problem, floats, folder, seeds
from geoflow.comparisons.work_precision import DEFAULT_TIMES, JITTER
from geoflow.errors import InputError
from geoflow.experiments.registry import not_of_paper
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
    help_like = (
        "run again what a file holds: experiment, seed, data, settings and threads; options beside "
        "it change what they name"
    )
    p.add_argument("--like", metavar="FILE.nc", help=help_like)
    _add_walk_options(p)
    help_event = (
        "record on the way where this scalar or observable crosses a value, as in "
        "regularizer:value=30,direction=-1; with rate=1 its rate of change; any number of times"
    )
    p.add_argument("--event", action="append", metavar="NAME[:option=value,…]", help=help_event)
    help_out = "write the trajectory here: streamed beside it, and there when complete"
    p.add_argument("--out", metavar="FILE.nc", help=help_out)
    p.add_argument(
        "--figures", type=folder, metavar="DIR", help="write the figures of the walk here"
    )
    p.add_argument(
        "--force", action="store_true", help="replace FILE.nc where it exists; without it, an error"
    )
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _resume(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.resume)
    p.add_argument("file", metavar="FILE.nc", help="of a walk, there or not yet; or of a path")
    add_problem(p)
    _add_settings(p, "t_end", "stop", "max_evaluations")
    p.add_argument("--levels", type=floats, metavar="A,B,…", help="further levels, of a path")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _validate(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.validate)
    p.add_argument("file", metavar="FILE.nc", help="a walk or a path")


def _diff(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.diff)
    p.add_argument("a", metavar="A.nc", help="a walk or a path")
    p.add_argument("b", metavar="B.nc", help="another")
    p.add_argument("--rtol", type=float, default=0.0, help="relative difference allowed (0)")
    p.add_argument("--atol", type=float, default=0.0, help="absolute difference allowed (0)")
    p.add_argument("--json", action="store_true", help="one JSON object in place of tables")


def _info(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=walk_commands.info)
    p.add_argument("file", metavar="FILE.nc", help="a walk or a path")
    p.add_argument("--json", action="store_true", help="one JSON object in place of tables")


def _bench(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=study_commands.bench)
    p.add_argument("experiments", metavar="EXPERIMENT", nargs="*", help="see: geoflow experiments")
    add_problem(p)
    _add_seed(p, default=0)
    help_budget = "budget of each method in gradients (20,000)"
    p.add_argument("--max-evaluations", type=int, default=20_000, metavar="N", help=help_budget)
    p.add_argument("--json", action="store_true", help="one JSON object in place of tables")


def _compare(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=study_commands.compare)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    names = ", ".join(solvers.names())
    help_solvers = f"of {names}; with :float32 after a name, in float32 from the same weights"
    p.add_argument("--solvers", metavar="A,B,…", required=True, help=help_solvers)
    help_rtols = "tolerances, each looser than the reference's; atol is a thousandth of rtol"
    p.add_argument("--rtols", type=floats, metavar="X,Y,…", required=True, help=help_rtols)
    _add_out(p)
    help_times = f"flow times of the errors ({','.join(f'{t:g}' for t in DEFAULT_TIMES)})"
    p.add_argument("--times", type=floats, default=DEFAULT_TIMES, metavar="T,…", help=help_times)
    help_budget = f"budget of each walk, the reference's excepted ({DEFAULT_MAX_EVALUATIONS:,})"
    p.add_argument("--max-evaluations", type=int, metavar="N", help=help_budget)
    p.add_argument(
        "--reference",
        metavar="SOLVER",
        help="of the reference (cvode where it is installed, or dopri5)",
    )
    help_rtol = (
        "of the reference, whose error is estimated by a walk at a tenth of it "
        "(a hundredth of the tightest compared, at most 1e-7)"
    )
    p.add_argument("--reference-rtol", type=float, metavar="X", help=help_rtol)
    help_runs = (
        f"walks for each solver and tolerance, at tolerances spread evenly over ±{JITTER:.0%}%, "
        "since counts vary with rounding (7)"
    )
    p.add_argument("--runs", type=int, default=7, metavar="N", help=help_runs)
    _add_seed(p, default=0)
    _add_data(p)
    p.add_argument(
        "--figures", type=folder, metavar="DIR", help="write the work–precision diagram here"
    )
    p.add_argument(
        "--force", action="store_true", help="replace FILE.nc where it exists; without it, an error"
    )
    p.add_argument("--quiet", action="store_true", help="no notes on standard error")


class _NotTrained(argparse.Action):
    """Refuses one's own problem with what to do instead: other commands take it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        raise InputError(not_of_paper(f"{option} {values}"))


def _baseline(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=study_commands.baseline)
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    p.add_argument("--problem", action=_NotTrained, help=argparse.SUPPRESS)
    _add_out(p)
    help_penalties = "of the kernels' squared weights (the paper's 14: 0 and 1e-6 to 1e6)"
    p.add_argument("--penalties", type=floats, metavar="A,B,…", help=help_penalties)
    p.add_argument("--runs", type=int, default=15, metavar="N", help="for each penalty (15)")
    help_seed = "of the first run; the others count up (0)"
    p.add_argument("--seed", type=int, default=0, metavar="N", help=help_seed)
    help_epochs = "of each training (the paper's: 500 for iris_ff and mpg_ff, 200 for the others)"
    p.add_argument("--epochs", type=int, metavar="N", help=help_epochs)
    help_validation = "part of the training set that validation curves are of; 0 for none (0.2)"
    p.add_argument("--validation", type=float, default=0.2, metavar="PART", help=help_validation)
    p.add_argument("--dtype", choices=DTYPES, default="float64", help="of the training (float64)")
    p.add_argument("--device", default="cpu", help="of the training (cpu)")
    _add_data(p)
    p.add_argument(
        "--force", action="store_true", help="replace FILE.nc where it exists; without it, an error"
    )
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _sweep(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=study_commands.sweep)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    _add_walk_options(p, many=True)
    p.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        required=True,
        help="folder of a file for each run, there when the run is done, and not done again",
    )
    help_baseline = (
        "trainings with weight decay in place of walks: a task and a file for each penalty, with "
        "all the seeds in it"
    )
    p.add_argument("--baseline", action="store_true", help=help_baseline)
    p.add_argument("--epochs", type=int, metavar="N", help="of each training (the paper's)")
    help_scheduler = (
        "of a Dask cluster, whose workers need geoflow and the same file system (a cluster on this "
        "machine)"
    )
    p.add_argument("--scheduler", metavar="tcp://…", help=help_scheduler)
    help_workers = "processes of the cluster on this machine (processors over threads)"
    p.add_argument("--workers", type=int, metavar="N", help=help_workers)
    help_threads = (
        "of each run; part of the settings, since sums depend on it in the last digits (1)"
    )
    p.add_argument("--threads", type=int, default=1, metavar="N", help=help_threads)
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")


def _path(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=path_commands.path)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    add_problem(p)
    help_levels = "levels of the training loss, in this order, after the trained network's own"
    p.add_argument("--levels", type=floats, metavar="A,B,…", help=help_levels)
    help_to = "in place of --levels: from the trained network's own to C, evenly in log c"
    p.add_argument("--levels-to", type=float, metavar="C", help=help_to)
    p.add_argument("--points", type=int, metavar="N", help="of --levels-to (10)")
    _add_seed(p, default=0)
    _add_regularizer(p)
    usual = Stationary().degrees
    p.add_argument(
        *("--angle", "--degrees"),
        dest="degrees",
        type=float,
        default=usual,
        metavar="DEGREES",
        help=f"angle between ∇R and ∇L of each point, at the least ({usual:g})",
    )
    help_budget = f"budget in gradients, from the start on ({DEFAULT_MAX_EVALUATIONS:,})"
    p.add_argument("--max-evaluations", type=int, metavar="N", help=help_budget)
    help_eigenvalues = (
        "the smallest eigenvalue of A at each point, in some hundreds of Hessian-vector products"
    )
    p.add_argument("--eigenvalues", action="store_true", help=help_eigenvalues)
    p.add_argument(
        "--out", metavar="FILE.nc", required=True, help="write the path here: whole or not at all"
    )
    p.add_argument("--figures", type=folder, metavar="DIR", help="draw the path into this folder")
    p.add_argument("--dtype", choices=DTYPES, help="dtype of the computation (float64)")
    p.add_argument("--device", help="device of the computation (cpu)")
    _add_data(p)
    p.add_argument("--json", action="store_true", help="one JSON object in place of tables")
    p.add_argument(
        "--force", action="store_true", help="replace FILE.nc where it exists; without it, an error"
    )
    p.add_argument("--quiet", action="store_true", help="no progress and no notes")


def _completion(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=completion.completion)
    p.add_argument("shell", choices=completion.SHELLS, help="that is to complete")


def _add_walk_options(p: argparse.ArgumentParser, many: bool = False) -> None:
    # No defaults here: what is not given is left to --like, or to walk's own defaults.
    if many:
        help_seeds = "a run each: 0:5 are 0 to 4; or a list, as in 0,3,7"
        p.add_argument("--seeds", type=seeds, required=True, metavar="0:5", help=help_seeds)
    else:
        _add_seed(p)
    _add_regularizer(p)
    help_constraints = "keep the loss of each class, or each example's own (that of all examples)"
    p.add_argument("--constraints", choices=DIVISIONS, help=help_constraints)
    _add_settings(p)
    p.add_argument("--dtype", choices=DTYPES, help="dtype of the computation (float64)")
    p.add_argument("--device", help="device of the computation (cpu)")
    _add_data(p)


def _add_seed(p: argparse.ArgumentParser, default: int | None = None) -> None:
    help_seed = "determines initial weights, data split and order of training (0)"
    p.add_argument("--seed", type=int, default=default, metavar="N", help=help_seed)


def _add_regularizer(p: argparse.ArgumentParser) -> None:
    help_regularizer = (
        f"R, of {', '.join(REGULARIZERS)} ({regularizers.DEFAULT}); options as in "
        "pseudo_huber_norm:delta=0.1, sums as in 'squared_norm + 0.1*l1'; sign=-1 among the "
        "options goes up it"
    )
    p.add_argument("--regularizer", metavar="NAME[:option=value,…]", help=help_regularizer)


def _add_data(p: argparse.ArgumentParser) -> None:
    help_data = (
        "folder with the data set's own files, for MNIST and CIFAR-10, or 'synthetic' for made-up "
        "images in place of CIFAR-10 (the data that a package carries)"
    )
    p.add_argument("--data", metavar="DIR", help=help_data)


def _add_out(p: argparse.ArgumentParser) -> None:
    help_out = "write the dataset here: whole or not at all"
    p.add_argument("--out", metavar="FILE.nc", required=True, help=help_out)


def _add_settings(p: argparse.ArgumentParser, *settings: str) -> None:
    """Add the options of these settings of a walk, or of all, as they are declared."""
    for name, (setting, option) in OPTIONS.items():
        if settings and setting not in settings:
            continue
        default = getattr(DEFAULTS, setting)
        usual = f" ({default})" if isinstance(default, (str, int, float)) else ""
        flags = (*option.first, f"--{name.replace('_', '-')}", *option.also)
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
