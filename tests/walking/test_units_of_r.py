"""R times a number is the same walk in another unit of flow time, at the same cost."""

import numpy as np
import pytest
import torch

import geoflow as gf
import references


def flow(factor):
    problem = references.small_network().problem
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: factor * torch.dot(theta, theta))


def walked(solver, factor):
    if solver == "cvode":
        pytest.importorskip("sksundae")
    return gf.walk(flow(factor), solver, stop=None, t_end=0.3 / factor, max_evaluations=2000)


# A mean over a million parameters is a factor of 10⁻⁶; single precision ends at 10³⁸.
@pytest.mark.parametrize("factor", [1e-40, 1e-6, 1e6, 1e40])
@pytest.mark.parametrize("solver", ["bdf", "exponential", "rkc", "cvode"])
def test_a_walk_costs_the_same_in_any_unit_of_r(solver, factor):
    expected, found = walked(solver, 1.0), walked(solver, factor)
    assert found.attrs["status"] == "t_end"
    assert abs(int(found["n_gradient"][-1]) / int(expected["n_gradient"][-1]) - 1) < 0.1
    distance = np.linalg.norm(found["theta"].values[-1] - expected["theta"].values[-1])
    assert distance < 1e-3 * np.linalg.norm(expected["theta"].values[-1])


@pytest.mark.parametrize("factor", [1e-30, 1e-6, 1e6, 1e30])
def test_a_path_costs_the_same_in_any_unit_of_r(factor):
    def followed(factor):
        made = flow(factor)
        level = made.level_set.level
        return gf.regularization_path(made, [1.5 * level, 2.25 * level], 170.0)

    expected, found = followed(1.0), followed(factor)
    assert found.attrs["status"] == expected.attrs["status"] == "complete"
    assert abs(int(found["n_gradient"][-1]) / int(expected["n_gradient"][-1]) - 1) < 0.2
    assert np.allclose(found["regularizer"] / factor, expected["regularizer"], rtol=1e-2)
    assert np.allclose(found["penalty"] * factor, expected["penalty"], rtol=5e-2)
