"""What an exponential step owes to the next: D taken where the step has ended, not before."""

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.solvers import Exponential, Tolerance
from geoflow.solvers.exponential_step import Attempts


def stiff_sphere(stiffness, n_constraints=1):
    """L = θ·θ, R = k (x − ½)² + y, in three dimensions or, of two constraints, in such a plane.

    θ comes to the circle x = ½ within 1/k, and goes along it as slowly as y asks.
    """
    start = torch.tensor([0.3, 0.4, 0.75**0.5], dtype=torch.float64)
    losses = [lambda t: torch.dot(t, t)]
    if n_constraints == 2:
        start = torch.cat([start, torch.ones(1, dtype=torch.float64)])
        losses = [lambda t: torch.dot(t[:3], t[:3]), lambda t: t[3]]
    problems = [gf.Problem.from_function(loss, start) for loss in losses]
    level_set = gf.LevelSet(problems[0] if n_constraints == 1 else problems, level_rtol=1e-9)
    return gf.RegularizingFlow(level_set, lambda t: stiffness * (t[0] - 0.5) ** 2 + t[1])


@pytest.fixture(scope="module")
def exact():
    """θ on the stiff sphere at some times, by SciPy's Radau."""
    found = {}

    def at(stiffness, times):
        key = stiffness, *times
        if key not in found:
            found[key] = references.tight(stiff_sphere(stiffness), times)
        return found[key]

    return at


@pytest.mark.parametrize(
    ("stiffness", "rtol", "n_constraints", "options"),
    [
        (1e4, 1e-3, 1, {}),
        pytest.param(1e4, 1e-4, 1, {}, marks=pytest.mark.slow),
        pytest.param(1e4, 1e-5, 1, {"basis": "float32"}, marks=pytest.mark.slow),
        (1e4, 1e-4, 2, {}),
        pytest.param(1e6, 1e-4, 1, {}, marks=pytest.mark.slow),
        pytest.param(1e6, 1e-6, 1, {}, marks=pytest.mark.slow),
    ],
)
def test_errors_of_a_stiff_flow_do_not_add_up_along_its_soft_directions(
    stiffness, rtol, n_constraints, options, exact
):
    times = [0.1, 0.5, 1.0]
    flow = stiff_sphere(stiffness, n_constraints)
    settings = {"rtol": rtol, "atol": 1e-3 * rtol, "stop": None, "max_evaluations": 20_000}
    ds = gf.walk(flow, Exponential(**options), t_end=1.0, snapshot_times=times, **settings)
    assert ds.attrs["status"] == "t_end"
    error = np.linalg.norm(ds["theta"].values[:, :3] - exact(stiffness, times), axis=1)
    # D of the predictors alone leaves 8 to 220 rtol.
    assert error.max() <= 2 * rtol


def accepted(flow, size, owed=None):
    state = flow.evaluate(flow.problem.theta0)
    attempts = Attempts(flow, state, Tolerance(1e-13, 0.0), 0.0, owed=owed)
    assert attempts.resolve(size) == size
    return attempts, attempts.attempt(size)[0]


def test_what_is_owed_is_that_of_the_dense_matrices():
    flow, step = references.ellipsoid(), 0.1
    attempts, end = accepted(flow, step)
    state = attempts.state
    identity = torch.eye(len(state.theta), dtype=torch.float64)
    normal = state.gradient / state.gradient_norm
    tangent = identity - torch.outer(normal, normal)
    loss = torch.stack([flow.problem.hvp(state.theta, e) for e in identity])
    a = tangent @ (2 * identity + state.multiplier * loss) @ tangent
    z = attempts.corrected(step, step)
    moved = attempts.space.combine(z[:-1]) + z[-1] * attempts.correction.unit
    changed = tangent @ (end.velocity - attempts.correction.velocity) + a @ moved
    values, vectors = torch.linalg.eigh(a)
    x = -step * values
    phi3 = torch.where(x.abs() < 1e-3, 1 / 6 + x / 24, (x.exp() - 1 - x - x**2 / 2) / x**3)
    weights = 2 * step * phi3 * x.clamp(max=0).exp()
    expected = tangent @ vectors @ (weights * (vectors.T @ changed))
    owed = attempts.owes(step, end)
    assert torch.allclose(owed, expected, rtol=1e-4, atol=1e-9 * float(expected.norm()))


def test_what_is_owed_falls_as_the_fifth_power_of_the_step_where_nothing_is_stiff():
    flow = references.torus()
    flow = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-13), flow.regularizer)
    steps, sizes = [0.1, 0.05, 0.025], []
    for size in steps:
        attempts, end = accepted(flow, size)
        sizes.append(float(attempts.owes(size, end).norm()))
    assert references.order_of_convergence(steps, sizes) >= 4.5


def test_the_next_step_begins_with_what_is_owed_however_short_it_is():
    flow = references.ellipsoid()
    state = flow.evaluate(flow.problem.theta0)
    free = Attempts(flow, state, Tolerance(1e-3, 0.0), 0.0)
    without, _ = free.attempt(free.resolve(1e-10))
    owed = 1e-3 * state.velocity / state.tangent_norm
    attempts = Attempts(flow, state, Tolerance(1e-3, 0.0), 0.0, owed=owed)
    end, error = attempts.attempt(attempts.resolve(1e-10))
    assert error < 1e-3
    # But for the bend of the level set.
    assert float((end.theta - without.theta - owed).norm()) <= 1e-5


def test_a_carry_of_an_earlier_version_owes_nothing():
    flow = references.ellipsoid()
    state = flow.evaluate(flow.problem.theta0)
    solver, tolerance = Exponential(), Tolerance(1e-3, 0.0)
    carry = solver.init(flow, state, tolerance)
    assert "owed" not in carry
    first = solver.step(flow, state, {"step_size": 0.01}, tolerance, 1.0)
    assert first.carry["owed"].shape == state.theta.shape
    assert abs(float(first.carry["owed"] @ state.gradient)) <= 1e-12
