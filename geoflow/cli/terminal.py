"""The border to the terminal: exit statuses, standard output, and tables on it."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, SupportsFloat

from rich.console import Console, RenderableType
from rich.segment import Segment, Segments

from geoflow.errors import InputError
from geoflow.system.messages import abandon, printable
from geoflow.system.translation import reason

DONE, DIFFERENT, BAD_INPUT, ENDED_EARLY, INTERRUPTED = 0, 1, 2, 3, 130
# As a shell reports a program that the closing of its pipe has ended.
CLOSED_PIPE = 141


class ClosedPipeError(Exception):
    """The reader of standard output has gone."""


@contextmanager
def lenient_output() -> Iterator[None]:
    """Write a question mark for what the encoding of standard output does not have."""
    stream = sys.stdout
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.reconfigure(errors=before)


@contextmanager
def no_window() -> Iterator[None]:
    """Let matplotlib draw into files, whatever back end the environment names for windows.

    A name that it does not know would be an error where matplotlib is imported.
    """
    before = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        yield
    finally:
        del os.environ["MPLBACKEND"]
        if before is not None:
            os.environ["MPLBACKEND"] = before


def say(text: object) -> None:
    """Write one line to standard output.

    Raises
    ------
    ClosedPipeError, InputError
        It takes nothing: because its reader has gone, or for another reason.
    """
    write(printable(text) + "\n")


def write(text: str) -> None:
    """Write text of geoflow's own making to standard output, and see that it arrives.

    Raises
    ------
    ClosedPipeError, InputError
        See :func:`say`.
    """
    stream = sys.stdout
    if stream is None:
        raise InputError("standard output is closed, and the result goes there; leave it open")
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        abandon(stream)
        raise ClosedPipeError from None
    except OSError as error:
        abandon(stream)
        _cannot_be_written(error)


def _cannot_be_written(error: OSError) -> NoReturn:
    raise InputError(
        f"standard output cannot be written ({reason(error)}); send it elsewhere"
    ) from None


def show(thing: RenderableType) -> None:
    """Write a table, or text folded to the width, to standard output.

    Nothing in it is taken for markup, and nothing is left in it that a terminal would obey.

    Raises
    ------
    ClosedPipeError, InputError
        See :func:`say`.
    """
    stream = sys.stdout
    is_terminal = stream is not None and stream.isatty()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    page = io.TextIOWrapper(io.BytesIO(), encoding, errors="replace", newline="\n")
    console = Console(
        file=page,
        force_terminal=is_terminal,
        # A pipe has no width of its own: never fold a row there.
        width=None if is_terminal else 200,
        highlight=False,
        markup=False,
        emoji=False,
    )
    shown = [
        Segment("\n".join(map(printable, part.text.split("\n"))), part.style)
        for part in console.render(thing)
        if not part.control
    ]
    console.print(Segments(shown), end="")
    page.seek(0)
    write(page.read())


def show_json(content: Mapping[str, Any]) -> None:
    """Write one JSON object to standard output; what JSON has no number for is null.

    Raises
    ------
    ClosedPipeError, InputError
        See :func:`say`.
    """
    try:
        text = json.dumps(_as_json(content), indent=2, allow_nan=False)
    except RecursionError:
        raise InputError("what is to be shown is nested too deep; leave --json out") from None
    write(text + "\n")


def _as_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _as_json(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_as_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def number(value: float | int | None) -> str:
    """A number in a table; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def or_dash(value: SupportsFloat) -> str:
    """Write a number, or a dash where there is none."""
    return "–" if math.isnan(float(value)) else f"{float(value):.4g}"


def span(values: Any) -> str:
    """Write the least and the greatest of an array's values."""
    return f"{float(values.min()):.4g} to {float(values.max()):.4g}"
