"""The multistep solver: orders, exact solutions, tolerances, resuming, and where Newton fails."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch

import crashes
import geoflow as gf
import invariants
import references
from geoflow.errors import ConvergenceError, EvaluationLimitError, InputError
from geoflow.solvers import BDF, Tolerance, bdf
from geoflow.solvers.multistep import corrector
from geoflow.solvers.multistep.corrector import correct
from geoflow.solvers.multistep.history import History, lagrange
from geoflow.solvers.multistep.secant import SecantPairs


def vector(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def tight(flow):
    return gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-13), flow.regularizer)


def fixed_order(reference, order, step):
    """The error at t = 1 of one order and step, from exact points to begin with."""
    flow = tight(reference.flow)
    past = torch.stack([reference.exact(step * (order - i)) for i in range(order + 1)])
    history = History(past, step * np.arange(order + 1.0))
    pairs = SecantPairs(6, [], np.zeros((0, 0)))
    state = flow.evaluate(past[0])
    for _ in range(round(1 / step) - order):
        formula = history.formula(order, step, state.velocity)
        state = correct(flow, formula, pairs, 1e-12, closely=False).state
        history = history.extended(state.theta, step, step)
    return float((state.theta - reference.exact(1.0)).norm())


@pytest.mark.parametrize(
    "order", [1, 2, *(pytest.param(o, marks=pytest.mark.slow) for o in (3, 4)), 5]
)
@pytest.mark.parametrize(
    "make", [references.sphere_linear, pytest.param(references.oja, marks=pytest.mark.slow)]
)
def test_each_order_is_the_one_it_says(make, order):
    # Short enough for the leading term, long enough for its error not to be that of Newton.
    counts = (64, 96, 128)
    if order == 5:
        counts = (24, 32, 48, 64) if make is references.sphere_linear else (40, 48, 64, 96)
    steps = [1 / n for n in counts]
    errors = [fixed_order(make(), order, h) for h in steps]
    assert abs(references.order_of_convergence(steps, errors) - order) <= 0.2


@pytest.mark.parametrize(
    ("order", "rtols"),
    [
        (1, (3e-3, 1e-3, 3e-4)),
        (2, (1e-5, 1e-6, 1e-7)),
        pytest.param(3, (1e-6, 1e-7, 1e-8, 1e-9), marks=pytest.mark.slow),
        pytest.param(4, (1e-7, 1e-8, 1e-9, 1e-10), marks=pytest.mark.slow),
        pytest.param(5, (1e-10, 3e-11, 1e-11, 3e-12, 1e-12), marks=pytest.mark.slow),
    ],
)
def test_with_steps_by_the_error_the_highest_order_is_that_of_convergence(order, rtols):
    reference, errors, steps = references.oja(), [], []
    for rtol in rtols:
        ds = gf.walk(
            tight(reference.flow),
            BDF(max_order=order),
            rtol=rtol,
            atol=0.0,
            t_end=1.0,
            stop=None,
            max_snapshots=2,
        )
        end = torch.from_numpy(ds["theta"].values[-1])
        errors.append(float((end - reference.exact(1.0)).norm()))
        # Once the order has been found.
        steps.append(1 / int((ds["time"] > 0.3).sum()))
    assert abs(references.order_of_convergence(steps, errors) - order) <= 0.2


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_on_uneven_times_a_formula_is_exact_for_polynomials_of_its_order(order):
    ages = np.array([0.0, 0.3, 0.5, 1.3, 1.4, 2.2])
    powers = np.arange(order + 1)
    points = torch.from_numpy((-ages[:, None]) ** powers)
    history, step = History(points, ages), 0.7
    formula = history.formula(order, step, points[0])
    values, slopes = step**powers, powers * step ** np.maximum(powers - 1.0, 0)
    assert np.allclose(formula.predicted, values, rtol=1e-11)
    # y = predicted + c (f − slope) holds with y and f those of the polynomial.
    assert np.allclose(formula.slope, slopes, rtol=1e-10)
    assert formula.c > 0
    assert formula.error_constant > 0


@pytest.mark.parametrize(("order", "kappa_gamma"), [(1, -0.185), (3, -0.0823 * 11 / 6), (5, 0.0)])
def test_the_error_tested_is_that_of_a_formula_with_unit_coefficient_of_f(order, kappa_gamma):
    # As in Shampine & Reichelt's (2.3): what later steps carry on, not what one point is off by.
    formula = History(torch.zeros(6, 2), np.arange(6.0)).formula(order, 1.0, torch.zeros(2))
    assert formula.error_constant == pytest.approx(abs(1 / (order + 1) + kappa_gamma))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_error_that_another_order_would_have_made_is_that_of_its_formula(order):
    ages = np.array([0.0, 0.3, 0.5, 1.3, 1.4, 2.2])
    history = History(torch.stack([vector(3, seed) for seed in range(6)]), ages)
    point = vector(3, 9)
    formula = history.formula(order, 0.4, point)
    expected = formula.error_constant * float((point - formula.predicted).norm())
    assert history.errors([order], point, 0.4)[order] == pytest.approx(expected)
    assert history.errors([0, 6], point, 0.4) == {}


def test_lagrange_weights_are_those_of_the_interpolating_polynomial():
    nodes, at = np.array([0.0, -1.0, -2.5, -2.7]), 0.6
    values, slopes = lagrange(nodes, at)
    data = vector(4, 0).numpy()
    fit = np.polyfit(nodes, data, 3)
    assert values @ data == pytest.approx(np.polyval(fit, at))
    assert slopes @ data == pytest.approx(np.polyval(np.polyder(fit), at))


def test_points_that_all_but_coincide_are_thinned_out():
    history = History(torch.zeros(1, 2), np.zeros(1))
    for step in (1.0, 1.0, 1e-6):
        history = history.extended(torch.ones(2), step, 1.0)
    # The last step replaces the point just before it.
    assert history.ages.tolist() == pytest.approx([0.0, 1.000001, 2.000001])
    alone = History(torch.zeros(1, 2), np.zeros(1)).extended(torch.ones(2), 1e-9, 1.0)
    assert alone.ages.tolist() == [0.0, 1e-9]


@pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9])
@pytest.mark.parametrize("make", [references.sphere_linear, references.oja])
def test_the_error_is_that_asked_for(make, rtol):
    reference = make()
    ds = gf.walk(
        reference.flow, "bdf", rtol=rtol, atol=0.0, t_end=1.0, stop=None, snapshot_times=[0.3, 1.0]
    )
    invariants.check_walk(ds, reference.flow)
    errors = [
        float((torch.from_numpy(theta) - reference.exact(t)).norm())
        for theta, t in zip(ds["theta"].values, [0.3, 1.0], strict=True)
    ]
    ratio = max(errors) / rtol / float(reference.flow.problem.theta0.norm())
    assert 0.01 <= ratio <= 10


@pytest.mark.parametrize("name", ["ellipsoid", "network"])
def test_the_error_is_that_asked_for_against_a_tight_reference(name):
    make, t_end = {
        "ellipsoid": (references.ellipsoid, 0.4),
        "network": (references.small_network, 0.3),
    }[name]
    exact = gf.walk(
        tight(make()), "dopri8", rtol=1e-12, atol=1e-14, t_end=t_end, stop=None, max_snapshots=2
    )["theta"].values[-1]
    counts = []
    for rtol in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9):
        ds = gf.walk(make(), "bdf", rtol=rtol, atol=0.0, t_end=t_end, stop=None, max_snapshots=2)
        error = np.linalg.norm(ds["theta"].values[-1] - exact) / np.linalg.norm(exact)
        assert 0.01 <= error / rtol <= 10
        counts.append(int(ds["n_gradient"][-1]))
    # Of high order: seven digits more for a few times the evaluations.
    assert counts[-1] <= 8 * counts[0]


def test_a_network_is_walked_to_the_end_on_its_level_set(network):
    ds = gf.walk(network, "bdf", rtol=1e-4, stop=gf.Stationary(175.0))
    assert ds.attrs["status"] == "stationary"
    invariants.check_walk(ds, network)
    assert ds["n_hvp"].values[-1] == 0


def steps_of(flow, n, rtol=1e-6, limit=math.inf):
    solver, tolerance = BDF(), Tolerance(rtol, 0.0)
    state, _ = flow.project(flow.problem.theta0)
    carry = solver.init(flow, state, tolerance)
    for _ in range(n):
        result = solver.step(flow, state, carry, tolerance, limit)
        yield state, carry, result
        state, carry = result.state, result.carry


def test_a_step_changes_nothing_of_what_it_is_given(network):
    solver, tolerance = BDF(), Tolerance(1e-6, 0.0)
    kept = list(steps_of(network, 40))
    for state, carry, result in kept[::13]:
        again = solver.step(network, state, carry, tolerance, math.inf)
        assert torch.equal(again.state.theta, result.state.theta)
        assert again.carry.keys() == result.carry.keys()
        for name, value in result.carry.items():
            same = torch.equal if isinstance(value, torch.Tensor) else (lambda a, b: a == b)
            assert same(again.carry[name], value)


def test_each_evaluation_is_counted_and_the_walk_takes_few_a_step(network):
    calls = 0
    evaluate = network.problem.value_and_gradient

    def counting(theta):
        nonlocal calls
        calls += 1
        return evaluate(theta)

    network.problem.value_and_gradient = counting
    ds = gf.walk(network, "bdf", rtol=1e-7, t_end=0.3, stop=None)
    assert int(ds["n_gradient"][-1]) == calls
    assert calls <= 3.5 * ds.sizes["step"]


def around_the_end_of_an_ellipsoid():
    """From the side of one 50 times as long as it is thick, where ‖∇L‖ is as many times larger."""
    weights = torch.tensor([2500.0, 1.0, 1.0, 4.0], dtype=torch.float64)
    side = torch.tensor([0.02, 0.05, 0.05, 0.02], dtype=torch.float64)
    theta0 = side / (weights * side * side).sum().sqrt()
    beyond = torch.tensor([0.0, 30.0, 10.0, 0.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: (weights * t * t).sum() / 2, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - beyond).square().sum())


def test_a_step_that_follows_a_rejection_is_no_longer():
    flow = around_the_end_of_an_ellipsoid()
    ds = gf.walk(flow, "bdf", rtol=1e-3, stop=gf.Stationary(179.0))
    sizes = ds["step_size"].values[1:]
    rejected = np.diff(ds["n_rejected"].values) > 0
    assert rejected.any()
    assert (sizes[1:] <= sizes[:-1])[rejected[:-1]].all()
    # Nor does the start go on, in which steps grow threefold.
    first = np.argmax(rejected)
    assert (sizes[first + 1 :] <= 2.0 * sizes[first:-1] * (1 + 1e-12)).all()


def test_after_a_step_over_which_the_gradient_falls_the_next_is_shorter():
    ds = gf.walk(around_the_end_of_an_ellipsoid(), "bdf", rtol=1e-3, stop=gf.Stationary(179.0))
    assert ds.attrs["status"] == "stationary"
    norms, steps = ds["gradient_norm"].values, ds["step_size"].values
    fallen, longer = norms[1:-1] / norms[:-2], steps[2:] / steps[1:-1]
    corner = fallen < 0.7
    assert corner.sum() >= 3
    assert (longer[corner] <= fallen[corner] * (1 + 1e-9)).all()
    # Six attempts in vain where steps are by their errors and corrections alone.
    assert ds["n_rejected"][-1] <= 3


@pytest.mark.parametrize("budget", [1, 2, 10, 37, 60])
def test_the_budget_is_never_passed(network, budget):
    ds = gf.walk(network, "bdf", rtol=1e-8, stop=None, max_evaluations=budget)
    assert ds.attrs["status"] == "max_evaluations"
    assert int(ds["n_gradient"][-1]) <= budget
    state, carry, _ = list(steps_of(network, 12))[-1]
    with network.problem.budget(0), pytest.raises(EvaluationLimitError):
        BDF().step(network, state, carry, Tolerance(1e-6, 0.0), math.inf)


def test_wanted_times_are_met_exactly_and_leave_the_order_as_it_is(network):
    plain = gf.walk(network, "bdf", rtol=1e-7, t_end=0.3, stop=None)
    times = [0.1, 0.1 + 1e-7, 0.2, 0.25]
    ds = gf.walk(network, "bdf", rtol=1e-7, t_end=0.3, stop=None, snapshot_times=times)
    assert ds["snapshot_time"].values.tolist() == times
    invariants.check_walk(ds, network)
    extra = ds.sizes["step"] - plain.sizes["step"]
    # Two or three steps a time, and no start from order 1.
    assert extra <= 3 * len(times)
    error = np.abs(ds["theta"].values[-1] - plain["theta"].values[-1]).max()
    assert plain["time"].values[-1] == 0.3
    assert error > 0


def test_within_a_step_theta_is_known_to_the_accuracy_of_the_step():
    reference = references.oja()
    for _, _, result in list(steps_of(tight(reference.flow), 45, rtol=1e-8))[-1:]:
        carry = result.carry
    total = sum(r.time for _, _, r in steps_of(tight(reference.flow), 45, rtol=1e-8))
    for part in (0.0, 0.25, 0.5, 0.75):
        theta = BDF().interpolate(carry, part * result.time)
        exact = reference.exact(total - part * result.time)
        assert float((theta - exact).norm()) <= 3e-7 * float(exact.norm())


@pytest.mark.parametrize("steps", [3, 11, 30])
def test_resumed_in_the_middle_of_its_history_it_is_the_same_walk(steps, tmp_path):
    def walk(path, **goal):
        return gf.walk(
            references.small_network(), "bdf", rtol=1e-6, stop=None, archive=path, **goal
        )

    whole = walk(tmp_path / "whole.nc", t_end=0.3)
    spent = int(whole["n_gradient"][steps])
    walk(tmp_path / "cut.nc", max_evaluations=spent).close()
    resumed = gf.resume(
        tmp_path / "cut.nc", references.small_network(), t_end=0.3, max_evaluations=100_000
    )
    with whole, resumed:
        assert resumed.sizes["step"] == whole.sizes["step"] > steps
        for name in ("time", "train_loss", "angle", "n_gradient", "step_size"):
            assert np.array_equal(resumed[name], whole[name])
        assert np.array_equal(resumed["theta"].values[-1], whole["theta"].values[-1])


@pytest.mark.slow
def test_killed_in_the_middle_it_resumes_to_the_same_bits(whole, tmp_path):
    path = tmp_path / "walk.nc"
    process, _ = crashes.start(crashes.die_at, 25, "bdf", path, 1.0)
    process.join()
    with crashes.resume(path) as resumed:
        assert invariants.same(resumed, whole["bdf"])


def test_two_walks_are_the_same_in_every_bit():
    first, second = (gf.walk(references.small_network(), "bdf", rtol=1e-6) for _ in range(2))
    assert invariants.same(first, second)


def flow_off_the_edge():
    """A flow that comes at finite time to where the loss is not defined any more."""

    def loss(theta):
        return torch.where(theta[0] > 0.5, torch.dot(theta, theta), torch.nan)

    start = torch.tensor([1.5, 1.0, 0.3], dtype=torch.float64)
    return gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(loss, start)), lambda theta: 5 * theta[0]
    )


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_where_newton_fails_the_walk_ends_with_a_status(rtol):
    ds = gf.walk(flow_off_the_edge(), "bdf", rtol=rtol, stop=None, t_end=9.0)
    assert ds.attrs["status"] == "step_size_underflow"
    assert "at a trial point" in ds.attrs["status_message"]
    assert int(ds["n_rejected"][-1]) > 10
    # It has come as far as there is a loss.
    assert 0.5 < ds["theta"].values[-1, 0] < 0.5 + 1e-6


def test_a_trial_point_where_the_loss_is_not_finite_shortens_the_step(network):
    start = next(steps_of(network, 1))[0]
    history = History(start.theta[None], np.zeros(1))
    formula = history.formula(1, math.inf, start.velocity)
    with pytest.raises(ConvergenceError, match="at a trial point"):
        correct(network, formula, SecantPairs(40, [], np.zeros((0, 0))), 1e-6, closely=False)


def saddle(curvature):
    """R has a maximum along x on the level set z = 0."""
    start = torch.tensor([0.1, 1.0, 0.0], dtype=torch.float64)
    return gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(lambda theta: theta[2] + 1.0, start)),
        lambda theta: theta[1] ** 2 / 2 - curvature * theta[0] ** 2 / 2 - theta[2],
    )


def test_a_step_too_long_for_its_equation_is_given_up_at_once():
    flow = saddle(5.0)
    start = flow.evaluate(flow.problem.theta0)
    history = History(start.theta[None], np.zeros(1))
    formula = history.formula(1, 1.0, 0 * start.velocity)
    with pytest.raises(corrector.IndefiniteError) as caught:
        correct(flow, formula, SecantPairs(40, [], np.zeros((0, 0))), 1e-6, closely=False)
    # 1 − 5 along x; the space of the corrections is all there is.
    assert caught.value.least == pytest.approx(-4.0, rel=1e-5)
    assert caught.value.iterations <= 2
    short = history.formula(1, 0.1, start.velocity)
    found = correct(flow, short, SecantPairs(40, [], np.zeros((0, 0))), 1e-6, closely=False)
    assert found.state.theta[0] == pytest.approx(0.1 / (1 - 0.5), rel=1e-6)


def test_the_smallest_eigenvalue_says_how_much_shorter_the_next_trial_is():
    flow = saddle(5.0)
    state, tolerance = flow.evaluate(flow.problem.theta0), Tolerance(10.0, 0.0)
    carry = BDF().init(flow, state, tolerance) | {"step_size": 1.0, "n_steps": 1}
    result = BDF().step(flow, state, carry, tolerance, math.inf)
    # 1 − 5h along x: −4 at 1, a quarter of it at the least; −0.25 there, and half of that.
    assert result.n_rejected == 2
    assert result.time == pytest.approx(0.125)


def test_a_flow_away_from_a_maximum_is_followed():
    flow = saddle(5.0)
    ds = gf.walk(flow, "bdf", rtol=1e-6, t_end=1.0, stop=None)
    assert ds["theta"].values[-1, 0] == pytest.approx(0.1 * math.exp(5.0), rel=1e-3)


def test_a_stationary_start_stays_where_it_is():
    start = torch.tensor([0.0, 1.0], dtype=torch.float64)
    problem = gf.Problem.from_function(references.half_square, start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[1])
    ds = gf.walk(flow, "bdf", t_end=1.0, stop=None)
    assert ds.attrs["status"] == "negative_multiplier"
    assert np.array_equal(ds["theta"].values[-1], start.numpy())


@pytest.mark.parametrize("pairs", [0, -1, 2.5, True, "many"])
def test_pairs_are_a_positive_whole_number(pairs):
    with pytest.raises(InputError, match="pairs="):
        BDF(pairs=pairs)


@pytest.mark.parametrize("order", [0, 6, 2.0, True, "high"])
def test_the_highest_order_is_one_of_its_formulas(order):
    with pytest.raises(InputError, match="max_order="):
        BDF(max_order=order)


def test_no_correction_is_longer_than_the_first(network, monkeypatch):
    evaluated = []
    evaluate = network.evaluate

    def recording(theta):
        if evaluated:
            evaluated[-1].append(theta)
        return evaluate(theta)

    def correcting(*args):
        evaluated.append([])
        return correct(*args)

    monkeypatch.setattr(network, "evaluate", recording)
    monkeypatch.setattr(bdf, "correct", correcting)
    list(steps_of(network, 25, rtol=1e-2))
    moves = [[float((b - a).norm()) for a, b in itertools.pairwise(c)] for c in evaluated]
    assert max(len(m) for m in moves) > 6
    # With what each takes along the normal.
    assert all(max(m) <= 1.5 * m[0] for m in moves if m)


def test_what_was_learned_where_newton_fails_is_not_kept(network, monkeypatch):
    state, carry, result = list(steps_of(network, 12))[-1]
    seen = []

    def failing(flow, formula, pairs, allowed, closely):
        seen.append(len(pairs))
        if len(seen) == 1:
            pairs.add(vector(50, 0), vector(50, 1))
            raise ConvergenceError("no", iterations=3, residual=1.0, reason="iterations")
        return correct(flow, formula, pairs, allowed, closely)

    monkeypatch.setattr(bdf, "correct", failing)
    again = BDF().step(network, state, carry, Tolerance(1e-6, 0.0), math.inf)
    assert seen[1] == seen[0]
    assert again.n_rejected == 1
    assert again.time == result.time / 2


def test_its_settings_are_in_the_archive_and_make_it_again(network):
    ds = gf.walk(network, BDF(pairs=17, max_order=2), t_end=0.01, stop=None)
    assert '"pairs": 17' in ds.attrs["config"]
    made = gf.solvers.from_config(json.loads(ds.attrs["config"])["solver"])
    assert made.options == {"pairs": 17, "max_order": 2}
    assert made.order == 2
    # As archives have it that are older than the highest order.
    assert gf.solvers.from_config({"name": "bdf", "pairs": 17}).order == 5
    with pytest.raises(InputError, match="re-projects at every step"):
        gf.walk(network, "bdf", reproject_every=0.1)


def test_it_is_the_default_and_walks_a_network_to_the_end(network):
    ds = gf.walk(network, stop=gf.Stationary(179.0))
    assert ds.attrs["solver"] == gf.solvers.DEFAULT == "bdf"
    assert ds.attrs["status"] == "stationary"
    invariants.check_walk(ds, network)
    other = gf.walk(network, "exponential", stop=gf.Stationary(179.0))
    assert int(ds["n_gradient"][-1]) < int(other["n_gradient"][-1])
    assert float(ds["regularizer"][-1]) == pytest.approx(float(other["regularizer"][-1]), rel=1e-3)


@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_a_flow_that_comes_to_rest_is_followed_there(rtol):
    # Newton's iteration leaves a part of the step, and of a step to nowhere nothing.
    flow = references.oja().flow
    ds = gf.walk(flow, "bdf", rtol=rtol, stop=None, max_evaluations=2000)
    assert ds.attrs["status"] == "at_rest"
    assert np.isfinite(ds["step_size"].values[1:]).all()


def test_a_gradient_of_r_that_vanishes_bounds_no_step():
    flow = references.oja().flow
    state = flow.evaluate(flow.problem.theta0)
    still = dataclasses.replace(state, regularizer_gradient=0 * state.regularizer_gradient)
    assert bdf._longest(still) > bdf._longest(state) > 0


def test_a_flow_that_hovers_about_its_rest_makes_no_step_without_end(monkeypatch):
    # Its velocity may round more coarsely than the flow says. Steps grow fivefold, up to those that
    # would take all of θ with them.
    monkeypatch.setattr(gf.RegularizingFlow, "at_rest", lambda self, state: False)
    flow = references.sphere_linear().flow
    ds = gf.walk(flow, "bdf", stop=None, max_evaluations=1000, max_snapshots=2)
    assert ds.attrs["status"] == "max_evaluations"
    assert ds["step_size"].values[1:].max() < 1e18
    assert abs(float(ds["angle"][-1]) - 180) < 1e-6


@pytest.mark.slow
def test_iris_to_five_and_to_six_digits_in_the_evaluations_promised():
    problem = gf.experiments.get("iris_ff").prepare(seed=0).problem
    level = gf.LevelSet(problem)
    flow = gf.RegularizingFlow(level, gf.regularizers.squared_norm)
    fine = gf.RegularizingFlow(gf.LevelSet(problem, level.level, 1e-11), flow.regularizer)
    settings = {"t_end": 1.0, "stop": None, "snapshot_times": [0.1, 0.3, 1.0], "atol": 0.0}
    reference = gf.walk(fine, "bdf", rtol=1e-9, **settings)["theta"].values
    for rtol, wanted, most in ((2e-6, 1e-5, 300), (3e-7, 2e-6, 350), (3e-8, 2e-7, 500)):
        ds = gf.walk(flow, "bdf", rtol=rtol, **settings)
        invariants.check_walk(ds, flow)
        off = np.linalg.norm(ds["theta"].values - reference, axis=1)
        assert (off / np.linalg.norm(reference, axis=1)).max() <= wanted
        assert int(ds["n_gradient"][-1]) <= most


@pytest.mark.slow
def test_mnist_is_walked_in_steps_as_long_as_corrections_are_worth():
    problem = gf.experiments.get("mnist_ff").prepare(seed=0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, "bdf", rtol=1e-3, atol=0.0, t_end=0.3, stop=None)
    invariants.check_walk(ds, flow)
    # With three corrections a step, or with longer and longer ones, or with the curvature of R
    # beside the pairs, it takes 140 to 250.
    assert int(ds["n_gradient"][-1]) <= 120
