"""The solver in the tangent space against dense algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.manifold.linearization import TangentHessian
from geoflow.paths.corrector import _Correction, residual_of
from geoflow.paths.learned import Learned
from geoflow.paths.tangent_solver import LossCurvature, solve

P = 7


@pytest.fixture
def operator():
    rng = np.random.default_rng(0)
    factor = torch.from_numpy(rng.standard_normal((P, P)))
    hessian = factor @ factor.T

    def loss(theta):
        return theta @ hessian @ theta / 2

    theta = torch.from_numpy(rng.standard_normal(P))
    problem = gf.Problem.from_function(loss, theta)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    found = TangentHessian(flow, flow.evaluate(theta))
    found.hessian = hessian
    return found


def _dense(operator, shift):
    """On the tangent space: (A + σ)⁻¹, shape (P, P)."""
    normal = operator.normal.numpy()
    basis = np.linalg.svd(normal[None])[2][1:]
    of_all = 2 * np.eye(P) + operator.state.multiplier * operator.hessian.numpy()
    inner = basis @ of_all @ basis.T + shift * np.eye(P - 1)
    return basis.T @ np.linalg.inv(inner) @ basis


def _never(x, residual):
    return float(torch.linalg.vector_norm(residual)) <= 1e-9


def test_a_solution_is_that_of_dense_algebra_and_says_how_it_bends_the_loss(operator):
    right = operator.state.velocity
    solved = solve(operator, LossCurvature.unknown(P), right, shift=30.0, enough=_never)
    exact = _dense(operator, 30.0) @ right.numpy()
    np.testing.assert_allclose(solved.solution, exact, rtol=1e-5, atol=1e-8)
    assert solved.bend == pytest.approx(exact @ operator.hessian.numpy() @ exact, rel=1e-4)


def test_its_space_solves_for_another_shift_without_a_product(operator):
    right, problem = operator.state.velocity, operator.flow.problem
    solved = solve(operator, LossCurvature.unknown(P), right, shift=30.0, enough=_never)
    before = problem.evaluations
    shorter = solved.space.solve(100.0)
    assert problem.evaluations == before
    exact = _dense(operator, 100.0) @ right.numpy()
    np.testing.assert_allclose(shorter.solution, exact, rtol=1e-5, atol=1e-8)
    assert shorter.bend == pytest.approx(exact @ operator.hessian.numpy() @ exact, rel=1e-4)
    assert float(torch.linalg.vector_norm(shorter.residual)) < 1e-4
    assert shorter.n_products == 0


@pytest.mark.parametrize(
    ("there", "residual"),
    # At the minimum of R it has no direction; at the point of the circle nearest to it, it is
    # along the normal.
    [([2.0, 0.0], math.inf), ([3.0, 0.0], 0.0), ([2.0, 2.0], 1.0)],
)
def test_how_far_a_point_is_from_a_path(there, residual):
    theta, least = (torch.tensor(t, dtype=torch.float64) for t in ([2.0, 0.0], there))
    problem = gf.Problem.from_function(lambda t: t.square().sum(), theta)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - least).square().sum())
    assert residual_of(flow.evaluate(theta)) == residual


def test_what_a_relaxation_adds_to_the_loss_is_taken_off_before():
    weights, distances, left = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64), [0.2, 0.1], []
    for distance in distances:
        theta = torch.tensor([distance, -distance / 2, 1.0], dtype=torch.float64)
        problem = gf.Problem.from_function(lambda t: (weights * t**2).sum() / 2, theta)
        flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
        correction = _Correction(flow, flow.evaluate(theta), Learned.unknown(3), 1e-6)
        correction.make()
        left.append(abs(flow.level_set.residual(correction.state.loss)))
    # Along the tangent alone it is of second order.
    assert references.order_of_convergence(distances, left) > 3.5
