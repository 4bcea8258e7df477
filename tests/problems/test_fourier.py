"""Fourier layers, whose real weights are viewed as complex numbers, wherever they are in θ."""

import copy

import numpy as np
import pytest
import torch
from networks import LABELS, X, classify, mlp
from torch import nn
from torch.func import functional_call
from user_modules import Fourier, seeded

import geoflow as gf
from geoflow.analysis import predictions, spectra
from geoflow.analysis.landscape import slices
from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import OwnFunction

MODULE = seeded(Fourier)


def problem_of(**options):
    return gf.Problem.from_module(MODULE, classify, X, LABELS, **options)


def plain_loss(theta):
    """The same in plain torch, of tensors in memory of their own."""
    parts = theta.split([p.numel() for p in MODULE.parameters()])
    named = zip(MODULE.named_parameters(), parts, strict=True)
    tensors = {n: 1.0 * t.view(p.shape) for (n, p), t in named}
    return classify(functional_call(copy.deepcopy(MODULE).double(), tensors, (X.double(),)), LABELS)


def rows_at_odd_places(problem):
    n = problem.n_parameters
    rows = torch.randn(4, n + 1 - n % 2, generator=torch.Generator().manual_seed(3))
    rows = rows.to(problem.dtype)[:, :n]
    assert [row.storage_offset() % 2 for row in rows] == [0, 1, 0, 1]
    return rows


def test_the_weight_begins_at_an_odd_place():
    assert {t.name: t.offset for t in problem_of().tensors}["weight"] % 2 == 1


@pytest.mark.parametrize("batch_size", [None, 7])
def test_points_and_vectors_may_be_rows_of_a_matrix(batch_size):
    problem = problem_of(batch_size=batch_size)
    theta0, rows = problem.theta0, rows_at_odd_places(problem)
    hessian = torch.autograd.functional.hessian(plain_loss, theta0)
    for row in rows:
        assert float(problem.loss(row)) == pytest.approx(float(plain_loss(row)), rel=1e-13)
        assert problem.value_and_gradient(row)[0] == problem.loss(row)
        torch.testing.assert_close(problem.hvp(theta0, row), hessian @ row, rtol=1e-11, atol=1e-13)
        assert torch.equal(
            problem.gauss_newton_product(theta0, row),
            problem.gauss_newton_product(theta0, row.clone()),
        )


def test_several_points_at_once_are_one_by_one():
    problem = problem_of()
    rows = rows_at_odd_places(problem)
    one_by_one = torch.stack([problem.loss(row) for row in rows])
    torch.testing.assert_close(problem.losses(rows), one_by_one, rtol=1e-14, atol=0)


def test_the_loss_of_a_point_has_first_and_second_derivatives_in_it():
    problem = problem_of()
    _, theta, _, v = rows_at_odd_places(problem)
    variable = theta.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(problem.loss(variable), variable, create_graph=True)
    expected = problem.value_and_gradient(theta)[1]
    torch.testing.assert_close(gradient.detach(), expected, rtol=1e-13, atol=1e-15)
    (product,) = torch.autograd.grad(gradient, variable, v)
    torch.testing.assert_close(product, problem.hvp(theta, v), rtol=1e-12, atol=1e-14)


def test_a_networks_outputs_and_a_users_own_slices_may_be_an_r():
    problem = problem_of()
    rows, net = rows_at_odd_places(problem), copy.deepcopy(MODULE).double()

    def of_outputs(theta):
        return functional_call(net, problem.unflatten(theta), (X.double(),)).square().sum()

    def of_slices(theta):
        pairs = theta[:24].view(4, 3, 2)
        return torch.view_as_complex(pairs).abs().pow(3).sum() + theta @ theta

    for regularizer in (of_outputs, of_slices):
        product = OwnFunction(regularizer, problem).hessian(problem.theta0)
        for row in rows:
            assert torch.equal(product(row), product(row.clone()))


def test_a_function_of_theta_may_have_vectors_that_are_rows():
    def function(theta):
        return torch.view_as_complex(theta[:4].view(2, 2)).abs().pow(3).sum() + theta @ theta

    problem = gf.Problem.from_function(function, torch.linspace(1, 2, 5, dtype=torch.float64))
    rows = rows_at_odd_places(problem)
    for row in rows:
        assert problem.loss(row) == function(row.clone())
        assert torch.equal(problem.hvp(problem.theta0, row), problem.hvp(problem.theta0, 1 * row))


def test_each_example_may_be_a_constraint():
    each = gf.each_example(problem_of())
    values, gradients = each.value_and_gradient(each.theta0)
    whole = problem_of().value_and_gradient(each.theta0)
    torch.testing.assert_close(values.mean(), whole[0], rtol=1e-13, atol=0)
    torch.testing.assert_close(gradients.mean(0), whole[1], rtol=1e-12, atol=1e-15)


def test_the_analyses_take_it():
    problem = problem_of()
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=60, max_snapshots=4)
    grid = slices.on_plane(ds, flow, points=3)
    corner = slices.on_plane(ds, flow, points=3, batch_size=1)
    np.testing.assert_allclose(grid["loss"], corner["loss"], rtol=1e-12)
    found = spectra.along(ds, flow, snapshots=[-1], k=1, n_probes=2, n_steps=4, n_trace=6)
    assert np.isfinite(found["largest_eigenvalue"]).all()
    net = copy.deepcopy(MODULE).double()
    there = predictions.along(ds, net, {"train": X.double()}, classification=True)
    assert np.isfinite(there["js_divergence"]).all()


@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_slice_is_made_point_by_point_where_vmap_takes_no_two(batch_size):
    def function(theta):
        return torch.view_as_complex(theta[:4].view(2, 2)).abs().pow(3).sum() + theta @ theta

    problem = gf.Problem.from_function(function, torch.linspace(1, 2, 5, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="divisible by 2"):
        problem.losses(torch.stack([problem.theta0, problem.theta0]))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - 1).square().sum())
    ds = gf.walk(flow, max_evaluations=60, max_snapshots=4)
    found = slices.on_plane(ds, flow, points=3, batch_size=batch_size)
    assert torch.isfinite(torch.as_tensor(found["loss"].values)).all()


def test_a_network_that_has_none_gets_views():
    # Copies elsewhere in memory have products of matrices with other last bits.
    problem = gf.Problem.from_module(mlp(nn.Tanh), classify, X, LABELS)
    start = problem.theta0.data_ptr()
    for spec, view in zip(problem.tensors, problem.unflatten(problem.theta0).values(), strict=True):
        assert view.data_ptr() == start + spec.offset * problem.theta0.element_size()


class Writing(Fourier):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(1.0)
        return super().forward(x)


def test_one_that_writes_into_its_weights_is_refused():
    with pytest.raises(InputError, match="writes into its parameters"):
        gf.Problem.from_module(seeded(Writing), classify, X, LABELS)
