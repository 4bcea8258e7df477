"""Single steps of the exponential method: what is rejected, evaluated and counted, exactly."""

import dataclasses
import math

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, CriticalPointError
from geoflow.solvers import Exponential, Tolerance
from geoflow.solvers.exponential_step import Attempts
from geoflow.solvers.krylov import KrylovSpace
from references import Refusing

TOLERANCE = Tolerance(1e-3, 0.0)
REFUSED = ConvergenceError("refused", iterations=5, residual=1.0, reason="diverged")
CRITICAL = CriticalPointError("refused")


def step(flow, size, max_time=math.inf, tolerance=TOLERANCE, starting=False):
    state = flow.evaluate(flow.problem.theta0)
    carry = {"step_size": size, "radius": 0.0, "starting": starting}
    return state, Exponential().step(flow, state, carry, tolerance, max_time)


def oja_beside(start):
    """Oja's flow, at rest at each axis, from beside one of them."""
    problem = gf.Problem.from_function(
        references.half_square, torch.tensor(start, dtype=torch.float64)
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), references.oja().flow.regularizer)


@pytest.mark.parametrize(("error", "iterations"), [(REFUSED, 5), (CRITICAL, 0)])
def test_a_projection_that_fails_is_a_rejected_step_after_which_none_is_longer(error, iterations):
    free = step(references.sphere_linear().flow, 0.3e-3)[1]
    assert free.carry["step_size"] == pytest.approx(0.9e-3)
    flow = Refusing(references.sphere_linear().flow, 1, error)
    result = step(flow, 1e-3, starting=True)[1]
    assert (result.n_rejected, result.time) == (1, pytest.approx(0.3e-3))
    assert result.n_reprojection == free.n_reprojection + iterations
    # By its error it would be three times as long, and at the start still longer.
    assert result.carry["step_size"] == result.time
    assert result.carry["starting"] is False


def test_the_start_is_over_with_the_first_step_that_grows_no_more_than_others_do():
    flow = references.sphere_linear().flow
    short = step(flow, 1e-6, starting=True)[1]
    assert short.carry["starting"] is True
    assert short.carry["step_size"] > 3.1e-6
    usual = step(flow, 0.2, starting=True)[1]
    assert usual.n_rejected == 0
    assert usual.carry["step_size"] <= 3 * usual.time
    assert usual.carry["starting"] is False


def test_a_step_cut_short_by_the_time_left_does_not_shorten_the_next():
    result = step(references.sphere_linear().flow, 0.1, max_time=1e-3)[1]
    assert result.time == 1e-3
    assert result.carry["step_size"] == 0.1


def test_near_a_point_of_rest_the_velocity_may_grow():
    # Nearly at a maximum of R, from which all goes away as exp(2t) or faster.
    state, result = step(oja_beside([1e-4, 0.0, 0.0, 0.0, 1.0]), 0.25)
    assert result.n_rejected == 0
    assert result.time == 0.25
    assert result.state.tangent_norm > 2 * state.tangent_norm


@pytest.mark.parametrize(("size", "images"), [(1e-4, 0), (0.2, 1)])
def test_the_image_of_a_correction_is_evaluated_where_that_is_worth_a_gradient(
    size, images, monkeypatch
):
    flow, made, beside = references.oja().flow, [], KrylovSpace.beside

    def counting(self, unit):
        made.append(unit)
        return beside(self, unit)

    monkeypatch.setattr(KrylovSpace, "beside", counting)
    attempts = Attempts(flow, flow.evaluate(flow.problem.theta0), TOLERANCE, 0.0)
    attempts.attempt(attempts.resolve(size))
    assert len(made) == images
    # Without an image the largest curvature seen stands for its own.
    assert bool(made) or attempts.correction.matrix[-1, -1] == attempts.space.radius > 0


@pytest.mark.parametrize(("rtol", "part"), [(1e-3, 1.0), (1e-6, 0.1), (1e-8, 0.01)])
def test_what_the_space_leaves_of_many_steps_falls_as_the_root_of_the_tolerance(
    network, rtol, part
):
    state, tolerance = network.evaluate(network.problem.theta0), Tolerance(rtol, 0.0)
    attempts = Attempts(network, state, tolerance, 0.0)
    time = attempts.resolve(1e-3)
    beta, rho = attempts.space.matrix[-1, -2:]
    left = time * (beta + rho) * abs(attempts.predict(time)[-1])
    assert time == 1e-3
    assert left <= 3 * part * tolerance.scale(state.theta)


@pytest.mark.parametrize(
    ("rtol", "expected"),
    # In units of the error allowed; as a part of the level; as the level set itself is kept to.
    [(1e-4, None), (1.0, 1e-2), (1e-10, 1e-6)],
)
def test_the_predictor_is_as_close_to_the_level_set_as_its_error_is_worth(network, rtol, expected):
    flow = Refusing(network, 0, REFUSED)
    state, tolerance = network.evaluate(network.problem.theta0), Tolerance(rtol, 0.0)
    attempts = Attempts(flow, state, tolerance, 0.0)
    attempts.attempt(attempts.resolve(1e-5))
    distance = 0.3 * tolerance.scale(state.theta) * state.gradient_norm / network.level_set.level
    predictor, end = (found["rtol"] for found in flow.projected)
    assert predictor == pytest.approx(expected or distance)
    assert end is None


@pytest.mark.parametrize(
    "make", [references.ellipsoid, references.torus, lambda: references.oja_on_a_circle().flow]
)
def test_within_a_step_the_curve_leaves_the_level_set_as_the_fourth_power_of_the_step(make):
    given, steps, distances = make(), [0.1, 0.05, 0.025], []
    several = getattr(given.problem, "problems", given.problem)
    flow = gf.RegularizingFlow(gf.LevelSet(several, level_rtol=1e-13), given.regularizer)
    state = flow.evaluate(flow.problem.theta0)
    for time in steps:
        attempts = Attempts(flow, state, Tolerance(1e-13, 0.0), 0.0)
        attempts.resolve(time)
        end, _ = attempts.attempt(time)
        inside = attempts.interpolant(time, end)(time / 2)
        distances.append(flow.level_set.distance(*flow.problem.value_and_gradient(inside)))
    assert abs(references.order_of_convergence(steps, distances) - 4) <= 0.2


@pytest.mark.parametrize("rtol", [1e-2, 1.0])
def test_however_loose_the_tolerance_the_space_leaves_a_fifth_of_the_velocity_at_most(
    network, rtol
):
    state = network.evaluate(network.problem.theta0)
    attempts = Attempts(network, state, Tolerance(rtol, 0.0), 0.0)
    time = attempts.resolve(0.1)
    beta, rho = attempts.space.matrix[-1, -2:]
    assert time == 0.1
    assert (beta + rho) * abs(attempts.predict(time)[-1]) <= 0.2 * state.tangent_norm


def test_of_several_constraints_a_move_comes_to_the_level_set_to_third_order(monkeypatch):
    flow = references.oja_on_a_circle().flow
    state = flow.evaluate(flow.problem.theta0)
    attempts, starts = Attempts(flow, state, TOLERANCE, 0.0), []
    monkeypatch.setattr(attempts, "_project", lambda start, furthest, rtol: starts.append(start))
    steps = [4e-2, 2e-2, 1e-2]
    for size in steps:
        attempts._retract(state, size * state.velocity / state.tangent_norm, 0.0, size)
    distances = [
        flow.level_set.distance(*flow.problem.value_and_gradient(start)) for start in starts
    ]
    assert references.order_of_convergence(steps, distances) > 2.8


def test_beside_a_wall_of_one_of_several_constraints_a_step_is_made_shorter():
    start = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    wall = gf.Problem.from_function(lambda t: t[1] + torch.where(t[0] < 0.9, 0.0, torch.nan), start)
    level = gf.Problem.from_function(lambda t: t[2] + t[1], start)
    flow = gf.RegularizingFlow(gf.LevelSet([wall, level]), lambda t: -t[0])
    result = step(flow, 16.0)[1]
    assert (result.n_rejected, result.time) == (3, pytest.approx(16 * 0.3**3))


def test_a_correction_that_single_precision_does_not_hold_is_a_rejected_step(monkeypatch):
    start = torch.tensor([0.6, 0.8, 0.1], dtype=torch.float32)
    problem = gf.Problem.from_function(references.half_square, start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: (theta**4).sum())
    usual, corrected = step(flow, 1e-2)[1], Attempts.corrected

    def of_a_wild_curvature(self, time, size):
        return corrected(self, time, size) + (1e39 if size > 0.5e-2 else 0.0)

    monkeypatch.setattr(Attempts, "corrected", of_a_wild_curvature)
    result = step(flow, 1e-2)[1]
    assert (usual.n_rejected, result.n_rejected) == (0, 1)
    assert result.time == pytest.approx(0.3e-2)


def foretelling(monkeypatch, *found):
    """Have attempts come to these errors, the velocity at their ends over that at the start."""
    left, attempt = list(found), Attempts.attempt

    def coming_to(self, time):
        end, _ = attempt(self, time)
        error, growth = left.pop(0)
        return dataclasses.replace(end, tangent_norm=growth * self.state.tangent_norm), error

    monkeypatch.setattr(Attempts, "attempt", coming_to)


@pytest.mark.parametrize(
    ("error", "growth"), [(0.5, 0.9 * 2 ** (1 / 3)), (1.0, 0.9), (1e-3, 3.0), (0.0, 3.0)]
)
def test_the_next_step_is_as_long_as_an_error_of_third_order_allows(error, growth, monkeypatch):
    foretelling(monkeypatch, (error, 1.0))
    result = step(references.sphere_linear().flow, 1e-4)[1]
    assert result.carry["step_size"] == pytest.approx(growth * 1e-4)


@pytest.mark.parametrize(("error", "growth"), [(1e-6, 90.0), (1e-13, 9e3)])
def test_at_the_start_it_grows_by_its_error_down_to_a_million_millionth(error, growth, monkeypatch):
    foretelling(monkeypatch, (error, 1.0))
    result = step(references.sphere_linear().flow, 1e-9, starting=True)[1]
    assert result.carry["step_size"] == pytest.approx(growth * 1e-9)


@pytest.mark.parametrize(
    ("found", "part"),
    [
        # By its error, to a fifth at the least; by the velocity, whatever its error.
        ((8.0, 1.0), 0.45),
        ((1e6, 1.0), 0.2),
        ((1e-9, 1.31), 0.6),
        ((8.0, 1.31), 0.45),
        ((1e-9, 1.29), None),
    ],
)
def test_an_attempt_that_is_rejected_says_how_long_the_next_is(found, part, monkeypatch):
    foretelling(monkeypatch, found, (0.5, 1.0))
    result = step(references.sphere_linear().flow, 1e-4)[1]
    assert result.n_rejected == (part is not None)
    assert result.time == pytest.approx((part or 1.0) * 1e-4)


def test_newton_moves_a_point_little_further_than_the_step_does_in_six_iterations():
    flow = Refusing(references.ellipsoid(), 0, REFUSED)
    state = flow.evaluate(flow.problem.theta0)
    owed = 1e-3 * state.velocity / state.tangent_norm
    attempts = Attempts(flow, state, TOLERANCE, 0.0, owed=owed)
    size = attempts.resolve(1e-2)
    length = float(torch.as_tensor(attempts.predict(size)).norm())
    _, error = attempts.attempt(size)
    corrected = error * attempts.allowed
    furthest = [given["max_displacement"] for given in flow.projected]
    assert furthest == pytest.approx([2 * length + 2e-3, 10 * corrected + length])
    assert [given["max_iterations"] for given in flow.projected] == [6, 6]


def test_the_largest_curvature_of_a_step_is_expected_in_the_next():
    # Of a linear R on a sphere A is λ times the identity.
    down = references.sphere_linear().flow
    flow = gf.RegularizingFlow(down.level_set, lambda theta: -down.regularizer(theta))
    state, result = step(flow, 1e-3)
    assert state.multiplier > 0
    assert result.carry["radius"] == pytest.approx(state.multiplier, rel=1e-5)
    attempts = Attempts(flow, state, TOLERANCE, 50.0)
    assert attempts.space.matrix[-1, -1] == 50


def test_an_attempt_has_newton_start_where_the_level_set_bends_to(monkeypatch):
    flow, starts, steps = references.ellipsoid(), [], [0.02, 0.01, 0.005]
    state = flow.evaluate(flow.problem.theta0)

    def recording(self, start, furthest, rtol):
        starts.append(start)
        raise REFUSED

    monkeypatch.setattr(Attempts, "_project", recording)
    for time in steps:
        attempts = Attempts(flow, state, Tolerance(1e-10, 0.0), 0.0)
        with pytest.raises(ConvergenceError, match="refused"):
            attempts.attempt(attempts.resolve(time))
    left = [abs(flow.level_set.residual(flow.problem.loss(start))) for start in starts]
    # Along the tangent alone it is of second order.
    assert references.order_of_convergence(steps, left) > 2.8


def test_the_correction_too_is_led_back_along_the_bend_of_the_level_set():
    settings = {"rtol": 1e-3, "atol": 1e-6, "stop": gf.Stationary(179.0)}
    ds = gf.walk(references.torus(), "exponential", **settings)
    assert ds.attrs["status"] == "stationary"
    # Along the tangent alone three steps end so far off the level set that they are re-projected.
    assert int(ds["n_reprojection"][-1]) == 0


@pytest.mark.parametrize("size", [1e5, 1e8])
def test_a_step_over_which_the_linear_flow_overflows_is_cut_and_the_space_does_not_grow(size):
    flow = references.oja().flow
    attempts = Attempts(flow, flow.evaluate(flow.problem.theta0), TOLERANCE, 0.0)
    before = flow.problem.evaluations
    assert 0 < attempts.resolve(size) < size
    assert flow.problem.evaluations - before <= 4
    assert len(attempts.space) == 4
