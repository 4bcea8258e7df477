import numpy as np
import pytest

import geoflow as gf
import references
from geoflow import plots
from geoflow.analysis.curvature import spectra
from geoflow.analysis.networks import predictions
from geoflow.errors import InputError


@pytest.fixture(scope="module")
def walk():
    return gf.walk(references.small_network(), t_end=0.3, max_snapshots=3)


@pytest.fixture(scope="module")
def spectrum(walk):
    quick = {"k": 2, "n_trace": 6, "n_steps": 12, "n_probes": 2}
    flow = references.small_network()
    return spectra.along(walk, flow, operators=spectra.OPERATORS, **quick)


@pytest.fixture(scope="module")
def compared(walk):
    sets = {"train": references.small_data()[0], "test": references.small_data(20, seed=5)[0]}
    return predictions.along(walk, references.small_module(), sets, classification=True)


def drawn(axes):
    """All that the lines of some axes hold."""
    return [line.get_xydata() for ax in axes for line in ax.lines]


@pytest.mark.parametrize("order", [[-1, 1, 0], [1, 0, -1]])
def test_snapshots_asked_for_in_another_order_are_drawn_at_their_own_times(
    spectrum, compared, order
):
    rising = sorted(i % spectrum.sizes["snapshot"] for i in order)
    for draw, ds, pair in (
        (plots.waterfalls, spectrum, ["snapshot"]),
        (plots.extremes, spectrum, ["snapshot"]),
        (plots.function_space, compared, ["snapshot", "snapshot_other"]),
        (plots.matrices, compared, ["snapshot", "snapshot_other"]),
    ):
        one, other = (draw(ds.isel(dict.fromkeys(pair, i))) for i in (rising, order))
        found = zip(drawn(one.axes), drawn(other.axes), strict=True)
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in found)
        for a, b in zip(one.axes, other.axes, strict=True):
            assert all(
                np.array_equal(x.get_array(), y.get_array())
                for x, y in zip(a.images, b.images, strict=True)
            )


def test_snapshots_within_one_step_have_a_curve_each(spectrum):
    within = spectrum.assign_coords(snapshot_step=spectrum["snapshot_step"] * 0)
    ax = plots.waterfall(within)
    assert sum(len(line.get_xdata()) > 100 for line in ax.lines) == spectrum.sizes["snapshot"]


def test_a_waterfall_has_a_curve_a_snapshot_that_counts_every_eigenvalue(spectrum):
    ax = plots.waterfall(spectrum, "hessian")
    assert ax.get_xscale() == "asinh"
    n = spectrum.sizes["snapshot"]
    assert len(ax.get_yticks()) == n
    curves = [line for line in ax.lines if len(line.get_xdata()) > 100]
    marks = [line for line in ax.lines if line.get_marker() == "|"]
    assert len(curves) == n
    top = spectrum["largest_eigenvalue"].sel(operator="hessian")
    assert np.array_equal(marks[-2].get_xdata(), top[0])
    node = spectrum["node"].sel(operator="hessian")
    linear = plots.spectra.LINEAR * float(np.abs(node).max())
    bases = np.array(ax.get_yticks())
    for curve in curves:
        u = np.arcsinh(curve.get_xdata() / linear)
        height = curve.get_ydata() - bases[bases <= curve.get_ydata().min() + 1e-9].max()
        counts = plots.spectra.FLOOR * 10**height
        # Of 50 eigenvalues, but for what the floor adds.
        added = plots.spectra.FLOOR * (u[-1] - u[0])
        assert 49.9 <= np.trapezoid(counts, u) <= 50 + added


def test_every_operator_has_its_panel(spectrum):
    assert len(plots.waterfalls(spectrum).axes) == 3
    assert len(plots.waterfalls(spectrum, width=3.5).axes) == 3
    figure = plots.extremes(spectrum.sel(operator=["hessian"]))
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "largest eigenvalues",
        "smallest eigenvalues",
    ]
    unconverged = spectrum.assign(smallest_eigenvalue=np.nan * spectrum["smallest_eigenvalue"])
    assert len(plots.extremes(unconverged).axes) == 3


def test_function_distance_draws_every_pair(compared):
    ax = plots.function_distance(compared, "output_distance")
    n = compared.sizes["snapshot"]
    assert [len(line.get_xdata()) for line in ax.lines] == 2 * [n * (n - 1) // 2, n - 1]
    row = compared["output_distance"].sel(set="test")[0, 1:]
    assert np.array_equal(ax.lines[-1].get_ydata(), row)
    assert len(plots.function_space(compared).axes) == 3
    assert len(plots.function_space(compared[["output_distance", "parameter_distance"]]).axes) == 1
    assert sum(bool(ax.images) for ax in plots.matrices(compared).axes) == 4


def test_bad_input(spectrum, compared):
    with pytest.raises(InputError, match="operator='x'; choose from hessian, tangent"):
        plots.waterfall(spectrum, "x")
    with pytest.raises(InputError, match="geoflow spectrum"):
        plots.waterfalls(compared)
    with pytest.raises(InputError, match="geoflow predictions"):
        plots.function_space(spectrum)
    with pytest.raises(InputError, match="name='nothing'; choose from output_distance"):
        plots.function_distance(compared, "nothing")
