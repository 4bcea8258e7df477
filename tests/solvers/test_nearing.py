"""Steps from beside the level set, where the loss is large beside its gradient."""

import math

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ConvergenceError, StepSizeError
from geoflow.solvers import RKC, Exponential, Tolerance
from geoflow.solvers.exponential_step import Attempts
from geoflow.solvers.nearing import SMALL, nearer, unresolved
from references import Refusing

CURVATURES = torch.arange(1.0, 6.0, dtype=torch.float64)
MINIMUM = torch.tensor([0.5, -0.3, 0.7, 0.2, 0.1], dtype=torch.float64)


def noisy(excess, dtype=torch.float64, level_rtol=1e-6):
    """L = 1 + ½Σd(θ − m)², R = ‖θ‖²: an ellipsoid whose level is ``excess`` above the minimum."""
    curvatures, minimum = CURVATURES.to(dtype), MINIMUM.to(dtype)
    side = torch.tensor([1.0, 0.5, -0.4, 0.3, 0.2], dtype=torch.float64)
    start = MINIMUM + side * math.sqrt(2 * excess / float(CURVATURES @ side**2))
    problem = gf.Problem.from_function(
        lambda theta: 1 + 0.5 * torch.dot(curvatures, (theta - minimum) ** 2), start.to(dtype)
    )
    return gf.RegularizingFlow(
        gf.LevelSet(problem, level_rtol=level_rtol), gf.regularizers.squared_norm
    )


def beside(flow, residual):
    """A state whose loss is off the level by about so much."""
    theta0 = flow.problem.theta0
    normal = flow.evaluate(theta0).gradient
    return flow.evaluate(theta0 + normal * (residual / float(normal @ normal)))


@pytest.mark.parametrize("excess", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_rkc_walks_where_the_tolerance_of_the_level_is_wider_than_its_own(excess, rtol):
    settings = {"t_end": 0.2, "stop": None}
    ds = gf.walk(noisy(excess), "rkc", rtol=rtol, atol=1e-3 * rtol, max_evaluations=500, **settings)
    assert ds.attrs["status"] == "t_end"
    fine = gf.walk(noisy(excess, level_rtol=1e-12), "bdf", rtol=1e-8, atol=1e-11, **settings)
    error = np.linalg.norm(ds["theta"][-1] - fine["theta"][-1])
    # As at level_rtol=1e-12: of second order, it has 0.8 rtol at 1e-3 and 5.2 at 1e-5.
    assert error <= 6 * rtol * np.linalg.norm(fine["theta"][-1])


@pytest.mark.parametrize("rtol", [1e-3, 1e-5])
def test_rkc_walks_where_rounding_leaves_it_beside_the_level_set(rtol):
    flow = noisy(1e-4, torch.float32)
    ds = gf.walk(flow, "rkc", rtol=rtol, t_end=0.2, stop=None, max_evaluations=500)
    assert ds.attrs["status"] == "t_end"


@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
def test_exponential_walks_where_a_normal_jump_changes_its_velocity(rtol):
    torch.manual_seed(0)
    inputs = torch.randn(100, 3, dtype=torch.float64)
    noise = torch.randn(100, 1, dtype=torch.float64)
    targets = inputs.sum(1, keepdim=True).sin() + 0.5 * noise
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 2), torch.nn.Tanh(), torch.nn.Linear(2, 1)
    ).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(1500):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(inputs), targets).backward()
        optimizer.step()
    problem = gf.Problem.from_module(module, torch.nn.functional.mse_loss, inputs, targets)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, "exponential", rtol=rtol, t_end=1.0, stop=None, max_evaluations=500)
    assert ds.attrs["status"] == "t_end"


@pytest.mark.parametrize(
    ("dtype", "why"),
    [(torch.float32, r"rounding of L leaves θ .*; use float64"), (torch.float64, "loosen rtol")],
)
def test_a_step_that_fails_for_want_of_a_nearer_start_says_so(monkeypatch, dtype, why):
    flow = noisy(1e-5, dtype)
    state = beside(flow, 1e-6)
    monkeypatch.setattr(Attempts, "attempt", lambda self, step: (self.state, 1e3))
    tolerance = Tolerance(1e-3, 0.0)
    carry = Exponential().init(flow, state, tolerance)
    with pytest.raises(StepSizeError, match=why):
        Exponential().step(flow, state, carry, tolerance, math.inf)


def test_a_start_is_nearer_where_it_is_not_near_beside_a_length():
    flow = noisy(1e-2)
    state = beside(flow, 5e-7)
    distance = abs(state.loss - flow.level_set.level) / state.gradient_norm
    for length in (1.01 * distance / SMALL, 1.0):
        assert nearer(flow, state, length)[0] is state
    found, iterations = nearer(flow, state, 0.99 * distance / SMALL)
    assert iterations == 1
    assert abs(found.loss - flow.level_set.level) <= 1e-3 * 5e-7
    # Rounding lets it come no nearer than that.
    closest, _ = nearer(flow, found, 1e-15)
    assert nearer(flow, closest, 1e-15)[0] is closest


def test_a_start_that_cannot_be_brought_nearer_stays():
    error = ConvergenceError("refused", iterations=3, residual=1.0, reason="diverged")
    flow = noisy(1e-2)
    state = beside(flow, 5e-7)
    found, iterations = nearer(Refusing(flow, 1, error), state, 1e-9)
    assert found is state
    assert iterations == 3


def test_rounding_is_named_where_it_is_what_shortens_steps():
    flow = noisy(1e-4, torch.float32)
    state = beside(flow, 1e-6)
    distance = state.normals.distance(flow.level_set.residuals(state.values))
    assert "use float64" in unresolved(flow, state, 5 * distance)
    assert not unresolved(flow, state, 1.0)
    # Whatever made steps as short as this.
    assert not unresolved(flow, state, 1e-7)


def test_a_usual_step_is_from_where_it_was():
    flow = references.sphere_linear().flow
    state = beside(flow, 0.9 * flow.level_set.tolerance)
    assert nearer(flow, state, 1e-3 * float(state.theta.norm()))[0] is state


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(("excess", "rtol"), [(1e-2, 1e-5), (1e-4, 1e-5), (1e-6, 1e-3)])
def test_a_step_of_rkc_ends_nearer_to_the_level_set_than_it_began(side, excess, rtol):
    flow, solver, tolerance = noisy(excess), RKC(), Tolerance(rtol, 1e-3 * rtol)
    state = beside(flow, side * 0.9e-6)
    carry = solver.init(flow, state, tolerance)
    end = solver.step(flow, state, carry, tolerance, math.inf).state
    # With what it began with it would keep that, at 1e-6 a fifth of it.
    assert abs(flow.level_set.residual(end.loss)) <= 0.1 * flow.level_set.tolerance


def test_a_start_as_near_as_rounding_lets_it_be_is_not_evaluated_anew():
    flow = noisy(1e-2)
    state = beside(flow, 3e-13)
    assert 2e-13 < abs(flow.level_set.residual(state.loss)) < 4e-13
    before = flow.problem.evaluations
    found, iterations = nearer(flow, state, 1e-15)
    assert found is state
    assert (iterations, flow.problem.evaluations) == (0, before)
