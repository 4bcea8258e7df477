"""Single steps of the exponential method: what is rejected, evaluated and counted, exactly."""

import math

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, CriticalPointError
from geoflow.solvers import Exponential, Tolerance
from geoflow.solvers.exponential import _Attempts
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
    attempts = _Attempts(flow, flow.evaluate(flow.problem.theta0), TOLERANCE, 0.0)
    attempts.attempt(attempts.resolve(size))
    assert len(made) == images


@pytest.mark.parametrize("rtol", [1e-2, 1.0])
def test_however_loose_the_tolerance_the_space_leaves_a_fifth_of_the_velocity_at_most(
    network, rtol
):
    state = network.evaluate(network.problem.theta0)
    attempts = _Attempts(network, state, Tolerance(rtol, 0.0), 0.0)
    time = attempts.resolve(0.1)
    beta, rho = attempts.space.matrix[-1, -2:]
    assert time == 0.1
    assert (beta + rho) * abs(attempts.predict(time)[-1]) <= 0.2 * state.tangent_norm
