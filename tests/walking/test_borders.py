"""Points that are only tried: where there is no flow the step was too long, and no walk ends."""

import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import ConvergenceError, StorageError
from geoflow.solvers import TorchDiffEq

ADAPTIVE = ["bdf", "exponential", "rkc", "dopri5", "bosh3", "dopri8"]
FIXED = ["rk4", "explicit_adams"]
FIRST = 2.0


def square(theta):
    return torch.dot(theta, theta)


def to_the_right(theta):
    return -theta[0]


def circle(loss=square, regularizer=to_the_right, **kwargs):
    """The unit circle, to be walked along to (1, 0); the angle is FIRST at the start."""
    theta0 = torch.tensor([math.cos(FIRST), math.sin(FIRST)], dtype=torch.float64)
    problem = gf.Problem.from_function(loss, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem, **kwargs), regularizer)


def angle_at(time):
    return 2 * math.atan(math.tan(FIRST / 2) * math.exp(-time))


def time_at(x):
    return math.log(math.tan(FIRST / 2) / math.tan(math.acos(x) / 2))


def flat_outside(theta):
    return square(theta).clamp(max=1.3)


@pytest.mark.parametrize("speed", [1.0, 10.0])
@pytest.mark.parametrize("rtol", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("solver", ADAPTIVE)
def test_where_the_loss_is_flat_off_the_level_set_steps_are_shorter(solver, rtol, speed):
    flow = circle(flat_outside, lambda theta: -speed * theta[0])
    ds = gf.walk(flow, solver, rtol=rtol, stop=None, t_end=1.0)
    assert ds.attrs["status"] == "t_end"
    x, y = ds["theta"].values[-1]
    assert x**2 + y**2 == pytest.approx(1.0, rel=1e-6)
    assert math.atan2(y, x) == pytest.approx(angle_at(speed), abs=max(rtol, 0.02))


def test_with_cvode_too():
    pytest.importorskip("sksundae")
    ds = gf.walk(circle(flat_outside), "cvode", rtol=10.0, stop=None, t_end=1.0)
    assert ds.attrs["status"] == "t_end"


def beyond(value, by):
    """A function that is ``value`` from x = 0.5 on, with a gradient of zero or of none."""

    def function(theta, inside):
        if float(theta.detach()[0]) <= 0.5:
            return inside(theta)
        return theta.sum() * 0 + value if by == "a constant" else theta.sum() * value

    return function


@pytest.mark.parametrize("by", ["a constant", "a product"])
@pytest.mark.parametrize(
    "value", [math.nan, *(pytest.param(v, marks=pytest.mark.slow) for v in (math.inf, -math.inf))]
)
@pytest.mark.parametrize("which", ["L", "R"])
@pytest.mark.parametrize("solver", [*ADAPTIVE, *FIXED, "cvode"])
def test_a_walk_goes_up_to_where_l_or_r_is_no_number_and_says_which(solver, which, value, by):
    if solver == "cvode":
        pytest.importorskip("sksundae")
    function = beyond(value, by)
    flow = (
        circle(lambda theta: function(theta, square))
        if which == "L"
        else circle(square, lambda theta: function(theta, to_the_right))
    )
    ds = gf.walk(flow, solver, stop=None, t_end=4.0, max_evaluations=2000)
    assert ds.attrs["status"] == "step_size_underflow"
    # The exponential method re-projects, or finds a product; bdf has its own words for the loss.
    said = {"L": ("L = ", "L − c = ", "the loss is "), "R": ("R = ",)}[which]
    named = any(f"{word}{value}" in ds.attrs["status_message"] for word in said)
    assert named or (solver == "exponential" and "is not finite" in ds.attrs["status_message"])
    if solver in FIXED:
        assert "use a smaller step_size or an adaptive solver" in ds.attrs["status_message"]
        assert ds.sizes["step"] == 10
    else:
        assert 0.499 < ds["theta"].values[-1, 0] <= 0.5
        assert float(ds["time"][-1]) == pytest.approx(time_at(0.5), abs=0.01)
    assert np.isfinite(ds["regularizer"]).all()


@pytest.mark.parametrize("reproject_every", [None, 3.0])
def test_a_fixed_step_that_is_too_long_says_so_and_is_no_critical_point(reproject_every):
    solver = TorchDiffEq("rk4", step_size=1.5, reproject_every=reproject_every)
    ds = gf.walk(circle(flat_outside), solver, stop=None, t_end=6.0)
    assert ds.attrs["status"] == "step_size_underflow"
    assert ds.attrs["status_message"].startswith("rk4 fails at step_size=1.5: the loss gradient")
    assert ds.attrs["status_message"].endswith("use a smaller step_size or an adaptive solver")


def test_a_state_where_something_is_no_number_is_refused_by_name():
    theta = torch.tensor([0.6, 0.8], dtype=torch.float64)
    flow = circle(regularizer=lambda t: t[1].log() * t[0])
    assert flow.evaluate(theta).regularizer == pytest.approx(0.6 * math.log(0.8))
    with pytest.raises(ConvergenceError, match=r"^R = nan and ‖∇R‖ = nan at a trial .*; choose"):
        flow.evaluate(-theta)
    two = gf.LevelSet(
        [
            gf.Problem.from_function(square, theta),
            gf.Problem.from_function(lambda t: t[0].sqrt() + 1, theta),
        ]
    )
    flow = gf.RegularizingFlow(two, to_the_right)
    with pytest.raises(ConvergenceError, match=r"^L = nan and ‖∇L‖ = nan at a trial") as caught:
        flow.evaluate(-theta)
    assert caught.value.reason == "not_finite"


@pytest.mark.parametrize("which", ["L", "R", "event", "observable"])
def test_a_storage_error_of_the_users_own_loses_no_walk(which):
    def refused(theta, result):
        if float(theta.detach()[0]) > 0.3:
            raise StorageError("my disk")
        return result(theta)

    flow = circle(
        (lambda t: refused(t, square)) if which == "L" else square,
        (lambda t: refused(t, to_the_right)) if which == "R" else to_the_right,
    )
    own = {"own": lambda t: refused(t, float_of_x)}
    ds = gf.walk(
        flow,
        stop=None,
        t_end=3.0,
        snapshot_every=0.1,
        events=[gf.Event(own["own"], value=9.0)] if which == "event" else [],
        observables=own if which == "observable" else None,
    )
    expected = "evaluation_failed" if which in "LR" else "observable_failed"
    assert ds.attrs["status"] == expected
    assert "StorageError: my disk" in ds.attrs["status_message"]
    assert ds.sizes["step"] > 3


def float_of_x(theta):
    return float(theta[0])
