import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import geoflow as gf
from geoflow import plots
from geoflow.analysis.components import null_models, pca
from geoflow.errors import InputError
from references import small_network


@pytest.fixture(scope="module")
def walk():
    return gf.walk(small_network(), stop=gf.Stationary(150.0), max_snapshots=15)


@pytest.fixture(scope="module")
def found(walk):
    return pca.along([walk, walk], 4)


def test_the_plane_has_the_scores_with_time_as_colour_and_both_ends(found, walk):
    ax = plots.scores_plane(found, Figure().subplots(), x=1, y=3)
    n = walk.sizes["snapshot"]
    lines = [c for c in ax.collections if hasattr(c, "get_segments")]
    assert len(lines) == 2
    scores = found["scores"].sel(component=[1, 3]).values
    assert np.allclose(lines[0].get_segments()[0], scores[:2])
    assert np.allclose(lines[0].get_segments()[-1], scores[n - 2 : n])
    time = walk["snapshot_time"].values
    assert np.allclose(lines[0].get_array(), (time[1:] + time[:-1]) / 2)
    start, end = (line.get_xydata()[0] for line in ax.lines[:2])
    assert np.array_equal(start, scores[0])
    assert np.array_equal(end, scores[n - 1])
    assert ax.get_xlabel().startswith("PC 1 (")


@pytest.mark.parametrize("plane", [2, 3])
def test_the_distance_from_the_plane_is_drawn_by_arc_length(found, walk, plane):
    ax = plots.off_plane(found, Figure().subplots(), plane)
    (first, *_) = (c for c in ax.collections if hasattr(c, "get_segments"))
    corners = np.array([s[0] for s in first.get_segments()])
    n = walk.sizes["snapshot"]
    distance = found["off_plane_distance"].sel(plane=plane).values[: n - 1]
    assert np.allclose(corners, np.column_stack([found["arc_length"].values[: n - 1], distance]))
    assert ax.get_ylim()[0] == 0


def test_figures_have_their_parts_for_a_column_and_for_a_slide(found):
    for width in (3.5, 7.0):
        assert len(plots.pca_plane(found, width).axes) == 3  # the colour bar too
        figure = plots.pca_space(found, {"end": found["scores"].values[-1]}, width)
        assert figure.get_size_inches()[0] == width
        assert [ax.name for ax in figure.axes] == ["3d", "rectilinear"]


def test_null_models_are_drawn_beside_the_walk(walk):
    beside = null_models.compare(
        walk["theta"], walk["snapshot_time"].values, n_components=3, n_simulations=19
    )
    figure = plots.null_models(beside)
    variance, first, _ = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in variance.lines}
    assert list(drawn) == [
        "walk",
        "Brownian paths",
        "straight line",
        "relaxation",
        "Brownian, even steps",
    ]
    ratio = beside["explained_variance_ratio"].sel(model="walk")
    assert np.array_equal(drawn["walk"], ratio)
    assert np.isnan(drawn["straight line"][1:]).all()
    score = beside["scores"].sel(model="walk", component=1).values
    assert np.allclose(first.lines[0].get_ydata(), score / np.sqrt((score**2).mean()))
    assert np.array_equal(first.lines[0].get_xdata(), walk["snapshot_time"])
    assert first.get_xlabel().startswith("flow time")
    counted = null_models.compare(walk["theta"], n_components=3, n_simulations=19)
    assert plots.null_models(counted).axes[1].get_xlabel() == "point"


def test_two_walks_of_one_seed_are_told_apart(walk):
    seeded = [walk.assign_attrs(seed=seed) for seed in (3, 5, 3)]
    names = ("seed 3, walk 1", "seed 5", "seed 3, walk 3")
    figure = plots.pca_space(pca.along(seeded, 3))
    (legend,) = (n for part in figure.subfigs for n in part.legends)
    said = [text.get_text() for text in legend.get_texts()]
    assert said[1:] == [f"{name}, mean of its points" for name in names]
    plane = plots.scores_plane(pca.along(seeded, 3), Figure().subplots())
    assert [t.get_text() for t in plane.texts] == [
        f" {name.removeprefix('seed ')}" for name in names
    ]


def test_only_what_can_be_drawn_is_written(walk, tmp_path):
    kinds = ("explained-variance", "pca-2d")
    paths = plots.save_figures(pca.along(walk, 2), tmp_path, "walk")
    assert {p.name for p in paths} == {f"walk-{k}.{e}" for k in kinds for e in ("png", "pdf")}
    assert all(p.stat().st_size > 1000 for p in paths)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda found: plots.scores_plane(found, y=5), "4 components, and 5 are drawn"),
        (lambda found: plots.off_plane(found, plane=4), "plane=4"),
        (lambda found: plots.null_models(xr.Dataset()), "'null_models'"),
        (lambda found: plots.pca_plane(xr.Dataset()), "'pca'"),
        (lambda found: plots.pca_space(found.isel(component=[0, 1])), "3 are drawn"),
    ],
)
def test_bad_input(found, draw, message):
    with pytest.raises(InputError, match=message):
        draw(found)


def test_a_legend_says_how_many_walks_it_does_not_name(walk):
    many = pca.along([walk.assign_attrs(seed=seed) for seed in range(13)], 3)
    (legend,) = plots.pca_space(many).subfigs[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[1:11] == [f"seed {seed}, mean of its points" for seed in range(10)]
    assert texts[11:] == ["and so on: 3 more walks"]


@pytest.mark.parametrize("width", [3.5, 7.0])
def test_a_long_title_stays_within_the_figure(walk, width):
    named = walk.assign_attrs(experiment="a file of my own/" * 12, seed=3)
    figures = [
        plots.pca_plane(pca.along([named, named], 3), width),
        plots.null_models(pca.along(named, 3, null_models=True, n_simulations=9), width=width),
        plots.overview(named, width),
        plots.paper_stack(named, width=width),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        titles = [figure._suptitle, *(ax.title for ax in figure.axes)]
        for title in (t for t in titles if t is not None and t.get_text()):
            place = title.get_window_extent()
            assert place.x0 >= 0
            assert place.x1 <= figure.bbox.width
            assert place.y1 <= figure.bbox.height + 1
