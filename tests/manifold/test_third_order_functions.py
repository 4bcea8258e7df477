"""hessian_trace and sharpness in units of any size, and of networks with kinks."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import geoflow as gf
import references
from geoflow.manifold.regularizers.named import bound
from geoflow.problems.grouped import by_class

R = gf.regularizers


def problem_and_loss(module, x, y, dtype=torch.float64, **options):
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, x, y, dtype=dtype, **options)
    like = gf.Problem.from_module(module, nn.functional.mse_loss, x, y)

    def loss(theta):
        return nn.functional.mse_loss(functional_call(module, like.unflatten(theta), (x,)), y)

    return problem, loss


def in_raw_units(scale, dtype=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(50, 3, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        module[0].weight.div_(scale)
    return problem_and_loss(module, scale * x, x.sum(1, keepdim=True).sin(), dtype)


def with_kinks(n, **options):
    torch.manual_seed(0)
    x = torch.randn(n, 4, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1)).double()
    return problem_and_loss(module, x, x.sum(1, keepdim=True).sin(), **options)


def off(found, right):
    return float((found.double() - right).norm() / right.norm())


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e3, 1e4])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_units_of_the_inputs_are_of_no_effect(scale, dtype, rtol):
    problem, loss = in_raw_units(scale, dtype)
    theta = problem.theta0.double().clone().requires_grad_()
    matrix = hessian(loss)(theta)

    made = bound(R.hessian_trace(probes=4), problem)
    z = 2.0 * made.signs.double() - 1
    trace = (z @ matrix * z).sum() / 4
    value, gradient = made.value_and_gradient(problem.theta0)
    assert float(value) == pytest.approx(trace.item(), rel=10 * rtol)
    assert off(gradient, torch.autograd.grad(trace, theta, retain_graph=True)[0]) < rtol

    largest = torch.linalg.eigvalsh(matrix)[-1]
    value, gradient = bound(R.sharpness, problem).value_and_gradient(problem.theta0)
    assert float(value) == pytest.approx(largest.item(), rel=1e-6)
    assert off(gradient, torch.autograd.grad(largest, theta)[0]) < 1e-5


def slope_along(loss, theta, vectors):
    """Mean of vᵀ∇²L v over some vectors, and its gradient: almost everywhere, by autograd."""
    at = theta.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at, create_graph=True)
    products = [torch.autograd.grad(gradient, at, v, create_graph=True)[0] @ v for v in vectors]
    mean = torch.stack(products).mean()
    return mean.item(), torch.autograd.grad(mean, at)[0]


@pytest.mark.parametrize("n", [40, 2000])
def test_kinks_within_a_step_are_of_no_effect(n):
    problem, loss = with_kinks(n)
    made = bound(R.hessian_trace(probes=4), problem)
    expected, slope = slope_along(loss, problem.theta0, 2.0 * made.signs.double() - 1)
    value, gradient = made.value_and_gradient(problem.theta0)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    assert off(gradient, slope) < 1e-12


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_of_sharpness_too(dtype, rtol):
    problem, loss = with_kinks(20_000, dtype=dtype)
    wide, _ = with_kinks(20_000)
    identity = torch.eye(wide.n_parameters, dtype=torch.float64)
    matrix = torch.stack([wide.hvp(wide.theta0, row) for row in identity])
    values, vectors = np.linalg.eigh((matrix + matrix.T).numpy() / 2)
    _, slope = slope_along(loss, wide.theta0, torch.from_numpy(vectors[:, -1:].T.copy()))
    value, gradient = bound(R.sharpness, problem).value_and_gradient(problem.theta0)
    assert float(value) == pytest.approx(values[-1], rel=1e-5)
    assert off(gradient, slope) < rtol


@pytest.mark.parametrize("name", ["hessian_trace:probes=3", "sharpness"])
def test_in_chunks_and_beside_classes_they_are_those_of_the_whole(name):
    whole, chunks = (references.small_network(batch_size=n).problem for n in (None, 7))
    expected = bound(R.get(name), whole).value_and_gradient(whole.theta0)
    for problem in (chunks, by_class(whole)):
        found = bound(R.get(name), problem).value_and_gradient(whole.theta0)
        assert float(found[0]) == pytest.approx(float(expected[0]), rel=1e-12)
        assert off(found[1], expected[1]) < 1e-8


def test_the_trace_is_of_exact_products():
    problem, _ = with_kinks(2000)
    made = bound(R.hessian_trace(probes=2), problem)
    z = 2.0 * made.signs.to(problem.theta0) - 1
    products = torch.stack([v @ problem.hvp(problem.theta0, v) for v in z])
    before = problem.counts
    value, _ = made.value_and_gradient(problem.theta0)
    assert float(value) == pytest.approx(float(products.mean()), rel=1e-13)
    # Two a probe, and nothing else.
    spent = {name: n - before[name] for name, n in problem.counts.items()}
    assert spent == {"gradient": 0, "hvp": 4}


def test_products_with_its_hessian_are_right_in_raw_units():
    problem, loss = in_raw_units(1e3)
    made = bound(R.hessian_trace(probes=2), problem)
    z = 2.0 * made.signs.double() - 1
    matrix = hessian(lambda at: (z @ hessian(loss)(at) * z).sum() / 2)(problem.theta0)
    v = torch.linspace(-1, 1, problem.n_parameters, dtype=torch.float64)
    product = made.hessian(problem.theta0, made.value_and_gradient(problem.theta0)[1])(v)
    assert off(product, matrix @ v) < 1e-3
    assert math.isclose(float(v @ product), float(v @ matrix @ v), rel_tol=1e-2)
