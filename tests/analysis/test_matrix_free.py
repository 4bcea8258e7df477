"""Eigenvalues, densities and traces of operators that are products with vectors only."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from scipy.stats import wasserstein_distance
from torch import nn

import geoflow as gf
import references
from curvatures import dense_hessian, dense_tangent, diagonal
from geoflow.analysis import (
    extreme_eigenvalues,
    loss_hessian,
    spectral_density,
    tangent_hessian,
    trace,
)
from geoflow.analysis.curvature.costs import products_needed
from geoflow.analysis.curvature.density import SpectralDensity, widening
from geoflow.analysis.curvature.lanczos import largest_beside
from geoflow.analysis.curvature.operators import Curvature, Subspace
from geoflow.errors import InputError


@pytest.fixture(scope="module")
def wide():
    """A network of 496 parameters, on data it does not fit perfectly."""
    module = nn.Sequential(nn.Linear(3, 20), nn.Tanh(), nn.Linear(20, 18), nn.Tanh())
    module.append(nn.Linear(18, 2))
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.4 * references._normal(parameter.numel(), seed).view_as(parameter))
    problem = gf.Problem.from_module(
        module, nn.functional.cross_entropy, *references.small_data(60)
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_eigenvalues_are_those_of_the_dense_hessians(network, which):
    theta = network.problem.theta0
    cases = [
        (loss_hessian(network.problem, theta), dense_hessian(network.problem, theta)),
        (tangent_hessian(network, network.evaluate(theta)), dense_tangent(network, theta)),
    ]
    for operator, matrix in cases:
        assert operator.size == len(matrix)
        exact = np.linalg.eigvalsh(matrix)
        expected = exact[:4] if which == "smallest" else exact[::-1][:4]
        pairs = extreme_eigenvalues(operator, 4, which=which)
        assert np.abs(pairs.values - expected).max() < 1e-8
        # The bound holds, and is tight enough to be of use.
        assert (np.abs(pairs.values - expected) <= pairs.residuals + 1e-12).all()
        assert pairs.residuals.max() < 1e-4
        assert np.allclose(pairs.vectors.T @ pairs.vectors, np.eye(4), atol=1e-10)
        image = np.stack(
            [operator(torch.from_numpy(v.copy())).numpy() for v in pairs.vectors.T], axis=1
        )
        assert np.allclose(image, pairs.vectors * pairs.values, atol=1e-4)


def test_a_larger_network_agrees_to_1e_8_too(wide):
    theta = wide.problem.theta0
    exact = np.linalg.eigvalsh(dense_hessian(wide.problem, theta))
    operator = loss_hessian(wide.problem, theta)
    top = extreme_eigenvalues(operator, 5)
    bottom = extreme_eigenvalues(operator, 5, which="smallest")
    assert np.abs(top.values - exact[::-1][:5]).max() < 1e-8
    assert np.abs(bottom.values - exact[:5]).max() < 1e-8


def test_density_matches_the_dense_spectrum_and_integrates_to_one(wide):
    theta = wide.problem.theta0
    assert wide.problem.n_parameters == 496
    cases = [
        (loss_hessian(wide.problem, theta), dense_hessian(wide.problem, theta)),
        (tangent_hessian(wide, wide.evaluate(theta)), dense_tangent(wide, theta)),
    ]
    for operator, matrix in cases:
        exact = np.linalg.eigvalsh(matrix)
        extent = exact[-1] - exact[0]
        found = spectral_density(operator, n_probes=8, n_steps=64)
        assert np.allclose(found.weights.sum(axis=1), 1)
        weights = found.weights.ravel() / len(found.weights)
        assert wasserstein_distance(found.nodes.ravel(), exact, weights) < 0.01 * extent
        grid = found.grid()
        density, error = found.on(grid)
        assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
        # The broadened density as well, as its distribution function.
        below = np.cumsum(density) * (grid[1] - grid[0])
        true_below = np.searchsorted(exact, grid) / len(exact)
        assert np.trapezoid(np.abs(below - true_below), grid) < 0.01 * extent
        assert (error >= 0).all()
        assert error.max() > 0


def test_a_density_is_on_a_vector_of_eigenvalues():
    found = spectral_density(diagonal(np.arange(9.0)), n_probes=2, n_steps=3)
    with pytest.raises(InputError, match=r"abscissa has shape \(\); give eigenvalues in a list"):
        found.on(1.0)
    for width in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(InputError, match=f"width={width:g}; use a positive number"):
            found.on(np.arange(3.0), width)


def test_the_density_of_well_spread_eigenvalues_is_right_within_its_error_bars():
    exact = np.linspace(-1, 3, 400)
    found = spectral_density(diagonal(exact), n_probes=16, n_steps=80, seed=3)
    grid = np.linspace(-0.5, 2.5, 61)
    width = 0.1
    density, error = found.on(grid, width)
    kernel = np.exp(-0.5 * ((grid[:, None] - exact) / width) ** 2) / np.sqrt(2 * np.pi) / width
    # Of t statistics with 15 degrees of freedom about 6% are beyond 2; half as many again here.
    beyond = np.abs(density - kernel.mean(axis=1)) > 2 * error + 1e-3
    assert beyond.mean() < 0.15


def test_lanczos_ends_where_nothing_is_left():
    found = spectral_density(diagonal([1.0] * 50 + [4.0] * 50), n_probes=2, n_steps=20)
    assert np.isfinite(found.nodes).sum(axis=1).tolist() == [2, 2]
    assert np.allclose(found.nodes[:, :2], [1, 4])
    assert np.allclose(found.weights.sum(axis=1), 1)
    same = spectral_density(diagonal([2.0] * 30), n_probes=2)
    grid = same.grid()
    assert np.trapezoid(same.on(grid)[0], grid) == pytest.approx(1, abs=1e-6)


def test_the_trace_is_within_its_error_and_exact_where_the_rank_is_small(wide):
    low_rank = diagonal([5.0, 3.0, -2.0] + [0.0] * 200)
    assert trace(low_rank, n_products=30).value == pytest.approx(6, abs=1e-10)
    assert trace(diagonal([1.0, 2.0, 4.0]), n_products=9) == pytest.approx((7, 0))
    exact = np.trace(dense_hessian(wide.problem, wide.problem.theta0))
    operator = loss_hessian(wide.problem, wide.problem.theta0)
    found = [trace(operator, n_products=30, seed=s) for s in range(20)]
    off = np.array([(t.value - exact) / t.standard_error for t in found])
    # The error is that of one estimate, known to the spread of ‖Bz‖: mean square 1, nearly.
    assert 0.4 < (off**2).mean() < 3
    assert np.abs(off).max() < 5


def coupled(n, rank):
    """Pairs of coordinates that signs cannot see where they are opposite."""
    blocks = np.zeros((n, n))
    for k in range(rank):
        blocks[2 * k : 2 * k + 2, 2 * k : 2 * k + 2] = 1.0 + 0.1 * k
    a = torch.from_numpy(blocks)
    identity = Subspace(n, lambda x: x, lambda v: v)
    return Curvature("coupled", lambda v: a @ v, identity, torch.zeros(n, dtype=torch.float64))


@pytest.mark.parametrize("make", [lambda: coupled(12, 6), lambda: diagonal([1.0] * 6 + [0.0] * 6)])
def test_few_probes_have_an_honest_error(make):
    """A trace and a density of two probes, of operators on which signs coincide."""
    operator = make()
    exact = float(np.trace(operator.dense()))
    found = [trace(operator, n_products=8, seed=s) for s in range(200)]
    off = np.array([abs(t.value - exact) / t.standard_error for t in found])
    assert min(t.standard_error for t in found) > 0
    assert np.mean(off < 2) > 0.85
    assert off.max() < 20
    grid = np.linspace(-1, 4, 101)
    for seed in range(50):
        density, error = spectral_density(operator, n_probes=2, n_steps=12, seed=seed).on(grid, 0.2)
        assert error.max() > 1e-3 * density.max()


def scaled(values, scale, dtype=torch.float64):
    """diag(values)·scale: of float64, or made in another dtype."""
    d = (torch.as_tensor(values, dtype=torch.float64) * scale).to(dtype)
    identity = Subspace(len(d), lambda x: x, lambda v: v)
    return Curvature("diagonal", lambda v: d * v, identity, torch.zeros_like(d))


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize(
    ("dtype", "scales", "rtol"),
    [
        (torch.float64, [1.0, 1e-8, 1e-12, 1e-20, 1e-200, 1e-300, 1e8, 1e100], 1e-9),
        (torch.float32, [1.0, 1e-8, 1e-12, 1e-20, 1e-30, 1e8], 1e-5),
    ],
)
def test_tol_is_relative_whatever_the_size_of_the_spectrum(which, dtype, scales, rtol):
    exact = np.linspace(-1, 1, 60)
    wanted = exact[::-1][:5] if which == "largest" else exact[:5]
    for scale in scales:
        pairs = extreme_eigenvalues(scaled(exact, scale, dtype), 5, which=which)
        assert np.abs(pairs.values / scale - wanted).max() < rtol
        # The bound holds of these as well.
        off = np.abs(pairs.values / scale - wanted)
        assert (off <= pairs.residuals / scale + 10 * torch.finfo(dtype).eps).all()


def test_a_spectrum_scaled_by_a_power_of_two_is_the_same_to_the_bit():
    exact = np.linspace(0.5, 2, 60) ** 3
    for scale in (2.0**-40, 2.0**-900):
        for which in ("largest", "smallest"):
            one = extreme_eigenvalues(scaled(exact, 2.0**-10), 3, which=which)
            two = extreme_eigenvalues(scaled(exact, scale), 3, which=which)
            assert np.array_equal(one.values * 2.0**10, two.values / scale)
            assert np.array_equal(one.vectors, two.vectors)
            assert np.array_equal(one.residuals * 2.0**10, two.residuals / scale)
        ones, twos = (spectral_density(scaled(exact, s)) for s in (1.0, scale))
        assert np.allclose(twos.nodes / scale, ones.nodes, rtol=1e-12, atol=0)
        assert np.allclose(twos.weights, ones.weights, rtol=1e-9, atol=1e-15)
        large, small = (trace(scaled(exact, s), n_products=12) for s in (1.0, scale))
        # LAPACK's factorisation of the sketch may scale it otherwise.
        assert np.allclose(np.array(small) / scale, large, rtol=1e-12)


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(1e-200, torch.float64), (1e-300, torch.float64), (1e-30, torch.float32)],
)
def test_the_error_of_a_tiny_trace_is_honest(scale, dtype):
    exact = np.ones(50) * 2
    off = []
    for seed in range(40):
        found = trace(scaled(exact, scale, dtype), n_products=12, seed=seed)
        assert found.standard_error > 0
        off.append(abs(found.value / scale - 100) / (found.standard_error / scale))
    # Of few probes, heavier than normal: not one in ten beyond three.
    assert np.mean(np.array(off) > 3) < 0.1
    assert np.median(off) > 0.1


def test_the_seed_decides_everything(wide):
    operator = loss_hessian(wide.problem, wide.problem.theta0)
    for function in (
        lambda s: spectral_density(operator, n_probes=2, n_steps=10, seed=s).nodes,
        lambda s: trace(operator, n_products=6, seed=s).value,
        lambda s: extreme_eigenvalues(operator, 2, seed=s).vectors,
    ):
        assert np.array_equal(function(0), function(0))
        assert not np.array_equal(function(0), function(1))


@pytest.mark.parametrize("n", [10, 100])
def test_operators_with_one_eigenvalue_only(n):
    for value in (0.0, 2.0, -3.0):
        operator = diagonal([value] * n)
        for which in ("largest", "smallest"):
            pairs = extreme_eigenvalues(operator, 3, which=which)
            assert np.allclose(pairs.values, value, atol=1e-12)
            assert np.allclose(pairs.vectors.T @ pairs.vectors, np.eye(3), atol=1e-10)
        assert np.nanmax(np.abs(spectral_density(operator).nodes - value)) < 1e-12
        found = trace(operator)
        assert abs(found.value - n * value) <= 5 * found.standard_error + 1e-9


@pytest.mark.parametrize("n", [10, 100])
def test_non_finite_products_are_refused(n):
    for function in (extreme_eigenvalues, spectral_density, trace):
        with pytest.raises(InputError, match="'diagonal' gave non-finite values"):
            function(diagonal([math.nan] * n))


def test_what_has_not_converged_is_not_a_number():
    operator = diagonal(np.linspace(0, 1, 3000))
    pairs = extreme_eigenvalues(operator, 5, max_products=20)
    assert np.isnan(pairs.values).any()
    assert np.array_equal(np.isnan(pairs.values), np.isnan(pairs.residuals))


def counted(operator):
    """The operator, and a list whose only element counts its products."""
    made = [0]

    def product(v):
        made[0] += 1
        return operator.product(v)

    return made, replace(operator, product=product)


@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("k", [1, 5])
def test_what_does_not_converge_is_written_out_where_that_costs_less(which, k):
    exact = np.geomspace(1e-3, 10, 70)
    exact = exact if which == "smallest" else -exact
    for scale in (1.0, 1e-200):
        made, operator = counted(scaled(exact, scale, torch.float64))
        found = extreme_eigenvalues(operator, k, which=which)
        assert np.abs(found.values / scale - exact[:k]).max() < 1e-12
        # A look at the other end, an iteration of about as many as n, the matrix, the residuals.
        assert 70 + k < made[0] <= 3 * 70 + 2 * 20 + k + 1
    # With fewer products than that takes, it is not.
    few, operator = counted(diagonal(exact))
    assert np.isnan(extreme_eigenvalues(operator, 5, which=which, max_products=69).values).any()
    assert few[0] <= 2 * 69 + 2 * 40 + 10


def with_a_multiple(n, multiplicity):
    """One eigenvalue several times, two apart from it, and a bulk; falling."""
    bulk = np.random.default_rng(n).uniform(0, 1, n - multiplicity - 2)
    return np.r_[np.full(multiplicity, 10.0), 6.0, 4.0, np.sort(bulk)[::-1]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest"])
@pytest.mark.parametrize("tol", [1e-6, 1e-10])
@pytest.mark.parametrize("n", [21, 30, 60, 61, 150])
def test_a_multiple_eigenvalue_stands_in_as_many_ranks_as_it_is_multiple(n, tol, which, dtype):
    sign = 1 if which == "largest" else -1
    for multiplicity in (2, 4):
        exact = sign * with_a_multiple(n, multiplicity)
        for k in (1, 2, 3, 5):
            made, operator = counted(scaled(exact, 1.0, dtype))
            found = extreme_eigenvalues(operator, k, which=which, tol=tol)
            assert found.values == pytest.approx(exact[:k], abs=2e-5)
            # A small one is known from its matrix, which is the cheaper way too.
            assert n > 60 or made[0] == n + k


def test_where_copies_are_missing_and_no_matrix_is_written_out_ranks_are_unknown():
    exact = with_a_multiple(1500, 4)
    for sign, which in ((1, "largest"), (-1, "smallest")):
        operator = diagonal(sign * exact)
        found = extreme_eigenvalues(operator, 5, which=which, tol=1e-6, max_products=1000)
        there = np.isfinite(found.values)
        assert 1 <= there.sum() < 5
        assert found.values[there] == pytest.approx(sign * 10)
        assert np.array_equal(there, np.isfinite(found.residuals))
        found = extreme_eigenvalues(operator, 5, which=which, tol=1e-6, max_products=1500)
        assert found.values == pytest.approx(sign * exact[:5])


@pytest.mark.parametrize("tol", [1e-6, 1e-8])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_beside_a_missed_copy_no_rank_is_another_ones(which, tol):
    sign = 1 if which == "largest" else -1
    known = 0
    for gap in (0.5, 0.1, 0.02):
        for multiplicity in (2, 3, 4):
            top = np.r_[np.full(multiplicity, 10.0), np.full(3, 10 - gap)]
            exact = np.r_[top, np.linspace(9.9 - gap, 0, 600 - len(top))]
            for max_products in (599, 600):
                found = extreme_eigenvalues(
                    diagonal(sign * exact), 5, which=which, tol=tol, max_products=max_products
                ).values
                there = np.isfinite(found)
                assert found[there] == pytest.approx(sign * exact[:5][there], abs=1e-3 * gap)
                known += there.sum()
                # The matrix is written out where one is seen to be missing.
                assert max_products < 600 or there.all()
    # Of 90: those before the first that may be missing are.
    assert known > 60


@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_what_was_found_whole_stays_known(which):
    # A look beside it takes no rank away where none is missing, close ones neither.
    sign = 1 if which == "largest" else -1
    for seed in range(20):
        exact = np.sort(np.random.default_rng(seed).standard_normal(300) ** 3)[::-1]
        exact[4] = exact[3] - 1e-7
        operator = diagonal(sign * exact)
        found = extreme_eigenvalues(operator, 4, which=which, tol=1e-6, max_products=299)
        assert found.values == pytest.approx(sign * exact[:4], abs=1e-4)


def test_tol_is_of_one_scale_at_both_ends():
    # The end at zero has hardly a size of its own, and others crowd there.
    exact = np.append(np.geomspace(1e-4, 10, 60), np.full(2940, 10.0))
    for sign, which in ((1, "smallest"), (-1, "largest")):
        made, operator = counted(diagonal(sign * exact))
        found = extreme_eigenvalues(operator, 1, which=which, tol=1e-3, max_products=600)
        assert abs(sign * found.values[0] - exact[0]) < 1e-3 * 10
        assert made[0] < 300


def with_outliers(seed):
    """A bulk about zero of 114 eigenvalues, and six outliers above, rising."""
    rng = np.random.default_rng(seed)
    outliers = np.abs(rng.standard_normal(6)) * 10 ** rng.uniform(0, 3)
    return np.sort(np.r_[0.1 * rng.standard_normal(114), outliers])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("which", ["largest", "smallest"])
def test_an_eigenvalue_that_did_not_converge_leaves_its_rank_to_no_other(which, dtype):
    sign = 1 if which == "smallest" else -1
    partly = kept = 0
    for seed in range(60):
        exact = with_outliers(seed)
        operator = scaled(sign * exact, 1.0, dtype)
        for max_products in (40, 100, 200):
            found = extreme_eigenvalues(
                operator, 5, which=which, tol=1e-6, max_products=max_products, seed=seed
            )
            there = np.isfinite(found.values)
            n = int(there.sum())
            assert there[:n].all()
            assert np.array_equal(there, np.isfinite(found.residuals))
            assert np.array_equal(there, np.isfinite(found.vectors).all(axis=0))
            if n < 5:
                off = np.abs(sign * found.values - exact[:5])[:n]
                assert (off <= 10 * found.residuals[:n] + 1e-6 * exact[-1]).all()
                partly, kept = partly + 1, kept + n
    # Nearly all that had converged are sure to be the outermost.
    assert partly > 60
    assert kept > 1.5 * partly


def test_what_is_largest_beside_known_eigenvectors_is_found():
    exact = with_outliers(0)
    for sign, order in ((1.0, np.argsort(-exact)), (-1.0, np.argsort(exact))):
        known = np.eye(120)[:, order[[0, 1, 3]]]
        first, (ritz, error) = largest_beside(diagonal(exact), sign, known, [20, 60], 0)
        assert first[0] <= ritz
        # The third is missing among the known ones.
        missing = sign * exact[order[2]]
        assert ritz <= missing + 1e-9 * exact[-1]
        assert ritz + error >= missing - 1e-9 * exact[-1]
        assert ritz > sign * exact[order[3]]
    ((one, none),) = largest_beside(diagonal([2.0] * 50), 1.0, np.eye(50)[:, :1], [20], 0)
    assert one == pytest.approx(2)
    assert none < 1e-12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o: extreme_eigenvalues(o, 0), "k=0"),
        (lambda o: extreme_eigenvalues(o, 1, max_products=0), "max_products=0; use a positive"),
        (lambda o: extreme_eigenvalues(o, 4), "1 to 3"),
        (lambda o: extreme_eigenvalues(o, 1, which="LM"), "which='LM'"),
        (lambda o: spectral_density(o, n_probes=1), "n_probes=1"),
        (lambda o: spectral_density(o, seed=-1), "seed=-1"),
        (lambda o: trace(o, n_products=5), "n_products=5"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call(diagonal([1.0, 2.0, 3.0]))


def test_too_much_memory_is_refused_before_it_is_asked_for():
    huge = 10**9
    operator = Curvature(
        "huge", lambda v: v, Subspace(huge, lambda x: x, lambda v: v), torch.zeros(1)
    )
    with pytest.raises(InputError, match="GiB are available"):
        spectral_density(operator, n_steps=10_000)


def test_products_are_foreseen(network, wide):
    cost = {"k": 3, "n_probes": 2, "n_steps": 10, "n_trace": 12, "max_products": 200}
    for flow in (network, wide):
        problem = flow.problem
        operator = loss_hessian(problem, problem.theta0)
        before = problem.counts["hvp"]
        for which in ("largest", "smallest"):
            extreme_eigenvalues(operator, 3, which=which, max_products=200)
        spectral_density(operator, n_probes=2, n_steps=10)
        trace(operator, n_products=12)
        least, most = products_needed(operator.size, **cost)
        assert least <= problem.counts["hvp"] - before <= most
        # Those that decide the ranks of what has converged are among them.
        before, few = problem.counts["hvp"], cost | {"max_products": 30}
        for which in ("largest", "smallest"):
            extreme_eigenvalues(operator, 3, which=which, max_products=30)
        assert problem.counts["hvp"] - before <= products_needed(operator.size, **few)[1]
    # Of one whose ends do not converge before, all of its products are.
    made, operator = counted(diagonal(np.geomspace(1e-6, 1, 120)))
    for which in ("largest", "smallest"):
        extreme_eigenvalues(operator, 3, which=which, max_products=200)
    spectral_density(operator, n_probes=2, n_steps=10)
    trace(operator, n_products=12)
    assert made[0] <= products_needed(120, **cost)[1]
    # Small ones are written out: known exactly.
    operator = diagonal([1.0, 2.0, 4.0])
    assert products_needed(3, **cost) == (2 * 3 + 6 + 6 + 6, 2 * 3 + 6 + 6 + 6)


@pytest.mark.parametrize("base", [0.0, 2.0])
def test_an_end_of_many_equal_eigenvalues_is_known_to_the_tolerance(base):
    # As that of A where most of θ is of no effect on L. What is left there has not converged
    # within the products, but lies no further out than the tolerance.
    exact = base + np.r_[np.zeros(570), np.geomspace(1e-3, 0.03, 80)]
    found = extreme_eigenvalues(diagonal(exact), 4, which="smallest", max_products=200)
    there = np.isfinite(found.values)
    assert list(there) == [True, True, False, False]
    assert found.values[there] == pytest.approx(base, abs=1e-9)


@pytest.mark.parametrize("n_products", [6, 8, 12])
@pytest.mark.parametrize(
    "values", [[1.0] * 3 + [0.0] * 37, [1.0] * 5 + [0.0] * 35, 2.0 ** -np.arange(40)]
)
def test_the_error_of_a_trace_of_few_probes_is_exceeded_as_rarely_as_of_many(values, n_products):
    """Where little is left beside the sketch, value and error are small together."""
    off = []
    for seed in range(200):
        found = trace(diagonal(values), n_products=n_products, seed=seed)
        error = abs(found.value - np.sum(values))
        # Where the sketch has the whole range, rounding alone is left.
        off.append(0.0 if error < 1e-9 else error / found.standard_error)
    assert np.mean(np.array(off) > 3) <= 0.04
    assert np.mean(np.array(off) > 5) <= 0.015


@pytest.mark.parametrize(
    "n_probes", [2, 3, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 8))]
)
def test_the_error_of_a_density_of_few_probes_is_exceeded_as_rarely_as_of_many(n_probes):
    exact = np.r_[np.ones(5), np.linspace(-0.2, 0.2, 35)]
    abscissa, width = np.array([0.0, 1.0]), 0.05
    z = (abscissa[:, None] - exact) / width
    true = np.exp(-0.5 * z**2).mean(axis=1) / (np.sqrt(2 * np.pi) * width)
    off = []
    for seed in range(100):
        found = spectral_density(diagonal(exact), n_probes=n_probes, n_steps=40, seed=seed)
        density, error = found.on(abscissa, width)
        off.append(np.abs(density - true) / error)
    assert np.mean(np.array(off) > 3) <= 0.05
    assert np.mean(np.array(off) > 10) <= 0.01


def test_the_error_of_enough_probes_is_the_standard_error():
    assert widening(1) == pytest.approx(student.isf(student.sf(3, 7), 1) / 3)
    assert [widening(k) for k in (7, 8, 20)] == [1, 1, 1]
    assert (np.diff([widening(k) for k in range(1, 8)]) < 0).all()
    found = spectral_density(diagonal(np.linspace(-1, 3, 60)), n_probes=8, n_steps=20)
    _, error = found.on(np.linspace(-1, 3, 9), 0.2)
    curves = [
        SpectralDensity(found.nodes[[k, k]], found.weights[[k, k]], 60).on(
            np.linspace(-1, 3, 9), 0.2
        )[0]
        for k in range(8)
    ]
    assert np.allclose(error, np.std(curves, axis=0, ddof=1) / np.sqrt(8), rtol=1e-12)
