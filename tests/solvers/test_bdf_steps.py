"""Single steps of the multistep solver: orders, lengths, attempts in vain, exactly."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BarycentricInterpolator

import references
from geoflow.errors import ConvergenceError
from geoflow.solvers import BDF, Tolerance, bdf
from geoflow.solvers.multistep.corrector import Corrected, IndefiniteError, LandingError, correct
from geoflow.solvers.multistep.history import MAX_ORDER, History

TOLERANCE = Tolerance(1e-4, 0.0)


def refused(reason, iterations=5):
    return ConvergenceError("refused", iterations=iterations, residual=1.0, reason=reason)


def points_of(n, step):
    """Exact points of Oja's flow, the newest first, and the state at it."""
    reference = references.oja()
    points = torch.stack([reference.exact(0.5 - step * i) for i in range(n)])
    ages = torch.arange(n, dtype=torch.float64) * step
    return reference.flow, reference.flow.evaluate(points[0]), points, ages


def step(size=1e-3, max_time=math.inf, n_points=6, **carried):
    """Make one from exact points."""
    flow, state, points, ages = points_of(n_points, 1e-3)
    carry = {
        **{"step_size": size, "order": 3, "n_steps": 20, "n_since_order": 1},
        **{"points": points, "ages": ages},
        **carried,
    }
    return BDF().step(flow, state, carry, TOLERANCE, max_time)


def failing(monkeypatch, *errors):
    """Have the first equations fail; return the orders of all that are to be solved."""
    left, orders, formula = list(errors), [], History.formula

    def recording(self, order, time, velocity):
        orders.append(order)
        return formula(self, order, time, velocity)

    def correcting(*args):
        if left:
            raise left.pop(0)
        return correct(*args)

    monkeypatch.setattr(History, "formula", recording)
    monkeypatch.setattr(bdf, "correct", correcting)
    return orders


@pytest.mark.parametrize(
    ("order", "n_steps", "iterations", "growth"),
    [
        # While the order is being found; of order 1 and others later; by corrections.
        (1, 0, 4, 3.0),
        (2, 9, 4, 3.0),
        (3, 0, 4, 1.5),
        (1, 10, 4, 2.0),
        (2, 10, 4, 1.5),
        (2, 10, 5, 1.1),
        (2, 10, 8, 1.0),
        (2, 10, 11, 0.9),
    ],
)
def test_a_step_grows_as_the_start_and_its_corrections_allow(order, n_steps, iterations, growth):
    _, state, points, ages = points_of(6, 1e-3)
    history, corrected = History(points, ages.numpy()), Corrected(state, iterations)
    carry = {"n_steps": n_steps, "n_since_order": 0}
    found = bdf._following(history, corrected, carry, order, 1e-3, 1e-9, 1e-4, 5, closely=False)
    assert found == (order, pytest.approx(growth * 1e-3))


@pytest.mark.parametrize(("ratio", "chosen"), [(1.05, 2), (1.2, 3)])
def test_a_higher_order_has_to_promise_a_ninth_more(ratio, chosen):
    _, state, points, ages = points_of(6, 1e-3)

    class Foretold(History):
        def errors(self, orders, point, time):
            # As far as the step could grow by it.
            return {3: (1 / (2 * ratio)) ** 4}

    history = Foretold(points, ages.numpy())
    carry = {"n_steps": 20, "n_since_order": 2}
    found, _ = bdf._following(
        history, Corrected(state, 3), carry, 2, 1e-3, (1 / 2) ** 3, 1.0, 5, closely=False
    )
    assert found == chosen


@pytest.mark.parametrize(("closely", "chosen"), [(False, 1), (True, 2)])
def test_followed_closely_the_order_is_the_best_at_a_thousandth_of_the_error(closely, chosen):
    _, state, points, ages = points_of(6, 1e-3)

    class Foretold(History):
        def errors(self, orders, point, time):
            return {2: 1e-5, 3: 1.0}

    # A step could be 100 times as long by order 1, 46 times by order 2; at a thousandth of the
    # error allowed 3.2 and 4.6 times.
    history, carry = Foretold(points, ages.numpy()), {"n_steps": 20, "n_since_order": 2}
    corrected = Corrected(state, 3)
    found, _ = bdf._following(history, corrected, carry, 1, 1e-3, 1e-4, 1.0, 5, closely)
    assert found == chosen


def test_after_three_rejections_the_order_falls_with_each(monkeypatch):
    orders = failing(monkeypatch, *(refused("diverged") for _ in range(4)))
    result = step()
    assert orders == [3, 3, 3, 2, 1]
    assert (result.n_rejected, result.time) == (4, pytest.approx(1e-3 / 2**4))
    assert result.n_reprojection >= 4 * 5
    assert result.carry["n_since_order"] == 0
    assert result.carry["n_steps"] == bdf.START_STEPS


def test_attempts_in_vain_fade_and_are_those_of_newtons_iteration_alone(monkeypatch):
    assert step(in_vain=2.0).carry["in_vain"] == pytest.approx(1.8)
    failing(monkeypatch, refused("not_finite"), refused("iterations"))
    assert step(in_vain=2.0).carry["in_vain"] == pytest.approx(2.8)


def test_while_no_step_has_been_made_each_attempt_is_a_tenth_as_long(monkeypatch):
    failing(monkeypatch, refused("iterations"), refused("diverged"))
    result = step(n_steps=0)
    assert (result.n_rejected, result.time) == (2, pytest.approx(1e-5))


@pytest.mark.parametrize(
    ("error", "in_vain", "closely"),
    [
        (None, 2.0, False),
        (refused("iterations"), 1.0, False),
        (refused("iterations"), 2.0, True),
        (LandingError("off", iterations=3, residual=1.0, reason="diverged"), 0.0, True),
    ],
)
def test_after_a_failed_landing_or_much_in_vain_the_rest_is_followed_closely(
    error, in_vain, closely, monkeypatch
):
    failing(monkeypatch, *([error] if error else []))
    result = step(in_vain=in_vain)
    assert result.carry["closely"] is closely
    # Once and for all.
    assert step(closely=True).carry["closely"]


def test_aside_too_it_is_kept_in_mind_that_the_level_set_is_to_be_followed_closely(monkeypatch):
    failing(monkeypatch, refused("iterations"))
    result = step(in_vain=5.0)
    assert result.carry["n_aside"]
    assert result.carry["closely"]


def test_an_order_that_stays_is_counted():
    result = step(n_since_order=0)
    assert result.carry["order"] == 3
    assert result.carry["n_since_order"] == 1


@pytest.mark.parametrize(("aside", "after"), [(8, 16), (64, 64)])
def test_aside_for_twice_as_long_each_time_up_to_64_steps(aside, after, monkeypatch):
    failing(monkeypatch, refused("iterations", iterations=7))
    result = step(in_vain=5.0, aside=aside)
    assert result.n_rejected == 1
    assert result.n_reprojection >= 7
    assert result.carry["n_aside"] == aside - 1
    assert result.carry["aside"] == after
    # What was in vain is done with.
    assert result.carry["in_vain"] == 0.0
    assert result.carry["order"] == 1


def test_a_step_cut_short_by_the_time_left_does_not_shorten_the_next():
    result = step(max_time=1e-5)
    assert result.time == 1e-5
    assert result.carry["step_size"] == 1e-3
    whole = step(max_time=1e-3)
    assert whole.carry["step_size"] == pytest.approx(1.5e-3)


def test_a_step_cut_short_that_is_too_long_all_the_same_shortens_the_next(monkeypatch):
    def laborious(*args):
        return Corrected(correct(*args).state, 11)

    monkeypatch.setattr(bdf, "correct", laborious)
    result = step(max_time=1e-5)
    assert (result.n_rejected, result.time) == (0, 1e-5)
    assert result.carry["step_size"] == pytest.approx(0.9e-5)


@pytest.mark.parametrize(("n_since_order", "chosen"), [(0, 2), (1, 2), (2, 3)])
def test_an_order_stays_for_as_many_steps_as_it_is(n_since_order, chosen):
    _, state, points, ages = points_of(6, 1e-3)

    class Foretold(History):
        def errors(self, orders, point, time):
            return {3: 1e-9}

    history = Foretold(points, ages.numpy())
    carry = {"n_steps": 20, "n_since_order": n_since_order}
    found, _ = bdf._following(
        history, Corrected(state, 3), carry, 2, 1e-3, 0.5, 1.0, 5, closely=False
    )
    assert found == chosen


def missing(monkeypatch, error):
    """Have the solution of the first equation miss its prediction by so many errors allowed."""
    left = [error]

    def correcting(flow, formula, *args):
        found = correct(flow, formula, *args)
        if not left:
            return found
        size = left.pop() * TOLERANCE.per_step(formula.start, 5, 10.0**-6) / formula.error_constant
        theta = formula.predicted + size * torch.eye(len(formula.start), dtype=torch.float64)[0]
        return Corrected(dataclasses.replace(found.state, theta=theta), found.iterations)

    monkeypatch.setattr(bdf, "correct", correcting)


@pytest.mark.parametrize(("error", "part"), [(0.99, 1.0), (1.01, 0.85), (16.0, 0.425), (1e6, 0.2)])
def test_after_too_large_an_error_the_next_attempt_is_as_long_as_it_allows(
    error, part, monkeypatch
):
    missing(monkeypatch, error)
    result = step()
    assert result.n_rejected == (error > 1)
    assert result.time == pytest.approx(part * 1e-3, rel=0.01)


@pytest.mark.parametrize(("least", "part"), [(-0.5, 0.5), (-1.5, 0.4), (-9.0, 0.25)])
def test_an_equation_of_no_minimum_says_how_much_shorter_the_next_attempt_is(
    least, part, monkeypatch
):
    failing(monkeypatch, IndefiniteError(least, iterations=2, residual=1.0))
    assert step().time == pytest.approx(part * 1e-3)


def test_no_step_is_longer_than_it_takes_to_lose_theta_in_rounding(monkeypatch):
    _, state, _, _ = points_of(6, 1e-3)
    # Of R = θᵀAθ with |A| ≤ 1, ∇R is at most 2θ.
    speed = float(state.regularizer_gradient.norm() / state.theta.norm())
    assert bdf._longest(state) == pytest.approx(2.0**52 / speed)
    monkeypatch.setattr(bdf, "_longest", lambda at: 1.2e-3)
    assert step().carry["step_size"] == pytest.approx(1.2e-3)


@pytest.mark.parametrize(("n_points", "order"), [(1, 1), (2, 1), (3, 2), (4, 3), (6, 3)])
def test_an_order_takes_as_many_points_as_there_are(n_points, order, monkeypatch):
    orders = failing(monkeypatch)
    step(n_points=n_points)
    assert orders == [order]


def test_inside_a_step_is_the_polynomial_through_its_end_and_the_points_of_its_formula():
    flow, state, points, ages = points_of(6, 0.05)
    carry = {"step_size": 0.05, "order": 3, "n_steps": 20, "n_since_order": 1}
    result = BDF().step(
        flow, state, {**carry, "points": points, "ages": ages}, Tolerance(1e-1, 0.0), math.inf
    )
    assert result.time == 0.05
    # A formula of order 3 is of the four points before the end.
    times = [0.05, *(-ages[:4]).tolist()]
    through = BarycentricInterpolator(times, torch.stack([result.state.theta, *points[:4]]))
    for time in (0.01, 0.02, 0.04):
        assert result.interpolant(time).tolist() == pytest.approx(through(time), rel=1e-12)


def test_points_as_near_as_a_third_of_the_coming_step_are_kept_and_nearer_ones_not():
    history = History(torch.zeros(1, 2), np.zeros(1))
    for length in (1.0, 1.0, 0.3):
        history = history.extended(torch.ones(2), length, 1.0)
    assert len(history) == 4
    history = history.extended(torch.ones(2), 0.29, 1.0)
    assert history.ages.tolist() == pytest.approx([0.0, 0.59, 1.59, 2.59])


def test_no_more_points_are_kept_than_the_highest_order_takes():
    history = History(torch.zeros(1, 2), np.zeros(1))
    for _ in range(9):
        history = history.extended(torch.ones(2), 1.0, 1.0)
    assert len(history) == MAX_ORDER + 1


def test_points_are_thinned_out_beside_the_coming_step_and_not_the_last(monkeypatch):
    monkeypatch.setattr(bdf, "_following", lambda *a: (3, 1e-3))
    # The point before is 1e-5 from the new one: kept beside a step like the last alone.
    ages = step(1e-5).carry["ages"].tolist()
    assert ages[:2] == pytest.approx([0.0, 1.01e-3])
