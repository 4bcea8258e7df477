"""Results given back transposed, cut or in another order: drawn right, or refused in one line."""

import functools
import io

import numpy as np
import pytest
import xarray as xr

import drawn
from geoflow import plots
from geoflow.analysis import PCA, pca
from geoflow.errors import InputError
from geoflow.plots import kinds, slices

MADE = {
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
FIGURES = [n for n, k in kinds.KINDS.items() if k.of in MADE and n != "null-models"]
# A dimension that each figure needs.
NEEDED = {
    "ensemble": "run",
    "work-precision": "rtol",
    "regularization-path": "level",
    "singular-values": "parameter",
    "explained-variance": "component",
    "pca-2d": "walk",
    "pca-3d": "point",
    "waterfall": "snapshot",
    "extremes": "rank",
    "periodogram": "scalar",
    "relaxation": "term",
    "function-space": "set",
    "distances": "snapshot_other",
    "slice": "alpha",
}


def made(figure):
    return MADE[kinds.KINDS[figure].of]()


def picture(ds, figure):
    """What is drawn of the data alone: the axes, and a layout for them, take most of the time."""
    content, drawn_of = io.BytesIO(), kinds.draw(ds, figure)
    drawn_of.set_layout_engine("none")
    for ax in drawn_of.axes:
        ax.set_axis_off()
    drawn_of.savefig(content, format="png", dpi=40)
    return content.getvalue()


@functools.cache
def right(figure):
    """The picture of a result as it was made."""
    return picture(made(figure), figure)


# Of the figures the default run takes every second.
@pytest.mark.parametrize(
    "figure",
    [pytest.param(f, marks=[pytest.mark.slow] * (i % 2)) for i, f in enumerate(FIGURES)],
)
def test_a_transposed_result_is_drawn_as_it_was_made(figure):
    assert picture(made(figure).transpose(), figure) == right(figure)


@pytest.mark.parametrize("figure", FIGURES)
def test_a_result_cut_by_a_number_is_refused_with_the_remedy(figure):
    ds, dim = made(figure), NEEDED[figure]
    function = kinds.KINDS[figure].function
    # A plane takes two.
    some = r"\[0, 1\]" if figure == "slice" else r"\[0\]"
    for cut in ({dim: 0}, {dim: []}):
        with pytest.raises(InputError, match=rf"{dim}'; cut .* such as ds.isel\({dim}={some}\)"):
            function(ds.isel(cut))


def test_of_a_dataset_in_dask_the_figure_is_the_same():
    dask = pytest.importorskip("dask")
    assert dask
    ds = drawn.relaxation()
    assert picture(ds.chunk(), "relaxation") == right("relaxation")


def test_a_square_of_ranks_and_snapshots_is_not_read_the_other_way():
    ds = drawn.spectra()
    figure = plots.extremes(ds.transpose())
    first = figure.axes[0].containers[-1].lines[0].get_ydata()
    expected = ds["largest_eigenvalue"].sel(operator="hessian").values[:, 0]
    np.testing.assert_array_equal(first, expected)


def test_eigenvalues_are_drawn_by_their_rank():
    ds = drawn.spectra().assign_coords(rank=[0, 1, 2])
    for given in (ds.isel(rank=[2, 1, 0]), ds.isel(rank=[1, 2, 0])):
        assert picture(given, "extremes") == right("extremes")
    # The line of the first is another than those of the others.
    lines = plots.extremes(ds.isel(rank=[2, 1])).axes[0].containers
    assert {bars.lines[0].get_linewidth() for bars in lines} == {0.7}


def test_directions_of_a_slice_are_those_of_its_coordinates():
    ds = drawn.slice_().assign(direction_norm=("direction", [1.0, 2.0]))
    for name, direction in (("alpha", "PC 1"), ("beta", "PC 2")):
        ds[name].attrs["direction"] = direction
    for given in (ds, ds.isel(direction=[1, 0]), ds.sortby("direction", ascending=False)):
        figure = plots.slice_figure(given)
        labels = [figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()]
        assert labels == [r"$\alpha$: PC 1", r"$\beta$: PC 2"]
        assert slices.check(given)["direction_norm"].values.tolist() == [1.0, 2.0]


def test_components_are_drawn_by_their_number():
    ds = drawn.components()
    for given in (ds.transpose(), ds.isel(component=[2, 1, 0])):
        space = plots.pca_space(given).axes[0]
        x, y, z = space.lines[0]._verts3d
        own = ds["scores"].values[ds["walk_index"].values == 0]
        np.testing.assert_array_equal(np.stack([x, y, z], axis=1), own)
        assert space.get_xlabel().startswith("PC 1")
    for draw, kept in ((plots.pca_space, [1, 2]), (plots.pca_plane, [0, 2])):
        with pytest.raises(InputError, match=r"ds has no component \d, which is drawn; keep it"):
            draw(ds.isel(component=kept))
    with pytest.raises(InputError, match="ds has 2 components, and 3 are drawn; ask for more"):
        plots.pca_space(ds.isel(component=[1, 0]))
    assert kinds.names(ds.isel(component=[1, 2])) == ["explained-variance"]
    assert kinds.names(ds.isel(component=0)) == ["explained-variance"]
    with pytest.raises(InputError, match="plane=3; use one of"):
        plots.pca_space(ds.isel(plane=[0]))


def test_walks_of_which_no_point_is_left_are_not_drawn():
    ds = drawn.components()
    part = ds.isel(point=ds["walk_index"].values == 1)
    assert len(plots.scores_plane(part).texts) == 0
    assert len(plots.scores_plane(ds).texts) == 2
    # Nor are points of walks that were left out, and the colours are those of what is there.
    one = ds.isel(walk=[1])
    assert picture(one, "pca-2d") == picture(part.isel(walk=[1]), "pca-2d")


def test_components_are_taken_out_by_their_names():
    ds = drawn.components()
    ds = ds.isel(parameter=slice(0, 3))
    points = np.random.default_rng(0).standard_normal((4, 3))
    right = (points - ds["mean"].values) / ds["scale"].values @ ds["components"].values.T
    for given in (ds, ds.transpose(), ds.isel(component=[2, 0, 1])):
        np.testing.assert_array_equal(PCA.of(given).transform(points), right)
    with pytest.raises(InputError, match=r"cut principal components by a list or a slice"):
        PCA.of(ds.isel(component=0))


def test_null_models_are_those_of_the_walk_that_is_left():
    walks = [drawn.walk(0), drawn.walk(1).isel(snapshot=slice(0, 12))]
    ds = pca.along(walks, 3, null_models=True, n_simulations=19)
    expected = pca.null_models_of(ds, 1)
    for given in (ds.isel(walk=[1]), ds.isel(walk=[1]).transpose()):
        found = pca.null_models_of(given, 0)
        dims = ("model", "point", "component")
        xr.testing.assert_equal(found.transpose(*dims), expected.transpose(*dims))
    with pytest.raises(InputError, match="walk=0: ds holds no points of it; keep the points"):
        pca.null_models_of(ds.isel(walk=[0], point=ds["walk_index"].values == 1), 0)
    with pytest.raises(InputError, match="ds has no model 'brownian', which is drawn"):
        plots.null_models(expected.isel(model=[0, 2, 3]))


def test_pairs_of_snapshots_are_cut_along_both():
    ds = drawn.predictions()
    times = ds["snapshot_time"].values
    ds = ds.assign_coords(snapshot_time_other=("snapshot_other", times))
    for cut in ({"snapshot": [0, 2]}, {"snapshot": [0, 2, 1, 3, 4, 5]}):
        for draw in (plots.function_space, plots.matrices):
            with pytest.raises(InputError, match="cut it along both alike"):
                draw(ds.isel(cut))
    both = {"snapshot": [2, 0], "snapshot_other": [2, 0]}
    line = plots.function_distance(ds.isel(both)).lines[-1]
    assert line.get_ydata() == ds["output_distance"].sel(set="test").values[0, 2]


def test_a_slice_cut_to_a_line_or_without_its_walk():
    ds = drawn.slice_()
    for dim in ("alpha", "beta", "direction"):
        remedy = rf"keeps 2 or more of it, such as ds.isel\({dim}=\[0, 1\]\)"
        with pytest.raises(InputError, match=rf"1 of 2 points .* along '{dim}'; .* {remedy}"):
            plots.slice_figure(ds.isel({dim: [1]}))
        with pytest.raises(InputError, match=rf"there is no dimension '{dim}'; .* {remedy}"):
            plots.slice_figure(ds.isel({dim: 0}))
    nowhere = ds.isel(snapshot=[])
    for draw in (plots.slice_figure, plots.projections, plots.contours):
        with pytest.raises(InputError, match="nothing is left along 'snapshot'"):
            draw(nowhere)
    assert plots.contours(nowhere, walk=False).collections
    shuffled = ds.isel(alpha=np.random.default_rng(0).permutation(21))
    assert picture(shuffled, "slice") == right("slice")


def cut_walks():
    ds = drawn.walk()
    there = ds["snapshot_step"].values
    yield ds.isel(step=slice(10, None), snapshot=there >= 10)
    yield ds.isel(step=slice(None, None, 3))


def test_steps_and_snapshots_cut_apart_have_no_common_axis_of_steps():
    for ds in cut_walks():
        with pytest.raises(InputError, match="its snapshots name other steps than it has"):
            plots.paper_stack(ds)
        # Of steps alone there is but one axis.
        ax = plots.line(ds, "angle", plots.new_figure(3, 3).subplots(), x="step")
        np.testing.assert_array_equal(ax.lines[0].get_xdata(), np.arange(ds.sizes["step"]))
    ds = drawn.walk().isel(step=slice(None, None, -1))
    ax = plots.new_figure(3, 3).subplots()
    for draw in (plots.angle, plots.level_residual):
        with pytest.raises(InputError, match=r"order of time; give ds\.sortby"):
            draw(ds, ax, x="step")
    assert plots.angle(ds, ax, x="time").lines
    # Snapshots of a walk that ends in its midst are where they were.
    part = drawn.walk().isel(snapshot=[3, 5])
    axes = plots.paper_stack(part).axes
    np.testing.assert_array_equal(axes[2].lines[0].get_xdata(), part["snapshot_step"].values)


def ringed(ds):
    """Penalties of the ring in every panel, in which they are the same."""
    figure = plots.regularization_path(ds)
    rings = [
        tuple(line.get_xdata())
        for ax in figure.axes
        for line in ax.lines
        if line.get_label() == "end of its first walk"
    ]
    return set(rings)


def test_the_first_walk_of_a_path_is_ringed_where_it_is():
    ds = drawn.path()
    for given in (ds, ds.sortby("penalty"), ds.isel(level=slice(None, None, -1))):
        assert ringed(given) == {(2e-3,)}
    assert ringed(ds.isel(level=[2, 3])) == set()
    second = ds["method"].values.copy()
    second[2] = "walk"
    assert ringed(ds.assign(method=("level", second))) == {(2e-3,)}


def test_a_path_is_joined_as_it_was_reached_in_whatever_order_it_stands():
    ds = drawn.path()
    past = ["walk", "corrector", "corrector", "corrector", "arclength", "arclength"]
    ds = ds.assign(
        method=("level", np.array(past, object)),
        level=("level", 0.04 * 2.0 ** np.array([0, 1, 2, 3, 2.5, 1.5])),
    )
    right = plots.regularization_path(ds).axes[0].lines[0].get_xydata()
    for order in (slice(None, None, -1), [3, 0, 5, 1, 4, 2]):
        found = plots.regularization_path(ds.isel(level=order)).axes[0].lines[0].get_xydata()
        np.testing.assert_array_equal(found, right)
    # Past its fold alone, it is still a line.
    assert len(plots.regularization_path(ds.isel(level=[4, 5])).axes[0].lines[0].get_xdata()) == 2


def test_singular_values_are_of_whole_tensors():
    with pytest.raises(InputError, match=r"theta was cut, and dense\.weight is not whole"):
        plots.singular_values(drawn.path().isel(parameter=slice(0, 25)))


def test_levels_of_significance_are_written_with_their_digits():
    ds = drawn.periodogram().assign_coords(level=[0.995, 0.9995])
    texts = [t.get_text() for t in plots.significance(ds).get_legend().get_texts()]
    assert texts == ["99.5%", "99.95%", "99.5% at one frequency"]


def test_a_penalty_with_a_run_that_diverged_has_no_mean():
    ds = drawn.trainings(drawn.path())
    loss = ds["test_loss"].values.copy()
    loss[1, 1] = np.nan
    ax = plots.penalties(ds.assign(test_loss=(ds["test_loss"].dims, loss))).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.44, np.nan, 0.55, 9.9])
    said = "weight decay\n(1 of 4 left out: a run diverged)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [said]


def test_why_there_is_no_rate_stays_within_its_panel_and_above_the_points():
    ds = drawn.relaxation()
    why = "unresolved: the rate is uncertain by more than a factor of 4"
    ds = ds.assign(status=("scalar", [why, "no decay: it rises"]))
    for width in (3.5, 7.0):
        figure = plots.relaxations(ds, width=width)
        for ax in figure.axes:
            (text,) = (t for t in ax.texts if t.get_text())
            place, panel = text.get_window_extent(), ax.get_window_extent()
            assert panel.x0 <= place.x0 < place.x1 <= panel.x1
            points = ax.transData.transform(ax.lines[0].get_xydata())
            assert points[:, 1].max() < place.y0


def test_the_slope_of_the_smallest_eigenvalue_ends_with_the_walk():
    ds = drawn.relaxation()
    turned = ds.isel(sample=slice(None, None, -1))
    assert picture(turned, "relaxation") == right("relaxation")


@pytest.mark.parametrize("figure", ["regularization-path", "singular-values"])
def test_a_path_is_drawn_without_what_it_cost(figure):
    ds = drawn.path()
    for dropped in (["wall_time"], ["n_gradient"], ["wall_time", "n_gradient", "n_hvp"]):
        assert picture(ds.drop_vars(dropped), figure) == right(figure)
    assert picture(ds.drop_vars("method"), figure) == right(figure)
