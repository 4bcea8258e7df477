"""The error that a step may add."""

import pytest
import torch

from geoflow.solvers import Tolerance

THETA = torch.tensor([3.0, 4.0])


@pytest.mark.parametrize("order", [1, 3, 5])
def test_below_the_rtol_of_many_steps_it_falls_faster_than_rtol(order):
    for rtol, share in ((1e-3, 1.0), (1e-6, 1.0), (1e-9, 10 ** (-3 / (order + 1)))):
        allowed = Tolerance(rtol, 0.0).per_step(THETA, order, 1e-6)
        assert allowed == pytest.approx(5 * rtol * share)
