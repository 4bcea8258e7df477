"""Walks from another point than the problem's own, as those of a path onto a further level."""

import threading

import numpy as np
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.walking.loop import walk_from
from geoflow.walking.settings import WalkSettings

SETTINGS = WalkSettings(solver="exponential", stop=gf.Stationary(150.0), max_evaluations=500)


def moved(theta):
    generator = torch.Generator().manual_seed(3)
    away = torch.randn(theta.shape, dtype=theta.dtype, generator=generator)
    return theta + 0.02 * away


def test_it_is_the_walk_of_a_problem_made_there_to_the_bit():
    flow = references.small_network()
    start, level = moved(flow.problem.theta0), flow.level_set.level
    found = walk_from(flow, start, SETTINGS)
    module = references.small_module()
    nn.utils.vector_to_parameters(start, module.parameters())
    there = gf.Problem.from_module(module, nn.functional.cross_entropy, *references.small_data())
    expected = gf.walk(
        gf.RegularizingFlow(gf.LevelSet(there, level), gf.regularizers.squared_norm),
        "exponential",
        stop=gf.Stationary(150.0),
        max_evaluations=500,
    )
    assert found.attrs["status"] == expected.attrs["status"] == "stationary"
    np.testing.assert_array_equal(found["theta"], expected["theta"])
    np.testing.assert_array_equal(found["n_gradient"], expected["n_gradient"])
    assert found.attrs["config"] == expected.attrs["config"]


def test_evaluations_of_other_threads_are_none_of_its_own():
    flow = references.small_network()
    problem, start = flow.problem, moved(flow.problem.theta0)
    alone = walk_from(flow, start, SETTINGS)

    def beside(theta):
        def evaluate():
            problem.value_and_gradient(problem.theta0)

        thread = threading.Thread(target=evaluate)
        thread.start()
        thread.join()
        return gf.regularizers.squared_norm(theta)

    disturbed = walk_from(gf.RegularizingFlow(flow.level_set, beside), start, SETTINGS)
    np.testing.assert_array_equal(disturbed["theta"], alone["theta"])
    np.testing.assert_array_equal(disturbed["n_gradient"], alone["n_gradient"])


def test_what_it_measures_at_the_end_is_no_cost():
    """R has its minimum at the level itself, which takes two evaluations to know."""
    theta0 = torch.tensor([-1.2, 1.6], dtype=torch.float64)
    least = torch.tensor([2.0, 0.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: t.square().sum(), theta0)
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 4.0), lambda t: (t - least).square().sum())
    before = problem.counts["gradient"]
    ds = walk_from(flow, torch.tensor([0.0, 2.0], dtype=torch.float64), WalkSettings(stop=None))
    assert ds.attrs["status"] == "at_rest"
    assert problem.counts["gradient"] - before == int(ds["n_gradient"][-1])
