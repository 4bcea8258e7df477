"""One constraint through the normal space: by a bit what its own formulas give."""

import math

import pytest
import torch

import geoflow as gf
import references


@pytest.fixture(params=[torch.float64, torch.float32])
def flow(request):
    return references.small_network(dtype=request.param)


def test_the_state_is_that_of_the_formulas(flow):
    theta = flow.problem.theta0
    loss, g = flow.problem.value_and_gradient(theta)
    r, value = torch.func.grad_and_value(flow.regularizer)(theta)
    gg, rg = torch.dot(g, g), torch.dot(r, g)
    velocity = g * (rg / gg) - r
    norm = math.sqrt(float(gg))
    tangent_norm = float(torch.linalg.vector_norm(velocity))
    normal = float(rg) / norm
    state = flow.evaluate(theta)
    assert (state.loss, state.regularizer) == (float(loss), float(value))
    assert torch.equal(state.gradient, g)
    assert torch.equal(state.regularizer_gradient, r)
    assert torch.equal(state.velocity, velocity)
    assert (state.gradient_norm, state.tangent_norm) == (norm, tangent_norm)
    assert state.multiplier == -normal / norm
    assert state.angle == math.degrees(math.atan2(tangent_norm, normal))
    assert math.isclose(state.kkt_residual, tangent_norm / float(r.norm()), rel_tol=1e-6)


@pytest.mark.parametrize("e", [1e-6, 1e-11, 1e-13, 0.0])
@pytest.mark.parametrize("out", [1.0, -1.0])
def test_the_kkt_residual_keeps_its_digits_at_a_kkt_point(e, out):
    theta = torch.tensor([out * math.sqrt(4 - e * e), e], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: t @ t, theta)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t[0])
    # Of R = θ₁ on the circle of radius 2 it is |θ₂|/2.
    assert flow.evaluate(theta).kkt_residual == pytest.approx(e / 2, rel=1e-6, abs=0)


def test_tangent_projection_and_distance_are_those_of_the_formulas(flow):
    theta, level_set = flow.problem.theta0 * 1.01, flow.level_set
    loss, g = flow.problem.value_and_gradient(theta)
    v = torch.linspace(-1, 2, len(theta), dtype=theta.dtype)
    assert torch.equal(level_set.tangent(v, g), v - g * (torch.dot(g, v) / torch.dot(g, g)))
    distance = abs(float(loss) - level_set.level) / float(torch.linalg.vector_norm(g))
    assert level_set.distance(loss, g) == distance


def test_newton_is_that_of_the_formula(flow):
    theta = flow.problem.theta0 * 1.05
    projection = flow.level_set.project(theta)
    assert projection.iterations > 1
    for _ in range(projection.iterations):
        loss, g = flow.problem.value_and_gradient(theta)
        norm = float(torch.linalg.vector_norm(g))
        theta = theta - g * ((float(loss) - flow.level_set.level) / norm**2)
    assert torch.equal(projection.theta, theta)
    loss, g = flow.problem.value_and_gradient(theta)
    assert projection.loss == float(loss)
    assert torch.equal(projection.gradient, g)


def test_its_shapes_are_those_of_one(flow):
    state = flow.evaluate(flow.problem.theta0)
    assert state.values.shape == state.multipliers.shape == flow.level_set.levels.shape == (1,)
    assert state.flat is state.theta
    assert flow.problem is flow.level_set.problem
    assert flow.level_set.n_constraints == 1


def test_they_show_themselves_in_a_line():
    flow = references.small_network()
    theta = flow.problem.theta0
    assert repr(gf.LevelSet(flow.problem, 0.5)) == (
        f"LevelSet(L = 0.5 to 1e-06, of {flow.problem!r})"
    )
    assert repr(flow) == f"RegularizingFlow(down squared_norm on {flow.level_set!r})"
    for thing in (flow.evaluate(theta), flow.level_set.project(theta)):
        assert repr(thing).startswith(f"{type(thing).__name__}(50 parameters, L = ")
        assert "tensor(" not in repr(thing)
