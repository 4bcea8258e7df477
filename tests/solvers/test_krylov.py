import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.solvers.krylov import KrylovSpace


def space_of(flow):
    state = flow.evaluate(flow.problem.theta0)
    return KrylovSpace(flow.linearization(state), state.velocity)


def vectors_of(space):
    """The m vectors whose images are known."""
    return torch.stack([space.combine(row) for row in np.eye(len(space))])


def sphere(eigenvalues):
    """L = ½‖θ‖², R = ½θᵀDθ: A is D − θᵀDθ/θᵀθ on the tangent space."""
    start = torch.ones(len(eigenvalues), dtype=torch.float64)
    problem = gf.Problem.from_function(references.half_square, start)
    return gf.RegularizingFlow(
        gf.LevelSet(problem), lambda theta: 0.5 * torch.dot(theta, eigenvalues * theta)
    )


def assert_orthonormal(vectors):
    identity = torch.eye(len(vectors), dtype=torch.float64)
    assert float((vectors @ vectors.T - identity).abs().max()) <= 1e-12


@pytest.mark.parametrize("largest", [1e1, 1e4, 1e8])
def test_vectors_are_orthonormal_however_far_apart_the_eigenvalues(largest):
    # An eigenvalue that stands alone is found at once: what is left of its images is rounding.
    eigenvalues = torch.linspace(1, 2, 60, dtype=torch.float64)
    eigenvalues[:3] = largest * torch.tensor([1.0, 0.5, 0.25])
    space = space_of(sphere(eigenvalues))
    while len(space) < 30:
        space.add()
    assert_orthonormal(vectors_of(space))
    normal = space.operator.normal
    assert float((vectors_of(space) @ normal).abs().max()) <= 1e-12


@pytest.mark.parametrize("outside", [1.0, 1e-3, 1e-9])
def test_what_is_left_of_a_vector_is_orthogonal_to_the_space_however_little_it_is(network, outside):
    space = space_of(network)
    while len(space) < 10:
        space.add()
    generator = torch.Generator().manual_seed(0)
    inside = torch.randn(10, generator=generator, dtype=torch.float64) @ vectors_of(space)
    other = torch.randn(inside.numel(), generator=generator, dtype=torch.float64)
    _, left, size = space.split(inside + outside * other)
    assert size == float(torch.linalg.vector_norm(left))
    left = left / size
    assert float((vectors_of(space) @ left).abs().max()) <= 1e-12
    assert abs(float(space.operator.normal @ left)) <= 1e-12


def test_the_space_grows_beyond_its_first_rows():
    flow = sphere(torch.linspace(1, 9, 80, dtype=torch.float64))
    space = space_of(flow)
    while len(space) < 70:
        space.add()
    assert_orthonormal(vectors_of(space))
    vectors = vectors_of(space)
    exact = torch.stack([space.operator(v)[0] for v in vectors]) @ vectors.T
    known = torch.from_numpy(space.matrix[:-1, :-1])
    assert torch.allclose(known, exact, atol=1e-5)
