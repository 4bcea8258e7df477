import itertools
import math

import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, CriticalPointError, InputError


def sphere(radius=2.0, n=3):
    start = torch.zeros(n, dtype=torch.float64)
    start[0] = radius
    return gf.LevelSet(gf.Problem.from_function(references.half_square, start))


def test_the_level_is_the_loss_at_theta0_unless_given():
    level_set = sphere()
    assert level_set.level == 2.0
    assert gf.LevelSet(level_set.problem, 3.5).level == 3.5


def test_projection_ends_on_the_sphere_with_the_gradient_there():
    level_set = sphere()
    start = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    projection = level_set.project(start)
    # On the sphere, Newton's corrections along the normal are radial.
    assert torch.allclose(projection.theta, 2 * start / start.norm(), rtol=1e-6)
    assert abs(projection.loss - 2) <= 2e-6
    assert torch.equal(projection.gradient, projection.theta)


def test_each_iteration_costs_one_gradient_and_none_is_made_twice():
    level_set = sphere()
    start = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    before = level_set.problem.counts["gradient"]
    projection = level_set.project(start)
    assert level_set.problem.counts["gradient"] - before == projection.iterations + 1
    known = level_set.problem.value_and_gradient(start)
    before = level_set.problem.counts["gradient"]
    again = level_set.project(start, evaluated=known)
    assert level_set.problem.counts["gradient"] - before == again.iterations
    assert torch.equal(again.theta, projection.theta)


def test_newton_converges_quadratically():
    level_set = gf.LevelSet(sphere().problem, level_rtol=1e-15)
    residuals = []
    theta = torch.tensor([2.5, 0.0, 0.0], dtype=torch.float64)
    for _ in range(4):
        loss, gradient = level_set.problem.value_and_gradient(theta)
        residuals.append(abs(level_set.residual(loss)))
        theta = theta - gradient * (level_set.residual(loss) / float(gradient @ gradient))
    for a, b in itertools.pairwise(residuals):
        assert b <= 0.3 * a**2


def test_tangent_projection_is_an_orthogonal_projection(network):
    gradient = network.problem.value_and_gradient(network.problem.theta0)[1]
    v = torch.linspace(-1, 2, len(gradient), dtype=torch.float64)
    tangent = network.level_set.tangent(v, gradient)
    assert abs(float(tangent @ gradient)) < 1e-14
    assert torch.allclose(network.level_set.tangent(tangent, gradient), tangent, atol=1e-15)
    assert abs(float(tangent @ (v - tangent))) < 1e-13


def test_the_multiplier_makes_the_lagrangian_stationary_along_the_normal(network):
    state = network.evaluate(network.problem.theta0)
    lagrangian = state.regularizer_gradient + state.multiplier * state.gradient
    assert abs(float(lagrangian @ state.gradient)) < 1e-12
    assert torch.allclose(lagrangian, -state.velocity, atol=1e-14)


def test_the_distance_is_first_order():
    level_set = sphere()
    theta = torch.tensor([2.001, 0.0, 0.0], dtype=torch.float64)
    assert math.isclose(
        level_set.distance(*level_set.problem.value_and_gradient(theta)), 1e-3, rel_tol=1e-3
    )


def test_a_level_below_the_minimum_fails_with_iterations_and_residual():
    problem = gf.Problem.from_function(
        lambda t: 1 + references.half_square(t), torch.ones(2, dtype=torch.float64)
    )
    with pytest.raises(ConvergenceError, match="choose a level the loss can reach") as failure:
        gf.LevelSet(problem, 0.5).project(problem.theta0)
    assert failure.value.iterations > 0
    assert failure.value.residual > 0.4
    assert failure.value.reason in ("diverged", "iterations")


def test_displacement_has_a_test_of_its_own():
    with pytest.raises(ConvergenceError, match="further than allowed") as failure:
        sphere().project(torch.tensor([4.0, 0, 0], dtype=torch.float64), max_displacement=0.1)
    assert failure.value.reason == "displacement"


def test_the_largest_displacement_is_allowed_itself():
    level_set = gf.LevelSet(sphere().problem, level_rtol=0.2)
    start = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    free = level_set.project(start)
    assert free.iterations == 1
    displacement = float((free.theta - start).norm())
    assert torch.equal(level_set.project(start, max_displacement=displacement).theta, free.theta)
    with pytest.raises(ConvergenceError, match="further than allowed"):
        level_set.project(start, max_displacement=0.999 * displacement)


def test_a_tolerance_for_one_projection_takes_the_place_of_the_level_sets():
    level_set = sphere()
    start = torch.tensor([2.5, 0.0, 0.0], dtype=torch.float64)
    found = {rtol: level_set.project(start, rtol=rtol) for rtol in (0.1, 1e-4, 1e-12)}
    for rtol, projection in found.items():
        assert abs(level_set.residual(projection.loss)) <= rtol * level_set.level
    assert [p.iterations for p in found.values()] == [1, 3, 4]


def test_a_projection_has_no_graph_of_what_its_start_was_made_of():
    level_set = sphere()
    variable = level_set.problem.theta0.clone().requires_grad_()
    for start in (1.1 * variable, variable):
        assert not level_set.project(start).theta.requires_grad


def test_a_projection_that_fails_says_what_it_was_to_be_within():
    start = torch.tensor([2.5, 0.0, 0.0], dtype=torch.float64)
    with pytest.raises(ConvergenceError, match=r"tolerance 2.0e-11\); take smaller steps"):
        sphere().project(start, rtol=1e-11, max_iterations=3)
    with pytest.raises(ConvergenceError, match=r"2.0e-17\); use float64, or a larger rtol"):
        sphere().project(start, rtol=1e-17, max_iterations=3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_iterations": -1}, "max_iterations=-1; use at least 0"),
        ({"max_iterations": 2.5}, "max_iterations=2.5; give a whole number"),
        ({"rtol": math.nan}, "rtol=nan; use zero or a positive number"),
        ({"rtol": -1e-6}, "rtol=-1e-06; use"),
        ({"rtol": math.inf}, "rtol=inf; use"),
        ({"max_displacement": "a"}, "max_displacement='a'; give a real number"),
        ({"max_displacement": -1}, "max_displacement=-1.0; use zero or a positive number"),
        ({"max_displacement": math.nan}, "max_displacement=nan; use"),
    ],
)
def test_what_no_projection_can_be_made_with_is_refused(kwargs, message):
    level_set = sphere()
    with pytest.raises(InputError, match=message):
        level_set.project(1.2 * level_set.problem.theta0, **kwargs)


def test_a_negative_level_has_a_tolerance_like_its_mirror_image():
    start = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: -references.half_square(theta), start)
    level_set = gf.LevelSet(problem)
    assert level_set.tolerance == 2e-6
    projection = level_set.project(1.2 * start, rtol=1e-9)
    assert abs(projection.loss + 2) <= 2e-9


def test_the_finest_tolerance_is_four_roundings():
    finest = 4 * torch.finfo(torch.float64).eps
    assert gf.LevelSet(sphere().problem, level_rtol=finest).level_rtol == finest
    with pytest.raises(InputError, match="below what"):
        gf.LevelSet(sphere().problem, level_rtol=0.99 * finest)


def test_a_hopeless_iteration_can_be_ended_early():
    level_set = sphere()
    before = level_set.problem.counts["gradient"]
    with pytest.raises(ConvergenceError, match="after 2 iterations") as failure:
        level_set.project(torch.tensor([1e3, 0, 0], dtype=torch.float64), max_iterations=2)
    assert failure.value.iterations == 2
    assert level_set.problem.counts["gradient"] - before == 3


def cliff():
    """exp(50 t) + t: from t = −1 Newton's first step to L = 2 lands at exp(100)."""
    problem = gf.Problem.from_function(
        lambda t: torch.exp(50 * t[0]) + t[0], torch.tensor([-1.0], dtype=torch.float64)
    )
    return gf.LevelSet(problem, 2.0)


def test_divergence_has_a_test_of_its_own():
    level_set = cliff()
    with pytest.raises(ConvergenceError, match="diverged") as failure:
        level_set.project(level_set.problem.theta0, damped=False)
    assert failure.value.reason == "diverged"


def test_a_step_that_may_be_long_is_damped():
    level_set = cliff()
    projection = level_set.project(level_set.problem.theta0)
    assert projection.loss == pytest.approx(2.0, abs=2e-6)
    assert not projection.at_floor


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_level_ten_times_off_is_reached_or_the_error_says_how_far_it_came(network, factor):
    start = float(network.problem.loss(network.problem.theta0))
    level_set = gf.LevelSet(network.problem, start * factor)
    flow = gf.RegularizingFlow(level_set, network.regularizer)
    _, projection = flow.start(network.problem.theta0)
    assert projection.loss == pytest.approx(start * factor, rel=1e-6)
    bounded = gf.Problem.from_function(
        lambda t: 1 + torch.tanh(t[0]), torch.zeros(1, dtype=torch.float64)
    )
    with pytest.raises(ConvergenceError, match=r"L − c = -1.0\d*e\+00") as failure:
        gf.LevelSet(bounded, 3.0).project(bounded.theta0)
    assert failure.value.residual == pytest.approx(-1, abs=0.1)


def test_a_vanishing_gradient_is_an_error_of_its_own():
    level_set = sphere()
    with pytest.raises(CriticalPointError, match="not a manifold"):
        level_set.project(torch.zeros(3, dtype=torch.float64))


def test_of_a_zero_gradient_there_is_neither_distance_nor_tangent():
    zero = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(CriticalPointError, match="gradient is zero"):
        sphere().distance(1.0, zero)
    with pytest.raises(CriticalPointError, match="gradient is zero"):
        sphere().tangent(zero, zero)


def test_where_rounding_forces_a_residual_the_best_point_is_taken_and_says_so():
    # L moves by 1e-4 between neighbouring doubles of θ, and ‖g‖‖θ‖ε says so.
    def loss(t):
        return 1e6 * (t[0] - 1e6) + 1

    problem = gf.Problem.from_function(loss, torch.full((1,), 1e6, dtype=torch.float64))
    level_set = gf.LevelSet(problem, level=1.00003, level_rtol=1e-12)
    projection = level_set.project(problem.theta0)
    assert projection.at_floor
    assert level_set.n_at_floor == 1
    # No double is closer than the two about the level.
    assert abs(projection.loss - level_set.level) <= 1e6 * math.ulp(1e6) / 2


def _coarse(t):
    # Rounding of 1e4 + … hides changes of L below 1e-3, and nothing in θ, ∇L or c says so.
    return (1e4 + 0.5 * t @ t) - 1e4


def test_a_residual_that_rounding_of_the_loss_forces_is_taken_and_was_warned_of():
    start = torch.ones(4, dtype=torch.float32)
    problem = gf.Problem.from_function(_coarse, start)
    with pytest.warns(UserWarning, match=r"level_rtol=1e-06: in float32 the loss is known to"):
        level_set = gf.LevelSet(problem, level=2.2)
    projection = level_set.project(start)
    assert projection.at_floor
    assert abs(projection.loss - 2.2) < 1e-3
    # Of the same numbers it is said once.
    gf.LevelSet(problem, level=2.3)


def test_a_residual_that_no_rounding_known_forces_is_refused():
    def in_float32_only(t):
        assert t.detach().numpy().dtype == "float32"
        return _coarse(t)

    start = torch.ones(4, dtype=torch.float32)
    problem = gf.Problem.from_function(in_float32_only, start)
    with pytest.raises(ConvergenceError, match=r"held up by rounding .*use float64") as failure:
        gf.LevelSet(problem, level=2.2).project(start)
    assert failure.value.reason == "floor"
    assert abs(failure.value.residual) < 2e-3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"level": 0.0}, r"level=0\.0; .* add 1 to the loss and keep that at 1$"),
        ({"level": math.nan}, "level=nan"),
        ({"level_rtol": 0.0}, "level_rtol=0.0"),
        ({"level_rtol": 1e-17}, "below what torch.float64 resolves"),
        ({"level_rtol": 0.5}, r"level_rtol=0.5 keeps no level; use at most 0.25"),
        ({"level_rtol": 1e3}, r"level_rtol=1000.0 keeps no level"),
        ({"level_rtol": math.inf}, "level_rtol=inf keeps no level"),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(InputError, match=message):
        gf.LevelSet(sphere().problem, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[:2], r"has shape torch.Size\(\[2\]\)"),
        (lambda v: v.float(), "has dtype torch.float32"),
        (lambda v: v.numpy(), "is of type ndarray"),
        (lambda v: v.to_sparse(), "has layout torch.sparse_coo"),
        (lambda v: v.expand(0, 3), r"has shape torch.Size\(\[0, 3\]\)"),
    ],
)
def test_vectors_that_are_none_of_the_problems_are_named(change, message):
    level_set = sphere()
    v = level_set.problem.theta0
    with pytest.raises(InputError, match=f"^v.* {message}"):
        level_set.tangent(change(v), v)
    with pytest.raises(InputError, match=f"^gradient.* {message}"):
        level_set.tangent(v, change(v))
    with pytest.raises(InputError, match=f"^gradient.* {message}"):
        level_set.distance(1.0, change(v))
