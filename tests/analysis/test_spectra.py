"""Spectra along a walk, beside dense ones."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from curvatures import dense_hessian, dense_tangent, diagonal
from geoflow.analysis import gauss_newton
from geoflow.analysis.curvature import spectra
from geoflow.analysis.curvature.matrix_free import extreme_eigenvalues
from geoflow.analysis.walked import loss_rtol, snapshot_indices
from geoflow.errors import InputError


def test_along_a_walk(network):
    ds = gf.walk(network, t_end=0.2, max_snapshots=6)
    found = spectra.along(ds, network, snapshots=[0, -1], k=3, n_trace=12, n_steps=20, n_probes=3)
    last = ds.sizes["snapshot"] - 1
    assert found["snapshot_time"].values.tolist() == ds["snapshot_time"].values[[0, last]].tolist()
    assert found["dimension"].values.tolist() == [50, 49]
    assert all({"units", "long_name"} <= set(v.attrs) for v in found.variables.values())
    for i, snapshot in enumerate((0, last)):
        theta = torch.from_numpy(ds["theta"].values[snapshot])
        state = network.evaluate(theta)
        for name, matrix in (
            ("hessian", dense_hessian(network.problem, theta)),
            ("tangent", dense_tangent(network, theta)),
        ):
            here = found.isel(snapshot=i).sel(operator=name)
            exact = np.linalg.eigvalsh(matrix)
            scale = np.abs(exact).max()
            assert np.abs(here["largest_eigenvalue"] - exact[::-1][:3]).max() < 1e-6 * scale
            assert np.abs(here["smallest_eigenvalue"] - exact[:3]).max() < 1e-6 * scale
            # Six standard errors of four samples are rarely passed.
            assert abs(here["trace"] - np.trace(matrix)) < 6 * here["trace_error"]
            assert np.trapezoid(here["density"], here["abscissa"]) == pytest.approx(1, abs=1e-6)
        vectors = np.linalg.eigh(dense_hessian(network.problem, theta))[1][:, -3:]
        velocity = state.velocity.numpy() / state.tangent_norm
        expected = ((vectors.T @ velocity) ** 2).sum()
        measured = found["velocity_overlap"].isel(snapshot=i).sel(operator="hessian")
        assert float(measured) == pytest.approx(expected, abs=1e-6)
        assert float(found["multiplier"][i]) == state.multiplier
    again = spectra.along(ds, network, snapshots=[0, -1], k=3, n_trace=12, n_steps=20, n_probes=3)
    assert found.equals(again)


@pytest.mark.parametrize("scale", [1.0, 1e-160, 1e-200, 1e200])
def test_the_overlap_is_that_of_a_velocity_of_another_size(scale):
    velocity = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64) * scale
    state = SimpleNamespace(velocity=velocity)
    found = spectra.overlap(diagonal([1.0, 2.0, 3.0]), np.eye(3)[:, 2:], state)
    assert found == pytest.approx(0.64, rel=1e-14)


def test_along_a_walk_of_few_parameters_has_every_eigenvalue():
    """The tangent space has a dimension less than θ: fewer Lanczos steps reach all of it."""
    problem = gf.Problem.from_function(
        lambda theta: 0.5 * torch.dot(theta, torch.arange(1.0, 6.0, dtype=theta.dtype) * theta),
        torch.full((5,), 0.5, dtype=torch.float64),
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, t_end=0.05)
    found = spectra.along(ds, flow, snapshots=[-1], k=1, n_probes=2)
    nodes, weights = found["node"].isel(snapshot=0), found["weight"].isel(snapshot=0)
    assert nodes.sizes == {"operator": 2, "probe": 2, "lanczos": 5}
    np.testing.assert_allclose(weights.sum("lanczos"), 1, rtol=1e-12)
    np.testing.assert_allclose(nodes.sel(operator="hessian"), [np.arange(1, 6)] * 2, rtol=1e-10)
    dense = np.linalg.eigvalsh(dense_tangent(flow, torch.from_numpy(ds["theta"].values[-1])))
    tangent = nodes.sel(operator="tangent")
    np.testing.assert_allclose(tangent[:, :4], [dense] * 2, rtol=1e-8)
    assert np.isnan(tangent[:, 4]).all()


def test_float32_finds_the_same(network):
    single = references.small_network(dtype=torch.float32)
    flow = gf.RegularizingFlow(gf.LevelSet(single.problem, level_rtol=1e-5), single.regularizer)
    quick = {"snapshots": [0], "k": 3, "n_trace": 6, "n_steps": 10, "n_probes": 2}
    found = [
        spectra.along(gf.walk(f, t_end=0.02, max_snapshots=2), f, **quick) for f in (flow, network)
    ]
    for name in ("largest_eigenvalue", "smallest_eigenvalue"):
        a, b = (f[name].sel(operator="tangent").values for f in found)
        scale = float(found[1]["largest_eigenvalue"].max())
        assert np.allclose(a, b, atol=1e-5 * scale)


def test_along_says_what_is_wrong(network):
    ds = gf.walk(network, t_end=0.05, max_snapshots=3)
    other = references.ellipsoid()
    with pytest.raises(InputError, match="4 parameters and ds 50"):
        spectra.along(ds, other)
    moved = ds.assign(train_loss=ds["train_loss"] * 1.01)
    with pytest.raises(InputError, match="give the flow of this walk"):
        spectra.along(moved, network)
    with pytest.raises(InputError, match="9 is not there"):
        spectra.along(ds, network, snapshots=[9])
    with pytest.raises(InputError, match="choose from hessian, tangent, gauss_newton"):
        spectra.along(ds, network, operators=["gauss"])
    curve = gf.walk(other, t_end=0.02, max_snapshots=2)
    with pytest.raises(InputError, match="from_module"):
        spectra.along(curve, other, operators=["gauss_newton"])


def test_gauss_newton_stands_beside_the_hessian(network):
    problem = network.problem
    ds = gf.walk(network, t_end=0.02, max_snapshots=2)
    quick = {"k": 2, "n_trace": 6, "n_steps": 10, "n_probes": 2, "tol": 1e-10}
    found = spectra.along(ds, network, operators=spectra.OPERATORS, **quick)
    assert found.attrs["kind"] == "spectra"
    row = found.isel(snapshot=0).sel(operator="gauss_newton")
    at_start = torch.from_numpy(ds["theta"].values[0])
    exact = np.linalg.eigvalsh(gauss_newton(problem, at_start).dense())
    assert np.abs(row["largest_eigenvalue"].values - exact[::-1][:2]).max() < 1e-8
    # The two logits of 24 examples: of 50 dimensions at least two are the null space.
    assert np.allclose(exact[:2], 0, atol=1e-14)
    assert (row["smallest_eigenvalue"] == 0).all()
    assert (row["smallest_residual"] <= 2e-3 * exact[-1]).all()


def test_spectra_that_would_not_fit_are_refused_before_the_first_product(network, monkeypatch):
    ds = gf.walk(network, t_end=0.05, max_snapshots=3)
    cost = {"k": 3, "n_steps": 64, "n_trace": 12}
    needed = spectra.spectrum_bytes(network, cost)
    some = spectra.spectrum_bytes(network, cost, [network.problem.tensors[0].name])
    assert some < needed
    # Of 64 steps no more are made than there are dimensions, and each keeps a vector.
    assert needed > network.problem.n_parameters * 8 * network.problem.n_parameters
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda device: needed - 1)
    before = network.problem.counts
    with pytest.raises(InputError, match=r"k=3, n_steps=64, n_trace=12: the vectors of 50 param"):
        spectra.along(ds, network, snapshots=[-1], n_probes=2, n_points=2, **cost)
    assert network.problem.counts == before
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda device: needed)
    spectra.along(ds, network, snapshots=[-1], n_probes=2, n_points=2, **cost)


@pytest.mark.parametrize("max_products", [0, -5])
def test_a_budget_without_a_product_is_refused_before_the_first(network, max_products):
    ds = gf.walk(network, t_end=0.02, max_snapshots=2)
    before = network.problem.counts
    with pytest.raises(InputError, match=f"max_products={max_products}; use a positive number"):
        spectra.along(ds, network, max_products=max_products)
    assert network.problem.counts == before


def test_spectra_do_not_replace_their_own_walk(network, tmp_path):
    file = tmp_path / "walk.nc"
    gf.walk(network, t_end=0.1, archive=file)
    before = file.read_bytes()
    quick = {"snapshots": [0], "k": 1, "n_trace": 6, "n_steps": 12, "n_probes": 2}
    with gf.open_trajectory(file) as ds:
        with pytest.raises(InputError, match=r"archive .* it is made of this file"):
            spectra.along(ds, network, archive=file, overwrite=True, **quick)
        kept = {"archive": tmp_path / "spectra.nc", "overwrite": True}
        spectra.along(ds, network, **kept, **quick)
        # Its own result it may.
        spectra.along(ds, network, **kept, **quick)
    assert file.read_bytes() == before


@pytest.mark.parametrize(("least", "smallest"), [(-0.5, [-0.5, 0.0]), (0.5, [0.0, 0.0])])
def test_beside_many_zeros_what_is_below_them_is_found_all_the_same(least, smallest):
    operator = replace(diagonal([1.0, 0.7, 0.6, least, *[0.0] * 20]), nullity=20)
    limits = {"tol": 1e-8, "max_products": 1000, "seed": 0}
    largest = extreme_eigenvalues(operator, 2, which="largest", **limits)
    values, residuals = spectra._smallest(operator, 2, largest, limits)
    assert np.allclose(values, smallest, atol=1e-6)
    assert (residuals <= 2e-3).all()


def test_snapshots_are_chosen_once_and_evenly(network):
    times = np.linspace(0, 0.5, 9)
    ds = gf.walk(network, t_end=0.5, stop=None, snapshot_times=times)
    assert snapshot_indices(ds, [0, -9, 1], 5) == [0, 1]
    assert snapshot_indices(ds, None, 4) == [0, 3, 5, 8]
    # θ that is kept in single precision has its loss to that.
    rounded = ds.assign(theta=ds["theta"].astype(np.float32))
    assert loss_rtol(ds, network.problem) == 1e-8
    assert loss_rtol(rounded, network.problem) == 1e-3


def of_batches():
    """A loss of a network, and not of outputs that are known."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def batch_loss(network, batch):
        return (network(batch) - batch.sum(1, keepdim=True)).square().sum(), len(batch)

    problem = gf.Problem.from_batches(module, batch_loss, [x])
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


class Bent(torch.autograd.Function):
    """The square, whose derivative has another derivative than its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return slope * 2 * x.detach()


def of_a_bent_loss():
    module = references.small_network().problem._parts[0].module
    inputs, targets = references.small_data()
    problem = gf.Problem.from_module(
        module, lambda o, t: Bent.apply(o).mean() + o[:, 0].mean(), inputs, targets
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


@pytest.mark.parametrize(
    ("make", "said", "most"),
    [(of_batches, "make it with Problem.from_module", 0), (of_a_bent_loss, "second deriv", 3)],
)
@pytest.mark.filterwarnings("ignore:loss")
def test_what_a_later_operator_cannot_do_is_said_before_the_work(make, said, most, tmp_path):
    """No snapshot is kept before all its operators are done, so the work would be lost."""
    flow = make()
    ds = gf.walk(flow, stop=None, t_end=0.01, max_snapshots=2)
    before = flow.problem.counts["hvp"]
    file = tmp_path / "spectra.nc"
    with pytest.raises(InputError, match=said):
        spectra.along(ds, flow, operators=spectra.OPERATORS, archive=file)
    assert flow.problem.counts["hvp"] - before <= most
    assert not list(tmp_path.iterdir())


def test_a_gauss_newton_matrix_is_of_one_loss_and_not_of_several(network):
    second = references.small_network(batch_size=7).problem
    both = gf.LevelSet([network.problem, second], level=[None, None])
    with pytest.raises(InputError, match=r"several constraints, and .*; take it of one of their"):
        gauss_newton(both.problem, second.theta0)
    for problem in (network.problem, second):
        assert gauss_newton(problem, second.theta0).size == 50
