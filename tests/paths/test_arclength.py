"""Strides along a branch's arc: where one is made shorter, and where the branch goes from."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.manifold.linearization import TangentHessian
from geoflow.paths.arclength import Arc, OnArc, strides_to
from geoflow.paths.bordering import Blocks
from geoflow.paths.continuation import Continuation
from geoflow.paths.corrector import residual_of
from geoflow.paths.learned import Bearing, Learned
from geoflow.trajectories import path_schema

TIGHT = 179.999999


def _flow(regularizer, theta0):
    """On y = c, y the second of the parameters."""
    start = torch.as_tensor(theta0, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta[1], start)
    return gf.RegularizingFlow(gf.LevelSet(problem), regularizer)


def _continuation(flow):
    found = Continuation(flow, path_schema.kkt_limit(TIGHT), TIGHT)
    found.left = 10_000
    return found


@pytest.mark.parametrize(
    ("slope", "radius"),
    # After the first, chords are off the tangent that do not differ from one end to the other.
    [(0.3, 0.005), (1.0, 0.03)],
)
def test_round_a_sharp_bend_a_branch_is_followed_and_not_one_beside_it(slope, radius):
    # On y = c R has its minima at x = h(y) + 2πn/100; h bends at y = 1.
    def h(y):
        return slope * ((y - 1) ** 2 + radius**2) ** 0.5

    def regularizer(theta):
        return (1 - torch.cos(100 * (theta[0] - h(theta[1])))) / 100**2 - 5 * theta[1]

    continuation = _continuation(_flow(regularizer, [h(0.8), 0.8]))
    found = continuation.round(continuation.start(), 1.3, [], 4000)
    assert found.c == 1.3
    np.testing.assert_allclose(found.state.theta, [h(1.3), 1.3], atol=1e-6)


def _folding_twice(theta):
    """On y = c stationary where x³/2 + x² = 1.5 − c: folds at x = 0 and x = −4/3."""
    x, y = theta
    return x**4 / 8 + x**3 / 3 - (1.5 - y) * x - 5 * y


def test_a_branch_is_followed_downwards_round_its_folds():
    start = [-2.1, 1.5 + 2.1**3 / 2 - 2.1**2]
    continuation = _continuation(_flow(_folding_twice, start))
    at, found = continuation.start(), []
    while not found or found[-1].c != 0.5:
        at = continuation.round(at, 0.5, [1.2, 1.8], 4000)
        found.append(at)
    _is_all_of_the_branch(found)


def _is_all_of_the_branch(found):
    lower = 1.5 + 0.5 * (4 / 3) ** 3 - (4 / 3) ** 2
    np.testing.assert_allclose([at.c for at in found], [lower, 1.2, 1.5, 1.2, 0.5], rtol=1e-6)
    _, second, first = sorted(np.roots([0.5, 1.0, 0.0, -0.3]).real)
    x = [-4 / 3, second, 0.0, first, min(np.roots([0.5, 1.0, 0.0, -1.0]), key=abs).real]
    # Near a fold a little of the level is much of x.
    np.testing.assert_allclose([float(at.state.theta[0]) for at in found], x, atol=1e-3)


def _landing_from(monkeypatch, furthest):
    """Let no level be reached from one that is further off, as where Newton's iteration fails."""
    onto, failed = Arc._onto, []

    def from_nearby(arc, level, near):
        if abs(near.state.loss - level) > furthest:
            failed.append(near.state.loss)
            arc._newton(near.state, near.direction, lambda state: (1.0, 0.0))
        return onto(arc, level, near)

    monkeypatch.setattr(Arc, "_onto", from_nearby)
    return failed


def test_a_level_that_is_not_reached_from_where_it_was_passed_is_reached_from_nearer(monkeypatch):
    failed = _landing_from(monkeypatch, 0.005)
    start = [-2.1, 1.5 + 2.1**3 / 2 - 2.1**2]
    continuation = _continuation(_flow(_folding_twice, start))
    at, found = continuation.start(), []
    while not found or found[-1].c != 0.5:
        at = continuation.round(at, 0.5, [1.2, 1.8], 4000)
        found.append(at)
    assert len(failed) >= 3
    _is_all_of_the_branch(found)


def test_where_it_is_not_reached_from_nearer_either_it_is_named(monkeypatch):
    failed = _landing_from(monkeypatch, -1.0)
    start = [-2.1, 1.5 + 2.1**3 / 2 - 2.1**2]
    continuation = _continuation(_flow(_folding_twice, start))
    at = continuation.round(continuation.start(), 0.5, [1.2, 1.8], 4000)
    message = (
        r"L = 1\.2 is not reached from L = 1\.\d+: Newton's iteration onto the branch does not"
    )
    with pytest.raises(gf.ConvergenceError, match=message):
        continuation.round(at, 0.5, [1.2, 1.8], 4000)
    assert len(failed) == 4


@pytest.mark.parametrize("rising", [1.0, -1.0])
def test_a_branch_is_followed_the_way_asked_for_whatever_was_learned(rising):
    # Near its fold the branch y = 1.5 − x² goes by (1, −2x), downwards.
    def regularizer(theta):
        return theta[0] ** 3 / 3 - (1.5 - theta[1]) * theta[0] - 5 * theta[1]

    flow = _flow(regularizer, [0.05, 1.4975])
    state, memory = flow.evaluate(flow.problem.theta0), Learned.unknown(2)
    # As if L were curved across (1, 1): then x would rise with L.
    unit = torch.tensor([1.0, -1.0], dtype=torch.float64) / math.sqrt(2)
    memory.curvature.add(unit, 100 * unit)
    memory.curvature.add(unit.abs(), unit.abs() / 100)
    at = Arc(flow, memory, 1e-6).start(state, rising)
    down = np.array([1.0, -0.1]) / math.hypot(1.0, 0.1)
    np.testing.assert_allclose(at.direction, -rising * down, atol=1e-9)


def test_where_the_multiplier_vanishes_the_branch_is_followed_no_further():
    # λ = 2(1 − y) on the branch x = 0.
    continuation = _continuation(
        _flow(lambda theta: theta[0] ** 2 + (1 - theta[1]) ** 2, [0.0, 0.5])
    )
    with pytest.raises(gf.ConvergenceError, match=r"the branch is lost at L = 0\.999"):
        continuation.round(continuation.start(), 1.5, [], 4000)


def test_the_tangent_is_found_from_one_that_is_not_near():
    # x_i = a_i sin(b_i y), so that A is not diagonal in the directions that are split off.
    a, b = torch.tensor([0.5, 1.0, 2.0, 3.0]).double(), torch.tensor([1.0, 3.0, 5.0, 2.0]).double()
    weights = torch.tensor([1.0, 30.0, 3.0, 10.0]).double()

    def regularizer(theta):
        x = torch.cat([theta[:1], theta[2:]])
        return (weights * (x - a * torch.sin(b * theta[1])) ** 2).sum() / 2 - 5 * theta[1]

    at = a * torch.sin(0.4 * b)
    flow = _flow(regularizer, [at[0], 0.4, *at[1:]])
    state = flow.evaluate(flow.problem.theta0)
    slopes = a * b * torch.cos(0.4 * b)
    exact = torch.cat([slopes[:1], torch.ones(1).double(), slopes[1:]])
    found = Arc(flow, Learned.unknown(5), 1e-6).start(state, 1.0)
    cosine = float(torch.dot(found.direction, exact / torch.linalg.vector_norm(exact)))
    assert cosine == pytest.approx(1.0, abs=1e-3)


def test_a_level_is_come_to_as_closely_as_is_asked_for():
    # On L = y³ R is least at x = y; so near the branch as from the start it need not be then.
    start = torch.ones(2, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta[1] ** 3, start)
    level_set = gf.LevelSet(problem, level_rtol=1e-8)
    flow = gf.RegularizingFlow(level_set, lambda theta: (theta[0] - theta[1]) ** 2 - 5 * theta[1])
    arc = Arc(flow, Learned.unknown(2), 0.1)
    found = arc._onto(1.3, arc.start(flow.evaluate(start), 1.0))
    assert found.state.loss == pytest.approx(1.3, rel=1e-8)


def test_two_equations_that_are_one_have_no_step():
    flow = _flow(_folding_twice, [1.0, 0.5])
    state = flow.evaluate(flow.problem.theta0)
    direction = torch.tensor([-0.6, 0.8], dtype=torch.float64)
    blocks = Blocks(flow, state, direction, Learned.unknown(2), state.velocity)
    of_normal, of_other, _ = blocks._coefficients()
    with pytest.raises(gf.ConvergenceError, match="no single tangent"):
        blocks.step((3 * of_normal, 3 * of_other, 1.0))
    # Of others it solves both: along w nothing of Π∇R is left to first order, and t·d is 0.1.
    step = blocks.step((float(direction @ blocks.normal), float(direction @ blocks.other), 0.1))
    assert float(torch.dot(direction, step)) == pytest.approx(0.1)
    operator = TangentHessian(flow, state)
    image = operator.regularizer_hessian(step)
    assert float(image[0]) == pytest.approx(float(state.velocity[0]), abs=1e-9)


def _on_arc(x, slope):
    """A point at θ = (x, 10), where L has this slope along an arc in x."""
    flow = _flow(lambda theta: theta[0] ** 2, [float(x), 10.0])
    across = math.sqrt(1 - slope**2)
    state = flow.evaluate(flow.problem.theta0)
    return OnArc(state, torch.tensor([across, slope], dtype=torch.float64))


@pytest.mark.parametrize(
    ("slopes", "levels", "strides"),
    [
        # A slope that falls by 0.1 over 0.1 vanishes 0.3 further: 0.1 + 0.16 + 0.256 is beyond.
        ((0.4, 0.3), [], 3),
        # 12.9 further: nine strides come to 11.27, and the longest is 1.
        ((0.31, 0.3), [], 7),
        # L = 10.06 is 0.2 further.
        ((0.4, 0.3), [10.06, 12.0], 2),
        # Nothing is ahead.
        ((0.3, 0.4), [], math.inf),
    ],
)
def test_strides_are_counted_to_a_fold_or_level_ahead(slopes, levels, strides):
    before, after = (_on_arc(x, s) for x, s in zip((0.0, 0.1), slopes, strict=True))
    assert strides_to(before, after, levels, 0.1) == strides


def _bent(bend):
    """On y = c R is least at x = (y − 10)²/``bend``; the arc at its start, y = 10."""
    flow = _flow(lambda t: (t[0] - (t[1] - 10) ** 2 / bend) ** 2 - 5 * t[1], [0.0, 10.0])
    arc = Arc(flow, Learned.unknown(2), 1e-6)
    return arc, arc.start(flow.evaluate(flow.problem.theta0), 1.0)


@pytest.mark.parametrize(
    ("bend", "length", "following"),
    # Straight on, up to a tenth of ‖θ‖; after a turn with a cosine of 0.976 no longer.
    [(math.inf, 0.3, 0.48), (math.inf, 0.9, 1.0), (8.0, 0.9, 0.9)],
)
def test_strides_grow_straight_on_up_to_a_part_of_theta(bend, length, following):
    arc, at = _bent(bend)
    _, ahead = arc.stride(at, Bearing(at.direction, length, 1.0))
    assert ahead.stride == pytest.approx(following)


def test_a_stride_ends_as_near_the_branch_as_is_asked_for():
    arc, at = _bent(8.0)
    before = residual_of(arc.flow.evaluate(at.state.theta + 0.5 * at.direction))
    arc.limit = before / 10
    after, _ = arc.stride(at, Bearing(at.direction, 0.5, 1.0))
    assert residual_of(after.state) <= arc.limit


def test_a_level_come_to_on_a_branch_across_is_refused():
    arc, at = _bent(math.inf)
    assert arc._onto(10.2, at).state.loss == pytest.approx(10.2)
    aslant = torch.tensor([0.5, 0.5], dtype=torch.float64).sqrt()
    with pytest.raises(gf.ConvergenceError, match="leads off the branch"):
        arc._onto(10.2, OnArc(at.state, aslant))


@pytest.mark.parametrize("slopes", [(5e-4, -0.3), (0.3, -5e-4)])
def test_an_end_of_a_stride_that_is_a_fold_is_the_fold(slopes):
    ends = [_on_arc(x, s) for x, s in zip((0.0, 0.1), slopes, strict=True)]
    found = Arc(_bent(8.0)[0].flow, Learned.unknown(2), 1e-6).fold(*ends)
    assert found is min(ends, key=lambda at: abs(at.slope))


def test_where_what_lies_ahead_would_take_too_long_the_arc_is_given_up():
    continuation = _continuation(_flow(lambda t: t[0] ** 2 - 5 * t[1], [0.0, 1.0]))
    start = continuation.start()
    before = continuation.left
    with pytest.raises(gf.ConvergenceError, match=r"shows no turn at L = 1\.0"):
        continuation.round(start, 1e6, [], 400)
    assert before - continuation.left < 100
