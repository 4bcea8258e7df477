"""Hessians of the loss and on the tangent space, Gauss–Newton, and the curvature of a level set."""

import math

import numpy as np
import pytest
import torch

import references
from curvatures import dense_hessian
from geoflow.analysis import gauss_newton, loss_hessian, normal_curvature, tangent_hessian
from geoflow.errors import InputError


def test_the_tangent_basis_is_orthonormal_and_tangent(network):
    state = network.evaluate(network.problem.theta0)
    space = tangent_hessian(network, state).subspace
    basis = torch.stack([space.embed(row) for row in torch.eye(space.size, dtype=torch.float64)])
    assert torch.allclose(basis @ basis.T, torch.eye(space.size, dtype=torch.float64), atol=1e-13)
    assert (basis @ state.gradient).abs().max() < 1e-13
    v = torch.ones_like(state.theta)
    assert torch.allclose(space.coordinates(v), basis @ v, atol=1e-12)
    tangent = network.level_set.tangent(v, state.gradient)
    assert torch.allclose(space.embed(space.coordinates(v)), tangent, atol=1e-12)


def test_named_tensors_give_the_blocks_of_the_hessian(network):
    problem, theta = network.problem, network.problem.theta0
    matrix = dense_hessian(problem, theta)
    first, last = problem.tensors[0], problem.tensors[-1]
    index = np.r_[: math.prod(first.shape), last.offset : problem.n_parameters]
    operator = loss_hessian(problem, theta, [last.name, first.name])
    assert np.allclose(operator.dense(), matrix[np.ix_(index, index)], atol=1e-12)

    state = network.evaluate(theta)
    block = 2 * np.eye(len(index)) + state.multiplier * matrix[np.ix_(index, index)]
    g = state.gradient.numpy()[index]
    z = np.linalg.svd(g[None, :])[2][1:].T
    tangent = tangent_hessian(network, state, [first.name, last.name])
    assert np.allclose(
        np.linalg.eigvalsh(tangent.dense()), np.linalg.eigvalsh(z.T @ block @ z), atol=1e-9
    )
    with pytest.raises(InputError, match=r"has no 'nope'; choose from 0\.weight"):
        loss_hessian(problem, theta, ["nope"])


def test_named_tensors_give_the_block_of_the_gauss_newton_matrix(network):
    problem, theta = network.problem, network.problem.theta0
    dense = gauss_newton(problem, theta).dense()
    names = [problem.tensors[1].name, problem.tensors[2].name]
    first, last = problem.tensors[1], problem.tensors[2]
    block = slice(first.offset, last.offset + math.prod(last.shape))
    assert np.allclose(gauss_newton(problem, theta, names).dense(), dense[block, block])


def test_normal_curvature_of_spheres_and_ellipsoids(sphere):
    flow = sphere.flow
    state = flow.evaluate(flow.problem.theta0)
    radius = float(state.theta.norm())
    for scale in (1, 1e-160, 1e-200, 1e200):
        tangent = state.velocity * scale
        assert normal_curvature(flow, state, tangent) == pytest.approx(-1 / radius)
    assert math.isnan(normal_curvature(flow, state, torch.zeros_like(state.theta)))

    # On the third axis of L = ½θᵀDθ, an ellipse of semi-axes a = s√(3/5) along e₄ and s along e₃:
    # its curvature at the end of s is s/a².
    flow = references.ellipsoid()
    s = 1.7
    state = flow.evaluate(torch.tensor([0, 0, s, 0], dtype=torch.float64))
    along_fourth = torch.tensor([0, 0, 0.3, 2.0], dtype=torch.float64)
    assert normal_curvature(flow, state, along_fourth) == pytest.approx(-s / (s**2 * 3 / 5))
