import json

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import geoflow as gf
import references
from geoflow import plots
from geoflow.errors import InputError
from geoflow.report import walks


@pytest.fixture(scope="module")
def ds():
    observables = {"test_loss": lambda t: float(t @ t), "test_accuracy": lambda t: 0.5}
    flow = references.small_network()
    return gf.walk(flow, "dopri5", t_end=0.2, stop=None, observables=observables)


def test_a_line_draws_the_values_of_its_scalar(ds):
    ax = plots.line(ds, "regularizer", Figure().subplots(), x="arc_length")
    assert np.array_equal(ax.lines[0].get_xdata(), ds["arc_length"])
    assert np.array_equal(ax.lines[0].get_ydata(), ds["regularizer"])
    ax = plots.line(ds, "test_accuracy", Figure().subplots())
    assert np.array_equal(ax.lines[0].get_ydata(), 100 * ds["test_accuracy"])
    assert ax.get_ylabel() == "test accuracy / %"


def test_the_residual_is_relative_and_beside_its_tolerance(ds):
    ax = plots.level_residual(ds, Figure().subplots())
    drawn = ax.lines[0].get_ydata()
    expected = np.abs(ds["level_residual"]) / ds.attrs["level"]
    assert np.array_equal(drawn[drawn > 0], expected[expected > 0])
    assert ax.lines[1].get_ydata()[0] == ds.attrs["level_rtol"]
    assert ax.get_yscale() == "log"


def two_constraints(**tolerances):
    """A walk on two levels whose mean is zero."""
    theta0 = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    losses = (lambda t: t[0] * t[1] - 1.5, lambda t: t[2] - 3.5)
    problems = [gf.Problem.from_function(loss, theta0) for loss in losses]
    level_set = gf.LevelSet(problems, **tolerances)
    flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    return gf.walk(flow, t_end=0.1, stop=None)


def test_of_several_constraints_the_worst_is_drawn_by_its_own_level_and_said():
    ds = two_constraints()
    assert ds.attrs["level"] == 0.0
    expected = (np.abs(ds["constraint_residual"]) / [0.5, 0.5]).max("constraint").values
    ax = plots.level_residual(ds, Figure().subplots())
    drawn = ax.lines[0].get_ydata()
    np.testing.assert_array_equal(drawn[expected > 0], expected[expected > 0])
    assert 0 < expected.max() <= ax.lines[1].get_ydata()[0] == ds.attrs["level_rtol"]
    assert ax.get_ylabel() == r"$\max_i\,|L_i-c_i|\,/\,c_i$"
    plots.overview(ds)
    said = f"each of the 2 constraints keeps to its level within {expected.max():.1e} of it"
    assert said in walks.sentence(ds)
    assert walks.worst_residual(ds) == expected.max()


@pytest.mark.parametrize("several", [True, False])
def test_with_an_absolute_tolerance_the_residual_is_a_part_of_the_whole_tolerance(several, ds):
    if several:
        ds = two_constraints(level_rtol=1e-10, level_atol=1e-3)
        allowed = 1e-10 * 0.5 + 1e-3
        expected = (np.abs(ds["constraint_residual"]) / allowed).max("constraint").values
    else:
        ds = ds.assign_attrs(config=json.dumps({"level_atol": 1e-3}))
        allowed = ds.attrs["level_rtol"] * ds.attrs["level"] + 1e-3
        expected = np.abs(ds["level_residual"]).values / allowed
    ax = plots.level_residual(ds, Figure().subplots())
    drawn = ax.lines[0].get_ydata()
    np.testing.assert_allclose(drawn[expected > 0], expected[expected > 0], rtol=1e-12)
    assert expected.max() <= ax.lines[1].get_ydata()[0] == 1.0
    assert ax.get_ylabel().endswith("tolerance")


def test_the_stack_has_the_papers_four_panels_and_takes_several_walks(ds):
    figure = plots.paper_stack([ds, ds])
    assert len(figure.axes) == 4
    assert [ax.get_ylabel().split()[0] for ax in figure.axes[2:]] == ["test", "test"]
    assert figure.axes[-1].get_xlabel() == "step"


def test_figures_without_observables_leave_their_panels_out(ds):
    bare = ds.drop_vars(["test_loss", "test_accuracy"])
    assert len(plots.overview(bare).axes) == 3
    assert len(plots.overview(ds.drop_vars("test_accuracy")).axes) == 4
    assert len(plots.paper_stack(bare).axes) == 2


def test_nothing_global_changes(ds):
    before = {name: mpl.rcParams[name] for name in plots.STYLE}
    plots.overview(ds)
    assert {name: mpl.rcParams[name] for name in plots.STYLE} == before


def test_bad_input(ds, tmp_path):
    with pytest.raises(InputError, match="'theta' is not a scalar"):
        plots.line(ds, "theta", Figure().subplots())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        plots.save_figures(ds, tmp_path / "file", "x")
