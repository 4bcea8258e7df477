"""The analyses of a point, and of a walk, on several constraints."""

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.analysis import landscape, relaxation, spectra
from geoflow.analysis.curvature.operators import loss_hessian, normal_curvature, tangent_hessian
from geoflow.baselines import predictor_corrector
from geoflow.comparisons.work_precision import compare
from geoflow.errors import InputError


def flow_of(divided):
    problem = divided(references.small_network().problem)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.quartic_norm)


@pytest.fixture(params=[gf.by_class, gf.each_example], ids=lambda d: d.__name__)
def flow(request):
    return flow_of(request.param)


def hessian(function, theta):
    return torch.func.hessian(function)(theta)


def written_out(flow, state, within=slice(None)):
    """A on the vectors of some entries that are tangent, as a matrix on an SVD's basis of them."""
    theta = state.theta
    multipliers = torch.from_numpy(state.multipliers)
    inner = hessian(lambda t: multipliers @ flow.problem.loss(t), theta)
    inner = inner + hessian(gf.regularizers.quartic_norm, theta)
    normals = state.gradients[:, within]
    _, sizes, basis = torch.linalg.svd(normals)
    basis = basis[int((sizes > 1e-9 * sizes[0]).sum()) :]
    return (basis @ inner[within, within] @ basis.T).numpy()


def test_the_tangent_hessian_is_that_of_all_multipliers_on_what_all_normals_leave(flow):
    state = flow.evaluate(flow.problem.theta0)
    operator = tangent_hessian(flow, state)
    expected = np.linalg.eigvalsh(written_out(flow, state))
    assert operator.size == flow.problem.n_parameters - flow.level_set.n_constraints
    found = np.linalg.eigvalsh(operator.dense())
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    x = torch.linspace(-1, 1, operator.size, dtype=torch.float64)
    v = operator.subspace.embed(x)
    assert float((state.gradients @ v).abs().max()) < 1e-12 * float(state.gradients.norm())
    assert float((operator.subspace.coordinates(v) - x).abs().max()) < 1e-13


def test_in_a_block_smaller_than_the_constraints_nothing_may_be_tangent():
    flow = flow_of(gf.each_example)
    state = flow.evaluate(flow.problem.theta0)
    sizes = {t.name: (t.offset, t.offset + int(np.prod(t.shape))) for t in flow.problem.tensors}
    left = {}
    for name, (start, end) in sizes.items():
        block = tangent_hessian(flow, state, [name])
        expected = written_out(flow, state, slice(start, end))
        left[name] = block.size
        assert block.size == len(expected)
        if block.size:
            found = np.linalg.eigvalsh(block.dense())
            assert np.abs(found - np.linalg.eigvalsh(expected)).max() < 1e-5
    # 24 normals take all of 8 biases, and of 2 opposite ones the one direction that the loss sees.
    assert {0, 1} <= set(left.values())


def test_the_hessian_of_the_loss_is_that_of_the_mean(flow):
    theta = flow.problem.theta0
    expected = hessian(lambda t: flow.problem.loss(t).mean(), theta).numpy()
    found = loss_hessian(flow.problem, theta).dense()
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_a_circle_where_two_spheres_meet_curves_by_one_over_its_radius():
    flow = references.linear_on_a_circle().flow
    center, radius, _, _ = references.circle()
    state = flow.evaluate(flow.problem.theta0)
    found = normal_curvature(flow, state, torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64))
    assert found == pytest.approx(1 / float(radius), rel=1e-6)
    assert float((state.theta - center).norm()) == pytest.approx(float(radius), rel=1e-12)


def test_a_walk_is_analysed():
    flow = flow_of(gf.by_class)
    ds = gf.walk(flow, rtol=1e-5, t_end=0.3, stop=None)
    found = spectra.along(ds, flow, snapshots=[-1], n_probes=2, n_steps=8, n_trace=6)
    state = flow.evaluate(torch.from_numpy(ds["theta"].values[-1]))
    expected = np.linalg.eigvalsh(written_out(flow, state))
    tangent = found.sel(operator="tangent").isel(snapshot=0)
    largest = tangent["largest_eigenvalue"].values
    assert largest == pytest.approx(expected[::-1][:5], rel=1e-5)
    assert float(found["multiplier"][0]) == pytest.approx(float(ds["multiplier"][-1]), rel=1e-6)
    rates = relaxation.along(ds, curvature=flow)
    smallest = rates["smallest_eigenvalue"].values
    assert smallest == pytest.approx(expected[:5], abs=1e-5 * expected[-1])
    # Along the flow d‖v‖/dt = −(vᵀAv/vᵀv)‖v‖.
    h = 1e-4
    later, _ = flow.project(state.theta + h * state.velocity, rtol=1e-12)
    fall = -np.log(later.tangent_norm / state.tangent_norm) / h
    assert float(rates["velocity_rate"]) == pytest.approx(fall, rel=1e-2)
    plane = landscape.on_plane(ds, flow, points=3)
    at = torch.from_numpy(ds["theta"].values[0])
    assert float(plane["walk_loss"][0]) == pytest.approx(float(flow.problem.loss(at).mean()))
    assert plane.attrs["level"] == pytest.approx(float(flow.level_set.levels.mean()))


def test_what_takes_one_constraint_says_so():
    flow = flow_of(gf.by_class)
    for what, call in {
        "a regularisation path": lambda: gf.regularization_path(flow, [0.5]),
        "a comparison of solvers": lambda: compare(flow, ["exponential"], [1e-3], [0.1]),
        "the paper's loop": lambda: predictor_corrector(flow),
    }.items():
        message = f"flow: its level set has 2 constraints, and {what} takes one; make it of"
        with pytest.raises(InputError, match=message):
            call()
