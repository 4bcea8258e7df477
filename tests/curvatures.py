"""Curvatures written out densely, beside which the matrix-free ones are tested."""

import numpy as np
import torch

from geoflow.analysis.curvature.operators import Curvature, Subspace


def dense_hessian(problem, theta):
    """By reverse mode twice, on the flat loss: no code shared with the operators."""
    return torch.autograd.functional.hessian(problem.loss, theta).numpy()


def dense_tangent(flow, theta):
    """ZᵀAZ for the tangent basis Z that a singular value decomposition of g gives."""
    state = flow.evaluate(theta)
    g = state.gradient.numpy()
    z = np.linalg.svd(g[None, :])[2][1:].T
    full = 2 * np.eye(len(g)) + state.multiplier * dense_hessian(flow.problem, theta)
    return z.T @ full @ z


def diagonal(values):
    d = torch.as_tensor(values, dtype=torch.float64)
    identity = Subspace(len(d), lambda x: x, lambda v: v)
    return Curvature("diagonal", lambda v: d * v, identity, torch.zeros_like(d))
