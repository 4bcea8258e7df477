"""What a page is made of: sections of pictures and tables."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from geoflow.plots.styles import style


@dataclass(frozen=True)
class Picture:
    """A figure of the page, as the URL that holds it whole."""

    id: str
    image: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Row:
    """One row of a table, set in bold where it is marked."""

    cells: list[str]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    id: str
    caption: str
    head: list[str]
    rows: list[Row]


@dataclass
class Section:
    """All about one experiment with one solver's settings, or about one path."""

    title: str
    summary: str = ""
    sentences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parts: list[Picture | Table] = field(default_factory=list)


def picture(name: str, figure: Figure, alt: str, caption: str) -> Picture:
    """Put a figure into the page as it is, an SVG."""
    buffer = io.BytesIO()
    # Without its date, and by the style's salt, so that the same files give the same figure.
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(name, f"data:image/svg+xml;base64,{data}", alt, caption)


def synthetic(subject: str) -> list[str]:
    """What must be said of images that are made up."""
    made_up = "The images are synthetic: this is NOT CIFAR-10."
    return [made_up] if "synthetic" in subject else []
