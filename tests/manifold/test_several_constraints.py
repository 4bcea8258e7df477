"""Level sets of several constraints, beside circles known exactly and KKT points of SLSQP."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import geoflow as gf
import references
from geoflow.errors import (
    ConvergenceError,
    CriticalPointError,
    EvaluationLimitError,
    InputError,
)
from geoflow.manifold.iterate import Iterate
from geoflow.manifold.linearization import TangentHessian
from geoflow.manifold.normals import normal_space
from geoflow.solvers import RKC, Tolerance, TorchDiffEq


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


START = vector(1.0, 0.5, -0.7)
OTHER = vector(0.4, -1.1, 0.3)
DOWN = vector(0.9, 0.2, 0.6)


def problem(loss, start=START):
    return gf.Problem.from_function(loss, start)


def sphere():
    return problem(references.half_square)


def other_sphere():
    return problem(lambda theta: references.half_square(theta - OTHER))


def plane():
    return problem(lambda theta: torch.dot(OTHER, theta) + 3)


# Both cut the first sphere in a circle around the axis OTHER.
CIRCLES = {"two spheres": other_sphere, "a plane and a sphere": plane}


@pytest.fixture(params=CIRCLES)
def circle(request):
    level_set = gf.LevelSet([sphere(), CIRCLES[request.param]()])
    return gf.RegularizingFlow(level_set, lambda theta: torch.dot(DOWN, theta))


def on_the_circle(t):
    """The flow down a·θ on a circle: as on a sphere, the cosine falls as a tanh."""
    axis = OTHER / OTHER.norm()
    center = axis * torch.dot(axis, START)
    down = DOWN - axis * torch.dot(axis, DOWN)
    radius, pole = (START - center).norm(), down / down.norm()
    cosine = torch.dot(START - center, pole) / radius
    side = (START - center) / radius - cosine * pole
    c = torch.tanh(torch.atanh(cosine) - down.norm() / radius * t)
    return center + radius * (c * pole + torch.sqrt(1 - c**2) * side / side.norm())


def runge_kutta(flow, theta, step):
    first = flow.evaluate(theta).velocity
    second = flow.evaluate(theta + step / 2 * first).velocity
    third = flow.evaluate(theta + step / 2 * second).velocity
    fourth = flow.evaluate(theta + step * third).velocity
    end = theta + step / 6 * (first + 2 * second + 2 * third + fourth)
    return flow.project(end)[0].theta


def test_the_flow_follows_the_exact_solution_with_the_order_of_the_integrator(circle):
    steps, errors = [0.2, 0.1, 0.05], []
    for step in steps:
        theta = START
        for _ in range(round(2 / step)):
            theta = runge_kutta(circle, theta, step)
        errors.append(float((theta - on_the_circle(2.0)).norm()))
    assert errors[-1] < 1e-6
    assert abs(references.order_of_convergence(steps, errors) - 4) < 0.4


@pytest.mark.parametrize("solver", [TorchDiffEq("dopri5"), TorchDiffEq("rk4"), RKC()])
def test_solvers_that_need_no_single_constraint_follow_it_too(circle, solver):
    tolerance = Tolerance(1e-6, 0.0)
    state, _ = circle.start(START)
    carry, time = solver.init(circle, state, tolerance), 0.0
    while time < 1.0:
        result = solver.step(circle, state, carry, tolerance, 1.0 - time)
        state, carry, time = result.state, result.carry, time + result.time
        assert (
            abs(circle.level_set.residuals(state.values)) <= 1e-6 * circle.level_set.levels
        ).all()
    assert float((state.theta - on_the_circle(1.0)).norm()) < 3e-4


def test_the_velocity_is_tangent_to_both_and_down_r(circle):
    state = circle.evaluate(START)
    assert state.values.shape == state.multipliers.shape == state.gradient_norms.shape == (2,)
    assert state.gradients.shape == (2, 3)
    assert (abs(state.gradients @ state.velocity) < 1e-14).all()
    # The Lagrangian is stationary along the normals.
    lagrangian = state.regularizer_gradient + torch.from_numpy(state.multipliers) @ state.gradients
    assert torch.allclose(lagrangian, -state.velocity, atol=1e-14)
    slope = float(state.regularizer_gradient @ state.velocity)
    assert math.isclose(slope, -(state.tangent_norm**2), rel_tol=1e-12)


def test_tangent_projection_is_that_of_the_gradients_singular_vectors(circle):
    gradients = circle.evaluate(START).gradients
    v = vector(0.3, -2.0, 1.0)
    span = torch.linalg.svd(gradients, full_matrices=False)[2]
    expected = v - span.T @ (span @ v)
    assert torch.allclose(circle.level_set.tangent(v, gradients), expected, atol=1e-14)


def test_the_distance_is_the_shortest_step_to_the_tangent_planes(circle):
    theta = START + vector(1e-3, 2e-3, -1e-3)
    values, gradients = circle.problem.value_and_gradient(theta)
    residuals = values - torch.from_numpy(circle.level_set.levels)
    expected = torch.linalg.lstsq(gradients, residuals[:, None], driver="gelsd").solution.norm()
    assert math.isclose(circle.level_set.distance(values, gradients), expected, rel_tol=1e-9)


def test_newton_ends_on_both_and_costs_one_gradient_of_each(circle):
    start = START + vector(0.2, -0.1, 0.15)
    before = circle.problem.counts["gradient"]
    projection = circle.level_set.project(start)
    assert circle.problem.counts["gradient"] - before == 2 * (projection.iterations + 1)
    for found, level, one in zip(
        projection.values, circle.level_set.levels, circle.problem.problems, strict=True
    ):
        assert abs(found - level) <= 1e-6 * abs(level)
        assert float(one.loss(projection.theta)) == found
    known = circle.problem.value_and_gradient(start)
    before = circle.problem.counts["gradient"]
    again = circle.level_set.project(start, evaluated=known)
    assert circle.problem.counts["gradient"] - before == 2 * again.iterations
    assert torch.equal(again.theta, projection.theta)


def test_newton_converges_quadratically(circle):
    level_set = gf.LevelSet(circle.problem.problems, level_rtol=1e-15)
    theta, residuals = START + vector(0.2, -0.1, 0.15), []
    for iterations in range(4):
        with pytest.raises(ConvergenceError) as failure:
            level_set.project(theta, max_iterations=iterations, rtol=0.0)
        residuals.append(abs(failure.value.residual))
    for i in range(3):
        assert residuals[i + 1] <= max(4 * residuals[i] ** 2, 1e-14)


def test_a_level_that_cannot_be_met_names_its_constraint():
    level_set = gf.LevelSet([sphere(), other_sphere()], level=[None, 50.0])
    with pytest.raises(ConvergenceError, match=r"onto L = .* of constraint [01]") as failure:
        level_set.project(START)
    assert failure.value.reason in ("iterations", "diverged")


DIMENSION = 6


def quadratics(kind, away=0.1):
    """Two ellipsoids, or an ellipsoid and a plane, and a squared distance to minimise."""
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    axes = torch.linspace(1, 3, DIMENSION, dtype=torch.float64)
    ones = torch.ones(DIMENSION, dtype=torch.float64)
    second = {
        "ellipsoids": lambda t: 0.5 * torch.dot(t - 0.3, axes.flip(0) * (t - 0.3)),
        "plane": lambda t: torch.dot(ones, t) + 9,
    }[kind]
    losses = [lambda t: 0.5 * torch.dot(t, axes * t), second]
    target = away * start

    def distance(theta):
        return torch.dot(theta - target, theta - target)

    problems = [problem(loss, start) for loss in losses]
    return gf.RegularizingFlow(gf.LevelSet(problems, level_rtol=1e-12), distance)


# Whether R pulls in or out of the constraints is where its minimum lies.
@pytest.mark.parametrize(
    ("kind", "away", "signs"),
    [("ellipsoids", 0.1, [-1, -1]), ("plane", 0.1, [-1, -1]), ("ellipsoids", 20.0, [1, 1])],
)
def test_the_flow_rests_at_the_kkt_point_that_slsqp_finds(kind, away, signs):
    flow = quadratics(kind, away)
    solver, tolerance = TorchDiffEq("dopri5"), Tolerance(1e-8, 0.0)
    state, _ = flow.start(flow.problem.theta0)
    carry = solver.init(flow, state, tolerance)
    for _ in range(400):
        if state.kkt_residual < 1e-7:
            break
        result = solver.step(flow, state, carry, tolerance, math.inf)
        state, carry = result.state, result.carry
    assert state.kkt_residual < 1e-7

    def constraint(i):
        one, level = flow.problem.problems[i], flow.level_set.levels[i]
        return {
            "type": "eq",
            "fun": lambda x: float(one.loss(torch.from_numpy(x))) - level,
            "jac": lambda x: one.value_and_gradient(torch.from_numpy(x))[1].numpy(),
        }

    found = minimize(
        lambda x: float(flow.regularizer(torch.from_numpy(x))),
        # From nearby, since SLSQP may go to another of the stationary points.
        state.theta.numpy() + 0.01,
        jac=lambda x: torch.func.grad(flow.regularizer)(torch.from_numpy(x)).numpy(),
        constraints=[constraint(0), constraint(1)],
        method="SLSQP",
        options={"ftol": 1e-12},
    )
    assert np.allclose(state.theta, found.x, rtol=0, atol=1e-5)
    assert list(np.sign(state.multipliers)) == signs
    assert abs(state.angle - (180 if signs == [1, 1] else 0)) < 1e-3


@pytest.mark.parametrize(
    ("down", "angle"),
    [
        # ∇R = −g₁ − 2g₂: both hold R back. ∇R = −g₁ + 2g₂: R falls inwards of the second.
        ((-1.0, -2.0), 180.0),
        ((-1.0, 2.0), 0.0),
        ((1.0, 2.0), 0.0),
    ],
)
def test_the_angle_tells_the_signs_of_the_multipliers_at_rest(down, angle):
    gradients = torch.stack([p.value_and_gradient(START)[1] for p in (sphere(), other_sphere())])
    pull = torch.tensor(down, dtype=torch.float64) @ gradients
    flow = gf.RegularizingFlow(
        gf.LevelSet([sphere(), other_sphere()]), lambda theta: torch.dot(pull, theta)
    )
    state = flow.evaluate(START)
    assert np.allclose(state.multipliers, [-x for x in down], rtol=1e-12)
    assert abs(state.angle - angle) < 1e-6
    assert state.kkt_residual < 1e-12


def test_the_linearization_is_the_dense_one():
    flow = quadratics("ellipsoids")
    state = flow.evaluate(flow.problem.theta0)
    operator = flow.linearization(state)
    assert isinstance(operator, TangentHessian)
    lagrangian = 2 * torch.eye(DIMENSION, dtype=torch.float64)
    for multiplier, one in zip(state.multipliers, flow.problem.problems, strict=True):
        rows = [one.hvp(state.theta, e) for e in torch.eye(DIMENSION, dtype=torch.float64)]
        lagrangian += multiplier * torch.stack(rows)
    q = torch.linalg.qr(state.gradients.T)[0]
    projection = torch.eye(DIMENSION, dtype=torch.float64) - q @ q.T
    unit = operator.tangent(torch.ones(DIMENSION, dtype=torch.float64))
    unit = unit / unit.norm()
    before = flow.problem.counts["gradient"]
    image, loss_images = operator(unit)
    assert flow.problem.counts["gradient"] - before == 2
    assert torch.allclose(image, projection @ lagrangian @ unit, atol=1e-6)
    assert loss_images.shape == (2, DIMENSION)


def test_dependent_gradients_are_said_to_be():
    twice = problem(lambda theta: 3 * references.half_square(theta))
    level_set = gf.LevelSet([sphere(), twice])
    flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    with pytest.raises(CriticalPointError, match="2 constraints are linearly dependent"):
        flow.evaluate(START)
    with pytest.raises(CriticalPointError, match="leave one out"):
        level_set.project(START + 0.1)
    vanishing = problem(lambda theta: torch.dot(theta - START, theta - START) + 1)
    with pytest.raises(CriticalPointError):
        gf.RegularizingFlow(gf.LevelSet([sphere(), vanishing]), lambda t: t[0]).evaluate(START)


def test_nearly_dependent_gradients_are_not():
    nearly = problem(lambda theta: 3 * references.half_square(theta) + 1e-5 * theta[0])
    level_set = gf.LevelSet([sphere(), nearly])
    gradients = level_set.problem.value_and_gradient(START)[1]
    tangent = level_set.tangent(DOWN, gradients)
    # The digits that the Gram matrix of two gradients at 1e-5 to each other leaves.
    assert (abs(gradients @ tangent) < 1e-8).all()


def test_several_problems_count_and_spend_together():
    level_set = gf.LevelSet([sphere(), plane()])
    together = level_set.problem
    together.value_and_gradient(START)
    together.hvp(START, DOWN)
    assert together.counts == {"gradient": 2, "hvp": 2}
    assert together.evaluations == 6
    with together.budget(3):
        together.value_and_gradient(START)
        with pytest.raises(EvaluationLimitError):
            together.value_and_gradient(START)
    assert together.counts == {"gradient": 4, "hvp": 2}
    with together.budget(3), pytest.raises(EvaluationLimitError):
        together.hvp(START, DOWN)


def test_levels_are_given_one_by_one():
    level_set = gf.LevelSet([sphere(), plane()], level=[None, 2.5])
    assert level_set.n_constraints == 2
    assert np.array_equal(level_set.levels, [float(sphere().loss(START)), 2.5])
    assert np.array_equal(gf.LevelSet([sphere(), plane()], [2.0, 2.5]).levels, [2.0, 2.5])


def test_levels_may_be_a_tensor():
    levels = torch.tensor([3.0, 2.5])
    assert gf.LevelSet([sphere(), plane()], level=levels).levels.tolist() == [3.0, 2.5]
    assert gf.LevelSet(sphere(), level=levels[1]).level == 2.5


def test_a_list_of_one_is_that_one():
    level_set = gf.LevelSet([sphere()], level=[1.5])
    assert level_set.level == 1.5
    assert level_set.n_constraints == 1
    assert isinstance(level_set.problem, gf.Problem)


@pytest.mark.parametrize(
    ("problems", "kwargs", "message"),
    [
        (lambda: [], {}, r"problem=\[\] has no constraint"),
        (lambda: [sphere(), plane()], {"level": 2.0}, "level=2.0 is of 1 and there are 2"),
        (lambda: [sphere(), plane()], {"level": [1.0]}, r"level=\[1.0\] is of 1"),
        (lambda: [sphere(), plane()], {"level": [None, 0.0]}, "level=0.0"),
        (lambda: [sphere()] * 2, {}, r"problems\[1\] stands there twice"),
        (
            lambda: [sphere(), problem(references.half_square, torch.ones(4).double())],
            {},
            r"problems\[1\]: its theta0 has shape torch.Size\(\[4\]\)",
        ),
        (
            lambda: [sphere(), problem(references.half_square, START.float())],
            {},
            r"problems\[1\]: its theta0 has dtype torch.float32",
        ),
        (lambda: [sphere(), torch.ones(3)], {}, r"problems\[1\] is a Tensor without"),
    ],
)
def test_bad_input(problems, kwargs, message):
    with pytest.raises(InputError, match=message):
        gf.LevelSet(problems(), **kwargs)


def test_what_is_of_one_constraint_says_so_of_several(circle):
    state = circle.evaluate(START)
    projection = circle.level_set.project(START)
    for thing, name in (
        (state, "loss"),
        (state, "gradient"),
        (state, "gradient_norm"),
        (state, "multiplier"),
        (projection, "loss"),
        (projection, "gradient"),
        (circle.level_set, "level"),
        (circle.level_set, "tolerance"),
    ):
        with pytest.raises(InputError, match="has 2 constraints; use "):
            getattr(thing, name)


class Silent:
    """A flow that records nothing of its constraints."""

    def __init__(self, flow):
        self.flow = flow

    def __getattr__(self, name):
        if name == "constraint_values":
            raise AttributeError(name)
        return getattr(self.flow, name)


def test_a_walk_that_records_nothing_of_its_constraints_is_refused_before_any_evaluation(circle):
    before = circle.problem.evaluations
    with pytest.raises(InputError, match="its level set has 2 constraints"):
        gf.walk(Silent(circle), "dopri5", t_end=1.0)
    assert circle.problem.evaluations == before


def test_they_show_themselves_in_a_line(circle):
    state = circle.evaluate(START)
    things = (circle, circle.level_set, circle.problem, state, circle.level_set.project(START))
    for thing in things:
        text = repr(thing)
        assert "\n" not in text
        assert "tensor(" not in text
        assert len(text) < 400


@pytest.mark.parametrize(("sine", "independent"), [(3e-8, False), (1e-5, True)])
def test_gradients_that_rounding_alone_tells_apart_are_dependent(sine, independent):
    # sin² = 9e-16 is what rounding leaves of equal gradients, and no angle to divide by.
    gradients = torch.tensor([[1.0, 0.0, 0.0], [1.0, sine, 0.0]], dtype=torch.float64)
    if independent:
        assert normal_space(gradients).norms == pytest.approx([1.0, 1.0])
    else:
        with pytest.raises(CriticalPointError, match="linearly dependent to rounding"):
            normal_space(gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [2, 3, 20, 300])
def test_gradients_that_add_up_to_another_are_dependent_however_many_they_are(n, dtype):
    drawn = np.random.default_rng(n).standard_normal((n, 1000))
    for rows in (drawn, drawn[0] + 0.3 * drawn):
        for last in (3 * rows[0], rows[:-1].sum(0)):
            gradients = torch.tensor(np.vstack([rows[:-1], last]), dtype=dtype)
            with pytest.raises(CriticalPointError, match=rf"\(rank {n - 1}: "):
                normal_space(gradients)


@pytest.mark.parametrize(
    ("n", "sine", "dtype"),
    [
        *((n, sine, torch.float32) for n in (5, 20, 100) for sine in (0.03, 0.1)),
        *((n, sine, torch.float64) for n in (3, 20) for sine in (1e-6, 1e-5)),
    ],
)
def test_a_chain_of_gradients_of_which_each_is_near_the_span_of_those_before_is_dependent(
    n, sine, dtype
):
    # No sine between one and those before is small, and the smallest singular value is sine^(n-1).
    near = math.sqrt(1 - sine**2) / np.sqrt(np.maximum(np.arange(n), 1))[:, None]
    rows = np.tril(np.ones((n, n)), -1) * near + np.diag([1.0] + [sine] * (n - 1))
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((200, n)))[0].T
    with pytest.raises(CriticalPointError, match=r"\(rank \d+: beside the others .* constraint \d"):
        normal_space(torch.tensor(rows @ basis, dtype=dtype))


@pytest.mark.parametrize(("n", "sine"), [(20, 0.03), (100, 0.02), (300, 0.05)])
def test_of_many_gradients_in_float32_one_may_be_near_the_span_of_the_others(n, sine):
    rng = np.random.default_rng(1)
    rows, v = rng.standard_normal((n, 1000)), rng.standard_normal(1000)
    basis = np.linalg.qr(rows[:-1].T)[0]
    within = basis @ (basis.T @ rows[-1])
    beside = rows[-1] - within
    rows[-1] = within / np.linalg.norm(within) + sine * beside / np.linalg.norm(beside)
    gradients = torch.tensor(rows, dtype=torch.float32)
    found = normal_space(gradients).multipliers(torch.tensor(v, dtype=torch.float32))
    expected = -np.linalg.lstsq(gradients.double().numpy().T, v, rcond=None)[0]
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)


def test_of_several_residuals_the_largest_is_that_relative_to_its_level():
    at = Iterate(
        torch.zeros(3),
        torch.tensor([3.0, 90.0], dtype=torch.float64),
        torch.eye(3, dtype=torch.float64)[:2],
        np.array([1.0, 100.0]),
        np.array([1.0, 100.0]),
    )
    assert at.size == 2.0


def test_the_residual_that_is_recorded_is_the_largest_relative_to_its_level():
    start = torch.ones(3, dtype=torch.float64)
    problems = [
        gf.Problem.from_function(function, start)
        for function in (lambda t: t[0] ** 2, lambda t: 100 * t[1] ** 2)
    ]
    flow = gf.RegularizingFlow(gf.LevelSet(problems), lambda t: t @ t)
    state = flow.evaluate(torch.tensor([0.9, 0.98, 1.0], dtype=torch.float64))
    # Off by 0.19 of 1, and by 3.96 of 100.
    assert flow.values(state)["level_residual"] == pytest.approx(-0.19)


def test_a_gradient_of_zero_has_no_normal():
    zero = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(CriticalPointError, match="the loss gradient is zero"):
        normal_space(zero).split(torch.ones_like(zero))
    with pytest.raises(CriticalPointError, match="linearly dependent"):
        normal_space(torch.stack([zero, zero + 1]))


@pytest.mark.parametrize("n", [1, 3])
def test_multipliers_are_those_of_the_split(n):
    torch.manual_seed(0)
    gradients = torch.randn(n, 8, dtype=torch.float64)
    v = torch.randn(8, dtype=torch.float64)
    normals = normal_space(gradients[0] if n == 1 else gradients)
    found = normals.multipliers(v)
    assert found == pytest.approx(normals.split(v).multipliers, rel=1e-12)
    # What is left is tangent.
    left = v + torch.from_numpy(found) @ gradients
    assert (gradients @ left).numpy() == pytest.approx(np.zeros(n), abs=1e-12)


def test_multipliers_of_nearly_dependent_gradients_are_those_of_least_squares():
    generator = torch.Generator().manual_seed(0)
    a, b, v = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    rows = torch.stack([a, a + 1e-5 * b])
    found = normal_space(rows).multipliers(v)
    right = -np.linalg.lstsq(rows.numpy().T, v.numpy(), rcond=None)[0]
    assert np.allclose(found, right, rtol=1e-8)
