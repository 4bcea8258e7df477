import math

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, InputError

REGULARIZERS = [
    gf.regularizers.squared_norm,
    gf.regularizers.pseudo_huber_norm,
    gf.regularizers.quartic_norm,
]


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_the_velocity_is_tangent_and_falls_in_r(network, regularizer):
    flow = gf.RegularizingFlow(network.level_set, regularizer)
    state = flow.evaluate(flow.problem.theta0)
    assert abs(float(state.velocity @ state.gradient)) < 1e-12
    slope = float(state.regularizer_gradient @ state.velocity)
    # dR/dt = −‖Π∇R‖²
    assert math.isclose(slope, -(state.tangent_norm**2), rel_tol=1e-10)
    h = 1e-6
    ahead = regularizer(state.theta + h * state.velocity)
    behind = regularizer(state.theta - h * state.velocity)
    assert math.isclose(float(ahead - behind) / (2 * h), slope, rel_tol=1e-6)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_regularizer_hessian_is_the_dense_one(network, regularizer):
    flow = gf.RegularizingFlow(network.level_set, regularizer)
    theta = flow.problem.theta0
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    dense = torch.func.hessian(regularizer)(theta) @ v
    assert torch.allclose(flow.regularizer_hessian(theta)(v), dense, rtol=1e-12)


@pytest.mark.parametrize("degrees", [10.0, 90.0, 135.0, 179.9999])
def test_the_angle_is_exact_close_to_180_too(degrees):
    radians = math.radians(degrees)
    direction = torch.tensor([math.cos(radians), math.sin(radians)], dtype=torch.float64)
    problem = gf.Problem.from_function(
        references.half_square, torch.tensor([1.0, 0.0], dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: direction @ theta)
    state = flow.evaluate(problem.theta0)
    assert math.isclose(state.angle, degrees, rel_tol=1e-12)
    assert math.isclose(state.multiplier, -math.cos(radians), rel_tol=1e-12)


def test_a_state_costs_one_gradient(network):
    before = network.problem.counts["gradient"]
    network.evaluate(network.problem.theta0)
    assert network.problem.counts["gradient"] == before + 1


def test_a_regularizer_must_be_a_finite_scalar(network):
    with pytest.raises(InputError, match="finite scalar"):
        gf.RegularizingFlow(network.level_set, lambda theta: theta)
    with pytest.raises(InputError, match="finite scalar"):
        gf.RegularizingFlow(network.level_set, lambda theta: (theta * torch.inf).sum())


def test_problems_of_r_are_those_that_the_level_set_has_not():
    start = torch.tensor([1.0, 0.5, -0.7], dtype=torch.float64)
    first, second, other = (
        gf.Problem.from_function(lambda t, k=k: (t - k).square().sum(), start) for k in range(3)
    )
    level_sets = gf.LevelSet(first), gf.LevelSet([first, second])
    assert gf.RegularizingFlow(level_sets[0], first).regularizer_problems == ()
    assert gf.RegularizingFlow(level_sets[1], second).regularizer_problems == ()
    for level_set in level_sets:
        assert gf.RegularizingFlow(level_set, other).regularizer_problems == (other,)


def test_where_the_loss_is_no_number_that_is_said_and_not_that_its_gradient_is_zero():
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    # Beyond the wall nothing of θ is in it.
    problem = gf.Problem.from_function(lambda t: torch.where(t[0] < 0.9, t[1], torch.nan), start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: -t[0])
    with pytest.raises(ConvergenceError, match=r"L = nan at a trial point") as caught:
        flow.evaluate(torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert caught.value.reason == "not_finite"


@pytest.mark.parametrize(("units", "rests"), [(2, True), (20, False)])
def test_rest_is_four_units_of_rounding_of_the_gradient(units, rests):
    eps = torch.finfo(torch.float64).eps
    theta = torch.tensor([-1.0, units * eps], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: t @ t, theta)
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 1.0), lambda t: t[0])
    state = flow.evaluate(theta)
    assert state.tangent_norm == pytest.approx(units * eps, rel=1e-6, abs=0)
    assert flow.at_rest(state) is rests
