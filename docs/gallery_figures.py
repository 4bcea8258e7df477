"""The figures of the gallery, each with its words for those who do not see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

ALT = re.compile(r'^# sphinx_gallery_alt = "(.+)"$', re.MULTILINE)


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that a block has drawn, as ``figure``, and return its reStructuredText.

    geoflow's figures belong to no window, so sphinx-gallery's own scraper does not see them.
    """
    figure = block_vars["example_globals"].get("figure")
    plt.close("all")
    if not isinstance(figure, Figure) or getattr(figure, "scraped", False):
        return ""
    figure.scraped = True  # type: ignore[attr-defined]
    alt = ALT.search(block[1])
    if alt is None:
        raise ValueError(f"{block_vars['src_file']}, line {block[2]}: a figure without its alt")
    path = Path(next(block_vars["image_path_iterator"]))
    figure.savefig(path, dpi=150)
    return figure_rst([path], gallery_conf["src_dir"], alt[1])
