"""What is in a dataset is seen in its figure: every value, every panel, every name."""

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import drawn
from geoflow import plots
from geoflow.errors import InputError
from geoflow.plots import styles, trajectory


def gaps(values, every=2):
    """The same with every so many values kept, the others not known."""
    return np.where(np.arange(len(values)) % every == 0, values, np.nan)


def lone(ax):
    """Coordinates of the points that are drawn by themselves, one after the other."""
    lines = [n for n in ax.lines if n.get_marker() == "o" and n.get_linestyle() == "None"]
    return np.concatenate([n.get_xydata() for n in lines] or [np.empty((0, 2))])


def of_steps(name, every=2):
    ds = drawn.walk()
    return ds.assign({name: ("step", gaps(ds[name].values, every))})


@pytest.mark.parametrize("every", [2, 3])
def test_values_between_unknown_ones_are_points(every):
    ds = of_steps("regularizer", every)
    ax = plots.line(ds, "regularizer", Figure().subplots(), color="#D55E00")
    there = np.isfinite(ds["regularizer"].values)
    expected = np.column_stack([ds["time"].values[there], ds["regularizer"].values[there]])
    np.testing.assert_array_equal(lone(ax), expected)
    assert ax.lines[1].get_color() == "#D55E00"


def test_only_points_that_no_line_shows_are_marked():
    ds = drawn.walk()
    assert len(plots.line(ds, "regularizer", Figure().subplots()).lines) == 1
    values = ds["regularizer"].values.copy()
    values[[3, 5]] = np.nan
    ax = plots.line(ds.assign(regularizer=("step", values)), "regularizer", Figure().subplots())
    np.testing.assert_array_equal(lone(ax), [[ds["time"][4], values[4]]])


def test_an_observable_evaluated_now_and_then_is_seen_among_runs():
    ds = drawn.walk()
    ds = ds.assign(test_loss=("snapshot", gaps(ds["test_loss"].values)))
    there = np.isfinite(ds["test_loss"].values)
    expected = np.column_stack([ds["snapshot_time"], ds["test_loss"]])[there]
    ax = plots.sweep_stack([ds], drawn.ensemble(2)).axes[2]
    np.testing.assert_array_equal(lone(ax), expected)


def test_an_accuracy_that_is_not_always_known_has_the_axis_of_what_is():
    ds = drawn.walk()
    half = ds.assign(test_accuracy=("snapshot", np.where(np.arange(20) % 2, np.nan, 0.5)))
    low, high = plots.line(half, "test_accuracy", Figure().subplots()).get_ylim()
    assert low <= 49
    assert high >= 51
    never = ds.assign(test_accuracy=("snapshot", np.full(20, np.nan)))
    plots.line(never, "test_accuracy", Figure().subplots())


def test_a_walk_of_one_step_is_a_point():
    ds = drawn.walk().isel(step=[0], snapshot=[0])
    angle, r = plots.overview(ds).axes[:2]
    np.testing.assert_array_equal(lone(angle), [[0, 91]])
    np.testing.assert_array_equal(lone(r), [[0, 325]])


def test_runs_of_an_ensemble_that_are_not_always_known_are_points():
    ds = drawn.ensemble(2)
    ds = ds.assign(test_loss=(("run", "time"), np.stack([gaps(v) for v in ds["test_loss"].values])))
    ax = plots.ensemble(ds, ["test_loss"]).axes[0]
    known = ds["test_loss"].values[:, ::2]
    expected = np.concatenate([*known, known.mean(axis=0)])
    np.testing.assert_allclose(lone(ax)[:, 1], expected)


@pytest.mark.parametrize("n", [15, 31])
def test_an_ensemble_draws_as_many_scalars_as_are_asked_for(n):
    ds = drawn.ensemble(2)
    ds = ds.assign({f"x{i}": ds["angle"] + i for i in range(n)})
    axes = plots.ensemble(ds, [f"x{i}" for i in range(n)], width=7.0).axes
    assert [ax.get_ylabel() for ax in axes] == [f"x{i}" for i in range(n)]
    for i, ax in enumerate(axes):
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), ds["angle"].values[0] + i)


def test_a_path_draws_as_many_observables_as_there_are():
    ds = drawn.path()
    ds = ds.assign({f"x{i:02}": ds["test_loss"] + i for i in range(30)})
    axes = plots.regularization_path(ds).axes
    assert len(axes) == 34
    assert all(ax.get_ylabel() and ax.lines for ax in axes)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_the_lowest_panel_of_every_column_has_numbers_and_a_label(n):
    names = ["angle", "regularizer", "test_loss", "test_accuracy"][:n]
    axes = plots.ensemble(drawn.ensemble(2), names, width=7.0).axes
    assert len(axes) == n
    lowest = axes[-2:]
    assert all(ax.get_xlabel().startswith("flow time") for ax in lowest)
    assert all(ax.xaxis.get_tick_params()["labelbottom"] for ax in lowest)
    assert not any(ax.get_xlabel() for ax in axes[:-2])


def from_to(first, last):
    return drawn.walk().assign(angle=("step", np.linspace(first, last, drawn.N)))


@pytest.mark.parametrize(
    ("first", "ticks"),
    [(91, [90, 120, 150, 180]), (88, [90, 120, 150, 180]), (54, [60, 90, 120, 150, 180])],
)
def test_an_angle_is_numbered_as_far_as_it_goes(first, ticks):
    ax = plots.angle(from_to(first, 175), Figure().subplots())
    np.testing.assert_array_equal(ax.get_yticks(), ticks)
    assert ax.get_ylim() == (min(first - 2, 89), 183)


def test_of_several_walks_the_angle_is_seen_of_each():
    walks = [from_to(54, 0), from_to(93, 175)]
    for axes in (plots.paper_stack(walks).axes, plots.sweep_stack(walks, None).axes):
        assert axes[0].get_ylim() == (-2, 183)
        np.testing.assert_array_equal(axes[0].get_yticks(), np.arange(0, 181, 30))


def numbers(figure):
    """The labels of the ticks of the lowest panels, in inches: left, right, one list a panel."""
    figure.draw_without_rendering()
    found = []
    for ax in figure.axes:
        if ax.get_xlabel():
            labels = [t for t in ax.get_xticklabels() if t.get_text()]
            inside = [t for t in labels if ax.get_xlim()[0] <= t.get_position()[0]]
            inside = [t for t in inside if t.get_position()[0] <= ax.get_xlim()[1]]
            found.append(sorted(tuple(t.get_window_extent().intervalx) for t in inside))
    return found


@pytest.mark.parametrize("width", [3.5, 7.0])
@pytest.mark.parametrize(
    ("low", "high"),
    [
        (4.2e-4, 7.9e-4),
        (2e-4, 1.9e-2),
        *(
            pytest.param(low, high, marks=pytest.mark.slow)
            for low, high in [(4e-4, 4e-4), (3e-4, 2e-3), (1e-7, 6e-6)]
        ),
    ],
)
def test_the_numbers_of_penalties_stand_apart(low, high, width):
    ds = drawn.path()
    ds = ds.assign(penalty=("level", np.geomspace(low, high, 6)))
    ds = ds.assign({f"x{i}": ds["test_loss"] for i in range(3)})
    for figure in (plots.regularization_path(ds, width=width), plots.singular_values(ds, width)):
        for places in numbers(figure):
            assert len(places) > 1
            assert all(a[1] < b[0] for a, b in pairwise(places))


def test_an_accuracy_along_a_path_that_is_not_known_leaves_its_panel_empty():
    ds = drawn.path()
    ds = ds.assign(test_accuracy=("level", np.full(6, np.nan)))
    loss, accuracy, *_ = plots.regularization_path(ds).axes
    assert np.isfinite(loss.lines[0].get_ydata()).all()
    assert accuracy.get_ylabel() == "test accuracy / %"


def test_trainings_that_all_diverged_leave_no_mean_and_no_line():
    trained = drawn.trainings(drawn.path())
    trained = trained.assign(test_loss=np.nan * trained["test_loss"])
    never = drawn.walk().assign(test_loss=("snapshot", np.full(20, np.nan)))
    ax = plots.penalties(trained, [never]).axes[0]
    said = "weight decay\n(4 of 4 left out: a run diverged)"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [said]


def test_an_operator_of_which_nothing_converged_is_said_to_have_none():
    ds = drawn.spectra()
    values = ds["largest_eigenvalue"].values.copy()
    values[:, 1] = np.nan
    figure = plots.extremes(ds.assign(largest_eigenvalue=(ds["largest_eigenvalue"].dims, values)))
    assert [t.get_text() for ax in figure.axes for t in ax.texts] == ["none converged"]


LONG = "a_name_of_an_observable_that_goes_on_for_longer_than_any_axis_is_high_or_wide_" * 2


def test_long_names_are_in_lines_and_short_ones_as_they_are():
    assert styles.axis_label("a_short_name") == "a short name"
    assert styles.wrapped("x" * 24, 24) == "x" * 24
    label = styles.axis_label(LONG)
    lines = label.splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 24
    assert label.startswith("a name of an observable\nthat goes on")
    assert label.endswith("…")
    assert styles.axis_label("loss_in_$_of_the_whole_portfolio").count(r"\$") == 1


def test_titles_with_long_names_stay_within_their_figure():
    ds = drawn.periodogram()
    ds = ds.assign_coords(scalar=["angle", LONG])
    figure = plots.periodograms(ds, width=3.5)
    figure.draw_without_rendering()
    for ax in figure.axes:
        place = ax.title.get_window_extent()
        assert place.x0 >= 0
        assert place.x1 <= figure.bbox.x1


def test_a_single_component_is_numbered_by_a_whole_number():
    ds = drawn.components().isel(component=[0])
    ax = plots.explained_variance(ds)
    assert [x for x in ax.get_xticks() if 0.5 < x < 1.5] == [1]
    whole = ds.assign(explained_variance_ratio=("component", [1.0]))
    low, high = plots.explained_variance(whole).get_ylim()
    assert low < 1 < high


def test_names_of_peaks_do_not_stand_on_each_other():
    ds = drawn.periodogram()
    f, power = ds["frequency"].values, ds["power"].values.copy()
    for at, over in ((10.0, 30), (10.6, 25), (18.0, 20)):
        k = np.argmin(abs(f - at))
        power[0, k] = over * ds["red_noise"].values[0, k]
    ax = plots.periodogram(ds.assign(power=(ds["power"].dims, power)))
    assert [round(float(text.get_text())) for text in ax.texts] == [10, 18]


def test_maps_of_distances_name_their_colours_and_their_axes():
    figure = plots.matrices(drawn.predictions())
    bars = [ax.get_xlabel() for ax in figure.axes[4:]]
    assert bars == [
        "RMS\ndifference of outputs",
        "Jensen–Shannon\ndivergence / bit",
        "disagreement / %",
        r"$\|\theta_i - \theta_j\|$",
    ]
    assert [ax.get_xlabel() for ax in figure.axes[:4]] == ["flow time $t$"] * 4
    assert [ax.get_ylabel() for ax in figure.axes[:4]] == ["flow time $t$", "", "", ""]


def agreeing(snapshots):
    """So many snapshots of networks that agree on every class."""
    ds = drawn.predictions()
    numbers = np.linspace(0, ds.sizes["snapshot"] - 1, snapshots).round().astype(int)
    numbers = np.sort(np.resize(numbers, snapshots))
    many = ds.isel(snapshot=numbers, snapshot_other=numbers)
    times = np.geomspace(1e-3, 1.9, snapshots) - 1e-3
    many = many.assign_coords(snapshot_time=("snapshot", times))
    return many.assign(disagreement=xr.zeros_like(many["disagreement"]))


@pytest.mark.parametrize("width", [3.5, 7.0])
def test_labels_of_maps_are_within_the_picture_and_on_nothing_else(width):
    figure = plots.matrices(agreeing(24), width=width)
    figure.canvas.draw()
    whole = figure.bbox
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            label = axis.label.get_window_extent()
            if not axis.label.get_text():
                continue
            assert whole.x0 <= label.x0
            assert whole.y0 <= label.y0
            assert label.x1 <= whole.x1
            for other in figure.axes:
                ticks = [*other.get_xticklabels(), *other.get_yticklabels()]
                boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
                assert not any(label.overlaps(box) for box in boxes)


@pytest.mark.slow
def test_what_never_differs_has_no_negative_difference():
    same = agreeing(5)
    figure = plots.matrices(same)
    assert {image.get_clim()[0] for ax in figure.axes for image in ax.get_images()} == {0}
    maps = plots.function_space(same)
    assert maps.axes[2].get_ylim() == (0, 1)


def test_the_legend_of_all_panels_has_the_colour_of_none():
    figure = plots.regularization_path(drawn.path())
    (legend,) = figure.legends
    own = {line.get_color() for ax in figure.axes for line in ax.get_lines()}
    assert len(own) > 1
    assert {line.get_color() for line in legend.get_lines()} == {"black"}


@pytest.mark.parametrize(
    "draw",
    [plots.function_distance, plots.function_space, plots.matrices],
    ids=lambda f: f.__name__,
)
def test_one_snapshot_has_no_distance(draw):
    one = drawn.predictions().isel(snapshot=[0], snapshot_other=[0])
    with pytest.raises(InputError, match="one snapshot, which has no distance; give two"):
        draw(one)


def test_a_title_says_r_and_dtype_where_they_are_not_the_usual_ones():
    usual = drawn.walk().assign_attrs(regularizer_name="squared_norm", dtype="float64")
    assert trajectory.title(usual) == "by formula, seed 0: exact, rtol 0.001"
    other = usual.assign_attrs(regularizer_name="l1", dtype="float32")
    assert trajectory.title(other) == "by formula, seed 0: exact, rtol 0.001, float32\nR = l1"
    of_some = usual.assign_attrs(regularizer_name="squared_norm:tensors=*.weight")
    assert trajectory.title(of_some).endswith("\nR = squared_norm:tensors=*.weight")


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([{"seed": 0}, {"seed": 3}], ["seed 0", "seed 3"]),
        ([{"seed": -1}, {"seed": -1}], ["walk 1", "walk 2"]),
        ([{"solver": "bdf"}, {"solver": "rkc"}], ["bdf", "rkc"]),
        (
            [{"regularizer_name": "l1"}, {"regularizer_name": "l1", "seed": 1}],
            ["seed 0", "seed 1"],
        ),
        (
            [{"solver": "a"}, {"solver": "a"}, {"solver": "b", "rtol": 1e-4}],
            ["walk 1, a, rtol 0.001", "walk 2, a, rtol 0.001", "walk 3, b, rtol 0.0001"],
        ),
        ([{}], []),
        ([{}] * 8, []),
    ],
)
def test_several_walks_in_a_stack_are_named_by_what_they_differ_in(changes, names):
    figure = plots.paper_stack([drawn.walk().assign_attrs(change) for change in changes])
    shown = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert shown == names


def of_seeds(*seeds):
    """Principal components of two walks, by the seeds they are said to have."""
    ds = drawn.components()
    return ds.assign(seed=("point", np.array(seeds)[ds["walk_index"].values]))


@pytest.mark.parametrize(
    ("seeds", "short", "long"),
    [
        ((0, 1), ["0", "1"], ["seed 0", "seed 1"]),
        ((-1, -1), ["walk 1", "walk 2"], ["walk 1", "walk 2"]),
        ((-1, 7), ["walk 1", "7"], ["walk 1", "seed 7"]),
    ],
)
def test_walks_without_a_seed_are_told_apart_by_their_place(seeds, short, long):
    ds = of_seeds(*seeds)
    for draw in (plots.scores_plane, plots.off_plane):
        assert [t.get_text().strip() for t in draw(ds).texts] == short
    legend = plots.pca_space(ds).subfigs[0].legends[0]
    names = [t.get_text() for t in legend.get_texts()]
    assert names == ["start", *(f"{name}, mean of its points" for name in long)]


def test_every_mark_in_the_space_of_components_is_drawn():
    ds = drawn.components()
    marks = {f"mark {i}": ds["scores"].values[i] for i in range(10)}
    legend = plots.pca_space(ds, marks).subfigs[0].legends[0]
    names = [t.get_text() for t in legend.get_texts()]
    assert [name for name in names if name in marks] == list(marks)


def test_ticks_of_a_waterfall_have_no_negative_zero():
    # A range of which the linear part ends between 1/10 and 1.
    ds = drawn.spectra()
    of_hessian = np.abs(ds["node"].sel(operator="hessian"))
    scaled = ds.assign(node=ds["node"] * (500 / float(of_hessian.max())))
    texts = [t.get_text() for t in plots.waterfall(scaled).get_xticklabels()]
    assert "$10^{0}$" in texts
    assert not any("{-0}" in text for text in texts)
