"""Scales of R and L change no angle: on a circle, down −c θ₀, at (cos 2, sin 2)."""

import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import CriticalPointError, InputError
from geoflow.manifold.normals import normal_space, tangent
from geoflow.problems.scaling import length

SCALES = [
    (dtype, of_r, of_l)
    for dtype, small, smaller, large in (
        (torch.float32, 1e-22, 1e-36, 1e17),
        (torch.float64, 1e-161, 1e-300, 1e150),
    )
    for of_r, of_l in (
        (small, 1.0),
        (smaller, 1.0),
        (1.0, small),
        (1.0, smaller),
        (small, small),
        (smaller, large),
        (large, 1.0),
        (1.0, large),
    )
]


def circle(dtype, of_r, of_l):
    theta0 = torch.tensor([math.cos(2), math.sin(2)], dtype=dtype)
    problem = gf.Problem.from_function(lambda t: of_l * (t @ t), theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-5), lambda t: -of_r * t[0])


@pytest.mark.parametrize(("dtype", "of_r", "of_l"), SCALES)
def test_the_state_is_right_at_every_scale(dtype, of_r, of_l):
    flow = circle(dtype, of_r, of_l)
    state = flow.evaluate(flow.problem.theta0)
    assert state.angle == pytest.approx(math.degrees(math.pi - 2), abs=1e-4)
    assert state.gradient_norm == pytest.approx(2 * of_l, rel=1e-5, abs=0)
    assert state.multiplier == pytest.approx(math.cos(2) / 2 * (of_r / of_l), rel=1e-5, abs=0)
    assert state.tangent_norm == pytest.approx(of_r * math.sin(2), rel=1e-5, abs=0)
    assert not flow.at_rest(state)
    values = flow.values(state)
    assert values["level_distance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("dtype", "of_r", "of_l"), SCALES)
def test_points_are_projected_at_every_scale(dtype, of_r, of_l):
    flow = circle(dtype, of_r, of_l)
    state, _ = flow.project(1.01 * flow.problem.theta0)
    assert float(state.theta.norm()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("dtype", "of_r", "of_l", "name"),
    [
        (torch.float32, 1e-22, 1.0, "regularizer"),
        (torch.float32, 1e-23, 1.0, "regularizer"),
        (torch.float32, 1.0, 1e-24, "loss"),
        (torch.float64, 1e-162, 1.0, "regularizer"),
        (torch.float64, 1.0, 1e-200, "loss"),
    ],
)
def test_a_walk_at_a_scale_that_solvers_lose_is_refused(dtype, of_r, of_l, name):
    with pytest.raises(InputError, match=rf"^{name}: .* multiply the {name} by some 1e\d+$"):
        gf.walk(circle(dtype, of_r, of_l), max_evaluations=20)


@pytest.mark.parametrize(("of_r", "of_l"), [(1e-12, 1.0), (1e-18, 1.0), (1.0, 1e-15)])
def test_a_walk_at_a_smaller_scale_comes_to_the_same_angle(of_r, of_l):
    ds = gf.walk(circle(torch.float32, of_r, of_l), max_evaluations=300)
    end = ds.theta.values[-1]
    assert ds.status == "stationary"
    assert float(ds.angle[-1]) == pytest.approx(
        180 - math.degrees(math.atan2(end[1], end[0])), abs=0.01
    )


def test_at_the_minimum_of_r_a_walk_is_at_rest():
    flow = circle(torch.float64, 1.0, 1.0)
    there = flow.problem.theta0
    flow = gf.RegularizingFlow(flow.level_set, gf.regularizers.distance_to(there))
    assert gf.walk(flow, max_evaluations=20).status == "at_rest"


@pytest.mark.parametrize("scales", [(1e-200, 1.0), (1e-200, 1e-170), (1.0, 1e170)])
def test_several_gradients_at_any_scale_have_one_normal_space(scales):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    v = torch.randn(5, generator=generator, dtype=torch.float64)
    factors = np.array(scales)
    plain, space = normal_space(rows), normal_space(rows * torch.from_numpy(factors)[:, None])
    residuals = np.array([0.3, -0.7])
    assert np.allclose(space.norms, plain.norms * factors, rtol=1e-14, atol=0)
    assert torch.allclose(space.split(v).part, plain.split(v).part, rtol=1e-12)
    assert np.allclose(space.multipliers(v) * factors, plain.multipliers(v), rtol=1e-12)
    assert np.allclose(space.split(v).multipliers * factors, plain.multipliers(v), rtol=1e-12)
    assert torch.allclose(space.step(residuals * factors), plain.step(residuals), rtol=1e-12)
    assert space.distance(residuals * factors) == pytest.approx(plain.distance(residuals))


def test_a_scale_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    for dtype, power in ((torch.float32, 2.0**-80), (torch.float64, 2.0**-600)):
        g, v = (torch.randn(1000, generator=generator, dtype=dtype) for _ in range(2))
        plain, scaled = (tangent(v * s, normal_space(g * s)) for s in (1.0, power))
        assert torch.equal(scaled.back, plain.back * power)
        assert scaled.length == plain.length * power == length(plain.back * power)
        assert scaled.normal.multipliers == plain.normal.multipliers
        assert scaled.normal.component == plain.normal.component * power


def test_zero_is_zero_and_no_matter_of_scale():
    with pytest.raises(CriticalPointError, match="the loss gradient is zero"):
        normal_space(torch.zeros(3)).split(torch.ones(3))
    assert tangent(torch.zeros(3), normal_space(torch.ones(3))).length == 0
    assert length(torch.zeros(3)) == 0
    assert math.isnan(length(torch.tensor([math.nan, 1.0])))
    assert length(torch.tensor([math.inf, 1.0])) == math.inf


def test_the_length_of_a_vector_of_tiny_entries_keeps_its_digits():
    v = torch.full((10_000,), 2e-21)
    assert length(v) / float(v[0]) == pytest.approx(100, rel=5e-6)


@pytest.mark.parametrize("size", [1e-60, 1e-100, 1e-140])
def test_bdf_spends_the_same_however_little_r_is(size):
    start = torch.tensor([0.9, 0.6, -0.4], dtype=torch.float64)
    weights = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda y: (weights * y**4).sum() + y @ y, start)
    spent = []
    for scale in (1.0, size):
        flow = gf.RegularizingFlow(
            gf.LevelSet(problem),
            lambda y, scale=scale: scale * (y[0] ** 2 - 3 * y[1] ** 2 + y[2]),
        )
        ds = gf.walk(flow, "bdf", t_end=0.3 / scale, stop=None)
        spent.append((ds.status, int(ds["n_gradient"][-1])))
    assert spent[0] == spent[1]
