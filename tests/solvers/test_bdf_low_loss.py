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


def test_followed_closely_less_is_left_than_a_part_of_the_radius_of_curvature():
    """L = (x² + y²)/2 around the z axis, far from the origin, R = ‖θ − a‖²/2, a on one side."""
    radius, goal = 1e-4, torch.tensor([1.0, 0.0, 101.0], dtype=torch.float64)
    start = torch.tensor([0.0, radius, 100.0], dtype=torch.float64)
    flow = gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(lambda t: (t[:2] ** 2).sum() / 2, start)),
        lambda theta: ((theta - goal) ** 2).sum() / 2,
    )
    state, history = flow.evaluate(start), History(start[None], np.zeros(1))
    left = []
    for allowed, closely in ((1e-12, False), (1.0, True), (1.0, False)):
        pairs = SecantPairs(40, [], np.zeros((0, 0)))
        # λ = ‖∇R‖/‖∇L‖ is about 1/radius where ∇R and ∇L point in opposite directions.
        pairs.add(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1 / radius, 0.0]))
        formula = history.formula(1, 1e-2, state.velocity)
        found = corrector.correct(flow, formula, pairs, allowed, closely).state.theta
        left.append(found)
    exact, close, loose = left
    # The normal of the level set turns by as much between them, in radians.
    assert (
        float((close - exact).norm()) / radius < 0.1 < 0.3 < float((loose - exact).norm()) / radius
    )
