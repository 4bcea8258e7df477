"""The curvature that the multistep solver learns: a limited-memory inverse of I + cA."""

import numpy as np
import torch

from geoflow.solvers.multistep.secant import BLOCK, SecantPairs


def vector(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def test_pairs_of_a_whole_basis_give_the_inverse():
    n, c = 6, 0.7
    basis = torch.linalg.qr(torch.stack([vector(n, seed) for seed in range(n)]))[0]
    hessian = basis @ torch.diag(torch.logspace(0, 3, n, dtype=torch.float64)) @ basis.T
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    # Conjugate directions, so that each update keeps what the ones before it say.
    for eigenvector in basis.T:
        pairs.add(eigenvector, hessian @ eigenvector)
    vectors = torch.stack([vector(n, 10), vector(n, 11)])
    exact = torch.linalg.solve(torch.eye(n) + c * hessian, vectors.T).T
    assert torch.allclose(pairs.inverse(vectors, c, 2.0), exact, rtol=1e-4, atol=1e-6)
    # Another c, with the same pairs.
    exact = torch.linalg.solve(torch.eye(n) + 9 * hessian, vectors.T).T
    assert torch.allclose(pairs.inverse(vectors, 9.0, 2.0), exact, rtol=1e-4, atol=1e-6)


def test_without_pairs_the_inverse_is_that_of_the_bulk():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    assert torch.allclose(pairs.inverse(vector(4, 0)[None], 2.0, 3.0), vector(4, 0)[None] / 7.0)


def test_the_newest_pair_holds_exactly_and_the_oldest_go():
    n = 30
    pairs = SecantPairs(BLOCK, [], np.zeros((0, 0)))
    for seed in range(5 * BLOCK):
        s = vector(n, seed)
        s = s / s.norm()
        image = torch.linspace(1, 50, n, dtype=torch.float64) * s
        pairs.add(s, image)
        assert torch.allclose(pairs.inverse((s + 0.1 * image)[None], 0.1, 2.0)[0], s, atol=1e-4)
    assert BLOCK <= len(pairs) <= 2 * BLOCK


def test_a_carry_is_left_as_it_is_by_what_is_added_later():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    pairs.add(vector(5, 0), vector(5, 1))
    carry = pairs.pack()
    before = {name: value.clone() for name, value in carry.items()}
    later = SecantPairs.unpack(carry, 40)
    later.add(vector(5, 2), vector(5, 3))
    later.pack()
    assert all(torch.equal(carry[name], before[name]) for name in before)


def test_beside_the_pairs_the_inverse_is_that_of_their_lower_quartile():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    unit = torch.eye(8, dtype=torch.float64)
    for i, curvature in enumerate([10.0, 500.0, 20.0, 1000.0, 40.0]):
        pairs.add(unit[i], curvature * unit[i])
    beside = torch.stack([unit[5], unit[7]])
    assert torch.allclose(pairs.inverse(beside, 0.5, 2.0), beside / (1 + 0.5 * 20.0))
    # Never softer than what is known of it before.
    assert torch.allclose(pairs.inverse(beside, 0.5, 30.0), beside / (1 + 0.5 * 30.0))
    on_pairs = unit[:5] / torch.tensor([[6.0], [251.0], [11.0], [501.0], [21.0]])
    assert torch.allclose(pairs.inverse(unit[:5], 0.5, 2.0), on_pairs, rtol=1e-5)
