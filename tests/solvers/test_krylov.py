import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.manifold.basis import BLOCK
from geoflow.solvers.krylov import KrylovSpace


def space_of(flow):
    state = flow.evaluate(flow.problem.theta0)
    return KrylovSpace(flow.linearization(state), state.velocity)


def vectors_of(space):
    """The m vectors whose images are known."""
    return torch.stack([space.combine(row) for row in np.eye(len(space))])


def sphere(eigenvalues):
    """L = ½‖θ‖², R = ½θᵀDθ: A is D − θᵀDθ/θᵀθ on the tangent space."""
    start = torch.ones_like(eigenvalues)
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


@pytest.mark.parametrize(("dtype", "angle"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_angles_that_rounding_leaves_do_not_grow_from_one_vector_to_the_next(dtype, angle):
    # As of a network: a few stiff eigenvalues far apart beside many slow ones. With nothing but
    # one pass over all vectors there were angles of 10⁻² here in float32, of 0.9 on a transformer.
    eigenvalues = torch.linspace(1, 3, 2_000, dtype=torch.float64)
    eigenvalues = torch.cat([eigenvalues, torch.logspace(1, 5, 40, dtype=torch.float64)])
    flow = sphere(eigenvalues.to(dtype))
    operator = flow.linearization(flow.evaluate(flow.problem.theta0))
    space = KrylovSpace(operator, operator.tangent((1 / eigenvalues).to(dtype)))
    while len(space) < 40:
        space.add()
    vectors = space.vectors.double()
    identity = torch.eye(len(vectors), dtype=torch.float64)
    assert float((vectors @ vectors.T - identity).abs().max()) <= angle
    # The mean of the eigenvalues is what the multiplier takes away from each.
    exact = vectors[:-1] @ ((eigenvalues - eigenvalues.mean()) * vectors[:-1]).T
    # As exact as products are, by differences in float64.
    assert np.allclose(space.matrix[:-1, :-1], exact, atol=1e-5 * float(eigenvalues[-1]))


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


def test_memory_is_asked_for_as_the_space_grows(network):
    space, held = space_of(network), []
    for _ in range(3 * BLOCK):
        rows = sum(len(block) for block in space._basis._blocks)
        held.append(rows)
        assert len(space) + 1 <= rows < len(space) + 1 + BLOCK
        space.add()
    assert held[0] == BLOCK


def test_vectors_kept_in_single_precision_make_the_same_space_to_seven_digits(network):
    state = network.evaluate(network.problem.theta0)
    spaces = [
        KrylovSpace(network.linearization(state), state.velocity, dtype=dtype)
        for dtype in (None, torch.float32)
    ]
    for space in spaces:
        for _ in range(5):
            space.add()
    exact, kept = spaces
    assert all(block.dtype == torch.float32 for block in kept._basis._blocks)
    rows = vectors_of(kept)
    assert rows.dtype == torch.float64
    identity = torch.eye(len(rows), dtype=torch.float64)
    assert float((rows @ rows.T - identity).abs().max()) <= 1e-6
    assert np.allclose(kept.matrix, exact.matrix, atol=1e-3 * np.abs(exact.matrix).max())
    # Of the vectors as they are kept the matrix is exact.
    image = torch.stack([kept.operator(v)[0] for v in rows]) @ rows.T
    assert np.allclose(kept.matrix[:-1, :-1], image, atol=1e-5 * np.abs(kept.matrix).max())


def test_of_a_vector_of_the_space_nothing_is_left_that_points_anywhere(network):
    space = space_of(network)
    while len(space) < 10:
        space.add()
    inside = torch.linspace(1, 2, 10, dtype=torch.float64) @ vectors_of(space)
    coefficients, left, size = space.split(inside)
    assert coefficients == pytest.approx(np.linspace(1, 2, 10))
    assert size == 0
    assert not left.any()


def test_the_curvature_expected_is_no_less_than_the_couplings_seen():
    # A is D here: along D itself it has no curvature, as D³ has no mean, and leads away from it.
    space = space_of(sphere(torch.linspace(-1, 1, 9, dtype=torch.float64)))
    coupling = float(space.matrix[-1, 0])
    assert abs(space.matrix[0, 0]) <= 1e-6
    assert coupling > 0.5
    assert space.radius == space.matrix[-1, -1] == coupling
