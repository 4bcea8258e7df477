import re
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils.nodes import SkipNode
from docutils.utils.math.latex2mathml import tex2mathml

project = "geoflow"
author = "geoflow contributors"
copyright = f"2026, {author}"
release = version = installed_version("geoflow")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
# What the gallery is made of; gallery/ has what is made of it.
exclude_patterns = ["_build", "examples"]

sys.path.insert(0, str(Path(__file__).parent))  # for gallery_figures.py and command_options.py
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("gallery_figures.scrape",),
    "remove_config_comments": True,
    "capture_repr": (),
    "parallel": 2,
    "write_computation_times": False,
    "show_memory": False,
    "show_signature": False,
    "min_reported_time": 1e9,
    "thumbnail_size": (400, 280),
}
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Attributes are described in the class docstring; a second listing would clash with it.
napoleon_use_ivar = True
napoleon_google_docstring = False

html_theme = "furo"
html_title = f"geoflow {release}"
html_math_renderer = "mathml"


def keep_bars(app, what, name, obj, options, lines):
    """Let docstrings write |L − c|, which reStructuredText takes for a substitution."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "".join(parts)


def skip_tuple_fields(app, what, name, obj, skip, options):
    """Leave out the fields of a NamedTuple: its signature has them already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def inline_mathml(translator, node):
    translator.body.append(tex2mathml(node.astext()))
    raise SkipNode


def block_mathml(translator, node):
    translator.body.append(f"<div>{tex2mathml(node.astext(), as_block=True)}</div>")
    raise SkipNode


def setup(app):
    from command_options import Commands, Options

    app.add_directive("commands", Commands)
    app.add_directive("options", Options)
    # MathML, since the pages are to be read without a network, where MathJax is not to be had.
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
    # Before napoleon, which runs at the default priority of 500 and writes roles of its own.
    app.connect("autodoc-process-docstring", keep_bars, priority=400)
    app.connect("autodoc-skip-member", skip_tuple_fields)
