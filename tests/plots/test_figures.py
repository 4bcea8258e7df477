"""Figures as pictures: each has the hash of the one that was looked at.

After a change that is meant, look at the pictures and keep their hashes:

    pytest tests/test_figures.py --mpl-generate-path=runs/figures
    pytest tests/test_figures.py --mpl-generate-hash-library=tests/figures.json
"""

from pathlib import Path

import matplotlib as mpl
import pytest

import drawn
from geoflow.plots import kinds
from geoflow.plots.styles import COLUMN_INCHES, SLIDE_INCHES

DATASETS = {
    "trajectory": drawn.walk,
    "ensemble": drawn.ensemble,
    "comparison": drawn.comparison,
    "pca": drawn.components,
    "spectra": drawn.spectra,
    "periodogram": drawn.periodogram,
    "relaxation": drawn.relaxation,
    "predictions": drawn.predictions,
    "slice": drawn.slice_,
}
# The null models are random paths, whose last digits no machine shares with another.
DRAWN = [n for n, k in kinds.KINDS.items() if k.of in DATASETS and n != "null-models"]
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
# Another matplotlib sets text otherwise.
pytestmark = pytest.mark.skipif(
    f"matplotlib=={mpl.__version__}\n" not in CONSTRAINTS.read_text(),
    reason="hashes are those of the matplotlib in constraints.txt",
)


@pytest.mark.parametrize("width", [COLUMN_INCHES, SLIDE_INCHES], ids=["column", "slide"])
@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.mpl_image_compare(style="default", savefig_kwargs={"dpi": 100}, deterministic=True)
def test_a_figure_is_the_one_that_was_looked_at(name, width):
    return kinds.draw(DATASETS[kinds.KINDS[name].of](), name, width=width)
