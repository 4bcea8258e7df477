import math

import numpy as np
import pytest
import torch

import geoflow as gf
import invariants
import references
from geoflow.solvers import RKC
from geoflow.solvers.base import Tolerance
from geoflow.solvers.rkc import DAMPING, _spectral_radius, advance, stages_for


def amplification(z, stages):
    """P(z) of one step on y' = zy with h = 1."""
    one = torch.ones(1, dtype=torch.float64)
    return float(advance(lambda y: z * y, one, z * one, 1.0, stages))


@pytest.mark.parametrize("stages", [2, 3, 5, 10, 50, pytest.param(250, marks=pytest.mark.slow)])
def test_the_stability_interval(stages):
    # Sommeijer, Shampine & Verwer's bound; 0.64 s² once there are ten stages.
    bound = 2 / 3 * (stages**2 - 1) * (1 - 2 / 15 * DAMPING)
    assert stages < 10 or bound >= 0.64 * stages**2
    assert max(abs(amplification(-z, stages)) for z in np.linspace(0, bound, 2001)) <= 1 + 1e-9
    beyond = np.linspace(1.02, 1.5, 25) * bound
    assert max(abs(amplification(-z, stages)) for z in beyond) > 1
    # The solver never counts on more than that.
    assert stages_for(bound) >= stages


@pytest.mark.parametrize("stages", [5, 50])
def test_its_damping_is_five_percent(stages):
    """P = 1 − b T(w₀) + b T(w), |T(w)| ≤ 1 within the interval: about 1 − ε/3 at its peaks."""
    t = np.polynomial.Chebyshev.basis(stages)
    w0 = 1 + 2 / 13 / stages**2
    b = t.deriv(2)(w0) / t.deriv()(w0) ** 2
    inside = torch.linspace(4, 0.6 * stages**2, 20001, dtype=torch.float64)
    one = torch.ones_like(inside)
    largest = advance(lambda y: -inside * y, one, -inside, 1.0, stages).abs().max()
    assert float(largest) == pytest.approx(1 - b * (t(w0) - 1), rel=1e-6)
    assert float(largest) == pytest.approx(0.95, abs=4e-3)


@pytest.mark.parametrize("stages", [2, 7, 40])
def test_its_stability_polynomial_is_the_exponential_to_second_order(stages):
    for z in (-0.02, -0.01):
        error = amplification(z, stages) - math.exp(z)
        assert abs(error) < abs(z) ** 3 / 6
        assert abs(amplification(z, stages) - (1 + z)) > abs(z) ** 2 / 3


def fixed_steps(flow, step, t_end, stages=5):
    flow = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-13), flow.regularizer)
    state = flow.evaluate(flow.problem.theta0)
    for _ in range(round(t_end / step)):
        theta = advance(
            lambda y: flow.evaluate(y).velocity, state.theta, state.velocity, step, stages
        )
        state, _ = flow.project(theta)
    return state.theta


@pytest.mark.parametrize("make", [references.sphere_linear, references.oja])
def test_second_order_against_exact_solutions(make):
    reference = make()
    steps = [0.1, 0.05, 0.025, 0.0125]
    errors = [
        float((fixed_steps(reference.flow, h, 1.0) - reference.exact(1.0)).norm()) for h in steps
    ]
    assert abs(references.order_of_convergence(steps, errors) - 2) <= 0.2


@pytest.mark.parametrize(
    ("make", "t_end", "steps"),
    [
        (references.ellipsoid, 0.4, [0.05, 0.025, 0.0125, 0.00625]),
        (references.small_network, 0.004, [4e-4, 2e-4, 1e-4, 5e-5]),
    ],
)
def test_second_order_against_a_tight_reference(make, t_end, steps):
    flow = make()
    tight = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-13), flow.regularizer)
    reference = gf.walk(
        tight, "dopri8", rtol=1e-12, atol=1e-13, t_end=t_end, stop=None, snapshot_times=[t_end]
    )
    exact = torch.from_numpy(reference["theta"].values[0])
    errors = [float((fixed_steps(flow, h, t_end) - exact).norm()) for h in steps]
    assert abs(references.order_of_convergence(steps, errors) - 2) <= 0.2


@pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("make", [references.sphere_linear, references.oja])
def test_the_tolerance_is_met_at_the_snapshot_times(make, rtol):
    reference = make()
    ds = gf.walk(
        reference.flow,
        "rkc",
        rtol=rtol,
        atol=1e-9,
        t_end=1.0,
        stop=None,
        snapshot_times=[0.0, 0.3, 1.0],
    )
    invariants.check_walk(ds, reference.flow)
    for theta, t in zip(ds["theta"].values, [0.0, 0.3, 1.0], strict=True):
        error = float((torch.from_numpy(theta) - reference.exact(t)).norm())
        assert error <= 100 * rtol * float(reference.flow.problem.theta0.norm())


def test_the_spectral_radius_is_that_of_the_flows_jacobian(network):
    state = network.evaluate(network.problem.theta0)
    h = 1e-6 * torch.eye(len(state.theta), dtype=torch.float64)
    columns = [
        network.evaluate(state.theta + e).velocity - network.evaluate(state.theta - e).velocity
        for e in h
    ]
    jacobian = torch.stack(columns, dim=1) / 2e-6
    exact = float(torch.linalg.eigvals(jacobian).abs().max())
    carry = RKC().init(network, state, None)
    estimate, vector = _spectral_radius(network, state, carry)
    assert exact <= estimate <= 1.3 * exact
    before = network.problem.evaluations
    again, _ = _spectral_radius(network, state, {"radius": estimate, "vector": vector})
    assert network.problem.evaluations - before <= 2
    assert exact <= again <= 1.3 * exact


def test_a_stiff_network_is_walked_to_the_end(network):
    ds = gf.walk(network, "rkc", rtol=1e-4, stop=gf.Stationary(179.0))
    assert ds.attrs["status"] == "stationary"
    invariants.check_walk(ds, network)


@pytest.mark.parametrize("rtol", [1e-1, 1e-2])
def test_a_loose_tolerance_does_not_throw_a_walk_off_its_slow_manifold(rtol):
    """R = x + ½k(z − c sin 3x)², on a sphere: the slow manifold is the curve z = c sin 3x there.

    On it the velocity is −∇x projected on the curve's tangent: its norm is at most 1.
    """
    c, k = 0.3, 1e3
    start = torch.tensor([1.0, 0.3, c * math.sin(3.0)], dtype=torch.float64)
    problem = gf.Problem.from_function(references.half_square, start)

    def regularizer(theta):
        x, _, z = theta
        return x + 0.5 * k * (z - c * torch.sin(3 * x)) ** 2

    flow = gf.RegularizingFlow(gf.LevelSet(problem), regularizer)
    ds = gf.walk(flow, "rkc", rtol=rtol, atol=1e-9, t_end=3.0, stop=None)
    assert ds["tangent_norm"].max() < 1


def test_a_carry_of_an_earlier_version_goes_on(network):
    state = network.evaluate(network.problem.theta0)
    tolerance = Tolerance.checked(1e-3, 1e-6, torch.float64)
    solver = RKC()
    carry = solver.step(
        network, state, solver.init(network, state, tolerance), tolerance, 1.0
    ).carry
    earlier = {**carry, "previous_step": 1e-3, "previous_error": 0.5}
    one, other = (solver.step(network, state, c, tolerance, 1.0) for c in (carry, earlier))
    assert torch.equal(one.state.theta, other.state.theta)
    assert one.carry.keys() == other.carry.keys() == carry.keys()


def test_a_stationary_start_stays_where_it_is():
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    problem = gf.Problem.from_function(references.half_square, start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[1])
    ds = gf.walk(flow, "rkc", t_end=1.0, stop=None)
    assert ds.attrs["status"] == "negative_multiplier"
    assert np.array_equal(ds["theta"].values[-1], start.numpy())
