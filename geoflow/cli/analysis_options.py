"""The options of the commands of analysis."""

from __future__ import annotations

import argparse

from geoflow.analysis.curvature.spectra import DEFAULT_OPERATORS, OPERATORS
from geoflow.analysis.series.lomb_scargle import DETREND
from geoflow.analysis.series.scalars import CLOCKS
from geoflow.cli import analysis_commands, picture_commands
from geoflow.cli.reading import add_problem, folder, integers, names
from geoflow.plots.kinds import KINDS


def _plot(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=picture_commands.plot)
    p.add_argument("file", metavar="FILE.nc", help="a walk, path or analysis; or a sweep's folder")
    p.add_argument(
        "--out",
        type=folder,
        metavar="DIR",
        required=True,
        help="write PNG and PDF here; files of the same names are replaced",
    )
    help_kinds = f"figures by name, of {', '.join(KINDS)} (all that the file has)"
    p.add_argument("--kind", type=names, metavar="A,B,…", help=help_kinds)
    p.add_argument(
        "--baseline",
        metavar="FILE.nc",
        nargs="+",
        help="trainings with weight decay, drawn beside a path",
    )
    help_size = "3.5 inches wide, a journal's column, or 7 (slide)"
    p.add_argument("--size", choices=picture_commands.WIDTHS, default="slide", help=help_size)


def _spectrum(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.spectrum)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    help_snapshots = (
        "indices of snapshots, negative ones from the end, as in --snapshots=-1 (five, evenly)"
    )
    p.add_argument("--snapshots", type=integers, metavar="I,J,…", help=help_snapshots)
    help_tensors = "restrict the operators to these parameter tensors (all)"
    p.add_argument("--tensors", type=names, metavar="A,B,…", help=help_tensors)
    p.add_argument(
        "--operators",
        type=names,
        metavar="A,B,…",
        default=DEFAULT_OPERATORS,
        help=f"of {', '.join(OPERATORS)} ({','.join(DEFAULT_OPERATORS)})",
    )
    help_eigenvalues = "at each end of the spectrum (5)"
    p.add_argument("--eigenvalues", type=int, default=5, metavar="K", help=help_eigenvalues)
    help_probes = "random vectors of the density (8)"
    p.add_argument("--probes", type=int, default=8, metavar="N", help=help_probes)
    p.add_argument("--steps", type=int, default=64, metavar="N", help="of Lanczos, each (64)")
    help_products = (
        "Hessian-vector products for the eigenvalues of one end; what has not converged by then "
        "is NaN (1000)"
    )
    p.add_argument("--max-products", type=int, default=1000, metavar="N", help=help_products)
    _add_device(p)
    _add_result_options(p, "of the probes")


def _predictions(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.compare_predictions)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    help_snapshots = "indices of snapshots, negative ones from the end (25, evenly)"
    p.add_argument("--snapshots", type=integers, metavar="I,J,…", help=help_snapshots)
    help_batch = "examples evaluated at once (500); all of them where they act on each other"
    p.add_argument("--batch", type=int, metavar="N", help=help_batch)
    _add_device(p)
    _add_result_options(p)


def _pca(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.principal_components)
    p.add_argument("files", metavar="FILE.nc", nargs="+", help="walks, or folders of them")
    help_components = "components wanted (6, or as many as there are)"
    p.add_argument("--components", type=int, metavar="K", help=help_components)
    help_standardise = "divide each parameter by its standard deviation, as in the paper"
    p.add_argument("--standardise", action="store_true", help=help_standardise)
    help_null = (
        "set Brownian paths, a straight line and a relaxation beside each walk; not with "
        "--standardise"
    )
    p.add_argument("--null-models", action="store_true", help=help_null)
    _add_result_options(p, "of the Brownian paths")


def _slice(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.slice_)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    p.add_argument(
        "--through",
        type=integers,
        metavar="I,J,K",
        help="the plane through three snapshots, negative indices from the end, as in "
        "--through=0,10,-1 (the first two principal components)",
    )
    p.add_argument(
        "--filter-normalise",
        action="store_true",
        help="rescale the components, filter by filter, to the norms of the weights",
    )
    help_random = "two random directions, filter-normalised, at the last snapshot"
    p.add_argument("--random", action="store_true", help=help_random)
    p.add_argument("--points", type=int, default=41, metavar="N", help="along each direction (41)")
    help_margin = "around the walk's projection, as a fraction of its greater extent (0.25)"
    p.add_argument("--margin", type=float, default=0.25, metavar="X", help=help_margin)
    help_observables = "of the experiment's, as test_accuracy, beside the loss (test_loss)"
    p.add_argument("--observables", type=names, metavar="A,B,…", help=help_observables)
    p.add_argument("--batch", type=int, metavar="N", help="points evaluated at once (8, or fewer)")
    _add_device(p)
    _add_result_options(p, "of the random directions", required=True)


def _animate(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=picture_commands.animate)
    p.add_argument("file", metavar="SLICE.nc", help="of geoflow slice")
    p.add_argument("--out", metavar="FILE.gif", required=True, help="or FILE.mp4, with ffmpeg")
    p.add_argument("--frames", type=int, default=100, metavar="N", help="of the film (100)")
    help_fps = (
        "frames a second (20); a GIF's hundredths of a second are spread over its frames, and "
        "beyond 50 a second many viewers are slower"
    )
    p.add_argument("--fps", type=float, default=20.0, metavar="X", help=help_fps)
    p.add_argument(
        "--pace",
        default="arc_length",
        metavar="NAME",
        help="frames evenly in arc_length, or in time (arc_length)",
    )
    p.add_argument(
        "--force",
        action="store_true",
        help="replace the file where it exists; without it, an error",
    )
    p.add_argument("--quiet", action="store_true", help="no progress")


def _periodogram(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.periodogram)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    help_scalars = (
        "scalars of the steps, observables of the snapshots, or pc1, pc2, … for PCA scores "
        "(angle,tangent_norm)"
    )
    p.add_argument("--scalar", type=names, metavar="A,B,…", help=help_scalars)
    help_clock = "what frequencies are in cycles of (time)"
    p.add_argument("--against", choices=CLOCKS, default="time", help=help_clock)
    help_detrend = "background taken off, and fitted beside every sinusoid (mean)"
    p.add_argument("--detrend", choices=DETREND, default="mean", help=help_detrend)
    help_end = "end of the grid (half the median sample rate)"
    p.add_argument("--max-frequency", type=float, metavar="F", help=help_end)
    help_simulations = "of red noise; the least p-value is 1/(N + 1) (999)"
    p.add_argument("--simulations", type=int, default=999, metavar="N", help=help_simulations)
    _add_result_options(p, "of the simulations")


def _relaxation(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=analysis_commands.relaxation)
    p.add_argument("file", metavar="FILE.nc", help="of geoflow run or geoflow sweep")
    add_problem(p)
    help_scalars = "as for periodogram (tangent_norm,regularizer,arc_length)"
    p.add_argument("--scalar", type=names, metavar="A,B,…", help=help_scalars)
    help_from = "start of the window, which ends with the walk (half the flow time)"
    p.add_argument("--from", type=float, metavar="T", dest="start", help=help_from)
    p.add_argument("--terms", type=int, default=1, metavar="N", help="exponentials, 1 or 2 (1)")
    help_eigenvalues = (
        "compare with the smallest eigenvalues of A at the last snapshot, in up to 2,000 "
        "Hessian-vector products"
    )
    p.add_argument("--eigenvalues", action="store_true", help=help_eigenvalues)
    _add_device(p)
    _add_result_options(p, "of the Lanczos iteration")


def _report(p: argparse.ArgumentParser) -> None:
    p.set_defaults(command=picture_commands.report)
    help_files = "walks, paths, comparisons, baselines, or folders of them, in any order"
    p.add_argument("files", metavar="FILE.nc", nargs="+", help=help_files)
    p.add_argument("--out", metavar="PAGE.html", required=True, help="write the page here")
    p.add_argument(
        "--force",
        action="store_true",
        help="replace PAGE.html where it exists; without it, an error",
    )


def _add_device(p: argparse.ArgumentParser) -> None:
    p.add_argument("--device", default="cpu", help="device of the computation (cpu)")


def _add_result_options(
    p: argparse.ArgumentParser, seed_of: str | None = None, required: bool = False
) -> None:
    """What every analysis takes: where its dataset and its figures go."""
    if seed_of:
        p.add_argument("--seed", type=int, default=0, metavar="N", help=f"{seed_of} (0)")
    help_out = "write the dataset here: whole or not at all"
    p.add_argument("--out", metavar="OUT.nc", required=required, help=help_out)
    p.add_argument("--figures", type=folder, metavar="DIR", help="draw it into this folder")
    p.add_argument(
        "--force", action="store_true", help="replace OUT.nc where it exists; without it, an error"
    )
    p.add_argument(
        "--quiet", action="store_true", help="no progress, and no list of the files written"
    )


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
