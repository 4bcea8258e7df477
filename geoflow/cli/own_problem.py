"""``--problem FILE.py:FUNCTION``: an experiment of one's own, for the length of one command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr

from geoflow import experiments
from geoflow.errors import InputError
from geoflow.experiments.own import from_file
from geoflow.experiments.registry import registered
from geoflow.walking import configuration


@contextmanager
def own_problem(args: argparse.Namespace) -> Iterator[None]:
    """Load and register what ``--problem`` names, and say where in its file a command fails.

    Raises
    ------
    InputError
        What is named cannot be loaded, or the file raises an error.
    """
    text = getattr(args, "problem", None)
    args.own = None
    if text is None:
        yield
        return
    args.own = from_file(text)
    with registered(args.own), args.own.source.errors():
        yield


def named_experiment(args: argparse.Namespace) -> str:
    """Return the name of the experiment of a command that takes one, or one's own.

    Raises
    ------
    InputError
        None is named, or both.
    """
    if (args.experiment is None) == (args.own is None):
        raise InputError("name either an EXPERIMENT or your own, with --problem FILE.py:FUNCTION")
    return str(args.own.name if args.own else args.experiment)


def check_own(args: argparse.Namespace, experiment: str, kind: str = "walk") -> None:
    """Refuse a walk, or a path, of another experiment than the one that ``--problem`` names.

    Raises
    ------
    InputError
        It is of another, or of none, as what was made in Python with a flow.
    """
    if args.own and not experiment:
        raise InputError(
            f"--problem {args.problem}: the {kind} is of no experiment, but of a flow made in "
            "Python; go on there, with the same flow"
        )
    if args.own and experiment != args.own.name:
        raise InputError(
            f"--problem {args.problem}: the {kind} is of {experiment!r}, not of "
            f"{args.own.name!r}; name the function of that name"
        )


def rebuilt_walk(ds: xr.Dataset, args: argparse.Namespace) -> experiments.RebuiltWalk:
    """Make again what the walk of a file is a walk of, by the experiment of its name.

    Raises
    ------
    ArchiveError
        Its settings cannot be used.
    InputError
        See :func:`check_own` and :func:`geoflow.experiments.rebuild`.
    """
    configuration.check(Path(args.file), ds.attrs, ds)
    check_own(args, ds.attrs["experiment"])
    return experiments.rebuild(ds.attrs, device=args.device)
