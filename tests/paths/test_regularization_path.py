"""Paths against closed forms and an independent optimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

import geoflow as gf
from geoflow.errors import BranchError
from geoflow.paths.continuation import Continuation
from geoflow.trajectories import path_schema

TIGHT = 179.999999


def _ridge(seed=0, n=40, p=12):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, p)) * np.logspace(0, -1.5, p)
    y = x @ rng.standard_normal(p) + 0.5 * rng.standard_normal(n)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)

    def loss(theta):
        return ((inputs @ theta - targets) ** 2).mean()

    def solution(penalty):
        return np.linalg.solve(x.T @ x / n + penalty * np.eye(p), x.T @ y / n)

    return loss, solution, np.linalg.lstsq(x, y)[0]


def _flow(loss, theta0, level=None, regularizer=gf.regularizers.squared_norm):
    problem = gf.Problem.from_function(loss, torch.as_tensor(theta0, dtype=torch.float64))
    return gf.RegularizingFlow(gf.LevelSet(problem, level), regularizer)


@pytest.mark.parametrize("order", ["up", "down", "both"])
def test_ridge_regression_has_its_closed_form_at_each_penalty(order):
    loss, solution, least_squares = _ridge()
    least = float(loss(torch.from_numpy(least_squares)))
    levels = least + np.geomspace(0.02, 0.7, 9) * (float(loss(torch.zeros(12).double())) - least)
    ordered = {"up": levels, "down": levels[::-1], "both": np.roll(levels, -4)}[order]
    flow = _flow(loss, least_squares * 1.05 + 0.01, level=float(ordered[0]))
    ds = gf.regularization_path(flow, ordered, degrees=TIGHT)
    assert ds.attrs["status"] == "complete"
    np.testing.assert_array_equal(ds["level"], ordered)
    for theta, penalty in zip(ds["theta"].values, ds["penalty"].values, strict=True):
        exact = solution(penalty)
        assert np.linalg.norm(theta - exact) <= 1e-6 * np.linalg.norm(exact)
    np.testing.assert_allclose(ds["train_loss"], ordered, rtol=1e-6)
    np.testing.assert_allclose(ds["penalty"] * ds["multiplier"], 1)
    # Along ridge regression's path the loss grows with the penalty.
    by_level = ds["penalty"].values[np.argsort(ordered)]
    assert (np.diff(by_level) > 0).all()


def test_logistic_regression_is_what_another_optimiser_finds():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((60, 7))
    labels = (x @ rng.standard_normal(7) + rng.standard_normal(60) > 0).astype(float)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)

    def loss(theta):
        logits = inputs @ theta[:-1] + theta[-1]
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)

    flow = _flow(loss, 2.0 * rng.standard_normal(8), level=0.45)
    ds = gf.regularization_path(flow, [0.45, 0.5, 0.55, 0.6, 0.65], degrees=TIGHT)
    assert ds.attrs["status"] == "complete"
    for theta, penalty in zip(ds["theta"].values, ds["penalty"].values, strict=True):

        def penalised(values, penalty=penalty):
            variable = torch.from_numpy(values).requires_grad_()
            value = loss(variable) + penalty * torch.dot(variable, variable)
            value.backward()
            return float(value.detach()), variable.grad.numpy()

        exact = minimize(penalised, np.zeros(8), jac=True, method="BFGS", options={"gtol": 1e-10}).x
        assert np.linalg.norm(theta - exact) <= 1e-6 * np.linalg.norm(exact)


def test_points_keep_the_kkt_residual_that_is_stated():
    loss, _, least_squares = _ridge(seed=2)
    flow = _flow(loss, least_squares + 0.1)
    level = flow.level_set.level
    ds = gf.regularization_path(flow, [1.5 * level, 2 * level], degrees=170.0)
    np.testing.assert_array_equal(ds["level"], [level, 1.5 * level, 2 * level])
    assert (ds["kkt_residual"] <= math.sin(math.radians(10))).all()
    assert (ds["angle"] >= 170).all()
    for point, theta in zip(ds["level"].values, ds["theta"].values, strict=True):
        at = gf.RegularizingFlow(gf.LevelSet(flow.problem, float(point)), flow.regularizer)
        state = at.evaluate(torch.from_numpy(theta))
        assert state.angle == pytest.approx(float(ds["angle"].sel(level=point)))
        assert state.regularizer == pytest.approx(float(ds["regularizer"].sel(level=point)))


def test_evaluations_are_counted_and_never_exceed_the_budget():
    loss, _, least_squares = _ridge()
    flow = _flow(loss, least_squares + 0.1)
    level, before = flow.level_set.level, flow.problem.evaluations
    levels = level * np.linspace(1.2, 3, 8)
    whole = gf.regularization_path(flow, levels)
    spent = flow.problem.evaluations - before
    assert int(whole["n_gradient"][-1]) == spent
    first = int(whole["n_gradient"][0])
    budget = (first + spent) // 2
    cut = gf.regularization_path(_flow(loss, least_squares + 0.1), levels, max_evaluations=budget)
    assert cut.attrs["status"] == "max_evaluations"
    assert 0 < cut.sizes["level"] < whole.sizes["level"]
    assert int(cut["n_gradient"][-1]) <= budget
    n = cut.sizes["level"]
    np.testing.assert_array_equal(cut["theta"], whole["theta"][:n])
    with pytest.raises(gf.InputError, match="max_evaluations=3 are spent before the first point"):
        gf.regularization_path(_flow(loss, least_squares + 0.1), levels, max_evaluations=3)


def test_smallest_eigenvalue_is_that_of_the_hessian_on_the_level_set():
    loss, _, least_squares = _ridge()
    flow = _flow(loss, least_squares + 0.1)
    ds = gf.regularization_path(flow, [2 * flow.level_set.level], smallest_eigenvalue=True)
    hessian = torch.func.hessian(loss)(torch.zeros(12).double()).numpy()
    for i in range(2):
        theta = torch.from_numpy(ds["theta"][i].values)
        normal = flow.problem.value_and_gradient(theta)[1].numpy()
        basis = np.linalg.svd(normal[None])[2][1:]
        tangent = basis @ (2 * np.eye(12) + float(ds["multiplier"][i]) * hessian) @ basis.T
        least = np.linalg.eigvalsh(tangent)[0]
        assert float(ds["smallest_eigenvalue"][i]) == pytest.approx(least, rel=1e-6)


def test_a_path_written_is_the_path_returned(tmp_path):
    loss, _, least_squares = _ridge()
    flow = _flow(loss, least_squares + 0.1)
    level = flow.level_set.level
    observables = {"largest": lambda theta: float(theta.abs().max())}
    in_memory = gf.regularization_path(flow, [2 * level], observables=observables)
    archive = tmp_path / "path.nc"
    written = gf.regularization_path(
        _flow(loss, least_squares + 0.1), [2 * level], observables=observables, archive=archive
    )
    with gf.open_path(archive) as ds:
        assert all(difference.agrees for difference in gf.diff(written, ds))
        compared = [d for d in gf.diff(in_memory, ds) if not d.name.startswith("attribute")]
        assert all(difference.agrees for difference in compared)
        assert all(ds[n].attrs["long_name"] and "units" in ds[n].attrs for n in ds.variables)
    with pytest.raises(gf.InputError, match="exists"):
        gf.regularization_path(flow, [2 * level], archive=archive)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": []}, "levels="),
        ({"levels": [1.0, 1.0]}, "each once"),
        ({"levels": [math.nan]}, "levels="),
        ({"levels": [1.0, 0.0]}, "not zero"),
        ({"levels": "1,2"}, "levels="),
        ({"levels": "12"}, "levels="),
        ({"levels": [10**400]}, "levels="),
        ({"levels": [2.0], "overwrite": "no"}, "overwrite='no'"),
        ({"levels": [2.0], "smallest_eigenvalue": "yes"}, "smallest_eigenvalue='yes'"),
        ({"levels": [2.0], "degrees": 180.0}, "degrees=180.0"),
        ({"levels": [2.0], "degrees": 180 - 1e-13}, "degrees="),
        ({"levels": [2.0], "max_evaluations": 0}, "max_evaluations=0"),
        ({"levels": [2.0], "observables": {"penalty": float}}, "'penalty' is taken"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    loss, _, least_squares = _ridge()
    with pytest.raises(gf.InputError, match=message):
        gf.regularization_path(_flow(loss, least_squares + 0.1), **arguments)


def test_a_path_that_would_not_fit_is_refused_before_the_first_evaluation(monkeypatch, tmp_path):
    loss, _, least_squares = _ridge()
    flow = _flow(loss, least_squares + 0.1)
    evaluations = flow.problem.evaluations
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda device: 1000)
    with pytest.raises(gf.InputError, match=r"walks of a path in 12 parameters .*float32"):
        gf.regularization_path(flow, [2.0], archive=tmp_path / "path.nc")
    assert flow.problem.evaluations == evaluations
    assert not list(tmp_path.iterdir())


def _folding(theta):
    """On y = c a cubic in x: its minimum and its maximum meet at c = 1.5; another lies near −2."""
    x, y = theta
    return x**4 / 8 + x**3 / 3 - (1.5 - y) * x - 5 * y


def _roots(level):
    """x of the stationary points on y = c, the greatest first: x³/2 + x² = 1.5 − c."""
    return sorted((x.real for x in np.roots([0.5, 1.0, 0.0, level - 1.5])), reverse=True)


# From far away the other branch is not far for the size of θ.
@pytest.mark.parametrize("shift", [0.0, 6.0])
def test_a_branch_that_folds_twice_is_followed_round_both_folds(shift):
    origin = torch.tensor([shift, 0.0], dtype=torch.float64)
    flow = _flow(
        lambda theta: theta[1],
        [1.0 + shift, 0.5],
        regularizer=lambda theta: _folding(theta - origin),
    )
    wanted = [0.8, 1.2, 1.45, 1.55, 1.8]
    ds = gf.regularization_path(flow, wanted, degrees=TIGHT, smallest_eigenvalue=True)
    assert ds.attrs["status"] == "complete"
    # The folds are where the derivative of the cubic vanishes: x = 0 and x = −4/3.
    lower = 1.5 - 0.5 * (-4 / 3) ** 3 - (4 / 3) ** 2
    first, second, third = [0.5, 0.8, 1.2, 1.45], [1.45, 1.2], [1.2, 1.45, 1.55, 1.8]
    levels = [*first, 1.5, *second, lower, *third]
    np.testing.assert_allclose(ds["level"], levels, rtol=1e-6)
    branch = [0] * 4 + [None] + [1] * 2 + [None] + [2 if c < 1.5 else 0 for c in third]
    for level, number, theta in zip(levels, branch, ds["theta"].values, strict=True):
        if number is None:
            # Near a fold a little of the level is much of x.
            x, allowed = {1.5: 0.0}.get(level, -4 / 3), 1e-3
        else:
            roots = _roots(level)
            x, allowed = roots[number] if level < 1.5 else min(roots), 1e-6 * (1 + shift)
        assert theta[0] - shift == pytest.approx(x, abs=allowed)
    methods = ["walk"] + ["corrector"] * 3 + ["arclength"] * 7 + ["corrector"]
    np.testing.assert_array_equal(ds["method"], methods)
    # A minimum of R on its level set, then a saddle, then a minimum again.
    signs = np.sign(ds["smallest_eigenvalue"].values)
    np.testing.assert_array_equal(
        signs[[0, 1, 2, 3, 5, 6, 8, 9, 10, 11]], [1] * 4 + [-1] * 2 + [1] * 4
    )
    assert path_schema.inconsistencies(ds) == []


def test_round_a_fold_levels_are_recorded_again_and_none_before_its_turn():
    flow = _flow(lambda theta: theta[1], [1.0, 0.5], regularizer=_folding)
    ds = gf.regularization_path(flow, [0.8, 1.45, 1.55, 1.2], degrees=TIGHT)
    assert ds.attrs["status"] == "complete"
    lower = 1.5 - 0.5 * (-4 / 3) ** 3 - (4 / 3) ** 2
    levels = [0.5, 0.8, 1.45, 1.5, 1.45, lower, 1.45, 1.55, 1.2]
    np.testing.assert_allclose(ds["level"], levels, rtol=1e-6)


def _folding_once(theta):
    """On y = c a cubic in x: its minimum √(1.5 − c) and its maximum meet at c = 1.5."""
    x, y = theta
    return x**3 / 3 - (1.5 - y) * x - 5 * y


@pytest.mark.parametrize("curved", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "before",
    [
        [0.8, 1.2, 1.45],
        *(pytest.param(c, marks=pytest.mark.slow) for c in ([0.8, 1.2, 1.4], [0.8])),
        [],
    ],
)
def test_a_branch_that_folds_once_is_followed_back_and_ends(before, curved):
    """R is straight along the normal, or curved there."""

    def regularizer(theta):
        return _folding_once(theta) + curved * theta[1] ** 2 / 2

    flow = _flow(lambda theta: theta[1], [1.0, 0.5], regularizer=regularizer)
    ds = gf.regularization_path(flow, [*before, 1.55], degrees=TIGHT)
    assert ds.attrs["status"] == "fold"
    n = len(before) + 1
    levels = [0.5, *before, 1.5, *before[::-1], 0.5]
    np.testing.assert_allclose(ds["level"], levels, rtol=1e-6)
    x = np.sqrt(1.5 - np.array(levels)) * np.array([1] * n + [0] + [-1] * n)
    np.testing.assert_allclose(ds["theta"].values[:, 0], x, atol=1e-3)
    np.testing.assert_allclose(np.delete(ds["theta"].values[:, 0], n), np.delete(x, n), rtol=1e-5)
    assert "round a fold" in ds.attrs["status_message"]


def test_a_path_that_ended_round_a_fold_goes_on_from_the_side_that_has_a_minimum(tmp_path):
    flow = _flow(lambda theta: theta[1], [1.0, 0.5], regularizer=_folding_once)
    gf.regularization_path(flow, [0.8, 1.55], degrees=TIGHT, archive=tmp_path / "p.nc").close()
    with gf.resume_path(tmp_path / "p.nc", flow, [1.0]) as ds:
        assert ds.attrs["status"] == "complete"
        np.testing.assert_allclose(ds["level"], [0.5, 0.8, 1.5, 0.8, 0.5, 1.0], rtol=1e-6)
        np.testing.assert_allclose(ds["theta"].values[-1, 0], np.sqrt(0.5), rtol=1e-5)


def test_a_start_at_the_minimum_of_r_has_no_path():
    flow = _flow(lambda theta: (theta[0] - 1) ** 2 + theta[1] ** 2, [0.0, 0.0])
    with pytest.raises(BranchError, match="λ = 0"):
        gf.regularization_path(flow, [0.5])


def test_in_one_parameter_there_is_no_eigenvalue():
    flow = _flow(lambda theta: (theta[0] - 3) ** 2, [2.0])
    with pytest.raises(gf.InputError, match=r"smallest_eigenvalue=True: .* 1 parameter"):
        gf.regularization_path(flow, [2.0], smallest_eigenvalue=True)


@pytest.mark.slow
def test_a_path_killed_past_a_fold_goes_on_to_the_same_numbers(tmp_path):
    wanted, observed = [0.8, 1.2, 1.45, 1.55, 1.8], []

    def follow(archive, observable):
        flow = _flow(lambda theta: theta[1], [1.0, 0.5], regularizer=_folding)
        return gf.regularization_path(
            flow, wanted, degrees=TIGHT, observables={"x": observable}, archive=archive
        ).load()

    def interrupted(theta):
        observed.append(theta)
        if len(observed) == 7:
            raise KeyboardInterrupt
        return float(theta[0])

    whole = follow(tmp_path / "whole.nc", lambda theta: float(theta[0]))
    with pytest.raises(KeyboardInterrupt):
        follow(tmp_path / "cut.nc", interrupted)
    again = follow(tmp_path / "cut.nc", lambda theta: float(theta[0]))
    for name in ("level", "theta", "multiplier", "n_gradient", "method"):
        np.testing.assert_array_equal(whole[name], again[name])


def test_where_the_multiplier_vanishes_the_path_ends():
    # The loss of θ = 0, the minimum of R, is 4.5: beyond it R falls towards a lower loss.
    centre = torch.tensor([1.0, 2.0, 2.0], dtype=torch.float64)
    flow = _flow(lambda theta: ((theta - centre) ** 2).sum() / 2, [1.0, 1.0, 1.0], level=1.0)
    ds = gf.regularization_path(flow, [2.0, 4.0, 5.0])
    assert ds.attrs["status"] == "negative_multiplier"
    np.testing.assert_array_equal(ds["level"], [1.0, 2.0, 4.0])


def test_a_level_that_is_never_reached_ends_the_path():
    loss, _, least_squares = _ridge()
    least = float(loss(torch.from_numpy(least_squares)))
    flow = _flow(loss, least_squares + 0.1)
    ds = gf.regularization_path(flow, [1.5 * least, 0.5 * least])
    assert ds.attrs["status"] in ("projection_failed", "not_converged", "critical_point")
    np.testing.assert_array_equal(ds["level"], [flow.level_set.level, 1.5 * least])


@pytest.mark.parametrize("part", [0.5, 0.9, 0.99])
def test_a_level_that_is_never_reached_costs_in_proportion_to_those_that_were(part):
    loss, _, least_squares = _ridge()
    least = float(loss(torch.from_numpy(least_squares)))
    flow = _flow(loss, least_squares + 0.1)
    ds = gf.regularization_path(flow, [1.5 * least, part * least])
    first, last = (int(ds["n_gradient"][i]) for i in (0, -1))
    allowed = max(2 * first, 1000)
    # On the way to the level, and along the arc of the branch.
    assert flow.problem.evaluations - last <= allowed + 500
    # Or the way is halved as often as it may be before.
    assert ds.attrs["status"] in ("not_converged", "projection_failed")
    if ds.attrs["status"] == "not_converged":
        assert f"within {allowed} evaluations" in ds.attrs["status_message"]


@pytest.mark.slow
def test_a_level_below_a_network_costs_no_more_than_three_first_walks():
    prepared = gf.experiments.get("iris_ff").prepare(seed=0)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    c, before = flow.level_set.level, flow.problem.evaluations
    # No network of this data has so low a loss near by.
    ds = gf.regularization_path(flow, [2 * c, 1e-9 * c])
    assert ds["level"].values.tolist() == [c, 2 * c]
    first, last = (int(ds["n_gradient"][i]) for i in (0, -1))
    assert flow.problem.evaluations - before - last <= max(2 * first, 1000) + 500


def test_a_branch_that_shows_no_turn_is_given_up():
    # On y = c the minimum of R is at x = y, on a straight line without an end.
    flow = _flow(
        lambda theta: theta[1], [1.0, 0.5], regularizer=lambda t: (t[0] - t[1]) ** 2 - 5 * t[1]
    )
    continuation = Continuation(flow, path_schema.kkt_limit(TIGHT), TIGHT)
    continuation.left = 10_000
    first, before = continuation.start(), flow.problem.evaluations
    with pytest.raises(gf.ConvergenceError, match="shows no turn"):
        continuation.round(first, 1e4, [], 400)
    # Two strides, of 400 evaluations that were allowed.
    assert flow.problem.evaluations - before <= 40
    # A level that is near enough is come to.
    assert continuation.round(first, 0.9, [], 400).c == 0.9


def test_a_branch_straight_along_the_normal_is_followed_from_where_the_flow_is_at_rest():
    # On y = c the minimum of R is at x = 0: there is no velocity, and the tangent is the normal.
    flow = _flow(lambda theta: theta[1], [0.0, 0.5], regularizer=lambda t: t[0] ** 2 - 5 * t[1])
    continuation = Continuation(flow, path_schema.kkt_limit(TIGHT), TIGHT)
    continuation.left = 10_000
    first = continuation.start()
    assert first.state.tangent_norm == 0
    found = continuation.round(first, 0.9, [], 400)
    assert found.c == 0.9
    np.testing.assert_allclose(found.state.theta, [0.0, 0.9], atol=1e-6)


def test_a_budget_that_ends_in_a_walk_ends_the_path():
    loss, _, least_squares = _ridge()
    least = float(loss(torch.from_numpy(least_squares)))
    # From 151 evaluations after the last point on, the flow tries to come onto the level.
    whole = gf.regularization_path(_flow(loss, least_squares + 0.1), [1.5 * least, 0.5 * least])
    spent = int(whole["n_gradient"][-1])
    for budget in (spent + 151, spent + 160, spent + 190):
        flow = _flow(loss, least_squares + 0.1)
        ds = gf.regularization_path(flow, [1.5 * least, 0.5 * least], max_evaluations=budget)
        assert ds.attrs["status"] == "max_evaluations"
        assert flow.problem.evaluations <= budget


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "seed", "factor", "levels", "first", "most"),
    [
        ("iris_ff", 0, 1.5, 6, 220, 150),
        ("mpg_ff", 1, 1.2, 7, 550, 300),
        ("mnist_ff", 0, 2.0, 9, 400, 250),
    ],
)
def test_a_path_takes_at_most_so_many_evaluations_for_its_first_walk_and_after_it(
    experiment, seed, factor, levels, first, most
):
    prepared = gf.experiments.get(experiment).prepare(seed=seed)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    wanted = flow.level_set.level * factor ** np.arange(1, levels + 1)
    ds = gf.regularization_path(flow, wanted, observables=prepared.observables)
    assert ds.attrs["status"] == "complete"
    assert (ds["method"][1:] == "corrector").all()
    assert int(ds["n_gradient"][0]) <= first
    assert int(ds["n_gradient"][-1] - ds["n_gradient"][0]) <= most
    assert (np.diff(ds["regularizer"]) < 0).all()
