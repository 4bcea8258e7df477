import re
from importlib.metadata import version as installed_version

project = "geoflow"
author = "geoflow contributors"
copyright = f"2026, {author}"
release = version = installed_version("geoflow")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
# Attributes are described in the class docstring; a second listing would clash with it.
napoleon_use_ivar = True
napoleon_google_docstring = False

html_theme = "furo"
html_title = f"geoflow {release}"


def keep_bars(app, what, name, obj, options, lines):
    """Let docstrings write |L − c|, which reStructuredText takes for a substitution."""
    for i, line in enumerate(lines):
        parts = re.split(r"(``.*?``)", line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[i] = "".join(parts)


def setup(app):
    # Before napoleon, which runs at the default priority of 500 and writes roles of its own.
    app.connect("autodoc-process-docstring", keep_bars, priority=400)
