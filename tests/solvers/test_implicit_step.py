"""The equation of one implicit step, where curvature is beyond single precision."""

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import ConvergenceError
from geoflow.solvers.multistep.corrector import correct
from geoflow.solvers.multistep.history import History
from geoflow.solvers.multistep.secant import SecantPairs

START = torch.tensor([0.1, 1.0, 0.0], dtype=torch.float64)


def wall(height):
    """R has a wall of this curvature below y = 0.5, on the level set z = 0."""

    def regularizer(theta):
        return theta[1] + height * torch.relu(0.5 - theta[1]) ** 2 - theta[2]

    problem = gf.Problem.from_function(lambda theta: theta[2] + 1.0, START)
    return gf.RegularizingFlow(gf.LevelSet(problem), regularizer)


@pytest.mark.parametrize("height", [1e45, 1e200, 1e305])
def test_curvature_that_single_precision_does_not_hold_only_shortens_the_step(height):
    flow = wall(height)
    start = flow.evaluate(START)
    # Predicted to stay where it is, the first correction goes through the wall.
    formula = History(START[None], np.zeros(1)).formula(1, 10.0, 0 * start.velocity)
    with pytest.raises(ConvergenceError) as caught:
        correct(flow, formula, SecantPairs(3, [], np.zeros((0, 0))), 1e-6)
    # And not as one that many iterations have not solved.
    assert caught.value.reason == "diverged"
    ds = gf.walk(flow, "bdf", stop=None, t_end=0.4)
    assert ds.attrs["status"] == "t_end"
    assert ds["theta"].values[-1] == pytest.approx([0.1, 0.6, 0.0], abs=1e-3)
