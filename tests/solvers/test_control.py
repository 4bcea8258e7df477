"""The step-size controllers beside their formulas, and the solvers that say what they need."""

import dataclasses
import math

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, InputError, StepSizeError
from geoflow.solvers import rkc
from geoflow.solvers.control import Elementary, check_step, clip_step

ERRORS = [1e-8, 0.01, 0.3, 0.9, 1.0, 2.0, 50.0]


@pytest.mark.parametrize("order", [2, 3, 5])
def test_the_elementary_step_is_the_one_whose_error_is_allowed(order):
    control = Elementary(order, safety=1.0, shrink=1e-9, grow=1e9, retry=(1e-9, 1e9))
    for error in ERRORS:
        # error ∝ h^order
        assert math.isclose(error * control.accepted(error) ** order, 1, rel_tol=1e-12)
        assert math.isclose(error * control.rejected(error) ** order, 1, rel_tol=1e-12)


def test_ratios_stay_between_their_limits():
    control = Elementary(3, safety=0.9, shrink=0.3, grow=3.0, retry=(0.2, 0.7))
    assert control.accepted(0.0) == control.accepted(1e-12) == 3.0
    assert control.accepted(1e12) == 0.3
    assert control.rejected(1.0001) == 0.7
    assert control.rejected(1e12) == control.rejected(math.inf) == control.rejected(math.nan) == 0.2


@pytest.mark.parametrize("trouble", [*ERRORS, math.inf])
def test_the_exponential_solvers_rule_is_an_elementary_one(trouble):
    control = Elementary(3, safety=0.9, shrink=0.3, grow=3.0, retry=(0.2, 0.7))
    factor = 0.9 * max(trouble, 1e-4) ** (-1 / 3)
    assert control.accepted(trouble) == min(max(factor, 0.3), 3.0)
    assert control.rejected(trouble) == max(0.2, min(0.7, factor))


@pytest.mark.parametrize("error", [1e-10, 0.02, 0.5, 1.0])
def test_rkcs_control_is_that_of_its_paper_without_its_trend(error):
    assert rkc.CONTROL.accepted(error) == min(max(0.8 * error ** (-1 / 3), 0.1), 10.0)
    assert rkc.CONTROL.rejected(1 + error) == max(0.1, 0.8 * (1 + error) ** (-1 / 3))


@pytest.mark.parametrize(
    ("step", "clipped"),
    [(0.3, 0.3), (0.5, 0.5), (0.6, 0.5), (0.999, 0.5), (1.0, 1.0), (1.5, 1.0), (9.0, 1.0)],
)
def test_a_step_ends_at_the_time_asked_for_and_leaves_no_sliver(step, clipped):
    assert clip_step(step, 1.0) == clipped


def test_a_step_within_the_rounding_of_the_state_is_refused_with_its_cause():
    flow = references.sphere_linear().flow
    state = flow.evaluate(flow.problem.theta0)
    # The step that moves θ by one rounding of its norm.
    rounding = float(2.0**-52 * state.flat.norm() / state.velocity.norm())
    check_step(4.1 * rounding, state, "too far")
    with pytest.raises(StepSizeError, match=r"underflow at .*: too far; loosen rtol"):
        check_step(3.9 * rounding, state, "too far")


def test_who_has_made_the_smallest_step_is_not_told_to_take_smaller_ones():
    flow = references.sphere_linear().flow
    state = flow.evaluate(flow.problem.theta0)
    with pytest.raises(ConvergenceError, match="take smaller steps") as failure:
        flow.project(2 * state.theta, max_displacement=1e-9)
    with pytest.raises(StepSizeError, match=r"further than allowed.*; loosen rtol") as ended:
        check_step(1e-20, state, str(failure.value))
    assert "smaller steps" not in str(ended.value)
    with pytest.raises(StepSizeError, match=r"; use float64$"):
        check_step(1e-20, state, "below rounding; use float64")


@pytest.mark.parametrize("solver", ["exponential", "rkc", "dopri5", "rk4"])
def test_every_solver_takes_a_regularising_flow(solver):
    gf.solvers.check_needs(gf.solvers.get(solver), references.sphere_linear().flow)


def test_a_solver_of_one_constraint_refuses_several_by_name():
    flow = references.sphere_linear().flow
    other = gf.Problem.from_function(lambda theta: theta.sum() + 9, flow.problem.theta0)
    several = gf.RegularizingFlow(gf.LevelSet([flow.problem, other]), flow.regularizer)
    for solver in ("exponential", "bdf", "rkc", "dopri5"):
        gf.solvers.check_needs(gf.solvers.get(solver), several)
    one = gf.solvers.get("rkc")
    one.needs = (gf.solvers.base.ONE_CONSTRAINT,)
    with pytest.raises(InputError, match="'rkc' needs a flow with a single constraint"):
        gf.solvers.check_needs(one, several)


class Turning(gf.RegularizingFlow):
    """Down R = z, and round the z axis."""

    def state(self, theta, loss, gradient):
        state = super().state(theta, loss, gradient)
        round_z = torch.stack([-theta[1], theta[0], 0 * theta[0]])
        return dataclasses.replace(state, velocity=state.velocity + 5 * round_z)


def turning(start, regularizer=lambda t: t[2]):
    problem = gf.Problem.from_function(
        lambda t: t.square().sum(), torch.tensor(start, dtype=torch.float64)
    )
    return Turning(gf.LevelSet(problem), regularizer)


@pytest.mark.parametrize("solver", ["bdf", "exponential"])
def test_a_velocity_that_is_not_down_r_is_refused_where_it_would_be_left_out(solver):
    with pytest.raises(InputError, match=f"solver='{solver}' goes down R, .* by 3; use .*'dopri5'"):
        gf.walk(turning([0.6, 0.0, 0.8]), solver, stop=None, t_end=1.0)


@pytest.mark.parametrize("z", [0.8, -0.8])
def test_and_followed_by_the_others(z):
    ds = gf.walk(turning([0.6, 0.0, z]), "dopri5", rtol=1e-8, stop=None, t_end=1.0)
    x, y, last = ds["theta"].values[-1]
    # Down z on the sphere dz/dt = z² − 1.
    assert last == pytest.approx(math.tanh(math.atanh(z) - 1), abs=1e-5)
    assert math.atan2(y, x) == pytest.approx(5 - 2 * math.pi, abs=1e-5)


def test_where_r_rests_and_the_flow_does_not_a_walk_goes_on():
    # Along the equator, where ∇R is normal.
    flow = turning([1.0, 0.0, 0.0], lambda t: t[0].square() + t[1].square())
    ds = gf.walk(flow, "dopri5", rtol=1e-8, stop=None, t_end=1.0)
    assert ds.attrs["status"] == "t_end"
    assert ds["theta"].values[-1] == pytest.approx([math.cos(5), math.sin(5), 0], abs=1e-5)
    still = turning([0.0, 0.0, -1.0])
    assert gf.walk(still, "dopri5", stop=None, t_end=1.0).attrs["status"] == "at_rest"
