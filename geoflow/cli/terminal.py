"""What commands share: exit statuses, tables, and text as a terminal may show it."""

from __future__ import annotations

import math
import sys
from typing import Any, SupportsFloat

from rich.console import Console
from rich.text import Text

DONE, DIFFERENT, BAD_INPUT, ENDED_EARLY, INTERRUPTED = 0, 1, 2, 3, 130


def console() -> Console:
    """Where tables go."""
    # A pipe has no width of its own: never fold a row there.
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def number(value: float | int | None) -> str:
    """A number in a table."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def plain_text(value: object) -> Text:
    """Text from a file as it is: no markup, and nothing a terminal would obey."""
    return Text("".join(c if c.isprintable() else "�" for c in str(value)))


def or_dash(value: SupportsFloat) -> str:
    """Write a number, or a dash where there is none."""
    return "–" if math.isnan(float(value)) else f"{float(value):.4g}"


def span(values: Any) -> str:
    """Write the least and the greatest of an array's values."""
    return f"{float(values.min()):.4g} to {float(values.max()):.4g}"
