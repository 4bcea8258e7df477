"""The curvature that the multistep solver learns: a limited-memory inverse of I + cA."""

import numpy as np
import pytest
import torch

from geoflow.solvers.multistep.secant import BLOCK, BLOCKS, SOFTER, SecantPairs, resolved


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
    assert torch.allclose(pairs.inverse(vectors, c), exact, rtol=1e-4, atol=1e-6)
    # Another c, with the same pairs.
    exact = torch.linalg.solve(torch.eye(n) + 9 * hessian, vectors.T).T
    assert torch.allclose(pairs.inverse(vectors, 9.0), exact, rtol=1e-4, atol=1e-6)


def test_without_pairs_there_is_no_curvature():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    assert torch.equal(pairs.inverse(vector(4, 0)[None], 2.0), vector(4, 0)[None])


@pytest.mark.parametrize("unit", [1e-40, 1e40])
def test_in_any_units_the_inverse_is_the_same(unit):
    curvatures = np.geomspace(1e4, 3.0, 30)
    plain, scaled = (SecantPairs(40, [], np.zeros((0, 0))) for _ in range(2))
    eigenpairs(plain, 40, curvatures)
    eigenpairs(scaled, 40, unit * curvatures, c=0.5 / unit)
    again = SecantPairs.unpack(scaled.pack(), 40)
    vectors = torch.eye(40, dtype=torch.float64)
    expected = plain.inverse(vectors, 0.5)
    for pairs in (scaled, again):
        assert torch.allclose(pairs.inverse(vectors, 0.5 / unit), expected, rtol=1e-4, atol=1e-6)


def test_the_newest_pair_holds_exactly_and_the_oldest_go():
    n = 30
    pairs = SecantPairs(BLOCK, [], np.zeros((0, 0)))
    for seed in range(5 * BLOCK):
        s = vector(n, seed)
        s = s / s.norm()
        image = torch.linspace(1, 50, n, dtype=torch.float64) * s
        pairs.add(s, image)
        assert torch.allclose(pairs.inverse((s + 0.1 * image)[None], 0.1)[0], s, atol=1e-4)
    assert BLOCKS * BLOCK <= len(pairs) <= (BLOCKS + 1) * BLOCK
    assert pairs.directions.rows.shape == (BLOCK, n)


def eigenpairs(pairs, n, curvatures, c=0.5):
    """Give the first unit vectors as eigenvectors, one by one, as an iteration does."""
    unit = torch.eye(n, dtype=torch.float64)
    for i, curvature in enumerate(curvatures):
        pairs.add(unit[i], curvature * unit[i])
        pairs.inverse(unit[:1], c)


def stiff_among_soft(n):
    """Curvatures: every fifth from 10⁴ down to 30, all others 3."""
    curvatures = np.full(n, 3.0)
    curvatures[::5] = np.geomspace(1e4, 30.0, len(curvatures[::5]))
    return curvatures


def test_pairs_gone_by_are_known_by_their_directions():
    n, curvatures = 60, stiff_among_soft(50)
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, n, curvatures)
    assert len(pairs) < 25
    rows = pairs.directions.rows
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
    # For another c than that at which they were made.
    for c in (0.5, 0.02):
        inverse = pairs.inverse(torch.eye(n, dtype=torch.float64)[:50], c)
        exact = np.diag(1 / (1 + c * curvatures))
        assert np.allclose(inverse[:, :50].numpy(), exact, rtol=1e-4, atol=1e-7)
        assert np.allclose(inverse[:, 50:].numpy(), 0.0, atol=1e-7)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 24, 60])
def test_the_bulk_is_a_quantile_of_what_is_known(n):
    known = np.random.default_rng(n).lognormal(sigma=3.0, size=n)
    pairs = SecantPairs(40, [], np.zeros((2 * n, 2 * n)))
    pairs.products[range(0, 2 * n, 2), range(1, 2 * n, 2)] = known
    assert pairs._bulk() == (np.quantile(known, SOFTER) if n else 0.0)


def test_the_directions_kept_are_those_farthest_from_the_bulk():
    curvatures = np.tile([5.0, 800.0, 5.1, 3000.0, 4.9, 20.0, 5.0, 90.0], 6)
    pairs = SecantPairs(12, [], np.zeros((0, 0)))
    eigenpairs(pairs, 50, curvatures)
    kept = np.sort(pairs.unit * pairs.directions.curvatures)
    assert np.allclose(kept, np.sort(curvatures[:32])[-12:], rtol=1e-3)


def test_sums_and_scalar_products_of_images_are_those_of_the_images_made():
    n = 120
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, n, stiff_among_soft(60), c=0.5)
    assert pairs.directions is not None
    vectors = torch.stack([vector(n, seed) for seed in range(3)]).float()
    images, solved = pairs.inverse(vectors, 0.5), pairs.solved(pairs.read(vectors, 0.5), 0.5)
    assert np.allclose(solved.products, vectors @ images.T, rtol=1e-4, atol=1e-4)
    weights = np.array([[-1.0, 0.5, 2.0], [0.0, 0.0, 1.0]])
    found = solved.combined(weights)
    assert torch.allclose(found, torch.from_numpy(weights).float() @ images, rtol=1e-4, atol=1e-4)


def test_directions_in_which_the_matrix_is_as_beside_them_are_not_kept():
    # At first the bulk is 500, and what is kept are those apart from it by more than half.
    curvatures = np.concatenate([[600.0, 400.0, 100.0, 2000.0, 5000.0], np.full(19, 500.0)])
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, 40, np.append(curvatures, 500.0), c=1.0)
    kept = np.sort(pairs.unit * pairs.directions.curvatures)
    assert np.allclose(kept, [100.0, 2000.0, 5000.0], rtol=1e-3)


def test_images_that_vanish_make_no_direction():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, 40, 32 * [0.0])
    vectors = vector(40, 0)[None]
    assert torch.allclose(pairs.inverse(vectors, 1e9), vectors, atol=1e-5)


def test_a_carry_of_an_earlier_version_has_pairs_alone():
    n, curvatures = 100, stiff_among_soft(88)
    unit, blocks = torch.eye(n, dtype=torch.float64), []
    for first in range(0, 88, BLOCK):
        several = range(first, first + BLOCK)
        rows = [row for i in several for row in (unit[i], curvatures[i] * unit[i])]
        blocks.append(torch.stack(rows).to(torch.float32))
    rows = torch.cat(blocks).double()
    carry = {f"pairs_{i}": block for i, block in enumerate(blocks)} | {
        "pair_products": rows @ rows.T
    }
    pairs = SecantPairs.unpack(carry, 80)
    inverse = pairs.inverse(unit[:88], 0.5)
    assert len(pairs) < 25
    exact = np.diag(1 / (1 + 0.5 * curvatures))
    assert np.allclose(inverse[:, :88].numpy(), exact, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("n_pairs", [1, 20, 30])
def test_a_carry_is_left_as_it_is_by_what_is_added_later(n_pairs):
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, 40, np.geomspace(1e4, 3.0, n_pairs))
    carry = pairs.pack()
    assert ("directions" in carry) == (n_pairs > 24)
    before = {name: value.clone() for name, value in carry.items()}
    later = SecantPairs.unpack(carry, 40)
    vectors = vector(40, 1)[None]
    assert torch.equal(later.inverse(vectors, 0.5), pairs.inverse(vectors, 0.5))
    for seed in range(20):
        later.add(vector(40, 2 + seed), vector(40, 30 + seed))
        later.inverse(vectors, 0.5)
    later.pack()
    assert all(torch.equal(carry[name], before[name]) for name in before)


def test_in_single_precision_the_inverse_is_that_of_double():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, 40, np.geomspace(1e4, 3.0, 30))
    vectors = torch.stack([vector(40, 1), vector(40, 2)])
    single, double = pairs.inverse(vectors.float(), 0.5), pairs.inverse(vectors, 0.5)
    assert single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_pairs", [1, BLOCK, BLOCK + 3])
def test_a_carry_holds_no_rows_that_nothing_is_in(n_pairs):
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, 40, np.geomspace(1e4, 3.0, n_pairs))
    carry = pairs.pack()
    blocks = [block for name, block in carry.items() if name in {"pairs_0", "pairs_1"}]
    assert sum(len(block) for block in blocks) == len(carry["pair_products"]) == 2 * n_pairs
    # Earlier versions wrote whole blocks; what is in the rows beyond the pairs says nothing.
    last = f"pairs_{len(blocks) - 1}"
    whole = torch.full((2 * BLOCK, 40), torch.nan)
    whole[: len(carry[last])] = carry[last]
    vectors = vector(40, 1)[None]
    for n in range(3):
        now, then = (SecantPairs.unpack(c, 40) for c in (carry, carry | {last: whole}))
        for seed in range(n):
            for each in (now, then):
                each.add(vector(40, 2 + seed), vector(40, 9 + seed))
        assert torch.equal(now.inverse(vectors, 0.5), then.inverse(vectors, 0.5))


def test_beside_pairs_and_directions_the_inverse_follows_the_softer_of_both():
    # 24 stiff pairs come first, and would have the softer ones after them wrong for ever.
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    curvatures = np.concatenate([np.full(24, 1e4), np.full(24, 10.0)])
    eigenpairs(pairs, 60, curvatures)
    unit = torch.eye(60, dtype=torch.float64)[55:]
    assert torch.allclose(pairs.inverse(unit, 0.5), unit / 6.0, rtol=1e-3)


def test_directions_that_do_not_fit_their_products_are_no_carry():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, 40, np.geomspace(1e4, 3.0, 30))
    carry = pairs.pack()
    for name in ("direction_curvatures", "direction_products"):
        with pytest.raises(ValueError, match="do not fit"):
            SecantPairs.unpack(carry | {name: carry[name][1:]}, 40)
        with pytest.raises(KeyError, match=name):
            SecantPairs.unpack({n: v for n, v in carry.items() if n != name}, 40)


def test_beside_the_pairs_the_inverse_is_that_of_two_fifths_of_them():
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    unit = torch.eye(8, dtype=torch.float64)
    for i, curvature in enumerate([10.0, 500.0, 20.0, 1000.0, 40.0]):
        pairs.add(unit[i], curvature * unit[i])
    beside = torch.stack([unit[5], unit[7]])
    assert torch.allclose(pairs.inverse(beside, 0.5), beside / (1 + 0.5 * 32.0))
    on_pairs = unit[:5] / torch.tensor([[6.0], [251.0], [11.0], [501.0], [21.0]])
    assert torch.allclose(pairs.inverse(unit[:5], 0.5), on_pairs, rtol=1e-5)


def test_the_products_kept_are_those_of_the_rows():
    n = 1_000
    curvatures = torch.logspace(0, 4, n, dtype=torch.float64)
    pairs = SecantPairs(20, [], np.zeros((0, 0)))
    for seed in range(6 * BLOCK):
        s = vector(n, seed) / curvatures.sqrt()
        s = s / s.norm()
        pairs.add(s, curvatures * s)
        pairs.inverse(s[None], 10.0)
    rows = torch.cat(list(pairs.blocks))[: 2 * len(pairs)].double()
    sizes = rows.norm(dim=1)
    exact = rows @ rows.T / sizes / sizes[:, None]
    assert np.allclose(pairs.products / np.outer(sizes, sizes), exact, atol=1e-5)
    across = pairs.directions.rows.double() @ rows.T / sizes
    assert len(pairs.directions.rows) >= 10
    assert np.allclose(pairs.across / sizes.numpy(), across, atol=1e-4)


@pytest.mark.parametrize("few", [10, 36])
@pytest.mark.parametrize("made_at", [0.5, 0.1])
def test_where_curvature_is_negative_the_inverse_stays_positive(few, made_at):
    """It preconditions: of pairs with 1 + c·sᵀAs ≤ 0 nothing is taken, gone by or not."""
    n, c = 40, 0.5
    curvatures = np.geomspace(100.0, 2.0, few)
    curvatures[::2] = -5.0
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, n, curvatures, made_at)
    assert (few == 36) == (pairs.directions is not None)
    inverse = pairs.inverse(torch.eye(n, dtype=torch.float64), c).numpy()
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-6)
    assert np.linalg.eigvalsh(inverse)[0] > 0
    known = np.flatnonzero(curvatures > 0)
    exact = 1 / (1 + c * curvatures[known])
    np.testing.assert_allclose(inverse[known, known], exact, rtol=1e-4)
    if made_at == c:
        # As where nothing is known.
        left = np.flatnonzero(curvatures < 0)
        np.testing.assert_allclose(inverse[left, left], inverse[-1, -1], rtol=1e-6)


def test_without_time_there_is_no_curvature_however_many_pairs_have_gone_by():
    n = 40
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    eigenpairs(pairs, n, np.geomspace(1e3, 2.0, 30), c=0.0)
    assert torch.isfinite(pairs.directions.rows).all()
    vectors = torch.eye(n, dtype=torch.float64)
    assert torch.allclose(pairs.inverse(vectors, 0.0), vectors, atol=1e-5)
    # What they have taught is there once time is.
    inverse = pairs.inverse(vectors, 0.5)
    assert float(inverse[0, 0]) == pytest.approx(1 / (1 + 0.5 * 1e3), rel=1e-3)


def test_a_pair_that_comes_again_and_again_makes_one_direction():
    n, c = 20, 0.5
    unit = torch.eye(n, dtype=torch.float64)
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    for i in range(2 * (BLOCKS + 1) * BLOCK):
        pairs.add(unit[i % 2], (50.0 + 50 * (i % 2)) * unit[i % 2])
        pairs.read(unit[:1], c)
    rows = pairs.directions.rows
    assert len(rows) <= 2
    assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)
    inverse = pairs.inverse(unit, c)
    assert torch.allclose(inverse[:2, :2], torch.diag(1 / torch.tensor([26.0, 51.0]).double()))


def test_a_carry_without_a_unit_has_its_images_as_they_are():
    n = 10
    pairs = SecantPairs(40, [], np.zeros((0, 0)), unit=1.0)
    pairs.add(vector(n, 0) / vector(n, 0).norm(), 300 * vector(n, 1))
    carry = pairs.pack()
    earlier = SecantPairs.unpack({k: v for k, v in carry.items() if k != "pair_unit"}, 40)
    again = SecantPairs.unpack(carry, 40)
    for one in (earlier, again):
        one.add(vector(n, 2) / vector(n, 2).norm(), 7 * vector(n, 2))
    assert earlier.stiffest == again.stiffest
    assert torch.equal(
        earlier.inverse(vector(n, 3)[None], 0.1), again.inverse(vector(n, 3)[None], 0.1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_resolved_above_what_rounding_makes_of_gradients(dtype):
    theta = torch.full((100,), 3.0, dtype=dtype)
    floor = 30 * torch.finfo(dtype).eps ** 0.7
    for size, expected in ((2 * floor, 2 * floor), (floor / 2, 0.0), (0.0, 0.0)):
        s = torch.zeros_like(theta)
        s[7] = size
        assert resolved(s, theta) == pytest.approx(expected, rel=1e-6, abs=0)
