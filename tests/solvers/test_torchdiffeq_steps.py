"""Single steps of torchdiffeq's methods: what is rejected, projected and evaluated, exactly."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, StepSizeError
from geoflow.solvers import Tolerance, TorchDiffEq
from references import Refusing, pulled, straight

TOLERANCE = Tolerance(1e-4, 0.0)
REFUSED = ConvergenceError("refused", iterations=5, residual=1.0, reason="diverged")


def begin(flow, solver, step=None):
    state = flow.evaluate(flow.problem.theta0)
    carry = solver.init(flow, state, TOLERANCE)
    return state, carry if step is None else {**carry, "step_size": step}


def test_before_a_wall_the_step_is_quartered_until_it_ends_short_of_it():
    flow, solver = straight(wall=0.9), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, 16.0)
    before = flow.problem.counts["gradient"]
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    assert (result.n_rejected, result.time) == (3, 0.25)
    # One stage, two and five as far as the wall, and six; the start is known every time.
    assert flow.problem.counts["gradient"] - before == 1 + 2 + 5 + 6
    assert torch.allclose(result.state.theta, torch.tensor([0.25, 1.0], dtype=torch.float64))


def test_at_a_wall_the_steps_end_with_an_error():
    flow, solver = straight(wall=0.9), TorchDiffEq("dopri5")
    state = flow.evaluate(torch.tensor([math.nextafter(0.9, 0), 1.0], dtype=torch.float64))
    carry = {**solver.init(flow, state, TOLERANCE), "step_size": 16.0}
    with pytest.raises(StepSizeError, match=r"L = nan.*at a trial point"):
        solver.step(flow, state, carry, TOLERANCE, math.inf)


def test_steps_below_the_rounding_of_theta_end_with_an_error_though_a_shorter_one_might_do():
    # R = −log x at x = 1e-17 and y = 1: the tolerance allows steps that move θ by 1e-18.
    problem = gf.Problem.from_function(lambda t: t[1], torch.ones(2, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: -torch.log(t[0]))
    solver = TorchDiffEq("dopri5", error_norm="coordinate")
    state = flow.evaluate(torch.tensor([1e-17, 1.0], dtype=torch.float64))
    carry = {**solver.init(flow, state, TOLERANCE), "step_size": 1.0}
    with pytest.raises(StepSizeError, match="local error stays above the tolerance"):
        solver.step(flow, state, carry, TOLERANCE, math.inf)


def test_a_velocity_that_is_not_finite_is_a_wall_too():
    problem = gf.Problem.from_function(
        lambda t: t[1], torch.tensor([0.0, 1.0], dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(
        gf.LevelSet(problem), lambda t: -t[0] * torch.where(t[0] < 0.9, 1.0, torch.nan)
    )
    solver = TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, 16.0)
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    assert (result.n_rejected, result.time) == (3, 0.25)


class Silent(Refusing):
    """A flow of one's own that tells nothing of where its L ends, from x = 0.9 on."""

    def evaluate(self, theta):
        state = self.flow.evaluate(theta)
        return replace(state, values=np.full(1, math.inf)) if theta[0] >= 0.9 else state


def test_where_a_flow_of_ones_own_says_nothing_l_that_is_not_finite_is_a_wall_too():
    # Its end is not re-projected, which would find it.
    flow, solver = Silent(straight(), 0, REFUSED), TorchDiffEq("dopri5", reproject_every=100.0)
    state, carry = begin(flow, solver, 16.0)
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    assert (result.n_rejected, result.time) == (3, 0.25)


def test_a_step_may_be_as_long_as_the_tolerance_lets_it():
    flow, solver = straight(), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, 1e9)
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    assert result.time == 1e9
    assert result.carry["step_size"] > 1e9


@pytest.mark.parametrize("step", [0.5, None])
def test_a_projection_that_fails_is_a_rejected_step(step):
    flow, solver = Refusing(straight(), 3, REFUSED), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, step)
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    free = solver.step(straight(), state, carry, TOLERANCE, math.inf)
    assert result.time == free.time / 64
    assert (result.n_rejected, result.n_reprojection) == (free.n_rejected + 3, 15)


def test_projections_that_fail_for_ever_end_with_what_they_said():
    flow, solver = Refusing(straight(), -1, REFUSED), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, 0.5)
    with pytest.raises(StepSizeError, match=r"underflow .* refused"):
        solver.step(flow, state, carry, TOLERANCE, math.inf)


def test_a_fixed_step_is_not_cut_where_a_projection_fails():
    flow, solver = Refusing(straight(), 1, REFUSED), TorchDiffEq("rk4", step_size=0.5)
    state, carry = begin(flow, solver)
    with pytest.raises(ConvergenceError, match="refused"):
        solver.step(flow, state, carry, TOLERANCE, math.inf)


def test_attempts_that_torchdiffeq_rejects_are_counted_and_the_error_is_that_of_the_last():
    flow, solver = pulled(1.0, x=1.0), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, 100.0)
    before = flow.problem.counts["gradient"]
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    # Six new stages each attempt; the last one is where the step ends.
    assert flow.problem.counts["gradient"] - before == 6 * (result.n_rejected + 1)
    assert result.n_rejected > 0
    assert 0 < result.error_estimate <= 1


@pytest.mark.parametrize("factor", [1.0, 0.3, 1 / 1.5])
def test_a_step_cut_short_by_the_time_left_does_not_shorten_the_next(factor):
    """Of max_time, halved where a sliver would be left."""
    flow, solver = pulled(1.0, x=1.0), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver)
    step = solver.step(flow, state, carry, TOLERANCE, math.inf).carry["step_size"]
    time = step / factor if factor > 0.5 else factor * step
    result = solver.step(flow, state, {**carry, "step_size": step}, TOLERANCE, time)
    assert result.time == (time / 2 if factor == 1 / 1.5 else time)
    assert result.carry["step_size"] >= step


def test_the_first_step_too_ends_at_the_time_that_is_left():
    flow, solver = straight(), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver)
    assert solver.step(flow, state, carry, Tolerance(1e-4, 1e-6), 1e-9).time == 1e-9


def test_after_a_rejection_the_next_step_is_that_of_the_error():
    flow, solver = pulled(1.0, x=1.0), TorchDiffEq("dopri5")
    state, carry = begin(flow, solver, 100.0)
    result = solver.step(flow, state, carry, TOLERANCE, math.inf)
    assert result.n_rejected > 0
    assert result.carry["step_size"] < 100.0


@pytest.mark.parametrize(
    ("x", "stiffness", "order", "name"),
    [
        (1.0, 3.0, 4, "rk4"),
        (1.0, 0.2, 4, "rk4"),
        (0.3, 50.0, 2, "midpoint"),
        (1e-2, 1e-5, 1, "euler"),
        # The first in which ‖θ‖/‖v‖ is the smaller of the two.
        (10.0, 1000.0, 4, "rk4"),
    ],
)
def test_the_starting_step_is_that_of_hairer_norsett_and_wanner(x, stiffness, order, name):
    """The velocity −kx changes by k times what x does: d₂ = k d₁, all of it known."""
    flow = pulled(stiffness, x)
    scale = TOLERANCE.rtol * math.hypot(x, 1)
    d0, d1 = 1 / TOLERANCE.rtol, stiffness * x / scale
    expected = min(d0 / d1, (0.01 / (d1 * max(1, stiffness))) ** (1 / (order + 1)))
    _, carry = begin(flow, TorchDiffEq(name))
    assert carry["step_size"] == pytest.approx(expected, rel=1e-9)


def test_the_starting_step_where_nothing_moves():
    _, carry = begin(pulled(1.0, x=0.0), TorchDiffEq("rk4"))
    assert carry["step_size"] == pytest.approx(1e-6, rel=1e-12)


def test_the_starting_step_at_the_origin():
    """‖θ‖ = 0 sets no scale: it begins with 10⁻⁶, and a hundred times that is the most."""
    problem = gf.Problem.from_function(lambda t: 1 + t[1], torch.zeros(2, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: -t[0])
    state = flow.evaluate(flow.problem.theta0)
    carry = TorchDiffEq("rk4").init(flow, state, Tolerance(0.0, 1e3))
    assert carry["step_size"] == pytest.approx(1e-4, rel=1e-12)


def test_on_a_wall_there_is_no_starting_step_and_the_error_says_why():
    flow = straight(wall=math.nextafter(0.0, 1.0), start=-1.0)
    state = flow.evaluate(torch.tensor([0.0, 1.0], dtype=torch.float64))
    with pytest.raises(StepSizeError, match=r"underflow .* L = nan"):
        TorchDiffEq("rk4").init(flow, state, TOLERANCE)


@pytest.mark.parametrize("name", ["dopri5", "bosh3", "bosh3:error_norm=coordinate"])
@pytest.mark.parametrize("start", [[0.0, 1.0, 2.0], [0.5, 1.0, 0.0]])
def test_a_coordinate_that_is_zero_has_a_tolerance(name, start):
    """Without an absolute one: x starts at 0 and moves, or z is 0 and stays."""
    problem = gf.Problem.from_function(
        references.half_square, torch.tensor(start, dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t[1] - t[0])
    settings = {"rtol": 1e-4, "t_end": 0.5, "stop": None, "snapshot_times": [0.5]}
    exact = gf.walk(flow, "rk4", atol=1e-9, **{**settings, "rtol": 1e-9})
    ds = gf.walk(flow, name, atol=0.0, **settings)
    assert ds.attrs["status"] == "t_end"
    assert ds.sizes["step"] < 60
    assert np.allclose(ds["theta"], exact["theta"], rtol=0, atol=20e-4)


def projected_at(flow, solver, t_end):
    """Flow times of the steps, and how often each was re-projected."""
    watched = Refusing(flow, 0, REFUSED)
    state, carry = begin(watched, solver)
    times, projected = [0.0], []
    while times[-1] < t_end * (1 - 1e-12):
        before = len(watched.projected)
        result = solver.step(watched, state, carry, TOLERANCE, t_end - times[-1])
        state, carry = result.state, result.carry
        times.append(times[-1] + result.time)
        projected.append(len(watched.projected) - before)
    return times, projected


def test_a_fixed_step_ends_with_the_first_one_past_each_multiple():
    solver = TorchDiffEq("rk4", step_size=0.1, reproject_every=0.25)
    times, projected = projected_at(straight(), solver, t_end=1.3)
    assert np.allclose(times, [0, 0.3, 0.5, 0.8, 1.0, 1.3], rtol=1e-14)
    assert projected == [1] * 5


# n·step is above, at or below the number that stands for the multiple.
@pytest.mark.parametrize(
    ("step", "n", "every"), [(0.1, 3, 0.3), (0.1, 5, 0.5), (0.3, 3, 0.9), (0.7, 7, 4.9)]
)
def test_multiples_of_the_step_are_met_whatever_their_rounding(step, n, every):
    solver = TorchDiffEq("rk4", step_size=step, reproject_every=every)
    times, projected = projected_at(straight(), solver, t_end=5 * every)
    assert np.allclose(times, np.arange(6) * every, rtol=1e-14)
    assert projected == [1] * 5


def test_an_adaptive_method_re_projects_with_the_first_step_past_each_multiple():
    solver = TorchDiffEq("bosh3", reproject_every=0.25)
    times, projected = projected_at(pulled(1.0, x=1.0), solver, t_end=2.0)
    multiples = np.floor(np.array(times) / 0.25 + 1e-9)
    assert projected == (np.diff(multiples) > 0).astype(int).tolist()
    assert 5 <= sum(projected) < len(projected)


def test_a_remainder_of_rounding_size_is_no_step_of_its_own():
    solver = TorchDiffEq("rk4", step_size=0.1)
    flow = straight()
    state, carry = begin(flow, solver)
    end = 0.1 * (1 + 1e-10)
    assert solver.step(flow, state, carry, TOLERANCE, end).time == end
    assert solver.step(flow, state, carry, TOLERANCE, 0.1 * (1 + 1e-6)).time == 0.1
    assert solver.step(flow, state, carry, TOLERANCE, 0.05).time == 0.05


@pytest.mark.parametrize(
    ("solver", "most"),
    [
        (TorchDiffEq("rk4", step_size=0.1), 4),
        (TorchDiffEq("euler", step_size=0.1), 1),
        (TorchDiffEq("bosh3"), 3),
        (TorchDiffEq("rk4", step_size=0.1, reproject_every=10.0), None),
    ],
)
def test_evaluations_of_a_step(solver, most):
    """The start is known, and so is the end of a method that evaluates there."""
    flow = pulled(0.1, x=1.0)
    state, carry = begin(flow, solver, None if solver.step_size else 0.1)
    before = flow.problem.counts["gradient"]
    solver.step(flow, state, carry, TOLERANCE, math.inf)
    spent = flow.problem.counts["gradient"] - before
    # A hundred steps in one go: the first stage of the first one is known, their end is not.
    assert spent == (most if most else 4 * 100)
