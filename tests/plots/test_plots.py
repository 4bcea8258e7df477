import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

import geoflow as gf
import references
from geoflow import plots
from geoflow.errors import InputError


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
