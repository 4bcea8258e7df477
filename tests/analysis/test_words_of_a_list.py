"""A word that is chosen from a list: whatever else is given, the list is named in one line."""

import functools
import re

import numpy as np
import pytest
import torch

import drawn
from curvatures import diagonal
from geoflow import plots
from geoflow.analysis import extreme_eigenvalues, periodogram, relaxation
from geoflow.analysis.series.lomb_scargle import lomb_scargle
from geoflow.errors import InputError
from geoflow.plots import kinds as figures
from geoflow.system.kinds import check_choice

OTHERS = [
    np.array([1.0, 2.0]),
    np.array(["mean", "time"]),
    torch.ones(2),
    [],
    ["time"],
    {},
    {"a": 1},
    3,
    b"time",
    "nothing",
    "",
]
# As they are made once: none is changed.
walk, spectra = functools.cache(drawn.walk), functools.cache(drawn.spectra)
decays, predicted = functools.cache(drawn.relaxation), functools.cache(drawn.predictions)
plane = functools.cache(drawn.slice_)
TIMES = np.linspace(0, 1, 20)
CHOSEN = {
    "which": (
        lambda word: extreme_eigenvalues(diagonal([1.0, 2.0]), 1, which=word),
        "largest, smallest",
    ),
    "detrend": (
        lambda word: lomb_scargle(TIMES, np.sin(9 * TIMES), detrend=word),
        "mean, linear, relaxation",
    ),
    "against": (
        lambda word: periodogram.along(walk(), ["angle"], against=word),
        "time, arc_length",
    ),
    "scalar": (
        lambda word: plots.relaxation(decays(), word),
        "regularizer, angle",
    ),
    "operator": (lambda word: plots.waterfall(spectra(), word), "hessian, tangent"),
    "name": (
        lambda word: plots.function_distance(predicted(), word),
        "output_distance, js_divergence, disagreement",
    ),
    "pace": (
        lambda word: plots.animate(plane(), "never.gif", pace=word),
        "arc_length, time",
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_what_is_none_of_the_words_is_refused_by_them(name):
    call, words = CHOSEN[name]
    for value in OTHERS:
        with pytest.raises(InputError, match=rf"^{name}=.*; choose from {words}$"):
            call(value)


def test_what_is_no_figure_and_no_scalar_is_refused():
    for value in OTHERS:
        with pytest.raises(InputError, match="is no figure of this trajectory; use one of"):
            figures.draw(walk(), value)
        with pytest.raises(InputError, match="is not a scalar of this walk; choose from angle"):
            relaxation.along(walk(), scalars=[value])


def test_one_of_the_words_is_taken_as_it_is():
    check_choice(np.str_("a"), ("a", "b"), "name")
    said = re.escape("name='c'; choose from a, b")
    with pytest.raises(InputError, match=said):
        check_choice("c", {"a": 1, "b": 2}, "name")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"frames": "5"}, "frames='5'; give a whole number"),
        ({"frames": 5.0}, "frames=5.0; give a whole number"),
        ({"fps": "10"}, "fps='10'; give a real number"),
        ({"fps": np.array([1.0, 2.0])}, "fps=.*; give a real number"),
        ({"path": 5}, "path=5 is of type int; give the name of a file"),
    ],
)
def test_the_arguments_of_a_film_are_of_their_kinds(arguments, said, tmp_path):
    given = {"path": tmp_path / "a.gif"} | arguments
    with pytest.raises(InputError, match=said):
        plots.animate(plane(), **given)
