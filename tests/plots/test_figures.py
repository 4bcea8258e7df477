"""Figures as pictures: each is the one in ``baseline`` that was looked at.

After a change that is meant, draw them anew and look at each before it is committed:

    pytest tests/plots/test_figures.py --mpl-generate-path=tests/plots/baseline
"""

import io
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import style
from matplotlib.testing.compare import compare_images

import drawn
from geoflow.plots import kinds
from geoflow.plots.styles import COLUMN_INCHES, SLIDE_INCHES

DATASETS = {
    "trajectory": drawn.walk,
    "ensemble": drawn.ensemble,
    "comparison": drawn.comparison,
    "path": drawn.path,
    "pca": drawn.components,
    "spectra": drawn.spectra,
    "periodogram": drawn.periodogram,
    "relaxation": drawn.relaxation,
    "predictions": drawn.predictions,
    "slice": drawn.slice_,
}
# The null models are random paths, whose last digits no machine shares with another.
DRAWN = [n for n, k in kinds.KINDS.items() if k.of in DATASETS and n != "null-models"]
SIZES = {"column": COLUMN_INCHES, "slide": SLIDE_INCHES}
BASELINE = Path(__file__).parent / "baseline"
CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"

# Root mean square over all pixels, of 255. The last bits of the layout, which differ from one
# processor to another, change it by 0.02. At this resolution no line lies between two pixels,
# where such a bit would move it by a whole one. A curve moved by 3% of its axis changes it by
# 1.4 at the least, the first letter of a label by 2.6.
TOLERANCE = 0.5
RESOLUTION = {"dpi": 55, "pil_kwargs": {"optimize": True}}

# Another matplotlib sets text otherwise.
pytestmark = pytest.mark.skipif(
    f"matplotlib=={mpl.__version__}\n" not in CONSTRAINTS.read_text(),
    reason="the pictures are those of the matplotlib in constraints.txt",
)


def draw(name, size):
    return kinds.draw(DATASETS[kinds.KINDS[name].of](), name, width=SIZES[size])


def looked_at(name, size):
    compared = pytest.mark.mpl_image_compare(
        filename=f"{name}-{size}.png",
        style="default",
        tolerance=TOLERANCE,
        savefig_kwargs=RESOLUTION,
        deterministic=True,
    )
    return pytest.param(name, size, marks=compared, id=f"{name}-{size}")


@pytest.mark.parametrize(
    ("name", "size"), [looked_at(name, size) for name in DRAWN for size in SIZES]
)
def test_a_figure_is_the_one_that_was_looked_at(name, size):
    return draw(name, size)


def test_there_is_no_picture_of_a_figure_that_is_no_more():
    names = {f"{name}-{size}.png" for name in DRAWN for size in SIZES}
    assert {path.name for path in BASELINE.iterdir()} == names


def as_it_is(figure):
    pass


def move_a_curve(figure):
    line = figure.axes[0].lines[0]
    line.set_ydata(np.asarray(line.get_ydata()) + 2)


def leave_a_label_out(figure):
    figure.axes[1].set_ylabel("")


def change_a_letter(figure):
    figure.axes[0].set_ylabel(figure.axes[0].get_ylabel().replace("angle", "ankle", 1))


def change_a_colour(figure):
    figure.axes[0].lines[0].set_color("#56B4E9")


def change_a_limit(figure):
    low, high = figure.axes[0].get_ylim()
    figure.axes[0].set_ylim(low, 1.01 * high)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("change", "other"),
    [
        (as_it_is, False),
        (move_a_curve, True),
        (leave_a_label_out, True),
        (change_a_letter, True),
        (change_a_colour, True),
        (change_a_limit, True),
    ],
)
def test_a_change_that_can_be_seen_makes_another_figure(change, other, size, tmp_path):
    with style.context("default"):
        figure = draw("overview", size)
        change(figure)
        figure.savefig(tmp_path / "changed.png", **RESOLUTION)
    baseline = BASELINE / f"overview-{size}.png"
    found = compare_images(baseline, tmp_path / "changed.png", TOLERANCE, in_decorator=True)
    assert (found is not None) == other


def more_ticks():
    """A slice whose distances get more ticks, and wider numbers, once the panel has its room."""
    ds = drawn.slice_()
    return ds.assign(off_plane_distance=0.9 * ds["off_plane_distance"])


def test_no_label_is_cut_off_where_a_figure_is_saved_at_once():
    figure = kinds.draw(more_ticks(), "slice", width=SLIDE_INCHES)
    figure.savefig(io.BytesIO(), format="png", dpi=figure.dpi)
    labels = [label for ax in figure.axes for label in (ax.xaxis.label, ax.yaxis.label)]
    edges = {label.get_text(): label.get_window_extent().x0 for label in labels}
    assert [text for text, left in edges.items() if text and left < 0] == []
