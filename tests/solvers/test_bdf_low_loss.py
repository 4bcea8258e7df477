"""The multistep solver on level sets of low losses, which are curved much."""

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.solvers.multistep import corrector
from geoflow.solvers.multistep.history import History
from geoflow.solvers.multistep.secant import SecantPairs

END = gf.Stationary(degrees=150.0)


def walked(layers, activation, iterations, **options):
    flow = references.trained(layers, activation, iterations=iterations)
    return gf.walk(flow, "bdf", stop=END, max_snapshots=2, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "activation", "iterations", "most"),
    [
        # Twice what they take; without following the level set closely none of them arrives.
        ((3, 8, 8, 8, 1), nn.Tanh(), 200, 2_200),
        ((4, 12, 1), nn.Tanh(), 300, 2_500),
        ((3, 20, 1), nn.Softplus(), 300, 2_100),
    ],
)
def test_a_network_at_a_low_loss_is_walked_at_the_default_tolerance(
    layers, activation, iterations, most
):
    loose = walked(layers, activation, iterations, max_evaluations=most)
    assert loose.attrs["level"] < 1e-5
    assert loose.attrs["status"] == "stationary"
    tight = walked(layers, activation, iterations, rtol=1e-6, atol=0.0)
    assert float(loose["regularizer"][-1]) == pytest.approx(float(tight["regularizer"][-1]), 2e-3)
    assert float(loose["time"][-1]) == pytest.approx(float(tight["time"][-1]), 1e-2)


def tube(radius, dtype=torch.float64):
    """L = (x² + y²)/2 around the z axis, far from the origin, R = ‖θ − a‖²/2, a on one side."""
    goal = torch.tensor([1.0, 0.0, 101.0], dtype=dtype)
    start = torch.tensor([0.0, radius, 100.0], dtype=dtype)
    return gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(lambda t: (t[:2] ** 2).sum() / 2, start)),
        lambda theta: ((theta - goal) ** 2).sum() / 2,
    )


def solved(flow, radius, step, allowed, closely):
    """Where the equation of a first step is solved, its stiffest direction known."""
    state, pairs = flow.evaluate(flow.problem.theta0), SecantPairs(40, [], np.zeros((0, 0)))
    # λ = ‖∇R‖/‖∇L‖ is about 1/radius where ∇R and ∇L point in opposite directions.
    pairs.add(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1 / radius, 0.0]))
    formula = History(state.theta[None], np.zeros(1)).formula(1, step, state.velocity)
    return corrector.correct(flow, formula, pairs, allowed, closely)


def test_followed_closely_less_is_left_than_a_part_of_the_radius_of_curvature():
    radius = 1e-4
    flow = tube(radius)
    exact, close, loose = (
        solved(flow, radius, 1e-2, allowed, closely).state.theta
        for allowed, closely in ((1e-12, False), (1.0, True), (1.0, False))
    )
    # The normal of the level set turns by as much between them, in radians.
    turns = [float((found - exact).norm()) / radius for found in (close, loose)]
    assert turns[0] < 0.1
    assert turns[1] > 0.3


def test_followed_closely_no_more_is_asked_for_than_rounding_can_tell():
    radius = 1e-3
    flow = tube(radius, torch.float32)
    close, loose = (solved(flow, radius, 1e-2, 10.0, closely) for closely in (True, False))
    assert close.iterations == loose.iterations
    assert torch.equal(close.state.theta, loose.state.theta)
