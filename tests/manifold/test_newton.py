"""Re-projection step by step: which points it tries, when it ends, and what it says then."""

import math

import pytest
import torch

import geoflow as gf
from geoflow.errors import ConvergenceError, CriticalPointError

EPS = torch.finfo(torch.float64).eps


def line(loss, start, level, **kwargs):
    """A level set in one dimension that lists the points it was evaluated at."""
    problem = gf.Problem.from_function(
        lambda t: loss(t[0]), torch.tensor([start], dtype=torch.float64)
    )
    level_set, seen = gf.LevelSet(problem, level, **kwargs), []
    evaluate = problem.value_and_gradient
    problem.value_and_gradient = lambda theta: (seen.append(float(theta)), evaluate(theta))[1]
    return level_set, seen


def power(a):
    """L = 1 ± |x|^a about L = 1: Newton's step multiplies x by 1 − 1/a."""
    return lambda x: 1 + torch.sign(x) * abs(x) ** a


@pytest.mark.parametrize(
    ("a", "tried"),
    [
        # L − 1 falls to 0.55 of itself, which is a quarter less at the least: no damping.
        (0.7, [1, -3 / 7, 9 / 49]),
        # To 0.78: a quarter of the step, to 0.72, then half of one, then a whole.
        (0.6, [1, -2 / 3, 7 / 12, 7 / 12 / 6]),
        # It rises. A quarter of the step falls by 6% at the least.
        (0.45, [1, -11 / 9, 4 / 9, -4 / 81]),
    ],
)
def test_a_step_is_quartered_until_the_residual_falls_and_grows_by_two(a, tried):
    level_set, seen = line(power(a), 1.0, 1.0, level_rtol=0.05)
    projection = level_set.project(level_set.problem.theta0)
    assert seen[: len(tried)] == pytest.approx(tried, rel=1e-12)
    assert projection.iterations == len(seen) - 1
    assert abs(projection.loss - 1) <= 0.05


def test_an_iteration_that_does_not_end_has_twenty_corrections():
    # Newton's step takes x to −x.
    level_set, seen = line(power(0.5), 4.0, 1.0)
    with pytest.raises(ConvergenceError, match="did not converge after 20 iterations") as failure:
        level_set.project(level_set.problem.theta0, damped=False)
    assert failure.value.reason == "iterations"
    assert seen == pytest.approx([4, -4] * 10 + [4], rel=1e-12)


def wall(at):
    return lambda x: 1 + x + torch.where(x < at, 0.0, torch.nan)


def test_before_a_wall_a_step_is_cut_to_a_millionth_and_the_start_is_the_best_there_is():
    level_set, seen = line(wall(1e-3), 0.0, 2.0)
    theta = torch.tensor([math.nextafter(1e-3, 0)], dtype=torch.float64)
    with pytest.raises(ConvergenceError, match="after 11 iterations") as failure:
        level_set.project(theta)
    assert failure.value.reason == "iterations"
    assert failure.value.residual == pytest.approx(-0.999)
    assert [x - 1e-3 for x in seen[1:]] == pytest.approx([0.999 / 4**i for i in range(11)])


def test_a_loss_that_is_not_a_number_is_divergence():
    level_set, seen = line(wall(0.5), 0.0, 2.0)
    with pytest.raises(ConvergenceError) as failure:
        level_set.project(level_set.problem.theta0, damped=False)
    assert failure.value.reason == "diverged"
    assert seen == [0.0, 1.0]


def test_a_thousand_times_as_far_off_is_divergence():
    # From x Newton's step to ½x² = 1 goes to about 1/x, where L is about 1 + 1/(2x²).
    level_set, seen = line(lambda x: 1 + x**2 / 2, 0.05, 2.0)
    near = level_set.project(level_set.problem.theta0, damped=False)
    assert max(seen) == pytest.approx(20, rel=0.01)
    assert float(near.theta) == pytest.approx(math.sqrt(2), rel=1e-5)
    with pytest.raises(ConvergenceError, match="diverged after 1 iterations"):
        level_set.project(torch.tensor([0.01], dtype=torch.float64), damped=False)


def test_what_is_next_to_the_level_may_go_as_far_off_as_the_level_is_large():
    # L − c grows from 1e-6 to 0.005, five thousand times, and all of it is little beside c.
    level_set, _ = line(lambda x: 1 + x**2 / 2, 1e-5, 1 + 1e-6, level_rtol=1e-9)
    projection = level_set.project(level_set.problem.theta0, damped=False)
    assert float(projection.theta) == pytest.approx(math.sqrt(2e-6), rel=1e-2)


def test_a_residual_that_falls_by_less_than_four_and_more_than_two_has_not_stalled():
    # A triple root: by (2/3)³ = 0.3 each, also where the steps are next to nothing beside θ.
    level_set, seen = line(lambda x: 1 + 1e20 * (x - 1) ** 3, 1 + 1e-6, 1.0)
    projection = level_set.project(level_set.problem.theta0)
    assert not projection.at_floor
    assert abs(projection.loss - 1) <= 1e-6
    assert abs(seen[-2] - 1) / 3 < 1e-8


def rounded(to):
    """L = 1 + x, rounded as numbers of the size of ``to`` are."""
    return lambda x: ((1 + x) + to) - to


@pytest.mark.parametrize(("units", "start"), [(5, 1e-3), (-5, 1e-3)])
def test_eight_units_of_rounding_of_the_level_are_the_floor(units, start):
    loss = rounded(16.0)
    here = float(loss(torch.tensor(start, dtype=torch.float64)))
    level_set, seen = line(loss, start, here + units * EPS, level_rtol=4 * EPS)
    # In the middle of those that are rounded to the same.
    middle = torch.tensor([here - 1], dtype=torch.float64)
    projection = level_set.project(middle)
    assert projection.at_floor
    assert (projection.iterations, level_set.n_at_floor) == (2, 1)
    assert projection.loss == here
    assert len(seen) == 3


def test_more_than_that_is_not_laid_to_rounding():
    loss = rounded(1024.0)
    here = float(loss(torch.tensor(1e-3, dtype=torch.float64)))
    level_set, _ = line(loss, 1e-3, here + 100 * EPS, level_rtol=4 * EPS)
    with pytest.raises(ConvergenceError, match="held up by rounding") as failure:
        level_set.project(torch.tensor([here - 1], dtype=torch.float64))
    assert failure.value.reason == "floor"
    assert failure.value.residual == pytest.approx(-100 * EPS, rel=0.02, abs=0)
    assert level_set.n_at_floor == 0


@pytest.mark.parametrize(
    ("dtype", "remedy"), [(torch.float32, "use float64"), (torch.float64, "take smaller steps")]
)
def test_a_tolerance_below_what_theta_is_rounded_to_names_the_dtype(dtype, remedy):
    # A unit of rounding of θ in float32 is 3e-5 here, and changes L by 6e-8, or 6 % of it.
    start = torch.tensor([300.0 + 1e-3], dtype=dtype)
    level_set = gf.LevelSet(gf.Problem.from_function(lambda x: ((x - 300) ** 2).sum(), start))
    with pytest.raises(ConvergenceError, match=f"moved further than allowed.*; {remedy}"):
        level_set.project(start + 1e-4, max_displacement=1e-9)


def test_a_start_at_the_origin_is_no_critical_point():
    level_set, _ = line(lambda x: 1 + x, 0.0, 1.5)
    assert float(level_set.project(level_set.problem.theta0).theta) == 0.5


def test_a_gradient_that_is_nothing_beside_the_level_is_a_critical_point():
    # L itself is as small as its gradient; the level is not.
    level_set, _ = line(lambda x: 1e-20 * x, 1.0, 1.0)
    with pytest.raises(CriticalPointError, match=r"nothing beside the level 1, which is out of"):
        level_set.project(level_set.problem.theta0)


@pytest.mark.parametrize(
    ("levels", "worst"), [([1e3, 1.5], 0), ([1.0, 50.0], 1), ([200.0, 6.0], 1), ([6.0, 200.0], 0)]
)
def test_the_constraint_that_is_named_is_the_farthest_off_beside_its_level(levels, worst):
    start = torch.tensor([1.0, 1.0], dtype=torch.float64)
    problems = [
        gf.Problem.from_function(lambda t: t[0] ** 2, start),
        gf.Problem.from_function(lambda t: t[1] ** 2, start),
    ]
    if max(levels) == 200:
        # Off by 40 of 200, and by 4 of 6.
        start = torch.tensor(
            [math.sqrt(level - {200: 40, 6: 4}[int(level)]) for level in levels],
            dtype=torch.float64,
        )
    with pytest.raises(ConvergenceError, match=f"of constraint {worst} "):
        gf.LevelSet(problems, levels).project(start, max_iterations=0)


@pytest.mark.parametrize(
    ("start", "level"), [(2.0, 2.1), (2.0, 2.37), (5.0, 1.7), (10.0, 2.1), (30.0, 2.37)]
)
def test_steps_that_are_cut_on_the_way_are_no_rounding_at_its_end(start, level):
    level_set, _ = line(lambda x: 2 + torch.atan(x), start, level)
    projection = level_set.project(level_set.problem.theta0, rtol=1e-14)
    assert not projection.at_floor
    assert projection.loss == pytest.approx(level, rel=1e-14)
    assert float(projection.theta) == pytest.approx(math.tan(level - 2), rel=1e-12)
