"""Single steps of RKC: what is rejected, projected and evaluated, and the next step, exactly."""

import math
from types import SimpleNamespace

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, CriticalPointError, StepSizeError
from geoflow.solvers import RKC, Tolerance
from geoflow.solvers.rkc import (
    CONTROL,
    _attempt,
    _spectral_radius,
    _starting_step,
    _stiff_scale,
    advance,
    stages_for,
)
from references import Refusing, pulled, straight

TOLERANCE = Tolerance(1e-4, 0.0)
REFUSED = ConvergenceError("refused", iterations=5, residual=1.0, reason="diverged")
CRITICAL = CriticalPointError("refused")


def begin(flow, **carry):
    state = flow.evaluate(flow.problem.theta0)
    return state, {**RKC().init(flow, state, TOLERANCE), **carry}


def step(flow, max_time=math.inf, tolerance=TOLERANCE, **carry):
    return RKC().step(flow, *begin(flow, **carry), tolerance, max_time)


def stiff(k, away=0.0):
    """L = y on y = 1 and R = −x + ½k z²: along x at speed 1, and z falls as exp(−kt)."""
    problem = gf.Problem.from_function(
        lambda t: t[1], torch.tensor([0.0, 1.0, away], dtype=torch.float64)
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda t: 0.5 * k * t[2] ** 2 - t[0])


ACROSS = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("k", [1.0, 50.0])
def test_the_radius_of_a_linear_flow_is_found_by_one_evaluation_once_it_is_known(k):
    flow = pulled(k, 1.0)
    state, carry = begin(flow)
    spent = []
    for _ in range(2):
        before = flow.problem.counts["gradient"]
        radius, vector = _spectral_radius(flow, state, carry)
        spent.append(flow.problem.counts["gradient"] - before)
        assert radius == pytest.approx(1.2 * k, rel=1e-6)
        carry = {"radius": radius, "vector": vector}
    assert spent == [2, 1]


class Linear:
    """The field Jθ, from θ = 0 on; it counts its evaluations."""

    def __init__(self, matrix):
        self.matrix, self.n = torch.tensor(matrix, dtype=torch.float64), 0

    def evaluate(self, theta):
        self.n += 1
        return SimpleNamespace(theta=theta, velocity=self.matrix @ theta)


@pytest.mark.parametrize(
    ("matrix", "evaluations", "radius"),
    [
        # From (1, 1) it finds 7.1, 9.95, and 10 once more to less than 5%.
        ([[-10.0, 0.0], [0.0, -1.0]], 3, 10.0),
        # 4 and 1 in turn, for ever.
        ([[0.0, 4.0], [-1.0, 0.0]], 50, None),
    ],
)
def test_the_power_method_ends_at_five_percent_or_fifty_evaluations(matrix, evaluations, radius):
    field = Linear(matrix)
    state = field.evaluate(torch.zeros(2, dtype=torch.float64))
    start = torch.tensor([1.0, 1.0 if radius else 0.0], dtype=torch.float64)
    found, _ = _spectral_radius(field, state, {"radius": 0.0, "vector": start})
    assert field.n - 1 == evaluations
    assert radius is None or found == pytest.approx(1.2 * radius, rel=1e-3)


def test_the_power_method_goes_on_from_the_vector_it_came_to():
    flow = stiff(100.0, away=1e-6)
    result = step(flow, max_time=1e-3)
    x, _, z = result.carry["vector"]
    assert abs(x) < 1e-3 * abs(z)
    assert result.carry["radius"] == pytest.approx(1.2 * 100, rel=0.05)


def test_the_radius_is_found_in_any_unit_of_theta():
    start = torch.tensor([0.9, 0.6, -0.4, 0.5, 0.5, 0.3], dtype=torch.float64)
    weights = torch.tensor([1, 4, 9, 0.5, 2, 25], dtype=torch.float64)
    spent = []
    for unit in (1.0, 2.0**-20, 2.0**-23, 2.0**-30, 2.0**-40):

        def loss(y, unit=unit):
            return (weights * (y / unit) ** 4).sum() + (y / unit) @ (y / unit)

        def regularizer(y, unit=unit):
            z = y / unit
            return unit**2 * (z[0] ** 2 - 3 * z[1] ** 2 + z[2] * z[3] - 2 * z[4] * z[5])

        problem = gf.Problem.from_function(loss, unit * start)
        flow = gf.RegularizingFlow(gf.LevelSet(problem), regularizer)
        ds = gf.walk(flow, "rkc", rtol=1e-3, atol=1e-6 * unit, t_end=0.8, stop=None)
        spent.append((ds.status, int(ds["n_gradient"][-1])))
    assert len(set(spent)) == 1


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12, 0.0])
def test_the_radius_is_found_where_theta_is_smaller_than_what_the_flow_varies_over(size):
    problem = gf.Problem.from_function(lambda y: 1 + y[1], size * torch.ones(3).double())
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda y: 20 * (y[2] - 1) ** 2 - y[0])
    state = flow.evaluate(problem.theta0)
    carry = {"radius": 0.0, "vector": ACROSS}
    assert _spectral_radius(flow, state, carry)[0] == pytest.approx(1.2 * 40, rel=0.02)


def test_a_step_has_no_more_stages_than_are_stable_and_at_most_the_largest_number():
    flow, k = stiff(10.0), 10.0
    before = flow.problem.counts["gradient"]
    result = step(flow, step_size=1e9, radius=1.2 * k, vector=ACROSS)
    longest = (249**2 - 1) / 1.54 / (1.2 * k)
    assert result.time == pytest.approx(longest, rel=1e-6)
    assert result.n_rejected == 0
    # The start, the power method's, the stages but the first, and the end, which is on the level.
    spent = flow.problem.counts["gradient"] - before
    assert spent == 1 + 1 + 249 + 1


def test_a_step_without_stiffness_has_two_stages():
    assert [stages_for(z) for z in (0.0, 0.5, 1.9)] == [2, 2, 2]


@pytest.mark.parametrize("stages", [2, 5, 20, 100, 250])
def test_no_stage_more_than_one_is_to_spare(stages):
    bound = 2 / 3 * (stages**2 - 1) * (1 - 2 / 15 * 2 / 13)
    assert stages <= stages_for(bound) <= stages + 1


def test_a_straight_line_has_no_error_and_ten_times_the_step_after_it():
    result = step(straight(), step_size=0.5)
    assert (result.time, result.n_rejected, result.n_reprojection) == (0.5, 0, 0)
    assert result.error_estimate <= 1e-10
    assert result.carry["step_size"] == pytest.approx(5.0)


def test_what_a_step_ends_off_the_level_set_is_an_error_of_it():
    # Straight on, a hundredth beside the level set: 1/10 of the 10% of ‖θ‖ that are allowed.
    flow = straight()
    state = flow.evaluate(torch.tensor([0.0, 1.01], dtype=torch.float64))
    end, error, iterations = _attempt(flow, state, 0.1, 1e-9, Tolerance(0.1, 0.0))
    assert error == pytest.approx(0.01 / 0.101, rel=1e-9)
    assert iterations == 1
    assert end.loss == pytest.approx(1)


@pytest.mark.parametrize("h", [0.01, 0.1])
def test_the_error_is_the_embedded_one_over_the_smaller_of_the_scales(h):
    # v = −x on the plane y = 1: nothing leaves the level set.
    flow, one = pulled(1.0, 1.0), torch.ones(1, dtype=torch.float64)
    state, _ = begin(flow)
    end = float(advance(lambda y: -y, one, -one, h, stages_for(1.2 * h)))
    embedded = abs(0.8 * (1 - end) - 0.4 * h * (1 + end))
    for rtol, allowed in ((1e-2, 1e-2 * math.sqrt(2)), (10.0, 3 * 1 / 1.2)):
        error = _attempt(flow, state, h, 1.2, Tolerance(rtol, 0.0))[1]
        assert error == pytest.approx(embedded / allowed, rel=1e-9)


def test_the_next_step_is_that_of_the_error_where_a_whole_step_was_made():
    flow = pulled(1.0, 1.0)
    first = step(flow, step_size=100.0)
    assert first.n_rejected > 0
    second = step(flow, step_size=1.15 * first.time)
    assert second.n_rejected == 0
    assert 0.6 < second.error_estimate <= 1
    expected = second.time * 0.8 * second.error_estimate ** (-1 / 3)
    assert second.carry["step_size"] == pytest.approx(expected, rel=1e-12)
    assert second.carry["step_size"] < second.time


def test_a_step_cut_short_by_the_time_left_does_not_shorten_the_next():
    # Ten times the step is the most it grows; what was wanted before is more.
    assert step(straight(), max_time=0.01, step_size=1.0).carry["step_size"] == 1.0
    # Where the step that was cut is rejected all the same, it is the error that counts.
    cut = step(pulled(1.0, 1.0), max_time=100.0, step_size=101.0)
    assert cut.n_rejected > 0
    assert cut.carry["step_size"] < 10 * cut.time


def test_before_a_wall_the_step_is_a_tenth_until_it_ends_short_of_it():
    flow = Refusing(straight(wall=0.9), 0, REFUSED)
    result = step(flow, step_size=16.0)
    assert (result.n_rejected, result.time) == (2, pytest.approx(0.16))
    assert len(flow.projected) == 1


@pytest.mark.parametrize(("error", "iterations"), [(REFUSED, 15), (CRITICAL, 0)])
def test_a_projection_that_fails_is_a_rejected_step(error, iterations):
    flow = Refusing(straight(), 3, error)
    result = step(flow, step_size=0.5)
    # As after an error of 8 = 2³: half, and the safety factor.
    assert result.time == pytest.approx(0.5 * (0.8 / 2) ** 3)
    assert (result.n_rejected, result.n_reprojection) == (3, iterations)


def test_projections_that_fail_for_ever_end_with_what_they_said():
    with pytest.raises(StepSizeError, match=r"underflow .* refused"):
        step(Refusing(straight(), -1, REFUSED), step_size=0.5)


def test_a_point_whose_error_is_too_large_is_not_projected():
    flow = Refusing(references.sphere_linear().flow, 0, REFUSED)
    result = step(flow, step_size=1.0, tolerance=Tolerance(1e-6, 0.0))
    assert result.n_rejected > 0
    assert len(flow.projected) == 1
    # It may move it by twice the error allowed, and knows L and ∇L there.
    norm = float(flow.problem.theta0.norm())
    assert flow.projected[0]["max_displacement"] == pytest.approx(2e-6 * norm)
    assert flow.projected[0]["evaluated"] is not None


def test_newtons_iterations_are_counted():
    flow = references.sphere_linear().flow
    tight = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-13), flow.regularizer)
    result = step(tight, step_size=0.05)
    assert result.n_reprojection > 0


@pytest.mark.parametrize("k", [0.5, 20.0])
def test_the_first_step_is_a_tenth_of_what_an_euler_step_of_the_inverse_radius_allows(k):
    # v = −kx changes by k times what x does: by x/1.44 over that step.
    flow, x = pulled(k, 0.5), 0.5
    state, _ = begin(flow)
    radius, scale = 1.2 * k, 1e-4
    error = x / 1.2**2 / scale
    expected = 0.1 / radius / math.sqrt(error)
    assert _starting_step(flow, state, radius, scale) == pytest.approx(expected, rel=1e-9)


def test_where_the_flow_vanishes_a_part_of_the_regularizers_gradient_stands_for_it():
    flow = gf.RegularizingFlow(straight().level_set, lambda t: 5 * t[1])
    state, _ = begin(flow)
    assert float(state.velocity.norm()) == 0
    assert _stiff_scale(state, 2.0) == pytest.approx(3 * 2e-3 * 5 / 2)
    # A step there ends where it begins.
    result = step(flow, max_time=1.0)
    assert result.time == 1.0
    assert torch.equal(result.state.theta, state.theta)


def test_a_start_at_the_origin_has_a_radius_too():
    problem = gf.Problem.from_function(lambda t: 1 + t[1], torch.zeros(2, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: 2 * t[0] ** 2 - t[0])
    result = step(flow, tolerance=Tolerance(1e-4, 1e-6))
    assert result.carry["radius"] == pytest.approx(1.2 * 4, rel=1e-6)


def test_the_controller_is_of_the_order_of_the_estimate():
    errors, steps = [], [0.02, 0.01, 0.005]
    flow = pulled(1.0, 1.0)
    state, _ = begin(flow)
    for h in steps:
        errors.append(_attempt(flow, state, h, 1.2, Tolerance(1.0, 0.0))[1])
    assert references.order_of_convergence(steps, errors) == pytest.approx(CONTROL.order, abs=0.05)


def test_beside_a_wall_the_radius_is_found_on_the_other_side():
    # R = −x + ½x², and the wall is within the difference of the power method.
    problem = gf.Problem.from_function(
        lambda t: t[1] + torch.where(t[0] < 1e-9, 0.0, torch.nan),
        torch.tensor([-1.0, 1.0], dtype=torch.float64),
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: 0.5 * t[0] ** 2 - t[0])
    state = flow.evaluate(torch.tensor([0.0, 1.0], dtype=torch.float64))
    radius, _ = _spectral_radius(flow, state, RKC().init(flow, state, TOLERANCE))
    assert radius == pytest.approx(1.2, rel=1e-6)


def test_on_a_wall_there_is_no_first_step_and_the_error_says_why():
    # The power method looks to the other side; every step leads over the wall.
    problem = gf.Problem.from_function(
        lambda t: t[1] + torch.where(t[0] <= 0, 0.0, torch.nan),
        torch.tensor([-1.0, 1.0], dtype=torch.float64),
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: 0.5 * t[0] ** 2 - t[0])
    state = flow.evaluate(torch.tensor([0.0, 1.0], dtype=torch.float64))
    with pytest.raises(StepSizeError, match=r"underflow .* L = nan"):
        _starting_step(flow, state, 1.2, 1e-4)


def test_a_step_to_where_nothing_is_finite_is_rejected():
    # R = −10¹⁵⁰x: a step of 10¹⁶⁰ ends at x = ∞, where L and the velocity are as they were.
    flow = gf.RegularizingFlow(straight().level_set, lambda t: -1e150 * t[0])
    result = step(flow, step_size=1e160, radius=1e-161)
    assert result.n_rejected > 0
    assert torch.isfinite(result.state.theta).all()


class Nowhere(Refusing):
    """Has no state but the one that it is started from."""

    def evaluate(self, theta):
        raise self.error


@pytest.mark.parametrize("carry", [{}, {"radius": 1.0}])
@pytest.mark.parametrize("error", [REFUSED, CRITICAL])
def test_where_no_point_can_be_evaluated_the_error_says_why(error, carry):
    state, start = begin(straight())
    flow = Nowhere(straight(), 0, error)
    with pytest.raises(StepSizeError, match=r"within .* of θ: refused"):
        RKC().step(flow, state, {**start, **carry}, TOLERANCE, math.inf)
