import math

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import InputError

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
