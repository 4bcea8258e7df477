"""What options of the command line are read by, and one that many commands have."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from geoflow.errors import InputError
from geoflow.system import files

# Each has a file and a task of its own.
MOST_RUNS = 100_000


def seeds(text: str) -> list[int]:
    """Read ``0:5``, the seeds 0 to 4, or ``0,3,7``."""
    try:
        if ":" in text:
            first, end = map(int, text.split(":"))
            if end <= first:
                raise argparse.ArgumentTypeError(f"{text!r} are no seeds; use 0:5 for 0 to 4")
            if end - first > MOST_RUNS:
                raise argparse.ArgumentTypeError(
                    f"{text!r} are {end - first} seeds; a sweep has at most {MOST_RUNS:,}"
                )
            return list(range(first, end))
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use 0:5 for 0 to 4, or 0,3,7") from None


def integers(text: str) -> list[int]:
    """Read whole numbers with commas between them."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use whole numbers, as in 0,5,-1") from None


def names(text: str) -> list[str]:
    """Read names with commas between them."""
    return text.split(",")


def folder(text: str) -> str:
    """Read the name of a folder that files can be written into, or that can be made."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"{text!r} names no folder; give its name, . for the present one"
        )
    try:
        files.check_folder(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def floats(text: str) -> list[float]:
    """Read numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers with commas between") from None


def add_problem(p: argparse.ArgumentParser) -> None:
    """Add the option that names a problem of one's own."""
    p.add_argument(
        "--problem",
        metavar="FILE.py:FUNCTION",
        help="an experiment of your own: FUNCTION(seed) gives it",
    )


def check_output(args: argparse.Namespace) -> None:
    """Refuse an output that is one of the files that a command reads, under --force too.

    That of ``run --like`` may be walked again in its place.

    Raises
    ------
    InputError
        Names it.
    """
    out = getattr(args, "out", None)
    if not isinstance(out, str) or not files.is_file(out):
        return
    read = [getattr(args, "file", None)]
    for path in getattr(args, "files", []):
        read += sorted(Path(path).glob("*.nc")) if files.is_folder(path) else [path]
    # FILE.py:FUNCTION, and where that is no such text it is refused by itself.
    read.append((getattr(args, "problem", None) or "").rpartition(":")[0])
    files.check_apart(out, [path for path in read if isinstance(path, str | Path)])


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that are given."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}
