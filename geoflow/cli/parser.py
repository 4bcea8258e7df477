"""The command line: arguments in, library calls (:mod:`geoflow.cli.walk_commands`), tables out."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

import geoflow as gf
from geoflow.archive import netcdf
from geoflow.cli.own_problem import own_problem
from geoflow.cli.processes import check_number
from geoflow.cli.reading import check_output
from geoflow.cli.terminal import (
    BAD_INPUT,
    CLOSED_PIPE,
    ENDED_EARLY,
    INTERRUPTED,
    ClosedPipeError,
    lenient_output,
    no_window,
    write,
)
from geoflow.errors import ClusterError, GeoflowError, StorageError
from geoflow.system import starting, translation
from geoflow.system.messages import note, open_standard_streams

COMMANDS = {
    "experiments": "Show the experiments of the paper and what each needs.",
    "run": "Train, walk, and archive.",
    "resume": "Continue a walk or a path: an interrupted one to its end, a finished one further.",
    "validate": "Check a file's bytes, checksums, schema and values; one line per defect.",
    "diff": "Compare two trajectories, or two paths, variable by variable.",
    "info": "Show provenance, status, first and last values of every scalar.",
    "plot": "Write the figures of a walk, of a path, of a sweep's folder, or of an analysis.",
    "bench": "Count evaluations and wall time to each angle, per method, in one process.",
    "compare": "Compare solvers and tolerances with a tight reference, at equal flow times.",
    "baseline": "Train with weight decay, over the paper's penalties.",
    "sweep": "Walk from many seeds, on all processors or on a Dask cluster.",
    "path": "Follow the KKT point of R from level to level: every weight decay from one run.",
    "spectrum": "Compute curvature spectra at snapshots of a walk of an experiment.",
    "predictions": "Compare snapshots of a walk by the predictions of their networks.",
    "pca": "Find the principal components of the snapshots of one walk, or of several together.",
    "slice": "Evaluate the loss on a plane through a walk of an experiment.",
    "animate": "Animate a walk over its slice.",
    "periodogram": "Compute power spectra of a walk's scalars, tested against red noise.",
    "relaxation": "Fit rates to the slow end of a walk, beside the smallest eigenvalues of A.",
    "report": "Write one self-contained page about walks, paths, comparisons and baselines.",
    "completion": "Print the script by which a shell completes commands, options and files.",
}

# Their options are in a module of their own, imported when one of them is called: figures and
# analyses take longer to import than all the rest.
ANALYSES = {
    "plot",
    "spectrum",
    "predictions",
    "pca",
    "slice",
    "animate",
    "periodogram",
    "relaxation",
    "report",
}


# Nothing is lost where these fail, and they need not wait for what they do not need.
AT_ONCE = {"list_experiments", "completion", "validate", "diff", "info"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        # While its packages are loaded, or while an error is said; it may come again.
        starting.ending()
        note("geoflow: interrupted")
        return INTERRUPTED
    finally:
        starting.ending()


def _main(arguments: Sequence[str] | None) -> int:
    try:
        starting.started()
        open_standard_streams()
        with warnings.catch_warnings(), lenient_output(), no_window():
            warnings.showwarning = _warned()
            return _command(sys.argv[1:] if arguments is None else arguments)
    except GeoflowError as error:
        note(f"geoflow: error: {error}")
        return ENDED_EARLY if isinstance(error, StorageError | ClusterError) else BAD_INPUT
    except ClosedPipeError:
        return CLOSED_PIPE


def _command(arguments: Sequence[str]) -> int:
    parser = _parser(arguments)
    for text in arguments:
        # argparse takes these two dashes for the end of options, and leaves the option empty.
        if text.startswith("--") and text.endswith("=--"):
            parser.error(f"{text}: -- is no value")
    args = parser.parse_args(arguments)
    check_number(args)
    check_output(args)
    _load_ahead(args)
    try:
        with own_problem(args):
            return int(args.command(args))
    except KeyboardInterrupt:
        # It may come again.
        starting.ending()
        from geoflow.cli.walk_commands import hint

        note(f"geoflow: interrupted{hint(args)}")
        return INTERRUPTED


def _load_ahead(args: argparse.Namespace) -> None:
    """Load what a result is written and drawn with before it is worked for.

    Raises
    ------
    InputError
        It cannot be loaded.
    """
    if args.command.__name__ in AT_ONCE:
        return
    netcdf.load_ahead()
    if getattr(args, "figures", None):
        with translation.importing("matplotlib"):
            import_module("geoflow.plots")


def _warned() -> Callable[..., None]:
    """What says each warning once, as a library warns of a file whenever it is opened."""
    said: set[str] = set()

    def warn(message: Warning | str, *details: Any, **more: Any) -> None:
        if (line := f"geoflow: warning: {message}") not in said:
            said.add(line)
            note(line)

    return warn


# What starts a value, of which the rest may be wrong.
NEGATIVE = re.compile(r"-(\.?\d|inf|nan)", re.IGNORECASE)


class _Parser(argparse.ArgumentParser):
    """Writes where all else of geoflow is written, and an error on one line."""

    def error(self, message: str) -> NoReturn:
        note(f"geoflow: error: {message}; see {self.prog} --help")
        raise SystemExit(BAD_INPUT)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str], namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse, with negative numbers and lists of them as values of options.

        Of these argparse knows a single plain one, such as -1; it takes -1e-3, -inf and -2,-1 for
        options.
        """
        joined: list[str] = []
        for text in args:
            option = joined[-1] if joined and "--" not in joined else ""
            if not text.startswith("-") or not self._takes_one(option):
                joined.append(text)
            elif NEGATIVE.match(text):
                joined[-1] = f"{option}={text}"
            elif text.startswith("--") or " " in text or text in ("-", "-h"):
                joined.append(text)
            else:
                wanted = f"expected one argument; give one that starts with - as {option}={text}"
                self.error(f"argument {option}: {wanted}")
        return super().parse_known_args(joined, namespace)

    def _takes_one(self, text: str) -> bool:
        """Whether a text is an option, or the start of only one, that one value follows."""
        if not text.startswith("--"):
            return False
        known = {name: action for action in self._actions for name in action.option_strings}
        named = [known[text]] if text in known else [known[n] for n in known if n.startswith(text)]
        return len(set(named)) == 1 and named[0].nargs is None

    def _print_message(self, message: str, file: Any = None) -> None:
        write(message)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """Make a parser that knows all commands, and the options of the one that is called."""
    # No option before the command takes a value.
    called = next((text for text in arguments if not text.startswith("-")), None)
    return _with_options(called)


def whole_parser() -> argparse.ArgumentParser:
    """Make a parser that knows all commands and all their options."""
    return _with_options(*COMMANDS)


def _with_options(*called: str | None) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="geoflow", description="Walk along training-loss level sets of neural networks."
    )
    parser.add_argument("--version", action="version", version=f"geoflow {gf.__version__}")
    children = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        child = children.add_parser(name, help=text, description=text)
        if name in called:
            module = "analysis_options" if name in ANALYSES else "walk_options"
            with translation.importing(f"what geoflow {name} needs"):
                found = import_module(f"geoflow.cli.{module}")
            found.ADD[name](child)
    return parser
