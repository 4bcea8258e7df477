"""The command line: arguments in, library calls (:mod:`geoflow.cli.walk_commands`), tables out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import geoflow as gf
from geoflow import solvers
from geoflow.analysis.curvature.spectra import DEFAULT_OPERATORS, OPERATORS
from geoflow.analysis.series.lomb_scargle import DETREND
from geoflow.analysis.series.scalars import CLOCKS
from geoflow.cli import analysis_commands, walk_commands
from geoflow.cli.terminal import BAD_INPUT, DONE, ENDED_EARLY, INTERRUPTED
from geoflow.cli.walk_commands import hint
from geoflow.comparisons.work_precision import DEFAULT_TIMES, REFERENCE_RTOL, REFERENCE_SOLVER
from geoflow.errors import GeoflowError, StorageError
from geoflow.manifold import regularizers
from geoflow.manifold.regularizers import REGULARIZERS
from geoflow.plots.kinds import KINDS
from geoflow.problems.dtypes import DTYPES
from geoflow.walking.settings import DEFAULTS, OPTIONS
from geoflow.walking.stopping import DEFAULT_MAX_EVALUATIONS


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    args = _parser().parse_args(arguments)
    try:
        return int(args.command(args))
    except GeoflowError as error:
        print(f"geoflow: error: {error}", file=sys.stderr)
        return ENDED_EARLY if isinstance(error, StorageError) else BAD_INPUT
    except KeyboardInterrupt:
        print(f"geoflow: interrupted{hint(args)}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of a pipe has seen enough.
        sys.stderr.close()
        return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="geoflow", description="Walk along training-loss level sets of neural networks."
    )
    parser.add_argument("--version", action="version", version=f"geoflow {gf.__version__}")
    children = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any) -> argparse.ArgumentParser:
        text = command.__doc__.splitlines()[0]
        child = children.add_parser(name, help=text, description=text)
        child.set_defaults(command=command)
        return child

    add("experiments", walk_commands.list_experiments)

    p = add("run", walk_commands.run)
    p.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="see: geoflow experiments")
    p.add_argument("--like", metavar="FILE.nc", help="run again what a file holds")
    _add_walk_options(p)
    p.add_argument("--out", metavar="FILE.nc", help="write the trajectory here")
    p.add_argument("--figures", metavar="DIR", help="write the figures of the walk here")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

    p = add("resume", walk_commands.resume)
    p.add_argument("file", metavar="FILE.nc", help="as it was given to run, there or not yet")
    _add_settings(p, "t_end", "stop", "max_evaluations")
    p.add_argument("--quiet", action="store_true", help="no progress and no summary")

    p = add("validate", walk_commands.validate)
    p.add_argument("file", metavar="FILE.nc")

    p = add("diff", walk_commands.diff)
    p.add_argument("a", metavar="A.nc")
    p.add_argument("b", metavar="B.nc")
    p.add_argument("--rtol", type=float, default=0.0, help="relative difference allowed")
    p.add_argument("--atol", type=float, default=0.0, help="absolute difference allowed")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")

    p = add("info", walk_commands.info)
    p.add_argument("file", metavar="FILE.nc")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")

    p = add("plot", analysis_commands.plot)
    p.add_argument("file", metavar="FILE.nc", help="a walk or an analysis; or a sweep's folder")
    p.add_argument("--out", metavar="DIR", required=True, help="folder for the figures")
    p.add_argument("--kind", type=_names, metavar="A,B,…", help=f"of {', '.join(KINDS)}")
    p.add_argument("--size", choices=analysis_commands.WIDTHS, default="slide", help="width")

    p = add("bench", walk_commands.bench)
    p.add_argument("experiments", metavar="EXPERIMENT", nargs="+")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--max-evaluations", type=int, default=20_000, metavar="N", help="each method")
    p.add_argument("--json", action="store_true", help="one JSON object on standard output")

    p = add("compare", walk_commands.compare)
    p.add_argument("experiment", metavar="EXPERIMENT", help="see: geoflow experiments")
    names = ", ".join(solvers.names())
    help_solvers = f"of {names}; with :float32 after a name, in float32"
    p.add_argument("--solvers", metavar="A,B,…", required=True, help=help_solvers)
    p.add_argument("--rtols", type=_floats, metavar="X,Y,…", required=True, help="tolerances")
    p.add_argument("--out", metavar="FILE.nc", required=True, help="write the dataset here")
    p.add_argument("--times", type=_floats, default=DEFAULT_TIMES, metavar="T,…", help="flow times")
    help_budget = f"each walk ({DEFAULT_MAX_EVALUATIONS:,})"
    p.add_argument("--max-evaluations", type=int, metavar="N", help=help_budget)
    p.add_argument(
        "--reference", default=REFERENCE_SOLVER, metavar="SOLVER", help="of the reference"
    )
    p.add_argument("--reference-rtol", type=float, default=REFERENCE_RTOL, metavar="X")
    p.add_argument("--seed", type=int, default=0, help="decides everything (default 0)")
    p.add_argument("--data", help="folder of the data set's own files, or 'synthetic'")
    p.add_argument("--figures", metavar="DIR", help="write the work–precision diagram here")
    p.add_argument("--force", action="store_true", help="replace FILE.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no notes on standard error")

    p = add("baseline", walk_commands.baseline)
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

    p = add("sweep", walk_commands.sweep)
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

    p = add("spectrum", analysis_commands.spectrum)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    p.add_argument("--snapshots", type=_integers, metavar="I,J,…", help="default: five, evenly")
    p.add_argument("--tensors", type=_names, metavar="A,B,…", help="restrict to; default: all")
    p.add_argument(
        "--operators",
        type=_names,
        metavar="A,B,…",
        default=DEFAULT_OPERATORS,
        help=f"of {', '.join(OPERATORS)}; default: {', '.join(DEFAULT_OPERATORS)}",
    )
    p.add_argument("--eigenvalues", type=int, default=5, metavar="K", help="at each end")
    p.add_argument("--probes", type=int, default=8, metavar="N", help="of the density")
    p.add_argument("--steps", type=int, default=64, metavar="N", help="of Lanczos for each probe")
    p.add_argument(
        "--max-products", type=int, default=1000, metavar="N", help="for the eigenvalues of an end"
    )
    p.add_argument("--device", default="cpu")
    _add_result_options(p, "of the probes")

    p = add("predictions", analysis_commands.compare_predictions)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    p.add_argument("--snapshots", type=_integers, metavar="I,J,…", help="default: 25, evenly")
    p.add_argument("--device", default="cpu")
    _add_result_options(p)

    p = add("pca", analysis_commands.principal_components)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, or folders of them")
    p.add_argument("--components", type=int, default=6, metavar="K", help="default 6")
    p.add_argument("--standardise", action="store_true", help="each parameter, as in the paper")
    p.add_argument("--null-models", action="store_true", help="set random walks and lines beside")
    _add_result_options(p, "of the random walks")

    p = add("slice", analysis_commands.slice_)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    p.add_argument(
        "--through",
        type=_integers,
        metavar="I,J,K",
        help="the plane through three snapshots; default: the first two principal components",
    )
    p.add_argument(
        "--filter-normalise",
        action="store_true",
        help="rescale the components, filter by filter, to the norms of the weights",
    )
    p.add_argument("--random", action="store_true", help="two random filter-normalised directions")
    p.add_argument("--points", type=int, default=41, metavar="N", help="along each direction")
    p.add_argument(
        "--margin", type=float, default=0.25, metavar="X", help="around the walk, of its extent"
    )
    p.add_argument(
        "--observables", type=_names, default=["test_loss"], metavar="A,B,…", help="beside the loss"
    )
    p.add_argument("--batch", type=int, metavar="N", help="points evaluated at once")
    p.add_argument("--device", default="cpu")
    _add_result_options(p, "of the random directions", required=True)

    p = add("animate", analysis_commands.animate)
    p.add_argument("file", metavar="SLICE.nc", help="of geoflow slice")
    p.add_argument("--out", metavar="FILE.gif", required=True, help="or FILE.mp4, with ffmpeg")
    p.add_argument("--frames", type=int, default=100, metavar="N")
    p.add_argument("--fps", type=float, default=20.0, metavar="X", help="frames a second")
    p.add_argument(
        "--pace", default="arc_length", metavar="NAME", help="even in arc_length, or in time"
    )
    p.add_argument("--force", action="store_true", help="replace the file where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress")

    p = add("periodogram", analysis_commands.periodogram)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    help_scalars = "of steps or snapshots, or pc1, pc2, …; default: angle,tangent_norm"
    p.add_argument("--scalar", type=_names, metavar="A,B,…", help=help_scalars)
    p.add_argument("--against", choices=CLOCKS, default="time", help="default: time")
    p.add_argument("--detrend", choices=DETREND, default="mean", help="taken off (mean)")
    p.add_argument("--max-frequency", type=float, metavar="F", help="half the median sample rate")
    p.add_argument("--simulations", type=int, default=999, metavar="N", help="of red noise (999)")
    _add_result_options(p, "of the simulations")

    p = add("relaxation", analysis_commands.relaxation)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    help_scalars = "default: tangent_norm,regularizer,arc_length"
    p.add_argument("--scalar", type=_names, metavar="A,B,…", help=help_scalars)
    p.add_argument("--from", type=float, metavar="T", dest="start", help="flow time (half way)")
    p.add_argument("--terms", type=int, default=1, metavar="N", help="exponentials, 1 or 2 (1)")
    p.add_argument(
        "--eigenvalues", action="store_true", help="compare with A's smallest at the last snapshot"
    )
    p.add_argument("--device", default="cpu")
    _add_result_options(p, "of the Lanczos iteration")

    p = add("report", analysis_commands.report)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, baselines, or their folders")
    p.add_argument("--out", metavar="PAGE.html", required=True, help="write the page here")
    p.add_argument("--force", action="store_true", help="replace PAGE.html where it exists")
    return parser


def _add_result_options(
    p: argparse.ArgumentParser, seed_of: str | None = None, required: bool = False
) -> None:
    """What every analysis takes: where its dataset and its figures go."""
    if seed_of:
        p.add_argument("--seed", type=int, default=0, help=f"{seed_of} (default 0)")
    p.add_argument("--out", metavar="OUT.nc", required=required, help="write the dataset here")
    p.add_argument("--figures", metavar="DIR", help="draw it into this folder")
    p.add_argument("--force", action="store_true", help="replace OUT.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress, no list of files written")


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
    # No defaults here: what is not given is left to --like, or to walk's own defaults.
    if many:
        p.add_argument("--seeds", type=_seeds, required=True, metavar="0:5", help="a run each")
    else:
        p.add_argument("--seed", type=int, help="decides everything (default 0)")
    help_regularizer = f"R, of {', '.join(REGULARIZERS)} ({regularizers.DEFAULT})"
    p.add_argument("--regularizer", metavar="NAME[:option=value,…]", help=help_regularizer)
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
