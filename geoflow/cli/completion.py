"""Completion of commands, options and files by the shell."""

from __future__ import annotations

import argparse

import shtab

from geoflow.cli.parser import whole_parser
from geoflow.cli.terminal import DONE, write
from geoflow.experiments import registry

SHELLS = ("bash", "zsh", "fish", "tcsh")


def completion(args: argparse.Namespace) -> int:
    """Print the script that teaches a shell to complete ``geoflow``.

    The script holds every command and option as they are now, so that the shell starts no Python
    at a press of the key: importing torch alone takes longer than one waits for a completion.
    """
    parser = whole_parser()
    for child in _commands(parser).values():
        for action in child._actions:
            _complete(action)
    write(shtab.complete(parser, shell=args.shell, root_prefix="geoflow"))
    return DONE


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (children,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(children.choices)


def _complete(action: argparse.Action) -> None:
    """Say what an argument takes, which its metavar tells a reader."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar == "EXPERIMENT":
        action.choices = tuple(registry.names())
    elif metavar.split(":")[0].endswith((".nc", ".py", ".gif", ".html", ".mp4")):
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif metavar == "DIR" or action.dest == "data":
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
