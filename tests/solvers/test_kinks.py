"""Where ∇L jumps: a flow that slides along a kink of L."""

import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.solvers.krylov import KrylovSpace

LEVEL, START = 1.0, (0.5, 2.0)


def sliding():
    """On y = c + |x| down ½‖θ‖²: x reaches 0 at t = ln(1 + 2x₀/c), and stays there."""
    x, z = START
    start = torch.tensor([x, LEVEL + x, z], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta[1] - theta[0].abs(), start)
    level_set = gf.LevelSet(problem, level_rtol=1e-9)
    return gf.RegularizingFlow(level_set, lambda theta: theta @ theta / 2)


@pytest.mark.parametrize(
    ("solver", "rtol"),
    [
        ("bdf", 1e-2),
        pytest.param("bdf", 1e-4, marks=pytest.mark.slow),
        ("exponential", 1e-2),
        pytest.param("exponential", 1e-4, marks=pytest.mark.slow),
        ("bosh3", 1e-3),
    ],
)
def test_a_walk_that_slides_along_a_kink_keeps_its_tolerance(solver, rtol):
    t_end = math.log1p(2 * START[0] / LEVEL) + 0.5
    ds = gf.walk(sliding(), solver, rtol, atol=1e-3 * rtol, stop=None, t_end=t_end)
    right = [0, LEVEL, START[1] * math.exp(-t_end)]
    assert ds.attrs["status"] == "t_end"
    assert np.linalg.norm(ds["theta"][-1] - right) <= 2 * rtol * np.linalg.norm(right)


@pytest.mark.parametrize("at_kink", [True, False])
def test_products_take_the_place_of_differences_over_a_kink(at_kink):
    flow = sliding()
    x = 1e-12 if at_kink else 0.1
    state = flow.evaluate(torch.tensor([x, LEVEL + x, 2.0], dtype=torch.float64))
    space = KrylovSpace(flow.linearization(state), state.velocity)
    space.add()
    assert space.operator.by_differences is not at_kink
    # On either side of the kink A is ∇²R = I.
    assert space.matrix[0, :2] == pytest.approx([1, 0], abs=1e-6)
