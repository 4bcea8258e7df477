"""Whether a point is on the branch of the one before, and levels of any size and sign."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import BranchError, ConvergenceError, EvaluationLimitError
from geoflow.paths.arguments import check_resolved
from geoflow.paths.branch import FarError, Reached, check_near, check_no_fold
from geoflow.paths.continuation import Continuation
from geoflow.paths.following import _end_of
from geoflow.paths.scale import Scale, away

A = torch.tensor([3.0, -2.0, 1.0, 0.5], dtype=torch.float64)
CURVATURES = torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64)


def _flow(loss, theta0, regularizer=gf.regularizers.squared_norm, dtype=torch.float64):
    problem = gf.Problem.from_function(loss, torch.as_tensor(theta0, dtype=dtype))
    return gf.RegularizingFlow(gf.LevelSet(problem), regularizer)


def _wells(shift=0.0, size=1.0, of_loss=1.0, of_regularizer=1.0):
    """Two wells of L; the branch of the right one ends at the saddle between them, near L = 2."""

    def loss(theta):
        x, y = theta / size - shift
        return of_loss * ((x**2 - 1) ** 2 + y**2 / 2 + 1)

    def regularizer(theta):
        x, y = theta / size - shift
        return of_regularizer * ((x + 2) ** 2 + (y - 0.3) ** 2)

    theta0 = size * (torch.tensor([0.8, 0.2], dtype=torch.float64) + shift)
    return _flow(loss, theta0, regularizer)


def _reached(flow, level, theta):
    """A point of the wells, given without their shift, size and units."""
    return Reached(flow.evaluate(theta), gf.RegularizingFlow(level, flow.regularizer), "walk")


# Two points of the right well's branch, and beyond its end one of the left well's; to 1e-7.
RIGHT, FARTHER_RIGHT = (0.4790295, 0.1120826), (0.2306475, 0.0844545)
LAST, LEFT = (0.1262332, 0.0568407), (-1.4164922, 0.2722286)


@pytest.mark.parametrize(
    "units",
    [{}, {"shift": 30.0}, {"size": 1e3}, {"of_loss": 1e-6}, {"of_regularizer": 1e6}],
    ids=lambda units: "-".join(units) or "plain",
)
def test_another_branch_is_told_by_how_r_falls_in_any_units(units):
    flow = _wells(**units)

    def at(point, level):
        there = units.get("size", 1.0) * (torch.tensor(point).double() + units.get("shift", 0.0))
        level_set = gf.LevelSet(flow.problem, level * units.get("of_loss", 1.0))
        return _reached(flow, level_set, there)

    near, far = at(RIGHT, 1.6), at(FARTHER_RIGHT, 1.9)
    check_near(near, far)
    check_near(far, near)
    check_no_fold(near, far)
    last, other = at(LAST, 1.97), at(LEFT, 2.05)
    for before, after in [(last, other), (other, last), (near, other), (other, near)]:
        with pytest.raises(FarError):
            check_near(before, after)
    with pytest.raises(BranchError, match="leads to another branch"):
        check_no_fold(last, other)


@pytest.mark.parametrize("shift", [0.0, 6.0, 30.0])
def test_a_jump_to_another_well_is_no_path_wherever_the_origin_is(shift):
    wanted = [1.3, 1.6, 1.9, 1.97]
    flow = _wells(shift)
    ds = gf.regularization_path(flow, [*wanted, 2.05])
    assert ds.attrs["status"] in ("not_converged", "fold")
    np.testing.assert_array_equal(ds["level"][1:], wanted)
    assert (ds["theta"][:, 0] - shift > 0.1).all()


@pytest.mark.parametrize("level", [1e-6, 0.1])
def test_a_ridge_path_from_near_zero_needs_no_level_named_in_between(level):
    flow = _flow(lambda theta: ((theta - A) ** 2 * CURVATURES).sum(), 0.05 * A)
    ds = gf.regularization_path(flow, [level], degrees=179.0)
    assert ds.attrs["status"] == "complete"
    assert ds["method"].values.tolist() == ["walk", "corrector"]
    # Steps that each succeed, more than a way may be halved.
    assert int(ds["n_between"][-1]) > 8
    hessian = 2 * CURVATURES
    exact = hessian * A / (hessian + 2 * float(ds["penalty"][-1]))
    np.testing.assert_allclose(ds["theta"][-1], exact, atol=0.01)
    assert int(ds["n_gradient"][-1]) < 1000


@pytest.mark.parametrize(
    ("height", "shift", "tilt", "level"), [(10, 1.08, 0.1, 0.43), (10, -0.62, 0.05, 5.0)]
)
def test_a_point_too_far_is_corrected_anew_since_it_may_be_of_another_well(
    height, shift, tilt, level
):
    # L = y, and R has a well at each whole number of u, which moves with the level; all are there
    # at every level, and differ in R by the tilt.
    def well(theta):
        u = theta[0] - shift * torch.log(theta[1])
        wells = height * (1 - torch.cos(2 * math.pi * u)) / (4 * math.pi**2)
        return wells - torch.log(theta[1]) + tilt * u

    flow = _flow(lambda theta: theta[1], [0.02, 1.0], well)
    ds = gf.regularization_path(flow, [level], degrees=179.9)
    assert ds.attrs["status"] == "complete"
    u = ds["theta"].values[:, 0] - shift * np.log(ds["theta"].values[:, 1])
    own = -math.asin(2 * math.pi * tilt / height) / (2 * math.pi)
    assert u == pytest.approx([own, own], abs=0.05)


def test_a_path_through_the_origin_is_a_straight_line():
    # min ‖θ − b‖² on ‖θ − a‖² = c, where b = −a: on the segment from a to b.
    unit = A / torch.linalg.vector_norm(A)
    flow = _flow(
        lambda theta: ((theta - 3 * unit) ** 2).sum(),
        1.2 * unit + torch.tensor([0.1, 0.0, 0.0, 0.1]),
        gf.regularizers.distance_to(-3 * unit),
    )
    wanted = [5.0, 8.0, 9.0, 12.0, 20.0, 30.0]
    ds = gf.regularization_path(flow, wanted, degrees=179.99)
    assert ds.attrs["status"] == "complete"
    assert (ds["method"][1:] == "corrector").all()
    exact = [(3 - math.sqrt(c)) * unit.numpy() for c in wanted]
    np.testing.assert_allclose(ds["theta"][1:], exact, atol=2e-3)


@pytest.mark.parametrize("level", [1e6, 1e-10])
def test_of_a_linear_function_on_spheres_no_level_is_too_far(level):
    down = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    flow = _flow(lambda theta: (theta**2).sum(), [1.0, 1.0, 0.5], lambda theta: theta @ down)
    ds = gf.regularization_path(flow, [level], degrees=179.0)
    assert ds.attrs["status"] == "complete"
    assert float(ds["regularizer"][-1]) == pytest.approx(-math.sqrt(5 * level), rel=2e-4)
    assert float(ds["multiplier"][-1]) == pytest.approx(math.sqrt(5 / level) / 2, rel=2e-4)


def test_in_one_parameter_the_path_passes_zero():
    flow = _flow(lambda theta: (theta[0] - 3) ** 2, [2.0], lambda theta: theta[0])
    ds = gf.regularization_path(flow, [2.0, 4.0, 100.0, 1e-6], degrees=179.99)
    assert ds.attrs["status"] == "complete"
    exact = [3 - math.sqrt(c) for c in (1.0, 2.0, 4.0, 100.0, 1e-6)]
    np.testing.assert_allclose(ds["theta"][:, 0], exact, atol=1e-5)


def test_levels_below_zero_and_across_it_are_reached_by_the_corrector():
    a = torch.tensor([3.0, 1.0], dtype=torch.float64)
    flow = _flow(lambda theta: ((theta - a) ** 2).sum() - 5, [2.0, 2.0])
    wanted = [-4.0, -4.9, -1.0, 1.0, 3.0, -0.5]
    ds = gf.regularization_path(flow, wanted, degrees=179.999)
    assert ds.attrs["status"] == "complete"
    assert (ds["method"][1:] == "corrector").all()
    exact = [a.numpy() * (1 - math.sqrt((c + 5) / 10)) for c in wanted]
    np.testing.assert_allclose(ds["theta"][1:], exact, atol=1e-5)
    # The first walk takes 66 of them.
    assert int(ds["n_gradient"][-1]) < 150


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_a_likelihood_of_a_learned_width_costs_as_much_below_zero_as_above(offset):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((60, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.05 * generator.standard_normal(60)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)

    def loss(theta):
        squares = (inputs @ theta[:3] - targets) ** 2
        return (squares * torch.exp(-2 * theta[3]) / 2 + theta[3]).mean() + offset

    flow = _flow(loss, [1.02, -1.97, 0.52, -2.7])
    lowest = flow.level_set.level - offset
    assert lowest < -2
    wanted = [lowest + 0.2, lowest + 0.5, lowest + 1.0, lowest + 1.8, -0.1, 0.1, 0.5]
    ds = gf.regularization_path(flow, [c + offset for c in wanted], degrees=179.9)
    assert ds.attrs["status"] == "complete"
    assert int(ds["n_gradient"][-1]) < 400


def test_the_nearest_point_is_on_the_same_side_of_zero():
    a = torch.tensor([3.0, 1.0], dtype=torch.float64)
    flow = _flow(lambda theta: ((theta - a) ** 2).sum() - 5, [2.0, 2.0])
    # From −1, the nearest, not from −4.9, the last.
    ds = gf.regularization_path(flow, [-1.0, -4.9, 0.5], degrees=179.9)
    direct = gf.regularization_path(flow, [-1.0, 0.5], degrees=179.9)
    np.testing.assert_allclose(ds["theta"][-1], direct["theta"][-1], atol=1e-4)
    assert int(ds["n_between"][-1]) == int(direct["n_between"][-1]) == 0


@pytest.mark.parametrize(
    ("loss", "level", "expected"),
    [
        (2.0, 1.0, math.log(2)),
        (1.0, 2.0, -math.log(2)),
        (-3.0, -4.0, math.log(4 / 3)),
        (-4.0, -3.0, -math.log(4 / 3)),
        (1.0, -1.0, 2.0),
        (-1.0, 4.0, -1.25),
        (0.0, -1.0, 1.0),
        (0.0, 0.0, 0.0),
        (1.0, 0.0, 1.0),
        (1e-300, 1e300, -1.0),
    ],
)
def test_a_loss_above_its_level_is_above_it_whatever_their_signs(loss, level, expected):
    assert away(loss, level) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("start", "goal", "middle"), [(1.0, 4.0, 2.0), (-1.0, -4.0, -2.0), (-1.0, 4.0, 1.5)]
)
def test_the_way_to_a_level_is_divided_in_logarithms_where_both_have_one(start, goal, middle):
    scale = Scale.between(start, goal)
    length = scale.distance(start, goal)
    assert scale.towards(goal, start, length / 2) == pytest.approx(middle)
    assert scale.towards(start, goal, length / 2) == pytest.approx(middle)
    assert scale.towards(goal, start, length) == goal
    assert scale.towards(goal, middle, length) == goal


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_largest_angle_that_is_offered_is_taken(dtype):
    flow = _flow(lambda theta: (theta**2).sum(), [1.0, 1.0], lambda theta: theta[0], dtype)
    with pytest.raises(gf.InputError, match="use at most") as refused:
        gf.regularization_path(flow, [3.0], degrees=math.nextafter(180, 0))
    offered = re.search(r"at most ([0-9.]+)$", str(refused.value))
    assert offered is not None
    degrees = float(offered.group(1))
    assert 179.99 < degrees < 180
    assert gf.regularization_path(flow, [3.0], degrees=degrees).sizes["level"] >= 1


@pytest.mark.parametrize(
    ("level", "dtype"), [(1e-320, torch.float64), (-1e-303, torch.float64), (1e-37, torch.float32)]
)
def test_a_level_with_no_tolerance_is_refused(level, dtype, tmp_path):
    def flow():
        return _flow(lambda theta: (theta**2).sum(), [1.0, 1.0], lambda theta: theta[0], dtype)

    with pytest.raises(gf.InputError, match=f"levels: {level} is too near zero"):
        gf.regularization_path(flow(), [3.0, level])
    archive = tmp_path / "path.nc"
    gf.regularization_path(flow(), [3.0], archive=archive).close()
    with pytest.raises(gf.InputError, match=f"levels: {level} is too near zero"):
        gf.resume_path(archive, flow(), [level])
    assert gf.regularization_path(flow(), [1e-20]).attrs["status"] == "complete"


@pytest.mark.parametrize("refused", [True, False])
def test_a_level_that_is_given_up_says_whether_a_point_was_refused(monkeypatch, refused):
    flow = _flow(lambda theta: (theta**2).sum(), [1.0, 1.0], lambda theta: theta[0])
    continuation = Continuation(flow, 1e-3, 175.0)
    continuation.left = 10_000
    start = continuation.start()
    # One that is far and may well be of the same branch is none of another.
    first = FarError() if refused else FarError(told=True)
    failures = iter([first if refused else _no_point(), first, EvaluationLimitError("spent")])

    def fails(level, before):
        raise next(failures)

    monkeypatch.setattr(continuation, "_step", fails)
    said = "L = 3 but one that may be of another branch is" if refused else "L = 3 is"
    with pytest.raises(ConvergenceError, match=f"^no KKT point on {said} reached within 500 "):
        continuation.to(3.0, start, 500)


def test_a_level_that_is_given_up_says_how_far_the_path_came(monkeypatch):
    flow = _flow(lambda theta: (theta**2).sum(), [1.0, 1.0], lambda theta: theta[0])
    continuation = Continuation(flow, 1e-3, 175.0)
    continuation.left = 10_000
    start, step, levels = continuation.start(), continuation._step, []

    def fails(level, before):
        levels.append(level)
        if len(levels) == 1:
            raise _no_point()
        if len(levels) == 3:
            raise EvaluationLimitError("spent")
        return step(level, before)

    monkeypatch.setattr(continuation, "_step", fails)
    between = f"{math.sqrt(6):.6g}"
    said = rf"^no KKT point on L = 3 is reached beyond L = {between} within 500 evaluations: it is"
    with pytest.raises(ConvergenceError, match=said):
        continuation.to(3.0, start, 500)


def _no_point():
    return ConvergenceError("no point", iterations=1, residual=1.0, reason="kkt")


def _point(loss, regularizer, tangent_norm=0.0, turned=0.0):
    """A point of λ = 2, and 0.3 from that of loss 1."""
    state = SimpleNamespace(
        loss=loss,
        regularizer=regularizer,
        multiplier=2.0,
        tangent_norm=tangent_norm,
        theta=torch.tensor([1.0, 0.3 * (loss > 1)], dtype=torch.float64),
        regularizer_gradient=torch.tensor([1.0, turned], dtype=torch.float64),
    )
    return SimpleNamespace(state=state, c=loss)


@pytest.mark.parametrize(
    ("fall", "kwargs", "is_near", "is_fold"),
    [
        # By λ 0.2; a quarter more or less is near, and twice as much is no fold.
        (0.24, {}, True, False),
        (0.17, {}, True, False),
        (0.3, {}, False, False),
        (0.12, {}, False, False),
        (0.45, {}, False, True),
        (-0.2, {}, False, True),
        # As far as neither is a KKT point.
        (0.45, {"tangent_norm": 0.5}, True, False),
        # ∇R has changed by more than half of itself.
        (0.2, {"turned": 0.4}, True, False),
        (0.2, {"turned": 0.6}, False, False),
    ],
)
def test_points_of_one_branch_are_as_far_apart_in_r_as_told(fall, kwargs, is_near, is_fold):
    tangent = {"tangent_norm": kwargs.get("tangent_norm", 0.0)}
    before, after = _point(1.0, 10.0, **tangent), _point(1.1, 10.0 - fall, **kwargs)
    if is_near:
        check_near(before, after)
    else:
        with pytest.raises(FarError):
            check_near(before, after)
    if is_fold:
        with pytest.raises(BranchError, match=r"the path folds between L = 1 and L = 1.1"):
            check_no_fold(before, after)
    else:
        check_no_fold(before, after)


def test_r_is_told_to_no_more_digits_than_it_has():
    check_near(_point(1.0, 1e12), _point(1.1, 1e12 - 0.28))
    with pytest.raises(FarError):
        check_near(_point(1.0, 1e9), _point(1.1, 1e9 - 0.28))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_residual_below_a_hundred_units_of_rounding_is_refused(dtype):
    resolution = 100 * torch.finfo(dtype).eps
    check_resolved(179.0, 1.1 * resolution, dtype)
    with pytest.raises(gf.InputError, match="is below what"):
        check_resolved(179.0, 0.9 * resolution, dtype)


@pytest.mark.parametrize(("reason", "converges"), [("kkt", False), ("diverged", True)])
def test_only_a_kkt_point_that_is_not_reached_is_not_converged(reason, converges):
    error = ConvergenceError("said", iterations=1, residual=1.0, reason=reason)
    assert (_end_of(error, 5)[0] != "not_converged") is converges
