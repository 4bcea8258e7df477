"""Whatever else is given to a function that draws, it says in one line what it draws."""

import inspect

import pytest
import xarray as xr

import drawn
from geoflow import plots
from geoflow.errors import InputError
from geoflow.plots import kinds

# What each draws, with the arguments that it cannot do without.
DRAWN = {
    **dict.fromkeys(("angle", "level_residual", "line", "overview"), drawn.walk),
    **dict.fromkeys(("paper_stack", "sweep_stack"), drawn.walk),
    "ensemble": drawn.ensemble,
    "work_precision": drawn.comparison,
    "penalties": lambda: drawn.trainings(drawn.path()),
    **dict.fromkeys(("regularization_path", "singular_values"), drawn.path),
    **dict.fromkeys(
        ("explained_variance", "off_plane", "pca_plane", "pca_space", "scores_plane"),
        drawn.components,
    ),
    "null_models": None,
    **dict.fromkeys(("extremes", "waterfall", "waterfalls"), drawn.spectra),
    **dict.fromkeys(("periodogram", "periodograms", "significance"), drawn.periodogram),
    **dict.fromkeys(("relaxation", "relaxations"), drawn.relaxation),
    **dict.fromkeys(("function_distance", "function_space", "matrices"), drawn.predictions),
    **dict.fromkeys(("contours", "projections", "slice_figure"), drawn.slice_),
}
OTHERS = {"animate", "new_figure", "save", "save_figures", "style", "STYLE"}
WRONG = {
    "width": (-1, 0, "a", None, float("nan"), float("inf"), [3]),
    "ax": (5, "a"),
    "x": ("nothing", 1.5, []),
    "y": ("nothing", 0, []),
    "name": ("nothing", 5, []),
    "scalar": ("nothing", 5),
    "scalars": (5, "angle", ["nothing"], []),
    "operator": ("nothing", 5),
    "plane": (5, "a", []),
    "snapshot": (99, -99, "a", 1.5, []),
    "walks": (5, [5]),
    "baseline": (5, "a", xr.Dataset()),
    "mean": (5, xr.Dataset()),
    "marks": (5, "a"),
    "figure": (5, "a"),
}


def needed(name):
    ax = {"ax": plots.new_figure(3, 3).subplots()}
    more = {"line": {"name": "angle", **ax}, "sweep_stack": {"mean": None}}
    return more.get(name, ax if name in ("angle", "level_residual") else {})


def refused(function, *args, **kwargs):
    with pytest.raises(InputError) as said:
        function(*args, **kwargs)
    assert len(str(said.value).splitlines()) == 1


def test_every_function_that_draws_is_here():
    assert {*DRAWN, *OTHERS} == set(plots.__all__)


@pytest.mark.parametrize("name", DRAWN)
def test_what_a_figure_is_not_of_is_refused(name):
    function, others = getattr(plots, name), {drawn.walk, drawn.path, drawn.slice_}
    others -= {DRAWN[name]}
    wrong = [None, 5, "a", [], {}, xr.Dataset(), drawn.walk().isel(step=5), drawn.walk()["angle"]]
    for ds in [*wrong, *(make() for make in others)]:
        refused(function, ds, **needed(name))


@pytest.mark.parametrize("name", [name for name, make in DRAWN.items() if make])
def test_an_argument_of_a_figure_that_cannot_be_is_refused(name):
    function, ds = getattr(plots, name), DRAWN[name]()
    first, *others = inspect.signature(function).parameters
    ds = [ds] if first == "walks" else ds
    function(ds, **needed(name))
    for argument in set(others) & WRONG.keys():
        for value in WRONG[argument]:
            refused(function, ds, **(needed(name) | {argument: value}))


def test_a_walk_is_drawn_against_any_scalar_of_its_steps():
    ds, ax = drawn.walk(), plots.new_figure(3, 3).subplots()
    drawn_line = plots.line(ds, "regularizer", ax, x="angle").lines[0]
    assert (drawn_line.get_xdata() == ds["angle"].values).all()
    assert plots.paper_stack(iter([ds]), x="angle").axes[-1].get_xlabel().startswith("angle")


def test_figures_are_saved_from_a_dict_into_a_folder(tmp_path):
    figure = plots.new_figure(2, 2)
    for figures, folder in ((None, tmp_path), ({"a": 5}, tmp_path), ({"a": figure}, 5)):
        refused(plots.save, figures, folder, "stem")
    assert not any(tmp_path.iterdir())
    # What a killed process left of a figure goes with the next that is written.
    left = tmp_path / ".stem-a.png.new"
    left.mkdir()
    (left / ".stem-a.png.0123456789abcdef.tmp").touch()
    paths = plots.save({"a": figure}, tmp_path, "stem")
    assert len(paths) == 2
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for size in ((-1, 2), (2, "a"), (None, 1), (1, float("inf"))):
        refused(plots.new_figure, *size)
    for ds in (None, 5, "a"):
        refused(kinds.names, ds)
        refused(plots.save_figures, ds, tmp_path, "stem")
