"""The equation of one implicit step: the space of its corrections, curvature beyond all bounds."""

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError
from geoflow.solvers.multistep.corrector import APART, _learn, _Space, _weights, correct
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
        correct(flow, formula, SecantPairs(3, [], np.zeros((0, 0))), 1e-6, closely=False)
    # And not as one that many iterations have not solved.
    assert caught.value.reason != "iterations"
    ds = gf.walk(flow, "bdf", stop=None, t_end=0.4)
    assert ds.attrs["status"] == "t_end"
    assert ds["theta"].values[-1] == pytest.approx([0.1, 0.6, 0.0], abs=1e-3)


AXES = torch.eye(5, dtype=torch.float64)


def space_of(*pairs):
    space = _Space(len(pairs), AXES[0])
    for vector, image in pairs:
        space.add(vector / vector.norm(), image / vector.norm(), 1.0)
    return space


def test_images_of_points_apart_leave_no_force_along_the_corrections():
    # As v is kept beside v + c·image, A is the image less v: of no symmetric matrix.
    first, second = AXES[0], AXES[0] + AXES[1]
    space = space_of((first, AXES[0] + 2 * AXES[1]), (second, 4 * AXES[1]))
    force = (AXES[0] + AXES[1] + AXES[2]).float()
    move = space.solve(force, AXES[4:].float())
    assert move.norm() > 0.1
    assert torch.equal(move[2:], torch.zeros(3))
    assert force[:2].norm() < 1e-6


def test_corrections_whose_images_would_leave_more_force_than_there_was_are_given_up():
    last = AXES[0] + 0.1 * AXES[1]
    # All but parallel, images that differ: what takes the force away leaves 30 times as much.
    space = space_of((AXES[0], 0 * AXES[0]), (last, 3 * AXES[2]))
    before = AXES[1].float()
    force = before.clone()
    move = space.solve(force, AXES[4:].float())
    assert force.norm() <= APART
    assert torch.dot(move, before) < 0
    alone = space_of((last, 3 * AXES[2]))
    expected = before.clone()
    assert torch.allclose(move, alone.solve(expected, AXES[4:].float()))
    assert torch.allclose(force, expected)


def test_a_space_of_nothing_else_leaves_the_force_as_it_is():
    space = space_of((AXES[0] + 1e-3 * AXES[1], 100 * AXES[2] - AXES[0]))
    force = AXES[1].float()
    assert torch.equal(space.solve(force, AXES[4:].float()), torch.zeros(5))
    assert torch.equal(force, AXES[1].float())


def test_the_oldest_images_are_given_up_until_the_rest_is_positive_definite():
    # I + A of these is 1 along the second and the third, and -3 along the first.
    space = space_of((AXES[0], -4 * AXES[0]), (AXES[1], 0 * AXES[1]), (AXES[2], 0 * AXES[2]))
    assert space.least == pytest.approx(1.0)
    assert (space.first, space.n) == (1, 3)
    # The newest says it itself: nothing is left to be given up.
    space = space_of((AXES[1], 0 * AXES[1]), (AXES[0], -4 * AXES[0]))
    assert space.least == pytest.approx(-3.0)
    assert (space.first, space.n) == (1, 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_walks_at_tolerances_alike_cost_alike(seed):
    problem = gf.experiments.get("iris_ff").prepare(seed=seed).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    for rtol in (8.730769e-4, 9.192308e-4, 1e-3, 1.103846e-3):
        ds = gf.walk(flow, "bdf", rtol=rtol, max_snapshots=2)
        assert ds.attrs["status"] == "stationary"
        # Twenty corrections uphill at every second step made 306 to 375 of 170 to 250.
        assert int(ds["n_gradient"][-1]) <= 280


def oja_step(allowed, level_rtol=1e-6, time=0.3):
    flow = references.oja().flow
    flow = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=level_rtol), flow.regularizer)
    start = flow.evaluate(flow.problem.theta0)
    formula = History(start.theta[None], np.zeros(1)).formula(1, time, start.velocity)
    before = flow.problem.counts["gradient"]
    found = correct(flow, formula, SecantPairs(5, [], np.zeros((0, 0))), allowed, closely=False)
    return found, flow.problem.counts["gradient"] - before


def test_however_much_is_allowed_little_of_theta_is_left_out():
    loose, tight = (oja_step(allowed)[0].state.theta for allowed in (1.0, 1e-10))
    assert (loose - tight).norm() <= 1e-4 * tight.norm()


@pytest.mark.parametrize("level_rtol", [1e-6, 1e-14])
@pytest.mark.parametrize("allowed", [1.0, 1e-3, 1e-6, 1e-10])
def test_a_correction_is_an_evaluation_beside_that_of_the_prediction(allowed, level_rtol):
    # Of a level kept to rounding the last ones are along the normal alone.
    found, spent = oja_step(allowed, level_rtol)
    assert spent == found.iterations + 1 > 2


def test_normals_that_the_images_do_not_tell_apart_only_shorten_the_step():
    with pytest.raises(ConvergenceError, match="cannot be told apart") as caught:
        _weights(np.ones((3, 3)), np.zeros(2))
    assert caught.value.reason == "iterations"


@pytest.mark.parametrize(("part", "learned"), [(1e-13, 0), (1e-9, 1)])
def test_of_a_correction_within_the_rounding_of_the_gradients_nothing_is_learned(part, learned):
    flow = references.oja().flow
    theta = flow.problem.theta0
    before, after = (flow.evaluate(theta * (1 + k * part)) for k in (0, 1))
    space, pairs = _Space(3, theta), SecantPairs(4, [], np.zeros((0, 0)))
    multipliers = torch.ones(1, dtype=torch.float64)
    _learn(space, pairs, before, after, multipliers, 1e-3)
    assert (space.n, len(pairs)) == (learned, learned)


def test_a_prediction_that_is_the_solution_costs_its_evaluation_alone():
    flow = references.straight()
    state = flow.evaluate(flow.problem.theta0)
    formula = History(state.theta[None], np.zeros(1)).formula(1, 0.1, state.velocity)
    pairs, before = SecantPairs(2, [], np.zeros((0, 0))), flow.problem.evaluations
    found = correct(flow, formula, pairs, 1e-3, closely=False)
    assert (found.iterations, flow.problem.evaluations - before) == (0, 1)
    assert found.state.theta.tolist() == pytest.approx([0.1, 1.0])
