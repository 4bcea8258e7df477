import numpy as np
import pytest

import drawn
from geoflow import baselines, cli, plots
from geoflow.archive import path_files
from geoflow.errors import InputError
from geoflow.plots import kinds
from geoflow.trajectories import path_dataset, path_schema


def test_what_is_drawn_is_a_path_of_the_schema():
    assert path_schema.defects(drawn.path()) == []


def test_each_panel_has_its_scalar_in_the_order_of_the_levels():
    ds = drawn.path()
    figure = plots.regularization_path(ds)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels[0] == "test loss"
    assert labels[1].startswith("test accuracy")
    assert labels[3] == "training loss = level"
    order = np.argsort(ds["level"].values)
    names = ("test_loss", "test_accuracy", "regularizer", "train_loss")
    for ax, name in zip(figure.axes, names, strict=True):
        curve, first = ax.lines
        values = ds[name].values * (100 if name == "test_accuracy" else 1)
        np.testing.assert_array_equal(curve.get_xdata(), ds["penalty"].values[order])
        np.testing.assert_array_equal(curve.get_ydata(), values[order])
        # The first point is that of the walk.
        assert (first.get_xdata()[0], first.get_ydata()[0]) == (ds["penalty"][0], values[0])
        assert ax.get_xscale() == "log"
    # The direction of more regularisation is said.
    assert "more regularisation" in figure.axes[-1].get_xlabel()


def test_weight_decay_stands_beside_the_path_where_it_has_the_same():
    ds = drawn.path()
    baseline = drawn.trainings(ds)
    loss, accuracy, r, _ = plots.regularization_path(ds, baseline).axes
    assert not accuracy.containers
    (drawn_loss,) = loss.containers
    # Zero has no place on the axis, and 1000 is far from the path.
    np.testing.assert_array_equal(drawn_loss.lines[0].get_xdata(), [1e-2, 1e-1])
    ends = baseline["test_loss"].values[1:3, :, 0]
    np.testing.assert_allclose(drawn_loss.lines[0].get_ydata(), ends.mean(axis=1))
    (bars,) = drawn_loss.lines[2]
    low, high = np.array(bars.get_segments())[:, :, 1].T
    np.testing.assert_allclose((high - low) / 2, ends.std(axis=1, ddof=1))
    # R is that of the path, of the weights alone, not the norm of all parameters.
    weights = baseline["theta"].values[1:3, :, :32]
    expected = (weights**2).sum(axis=2).mean(axis=1)
    np.testing.assert_allclose(r.containers[0].lines[0].get_ydata(), expected)


@pytest.mark.slow
def test_plot_takes_a_file_of_trainings(tmp_path, monkeypatch, capsys):
    ds, seen = drawn.path(), []
    path_files.save_path(ds, tmp_path / "path.nc")
    monkeypatch.setattr(baselines, "open_weight_decay", lambda names: drawn.trainings(ds))
    kept = kinds.save
    monkeypatch.setattr(
        kinds, "save", lambda figures, *a: seen.append(figures) or kept(figures, *a)
    )
    figures = ["--out", str(tmp_path / "figures"), "--baseline", "decay.nc"]
    assert cli.main(["plot", str(tmp_path / "path.nc"), *figures]) == 0
    loss, *_ = seen[0]["regularization-path"].axes
    assert len(loss.containers) == 1
    assert "regularization-path.png" in capsys.readouterr().out
    only = ["--kind", "singular-values", *figures]
    assert cli.main(["plot", str(tmp_path / "path.nc"), *only]) == 2
    assert "baseline: only 'regularization-path'" in capsys.readouterr().err


def test_a_path_round_a_fold_is_joined_along_its_arc():
    ds = drawn.path()
    n = ds.sizes["level"]
    level = np.array([2.0, 1.0, 3.0, 4.0, 3.0, 2.0, 0.5, *np.linspace(5, 9, n)])[:n]
    method = ["walk"] + ["corrector"] * (n - 1)
    ds = ds.assign_coords(level=("level", level))
    plain = path_dataset.order_along(ds.assign(method=("level", np.array(method, object))))
    np.testing.assert_array_equal(plain, np.argsort(level, kind="stable"))
    method[3] = method[4] = "arclength"
    turned = path_dataset.order_along(ds.assign(method=("level", np.array(method, object))))
    np.testing.assert_array_equal(turned[:5], [1, 0, 2, 3, 4])


def test_another_r_has_no_weight_decay_beside_it():
    ds = drawn.path().assign_attrs(regularizer_name="l1")
    with pytest.raises(InputError, match="baseline: R of the path is l1"):
        plots.regularization_path(ds, drawn.trainings(ds))


def test_trainings_of_another_network_are_not_drawn_beside_it():
    ds = drawn.path()
    trainings = drawn.trainings(ds)
    other = trainings.isel(parameter=slice(1, None))
    with pytest.raises(InputError, match="with 34 parameters, the path is of by formula with 35"):
        plots.regularization_path(ds, other)
    named = trainings.assign_attrs(experiment="another")
    with pytest.raises(InputError, match="its trainings are of another with 35"):
        plots.regularization_path(ds, named)


def test_singular_values_are_those_of_each_matrix_a_kernel_flattened():
    ds = drawn.path()
    conv, dense = plots.singular_values(ds).axes
    assert conv.get_title() == "conv.weight (4 × 1 × 1 × 5)"
    assert dense.get_title() == "dense.weight (4 × 3)"
    penalty = np.sort(ds["penalty"].values)
    fall = (2e-3 / penalty[:, None]) ** np.array([0.1, 0.5, 1.0])
    fall = np.sort(fall, axis=1)[:, ::-1]
    for ax, factor in ((conv, 1), (dense, 2)):
        drawn_values = np.array([line.get_ydata() for line in ax.lines]).T
        by_penalty = np.argsort(ax.lines[0].get_xdata())
        np.testing.assert_allclose(drawn_values[by_penalty], factor * fall)
    # A fourth is zero, and not drawn.
    assert len(conv.lines) == len(dense.lines) == 3


def test_a_path_without_matrices_has_no_singular_values_to_draw():
    bare = drawn.path().isel(tensor=[2])
    assert kinds.names(bare) == ["regularization-path"]
    with pytest.raises(InputError, match="none of its tensors has rows"):
        plots.singular_values(bare)
    for draw in (plots.regularization_path, plots.singular_values):
        with pytest.raises(InputError, match="ds is no regularisation path"):
            draw(drawn.walk())


def test_an_early_end_is_in_the_title():
    figure = plots.regularization_path(drawn.path(status="fold"))
    assert "6 levels, ended early: fold" in figure.get_suptitle()
    assert "ended early" not in plots.regularization_path(drawn.path()).get_suptitle()


def test_the_command_draws_a_file(tmp_path, capsys):
    path_files.save_path(drawn.path(), tmp_path / "path.nc")
    arguments = ["plot", str(tmp_path / "path.nc"), "--out", str(tmp_path / "figures")]
    assert cli.main(arguments) == cli.terminal.DONE
    written = {p.name for p in (tmp_path / "figures").glob("*.png")}
    assert written == {"path-regularization-path.png", "path-singular-values.png"}


def test_one_training_at_each_penalty_is_drawn_without_a_deviation():
    ds = drawn.path()
    one = drawn.trainings(ds).isel(run=[0])
    (bars,) = plots.penalties(one).axes[0].containers
    np.testing.assert_array_equal(bars.lines[0].get_ydata(), one["test_loss"].values[:, 0, 0])
    assert not bars.has_yerr
    (beside,) = plots.regularization_path(ds, one).axes[0].containers
    assert not beside.has_yerr
