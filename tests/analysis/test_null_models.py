import dask.array as da
import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow.analysis import fit_pca
from geoflow.analysis.components import blocks
from geoflow.analysis.components.brownian import (
    brownian_path,
    brownian_test,
    brownian_variance_ratio,
)
from geoflow.analysis.components.null_models import compare
from geoflow.analysis.components.path_components import cosine_content
from geoflow.errors import InputError


def line(n=30, p=200, noise=0.0):
    rng = np.random.default_rng(1)
    return np.outer(np.linspace(0, 1, n), rng.normal(size=p)) + noise * rng.normal(size=(n, p))


def relaxation(rate, n=30, p=200):
    """Every parameter relaxes from its own start to its own end, all at one rate."""
    rng = np.random.default_rng(2)
    start, end = rng.normal(size=(2, p))
    return end + np.outer(np.exp(-rate * np.linspace(0, 1, n)), start - end)


def test_the_analytic_ratios_are_the_eigenvalues_of_brownian_motions_covariance():
    n = 25
    centre = np.eye(n) - 1 / n
    covariance = centre @ np.minimum.outer(np.arange(n), np.arange(n)) @ centre
    exact = np.linalg.eigvalsh(covariance)[::-1][: n - 1]
    assert np.allclose(brownian_variance_ratio(n), exact / exact.sum(), rtol=1e-10)
    k = np.arange(1, 6)
    assert np.allclose(brownian_variance_ratio(20_000, 5), 6 / (np.pi * k) ** 2, rtol=1e-4)
    # The participation ratio's limit.
    assert 1 / (brownian_variance_ratio(20_000) ** 2).sum() == pytest.approx(2.5, rel=1e-3)


def test_the_pca_of_a_brownian_path_in_high_dimension_is_that_of_the_limit():
    path = brownian_path(40, 100_000, seed=4)
    pca = fit_pca([path], 4)
    assert np.allclose(pca.explained_variance_ratio, brownian_variance_ratio(40, 4), rtol=0.03)
    assert cosine_content(pca.transform(path)).min() > 0.98


def test_cosines_have_a_content_of_one_and_others_none():
    n = 50
    half_periods = np.cos(np.outer(np.arange(n) + 0.5, [1, 2, 3]) * np.pi / n)
    assert np.allclose(cosine_content(half_periods), 1)
    assert np.allclose(cosine_content(half_periods[:, ::-1][:, :1]), 0)
    ramp = np.linspace(-1, 1, 5000)[:, None]
    # ∫(1 − 2x)cos πx = 4/π², ∫(1 − 2x)² = 1/3: the content is 2·16/π⁴·3.
    assert cosine_content(ramp)[0] == pytest.approx(96 / np.pi**4, rel=1e-5)
    assert np.isnan(cosine_content(np.zeros((5, 2)))).all()


def test_components_of_the_walk_are_those_of_fit_pca(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 12 * 7)
    path = brownian_path(12, 40, seed=1) + 100
    found = compare(path, n_components=5, n_simulations=9).sel(model="walk")
    pca = fit_pca([path], 5)
    assert np.allclose(found["explained_variance_ratio"], pca.explained_variance_ratio)
    assert np.allclose(found["cosine_content"], cosine_content(pca.transform(path)))
    values = fit_pca([path], 11).explained_variance
    ratio = values.sum() ** 2 / (values**2).sum()
    assert float(found["participation_ratio"]) == pytest.approx(ratio)


@pytest.mark.parametrize("dimension", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_brownian_paths_are_rejected_at_the_nominal_rate(dimension):
    p = [
        brownian_test(brownian_path(20, dimension, seed=s), n_simulations=199, seed=s + 1).p_value
        for s in range(200)
    ]
    rejected = np.mean(np.array(p) <= 0.05)
    assert 0.02 <= rejected <= 0.08
    assert 0.4 < np.mean(p) < 0.6


def test_uneven_steps_are_no_reason_to_reject():
    lengths = np.geomspace(10, 0.1, 29)
    p = [
        brownian_test(
            brownian_path(30, 500, step_lengths=lengths, seed=s), n_simulations=39, seed=s + 1
        ).p_value
        for s in range(200)
    ]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


@pytest.mark.parametrize(
    "points",
    [line(), line(noise=0.02), relaxation(1.0), relaxation(4.0)],
    ids=["line", "noisy line", "slow", "fast"],
)
def test_lines_and_relaxations_are_rejected(points):
    found = brownian_test(points, n_simulations=199)
    assert found.p_value == 2 / 200
    assert found.statistic < 1.1 < found.null.min()


def test_steps_that_turn_back_are_rejected_from_the_other_side():
    steps = np.random.default_rng(0).normal(size=(60, 500))
    white = np.cumsum(steps[1:] - 0.7 * steps[:-1], axis=0)
    found = brownian_test(white, n_simulations=199)
    assert found.p_value == 2 / 200
    assert found.statistic > found.null.max()


def test_simulations_have_the_distribution_of_paths_drawn_in_full():
    # In more dimensions than steps they are drawn through Bartlett's decomposition.
    n, dimension = 8, 20
    lengths = np.linspace(1, 3, n - 1)
    walk = brownian_path(n, dimension, step_lengths=lengths, seed=0)
    null = brownian_test(walk, n_simulations=4000).null
    full = []
    for seed in range(1, 2001):
        path = brownian_path(n, dimension, step_lengths=lengths, seed=seed)
        values = np.linalg.svd(path - path.mean(axis=0), compute_uv=False) ** 2
        full.append(values.sum() ** 2 / (values**2).sum())
    error = np.sqrt(np.var(full) / len(full) + null.var() / len(null))
    assert abs(np.mean(full) - null.mean()) < 4 * error
    assert np.std(full) == pytest.approx(null.std(), rel=0.1)


def test_compare_sets_the_models_side_by_side():
    times = np.linspace(0, 2, 30)
    found = compare(relaxation(4.0), times, n_components=3, n_simulations=199)
    assert float(found["rate"]) == pytest.approx(2.0, rel=1e-6)
    walk, fitted = found.sel(model="walk"), found.sel(model="relaxation")
    assert np.allclose(walk["explained_variance_ratio"], [1, 0, 0], atol=1e-10)
    assert float(walk["cosine_content"][0]) == pytest.approx(float(fitted["cosine_content"][0]))
    assert np.isnan(fitted["cosine_content"][1:]).all()
    straight = found.sel(model="straight_line")
    assert float(straight["cosine_content"][0]) == pytest.approx(96 / np.pi**4, abs=2e-3)
    brownian = found.sel(model="brownian")["explained_variance_ratio"]
    assert 0.6 < float(brownian[0]) < 1
    assert all({"units", "long_name"} <= set(v.attrs) for v in found.variables.values())
    again = compare(relaxation(4.0), times, n_components=3, n_simulations=199)
    assert found.equals(again)
    even = compare(brownian_path(30, 20_000), n_components=3, n_simulations=199)
    assert np.allclose(
        even["explained_variance_ratio"].sel(model="brownian"), even["brownian_limit"], rtol=0.02
    )
    assert float(even["p_value"]) > 0.05


def test_a_closed_walk_can_be_compared():
    angle = np.linspace(0, 2 * np.pi, 40)
    circle = np.column_stack([np.cos(angle), np.sin(angle)])
    circle[-1] = circle[0]
    found = compare(circle, n_components=2, n_simulations=39)
    participation = found["participation_ratio"]
    assert float(participation.sel(model="walk")) == pytest.approx(2, abs=0.01)
    # The line from its end to its end has no length, and is a line all the same.
    assert float(participation.sel(model="straight_line")) == pytest.approx(1)
    assert float(abs(found["scores"].sel(model="straight_line", component=1)).max()) < 1e-7


def test_steps_that_add_up_to_nothing_exactly_are_a_closed_walk():
    there_and_back = np.array([0.0, 1.0, 2.0, 1.0, 0.0])[:, None] * np.eye(1, 4)
    there_and_back[2, 1] = 1.0
    found = compare(there_and_back, n_components=1, n_simulations=39)
    assert np.isfinite(found["explained_variance_ratio"]).all()
    assert np.array_equal(found["scores"].sel(model="straight_line"), np.zeros((5, 1)))


def test_a_walk_on_a_level_set_is_no_random_walk(network):
    ds = gf.walk(network, t_end=1.0, max_snapshots=12)
    found = compare(
        ds["theta"].values, ds["snapshot_time"].values, n_components=2, n_simulations=199
    )
    assert float(found["p_value"]) == 2 / 200


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: brownian_test(np.zeros((5, 3))), "all the same"),
        (lambda: brownian_test(np.ones((2, 3))), "N of 3"),
        (lambda: brownian_test(np.full((5, 3), np.nan)), "non-finite"),
        (lambda: brownian_test(line(), n_simulations=1), "n_simulations=1"),
        (lambda: brownian_test(line(), seed=-1), "seed=-1"),
        (lambda: brownian_test(line(), dimension=0), "dimension=0"),
        (lambda: compare(line(), np.zeros(30)), "30 increasing"),
        (lambda: compare(line(), n_components=30), "1 to 29"),
        (lambda: brownian_variance_ratio(1), "n_points=1"),
        (lambda: brownian_path(4, 2, step_lengths=np.ones(4)), "give 3 numbers"),
        (lambda: brownian_path(4, 2, step_lengths=[0, 1, np.inf]), "3 numbers, finite and not"),
        (lambda: cosine_content(np.ones((2, 3))), "N greater than k"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_scores_are_those_of_each_models_points_turned_to_the_cosine():
    points, times = relaxation(4.0) + 0.01 * brownian_path(30, 200, seed=5), np.linspace(0, 2, 30)
    found = compare(points, times, n_components=3, n_simulations=19)
    line = np.outer(np.linspace(0, 1, 30), points[-1] - points[0])
    for model, path in (("walk", points), ("straight_line", line)):
        scores = found["scores"].sel(model=model).values
        there = 3 if model == "walk" else 1
        fitted = fit_pca([path], there)
        expected = fitted.transform(path)
        assert np.allclose(np.abs(scores[:, :there]), np.abs(expected))
        k = np.arange(1, there + 1)
        cosines = np.cos(np.outer(np.arange(30) + 0.5, k) * np.pi / 30)
        assert ((scores[:, :there] * cosines).sum(axis=0) > 0).all()
    # A Brownian path has the walk's own step lengths, and so the variance of its steps.
    brownian = found["scores"].sel(model="brownian").values
    assert np.isfinite(brownian).all()
    assert np.array_equal(found["time"], times)


def test_lazy_points_are_compared_in_blocks(monkeypatch):
    path = brownian_path(12, 40, seed=1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 12 * 10)
    lazy = compare(da.from_array(path, chunks=(5, 10)), n_simulations=9)
    xr.testing.assert_allclose(lazy, compare(path, n_simulations=9))
