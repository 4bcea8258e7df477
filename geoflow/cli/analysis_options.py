"""The options of the commands of analysis."""

from __future__ import annotations

import argparse

from geoflow.analysis.curvature.spectra import DEFAULT_OPERATORS, OPERATORS
from geoflow.analysis.series.lomb_scargle import DETREND
from geoflow.analysis.series.scalars import CLOCKS
from geoflow.cli import analysis_commands
from geoflow.cli.reading import add_problem, folder, integers, names
from geoflow.plots.kinds import KINDS


def _plot(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.plot)
    p.add_argument("file", metavar="FILE.nc", help="a walk, path or analysis; or a sweep's folder")
    p.add_argument(
        "--out", type=folder, metavar="DIR", required=True, help="folder for the figures"
    )
    p.add_argument("--kind", type=names, metavar="A,B,…", help=f"of {', '.join(KINDS)}")
    p.add_argument(
        "--baseline",
        metavar="FILE.nc",
        nargs="+",
        help="trainings with weight decay, drawn beside a path",
    )
    p.add_argument("--size", choices=analysis_commands.WIDTHS, default="slide", help="width")


def _spectrum(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.spectrum)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    p.add_argument("--snapshots", type=integers, metavar="I,J,…", help="default: five, evenly")
    p.add_argument("--tensors", type=names, metavar="A,B,…", help="restrict to; default: all")
    p.add_argument(
        "--operators",
        type=names,
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


def _predictions(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.compare_predictions)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    p.add_argument("--snapshots", type=integers, metavar="I,J,…", help="default: 25, evenly")
    p.add_argument("--device", default="cpu")
    _add_result_options(p)


def _pca(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.principal_components)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, or folders of them")
    p.add_argument("--components", type=int, default=6, metavar="K", help="default 6")
    p.add_argument("--standardise", action="store_true", help="each parameter, as in the paper")
    p.add_argument("--null-models", action="store_true", help="set random walks and lines beside")
    _add_result_options(p, "of the random walks")


def _slice(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.slice_)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    p.add_argument(
        "--through",
        type=integers,
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
        "--observables", type=names, metavar="A,B,…", help="beside the loss; default: test_loss"
    )
    p.add_argument("--batch", type=int, metavar="N", help="points evaluated at once")
    p.add_argument("--device", default="cpu")
    _add_result_options(p, "of the random directions", required=True)


def _animate(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.animate)
    p.add_argument("file", metavar="SLICE.nc", help="of geoflow slice")
    p.add_argument("--out", metavar="FILE.gif", required=True, help="or FILE.mp4, with ffmpeg")
    p.add_argument("--frames", type=int, default=100, metavar="N")
    p.add_argument("--fps", type=float, default=20.0, metavar="X", help="frames a second")
    p.add_argument(
        "--pace", default="arc_length", metavar="NAME", help="even in arc_length, or in time"
    )
    p.add_argument("--force", action="store_true", help="replace the file where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress")


def _periodogram(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.periodogram)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    help_scalars = "of steps or snapshots, or pc1, pc2, …; default: angle,tangent_norm"
    p.add_argument("--scalar", type=names, metavar="A,B,…", help=help_scalars)
    p.add_argument("--against", choices=CLOCKS, default="time", help="default: time")
    p.add_argument("--detrend", choices=DETREND, default="mean", help="taken off (mean)")
    p.add_argument("--max-frequency", type=float, metavar="F", help="half the median sample rate")
    p.add_argument("--simulations", type=int, default=999, metavar="N", help="of red noise (999)")
    _add_result_options(p, "of the simulations")


def _relaxation(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.relaxation)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    help_scalars = "default: tangent_norm,regularizer,arc_length"
    p.add_argument("--scalar", type=names, metavar="A,B,…", help=help_scalars)
    p.add_argument("--from", type=float, metavar="T", dest="start", help="flow time (half way)")
    p.add_argument("--terms", type=int, default=1, metavar="N", help="exponentials, 1 or 2 (1)")
    p.add_argument(
        "--eigenvalues", action="store_true", help="compare with A's smallest at the last snapshot"
    )
    p.add_argument("--device", default="cpu")
    _add_result_options(p, "of the Lanczos iteration")


def _report(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.report)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, baselines, or their folders")
    p.add_argument("--out", metavar="PAGE.html", required=True, help="write the page here")
    p.add_argument("--force", action="store_true", help="replace PAGE.html where it exists")


def _add_result_options(
    p: argparse.ArgumentParser, seed_of: str | None = None, required: bool = False
) -> None:
    """What every analysis takes: where its dataset and its figures go."""
    if seed_of:
        p.add_argument("--seed", type=int, default=0, help=f"{seed_of} (default 0)")
    p.add_argument("--out", metavar="OUT.nc", required=required, help="write the dataset here")
    p.add_argument("--figures", type=folder, metavar="DIR", help="draw it into this folder")
    p.add_argument("--force", action="store_true", help="replace OUT.nc where it exists")
    p.add_argument("--quiet", action="store_true", help="no progress, no list of files written")


ADD = {
    "plot": _plot,
    "spectrum": _spectrum,
    "predictions": _predictions,
    "pca": _pca,
    "slice": _slice,
    "animate": _animate,
    "periodogram": _periodogram,
    "relaxation": _relaxation,
    "report": _report,
}
