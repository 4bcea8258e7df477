"""A = Π(∇²R + λ∇²L)Π as solvers apply it, in either dtype."""

import pytest
import torch

import geoflow as gf
import references
from geoflow.manifold.apart import Apart
from geoflow.manifold.linearization import TangentHessian, across, unit_normal
from geoflow.problems.footprint import evaluation_bytes, product_bytes
from geoflow.solvers import BDF, RKC, Exponential, bytes_of
from geoflow.walking.memory import vector_bytes


def network(dtype, n=1):
    torch.manual_seed(0)
    inputs, targets = torch.randn(30, 5), torch.randn(30, 1)
    module = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    mse = torch.nn.functional.mse_loss
    problems = [
        gf.Problem.from_module(module, mse, inputs[i::n], targets[i::n], dtype=dtype)
        for i in range(n)
    ]
    level_set = gf.LevelSet(problems[0] if n == 1 else problems)
    return gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)


def exact(flow, state, v):
    """By autograd, in float64."""
    double = network(torch.float64, flow.level_set.n_constraints)
    theta, normals = state.theta.double(), torch.atleast_2d(state.gradients).double()
    products = torch.atleast_2d(double.problem.hvp(theta, v.double()))
    basis = torch.linalg.qr(normals.T)[0]
    curved = torch.from_numpy(state.multipliers.copy()) @ products + 2 * v.double()
    return curved - basis @ (basis.T @ curved)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-5), (torch.float32, 1e-5)])
def test_its_images_are_those_of_the_dense_matrix(dtype, rtol, n):
    flow = network(dtype, n)
    state = flow.evaluate(flow.problem.theta0)
    operator = flow.linearization(state)
    torch.manual_seed(1)
    v = operator.tangent(torch.randn(flow.problem.n_parameters, dtype=dtype))
    v = v / v.norm()
    expected = exact(flow, state, v)
    for image in (operator(v)[0], operator.image(v)):
        assert (image.double() - expected).norm() <= rtol * expected.norm()


@pytest.mark.parametrize("m", [1, 2])
def test_on_the_space_across_given_directions_it_is_that_of_the_dense_matrix(m):
    flow = network(torch.float64)
    state = flow.evaluate(flow.problem.theta0)
    torch.manual_seed(2)
    beside = torch.randn(m - 1, flow.problem.n_parameters, dtype=torch.float64)
    rows = torch.cat([unit_normal(state)[None], beside])
    normals = torch.linalg.qr(rows.T)[0].T
    operator = TangentHessian(flow, state, normals)
    v = across(torch.randn(flow.problem.n_parameters, dtype=torch.float64), normals)
    v = v / v.norm()
    assert float((normals @ v).abs().max()) < 1e-15
    curved = state.multiplier * flow.problem.hvp(state.theta, v) + 2 * v
    expected = curved - normals.T @ (normals @ curved)
    assert (operator(v)[0] - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(operator.normal, unit_normal(state))


def test_on_several_constraints_it_is_across_given_directions_too():
    flow = references.oja_on_a_circle().flow
    state = flow.evaluate(flow.problem.theta0)
    normals = torch.eye(flow.problem.n_parameters, dtype=torch.float64)[:1]
    v = torch.ones(flow.problem.n_parameters, dtype=torch.float64)
    across_it = TangentHessian(flow, state, normals).tangent(v)
    assert across_it[0] == 0
    assert torch.equal(across_it[1:], v[1:])
    assert float((state.gradients @ TangentHessian(flow, state).tangent(v)).abs().max()) < 1e-14


def test_in_single_precision_it_asks_for_products_and_in_double_for_gradients():
    for dtype, gradients, products in ((torch.float64, 1, 0), (torch.float32, 0, 1)):
        flow = network(dtype)
        state = flow.evaluate(flow.problem.theta0)
        operator = flow.linearization(state)
        before = dict(flow.problem.counts)
        operator.image(operator.tangent(state.theta))
        after = flow.problem.counts
        assert after["gradient"] - before["gradient"] == gradients
        assert after["hvp"] - before["hvp"] == products


@pytest.mark.parametrize("solver", [Exponential(), BDF(), RKC()])
def test_the_memory_of_a_walk_is_with_the_products_that_it_asks_for(solver):
    at_once = {}
    for dtype in (torch.float32, torch.float64):
        flow = network(dtype)
        theta = flow.problem.theta0
        held = bytes_of(solver, theta) + 4 * theta.numel() * theta.element_size()
        at_once[dtype] = vector_bytes(flow, solver) - held
        asked = (
            product_bytes if dtype == torch.float32 and solver.name != "rkc" else evaluation_bytes
        )
        assert at_once[dtype] == asked(flow.problem)
    assert product_bytes(flow.problem) > evaluation_bytes(flow.problem)


@pytest.mark.parametrize("size", [1.0, 1e9])
def test_gradients_are_taken_apart_by_a_step_in_proportion_to_theta(size):
    start = size * torch.tensor([1.0, 0.5, -0.7], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: (t / size).square().sum(), start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t / size)[0])
    operator = flow.linearization(flow.evaluate(start))
    unit = operator.tangent(torch.tensor([0.0, 0.7, 0.5], dtype=torch.float64))
    unit = unit / unit.norm()
    # Where θ is of size 10⁹, its rounding is as much as the step at size 1.
    assert torch.allclose(operator(unit)[1] * size**2, 2 * unit, rtol=0, atol=1e-6)


def pinched(unit, shift=0.0):
    """A quartic in θ/unit, of Hessian 12 (θ/unit + shift)²/unit² along each axis."""

    def loss(theta):
        return ((theta / unit + shift) ** 4).sum()

    theta0 = unit * torch.linspace(1, 2, 6, dtype=torch.float64)
    problem = gf.Problem.from_function(loss, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[0] / unit)


@pytest.mark.parametrize("unit", [1e8, 1.0, 1e-4, 1e-8, 1e-12])
def test_products_are_as_good_in_whatever_units_the_parameters_are(unit):
    flow = pinched(unit)
    state = flow.evaluate(flow.problem.theta0)
    v = torch.ones(6, dtype=torch.float64) / 6**0.5
    expected = 12 * (state.theta / unit) ** 2 * v / unit**2
    _, product = flow.linearization(state)(v)
    assert (product - expected).norm() < 1e-5 * expected.norm()


@pytest.mark.parametrize("near", [1e-6, 1e-7, 1e-8, 1e-9, 1e-14])
def test_near_the_origin_of_what_varies_over_lengths_of_one_they_are_too(near):
    flow = pinched(1.0, shift=1.0)
    state = flow.evaluate(near * flow.problem.theta0)
    v = torch.ones(6, dtype=torch.float64) / 6**0.5
    operator = flow.linearization(state)
    for _ in range(2):
        _, product = operator(v)
        assert (product - 12 * v).norm() < 3e-4 * 12
    before = flow.problem.counts["gradient"]
    operator(v)
    assert flow.problem.counts["gradient"] == before + 1


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2])
def test_gradients_of_a_small_theta_are_told_from_their_own_rounding(size):
    rounding, curvatures = 1e-8, torch.linspace(1, 3, 6, dtype=torch.float64)

    def gradient(theta):
        return ((1 + curvatures * theta) / rounding).round() * rounding

    theta = torch.full((6,), size, dtype=torch.float64)
    unit = torch.full((6,), 6**-0.5, dtype=torch.float64)
    image = Apart(theta, rounding ** (4 / 9), rounding)(gradient, gradient(theta), unit)
    assert torch.allclose(image, curvatures * unit, rtol=1e-4)


def test_at_zero_a_difference_costs_one_gradient():
    theta, seen = torch.zeros(4, dtype=torch.float64), []

    def gradient(at):
        seen.append(at)
        return at.sin() + 1

    unit = torch.full((4,), 0.5, dtype=torch.float64)
    image = Apart(theta, 1e-7)(gradient, torch.ones_like(theta), unit)
    assert torch.allclose(image, unit)
    assert len(seen) == 1
