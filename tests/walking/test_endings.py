"""Every walk ends, with a status that says why, and keeps what was walked."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import GeoflowError
from geoflow.walking.minimum import is_at_the_level, no_gradient_left
from geoflow.walking.snapshots import Thinned

SOLVERS = ["exponential", "rkc", "dopri5", "bosh3", "rk4"]


def flow_of(loss, start, regularizer, **kwargs):
    theta0 = torch.as_tensor(start, dtype=torch.float64)
    problem = gf.Problem.from_function(loss, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem, **kwargs), regularizer)


def square(theta):
    return torch.dot(theta, theta)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("stop", [None, gf.Stationary(175.0)])
def test_a_walk_from_a_kkt_point_is_at_rest(solver, stop):
    # On the circle, at the point of least θ₀: ∇R and ∇L point in opposite directions.
    flow = flow_of(square, [-1.0, 0.0], lambda theta: theta[0])
    ds = gf.walk(flow, solver, stop=stop, max_evaluations=300)
    assert ds.attrs["status"] == ("at_rest" if stop is None else "stationary")
    assert stop or "angle 180.000°, λ = 0.5" in ds.attrs["status_message"]
    assert ds.sizes["step"] == 1


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_walk_where_r_has_no_gradient_is_at_rest(solver):
    flow = flow_of(square, [1.0, 2.0, 3.0], lambda t: square(t - torch.tensor([1.0, 2.0, 3.0])))
    ds = gf.walk(flow, solver, stop=None, max_evaluations=300)
    assert ds.attrs["status"] == "at_rest"


def test_a_walk_from_the_far_side_has_a_status_of_its_own():
    flow = flow_of(square, [1.0, 0.0], lambda theta: theta[0])
    ds = gf.walk(flow, stop=None, max_evaluations=300)
    assert ds.attrs["status"] == "negative_multiplier"
    assert "is the network trained?" in ds.attrs["status_message"]


@pytest.mark.parametrize("solver", ["exponential", "dopri5"])
def test_r_whose_minimum_has_a_lower_loss_ends_at_0_degrees(solver):
    # Both fall towards the origin, so that R is least on the shortest axis, where λ < 0.
    axes = torch.tensor([1.0, 4.0], dtype=torch.float64)
    flow = flow_of(lambda t: torch.dot(axes, t * t), [1.0, 0.5], square)
    ds = gf.walk(flow, solver, max_evaluations=5000)
    assert ds.attrs["status"] == "negative_multiplier"
    assert float(ds["angle"][-1]) <= 0.1
    assert (np.diff(ds["regularizer"]) <= 1e-12).all()


def test_a_walk_started_beside_a_saddle_leaves_it():
    # At angle 0°, to 1e-7: R is greatest there, and the walk goes to the other side.
    flow = flow_of(square, [1.0, 1e-7], lambda theta: theta[0])
    ds = gf.walk(flow, stop=gf.Stationary(175.0))
    assert ds.attrs["status"] == "stationary"
    assert float(ds["theta"][-1, 0]) == pytest.approx(-1, abs=1e-2)


@pytest.mark.parametrize("degrees", [100.0, 140.0, 160.0, 175.0])
def test_a_walk_that_comes_nearer_to_0_degrees_on_its_way_goes_on(degrees):
    # Its angle falls from 37° to 6° with λ < 0, before it rises to 180°.
    loss, least = (
        torch.tensor(v, dtype=torch.float64) for v in ([0.15, 1.44, 0.25], [-1.77, -2.65, -1.45])
    )
    flow = flow_of(lambda t: torch.dot(loss, t * t), [1.2, 1.6, -1.26], lambda t: square(t - least))
    assert float(flow.problem.loss(least)) > 2 * flow.level_set.level
    ds = gf.walk(flow, "exponential", stop=gf.Stationary(degrees))
    assert ds["angle"].min() < 7
    assert ds.attrs["status"] == "stationary"


@pytest.mark.parametrize("solver", ["bdf", "exponential", "dopri5"])
def test_a_walk_that_passes_a_saddle_goes_on(solver):
    # On the sphere R is least along the last axis; the second is a saddle, 4.4° from the way.
    weights = torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)
    flow = flow_of(square, [0.3, 1.0, 1e-3], lambda t: torch.dot(weights, t * t))
    ds = gf.walk(flow, solver)
    assert ds["angle"].min() < 5
    assert ds.attrs["status"] == "stationary"
    assert float(ds["regularizer"][-1]) < -0.97 * flow.level_set.level


AXES = torch.linspace(1, 30, 5, dtype=torch.float64)


def ellipsoid(theta):
    return 0.5 * torch.dot(AXES, theta * theta)


def flow_to_the_level(regularizer, seed=0):
    """On an ellipsoid, with the point of R's minimum given: of the same level to rounding."""
    generator = torch.Generator().manual_seed(seed)
    start, there = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    for _ in range(3):
        there = there * torch.sqrt(ellipsoid(start) / ellipsoid(there))
    return flow_of(ellipsoid, start, lambda theta: regularizer(theta, there))


MINIMA_AT_THE_LEVEL = {
    "distance": lambda theta, there: square(theta - there),
    "hinge": lambda theta, there: torch.relu(theta[0] + 0.2),
    "square of a hinge": lambda theta, there: torch.relu(theta[0] + 0.2) ** 2,
}


# rkc comes by steps that do not end at the very point: what it leaves of ∇R may be along the
# normal, with λ > 0, and that is a KKT point.
AT_THE_MINIMUM = {
    **dict.fromkeys(("bdf", "exponential", "dopri5"), ("at_rest",)),
    "rkc": ("at_rest", "stationary"),
}


# An adaptive explicit method comes no nearer to the point that is given than its tolerance.
@pytest.mark.parametrize(
    ("solver", "regularizer"),
    sorted(
        {*itertools.product(["bdf", "exponential", "rkc", "dopri5"], MINIMA_AT_THE_LEVEL)}
        - {("dopri5", "distance")}
    ),
)
def test_at_rest_where_r_has_its_minimum_at_the_level(solver, regularizer):
    ds = gf.walk(flow_to_the_level(MINIMA_AT_THE_LEVEL[regularizer], 4), solver)
    assert ds.attrs["status"] in AT_THE_MINIMUM[solver], ds.attrs["status_message"]
    assert float(ds["regularizer"][-1]) < 1e-9
    assert "λ = -0" not in ds.attrs["status_message"]


def at_a_kink():
    """R = |θ₀| + θ₁/2, which has no minimum on the circle where θ₀ = 0."""
    return flow_of(
        lambda t: (t[0] - 1) ** 2 + t[1] ** 2,
        [1.0, math.sqrt(3)],
        lambda t: t[0].abs() + t[1] / 2,
        level_rtol=1e-2,
    )


@pytest.mark.parametrize("solver", ["bdf", "exponential"])
def test_a_kink_that_no_step_is_short_enough_for_is_no_minimum(solver):
    # Beside it the multiplier changes its sign within what counts as the level.
    ds = gf.walk(at_a_kink(), solver, stop=None, max_evaluations=3000)
    assert ds.attrs["status"] == "step_size_underflow"
    assert abs(float(ds["theta"][-1, 0])) < 1e-3


def test_a_look_at_the_minimum_that_fails_loses_no_walk(monkeypatch):
    flow = at_a_kink()
    state = flow.evaluate(flow.problem.theta0)

    def lost(theta):
        raise RuntimeError("no value there")

    monkeypatch.setattr(flow, "evaluate", lost)
    assert not no_gradient_left(flow, state)


@pytest.mark.parametrize("solver", ["bdf", "exponential", "rkc"])
def test_on_several_constraints_too(solver):
    flow = references.oja_on_a_circle().flow
    ds = gf.walk(flow, solver, stop=None, max_evaluations=1500)
    assert ds.attrs["status"] == "at_rest", ds.attrs["status_message"]
    assert "R has its minimum at this level" in ds.attrs["status_message"]


def test_on_several_constraints_it_is_told_from_a_kkt_point():
    # Of R = (x − a)² + y on the circle in the plane z = 1/2: at x = a with y kept out, or not.
    def flow_of_r(regularizer):
        theta0 = torch.tensor([0.6, 0.8, 0.5], dtype=torch.float64)
        losses = (lambda t: t[0] ** 2 + t[1] ** 2, lambda t: t[2] + 1)
        problems = [gf.Problem.from_function(loss, theta0) for loss in losses]
        return gf.RegularizingFlow(gf.LevelSet(problems, level_rtol=1e-3), regularizer)

    for off, there in ((0.0, True), (0.9e-4, True), (1e-2, False)):
        flow = flow_of_r(lambda t, off=off: (t[0] - 0.6 - off) ** 2)
        state, before = flow.evaluate(flow.problem.theta0), dict(flow.problem.counts)
        assert is_at_the_level(flow, state) == there
        assert flow.problem.counts == before
    flow = flow_of_r(lambda t: (t[0] - 0.6) ** 2 + 1e-3 * t[2])
    assert not is_at_the_level(flow, flow.evaluate(flow.problem.theta0))


@pytest.mark.parametrize("solver", ["bdf", "exponential", "rkc"])
@pytest.mark.parametrize("seed", [4, 5, 9])
def test_what_is_left_of_a_gradient_at_r_s_minimum_has_no_multiplier(solver, seed):
    # Where θ stands still, ∇R is rounding of some angle; where it is off the level, to within its
    # tolerance, there is a little of it along the normal.
    ds = gf.walk(flow_to_the_level(MINIMA_AT_THE_LEVEL["distance"], seed), solver)
    assert ds.attrs["status"] in AT_THE_MINIMUM[solver], ds.attrs["status_message"]
    assert int(ds["n_gradient"][-1]) < 400
    if ds["regularizer"][-1] and ds.attrs["status"] == "at_rest":
        assert "R has its minimum at this level" in ds.attrs["status_message"]


@pytest.mark.parametrize(
    ("minimum", "stands", "at_the_level"),
    # In tolerances from the level: where R has its minimum, and where θ stands.
    [(0.5, -0.9, True), (-0.5, 0.9, True), (1.2, 0.9, False), (-1.2, -0.9, False)],
)
def test_what_counts_as_the_level_is_looked_at_from_the_level(minimum, stands, at_the_level):
    def at(tolerances):
        size = math.sqrt(1 + 1e-3 * tolerances)
        return torch.tensor([size, 0.0], dtype=torch.float64)

    def r(theta):
        return square(theta - at(minimum))

    flow = flow_of(square, [1.0, 0.0], r, level=1.0, level_rtol=1e-3)
    state, before = flow.evaluate(at(stands)), dict(flow.problem.counts)
    assert is_at_the_level(flow, state) == at_the_level
    assert flow.problem.counts == before


def test_r_has_its_minimum_where_no_multiplier_is_left_and_not_where_none_is_known(monkeypatch):
    flow = flow_of(square, [1.0, 0.0], square)
    state = flow.evaluate(flow.problem.theta0)
    monkeypatch.setattr(flow, "evaluate", lambda theta: SimpleNamespace(multiplier=0.0))
    assert is_at_the_level(flow, state)

    def lost(theta):
        raise gf.CriticalPointError("no normal")

    monkeypatch.setattr(flow, "evaluate", lost)
    assert not is_at_the_level(flow, state)


@pytest.mark.parametrize("solver", ["bdf", "exponential", "rkc"])
def test_a_minimum_just_below_the_level_is_below_it(solver):
    # By ten times as much as counts as the level.
    flow = flow_to_the_level(lambda theta, there: square(theta - (1 - 5e-6) * there), 4)
    ds = gf.walk(flow, solver)
    assert ds.attrs["status"] == "negative_multiplier"


def test_seeing_whether_r_has_its_minimum_here_is_no_cost_of_the_walk():
    flow = flow_to_the_level(MINIMA_AT_THE_LEVEL["distance"], 4)
    ds = gf.walk(flow, "rkc", max_evaluations=5000)
    assert flow.problem.counts["gradient"] == int(ds["n_gradient"][-1])


class Idle:
    """A solver that goes nowhere and asks for nothing."""

    name, order, options = "idle", 1, {}

    def init(self, flow, state, tolerance):
        return {}

    def step(self, flow, state, carry, tolerance, max_time):
        return gf.solvers.StepResult(state, carry, 1e-3, math.nan, 0, 0)


def test_steps_that_cost_nothing_are_bounded_by_the_budget(network):
    ds = gf.walk(network, Idle(), stop=None, max_evaluations=40)
    assert ds.attrs["status"] == "max_steps"
    assert ds.sizes["step"] == 41


def test_thinning_steps_that_do_not_move_comes_to_an_end():
    rule = Thinned(4)
    kept = [rule.offer(step, float(step), 0.0)[0] for step in range(50)]
    assert kept[0]
    assert sum(kept) <= 3


@pytest.mark.parametrize("archived", [False, True])
def test_an_observable_that_raises_ends_the_walk_and_loses_nothing(network, tmp_path, archived):
    calls = []

    def fails(theta):
        calls.append(1)
        if len(calls) > 4:
            raise MemoryError("no room")
        return len(calls)

    path = tmp_path / "walk.nc" if archived else None
    with gf.walk(
        network, snapshot_every=0.01, t_end=1.0, observables={"f": fails}, archive=path
    ) as ds:
        assert ds.attrs["status"] == "observable_failed"
        assert ds.attrs["status_message"] == "observables['f'] raised MemoryError: no room"
        # One call was to see whether it gives a number.
        assert ds["f"].values.tolist() == [2.0, 3.0, 4.0]
        assert ds.sizes["step"] >= 3
    if archived:
        assert gf.validate(path) == []


def test_where_the_last_point_is_kept_its_observable_may_be_unknown(network):
    def fails(theta):
        if not torch.equal(theta, network.problem.theta0):
            raise RuntimeError("elsewhere")
        return 1.0

    ds = gf.walk(network, t_end=0.1, stop=None, observables={"f": fails})
    assert ds.attrs["status"] == "observable_failed"
    assert ds["theta"].sizes["snapshot"] >= 1
    assert float(ds["f"][0]) == 1.0


def test_an_observable_cannot_move_the_walk(network):
    def writes(theta):
        theta.zero_()
        return 0.0

    with_it = gf.walk(network, t_end=0.05, stop=None, observables={"f": writes})
    without = gf.walk(references.small_network(), t_end=0.05, stop=None)
    assert np.array_equal(with_it["theta"], without["theta"])


@pytest.mark.parametrize("solver", ["exponential", "dopri5"])
def test_a_loss_that_raises_ends_the_walk_and_loses_nothing(solver):
    calls = []

    def loss(theta):
        calls.append(1)
        if len(calls) > 120:
            raise RuntimeError("out of\nmemory")
        return 0.5 * torch.dot(axes, theta * theta)

    axes = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    flow = flow_of(loss, [1.0, 1.0, 1.0], square)
    ds = gf.walk(flow, solver, rtol=1e-6, stop=None)
    assert ds.attrs["status"] == "evaluation_failed"
    assert ds.attrs["status_message"] == "an evaluation raised RuntimeError: out of"
    assert ds.sizes["step"] > 1
    assert ds["theta"].sizes["snapshot"] > 1


def random_flow(seed):
    """A small problem of any kind: friendly, at rest, near a saddle, unbounded, not finite."""
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 6, (), generator=generator))

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    matrix, shift, start = randn(n, n), randn(n), randn(n)
    losses = [
        lambda t: 0.5 * t @ t,
        lambda t: 0.5 * t @ (matrix @ matrix.T) @ t + 0.1 * t.sum(),
        lambda t: t @ (matrix + matrix.T) @ t,
        lambda t: torch.cos(3 * t).sum() + 0.1 * t @ t,
        lambda t: torch.log(t.sum() + 2.0),
        lambda t: torch.sqrt(1 - (t * t).sum() / 40),
        lambda t: torch.exp(t).sum(),
        lambda t: (torch.tanh(matrix @ t) ** 2).sum() + 1e-3 * t @ t,
        lambda t: torch.relu(t).sum() + 0.01 * t @ t,
    ]
    regularizers = [
        lambda t: t @ t,
        lambda t: (t - start) @ (t - start),
        lambda t: shift @ t,
        lambda t: t @ (matrix + matrix.T) @ t,
        lambda t: torch.log((t * t).sum()),
        lambda t: -(t @ t),
    ]

    def chosen(items):
        return items[int(torch.randint(len(items), (), generator=generator))]

    axis = torch.zeros(n, dtype=torch.float64)
    axis[0] = 1.0
    starts = [start, start, axis, -axis, axis + 1e-9 * start, 1e3 * start, 0 * start]
    levels = [None, None, None, 0.5, -3.0, 1e3]
    return chosen(losses), chosen(starts), chosen(regularizers), chosen(levels)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 300, 50))
def test_every_small_problem_ends_within_its_budget_without_a_raw_exception(first):
    ended = {}
    for seed in range(first, first + 50):
        loss, start, regularizer, level = random_flow(seed)
        try:
            flow = flow_of(loss, start, regularizer, level=level)
        except GeoflowError:
            continue
        solver = SOLVERS[seed % len(SOLVERS)]
        try:
            ds = gf.walk(flow, solver, max_evaluations=200)
        except GeoflowError:
            # No point of the level set was found, so there is no walk.
            continue
        assert int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]) <= 200
        assert ds.sizes["step"] <= 201
        assert ds["theta"].sizes["snapshot"] >= 1
        assert np.isfinite(ds["theta"]).all()
        ended[ds.attrs["status"]] = ended.get(ds.attrs["status"], 0) + 1
    assert len(ended) >= 3, ended
    assert sum(ended.values()) >= 20, ended


def test_what_an_earlier_walk_left_at_the_rounding_is_not_said_of_the_next():
    flow = references.sphere_linear().flow
    flow.level_set.n_at_floor = 3
    ds = gf.walk(flow, t_end=0.1, stop=None)
    assert ds.attrs["status_message"] == "the walk reached flow time 0.1"


class Pressed:
    """A function of theta in which Ctrl-C is pressed at one call of it, or where that is so."""

    def __init__(self, function, at=None):
        self.function, self.at, self.calls, self.done = function, at, 0, False

    def __call__(self, theta):
        self.calls += 1
        if self.at() if callable(self.at) else self.calls == self.at:
            self.done = True
            raise KeyboardInterrupt
        return self.function(theta)


@pytest.mark.parametrize("archived", [False, True])
def test_ctrl_c_in_an_observable_of_the_last_snapshot_keeps_the_walk(archived, tmp_path):
    flow, counted = references.ellipsoid(), Pressed(torch.sum)
    whole = gf.walk(flow, t_end=0.5, max_snapshots=2, observables={"o": counted})
    file = tmp_path / "walk.nc" if archived else None
    pressed = {"o": Pressed(torch.sum, counted.calls)}
    ds = gf.walk(flow, t_end=0.5, max_snapshots=2, observables=pressed, archive=file)
    assert ds.attrs["status"] == "interrupted"
    assert ds.attrs["status_message"].startswith("interrupted by the user")
    assert ds["o"].isnull().values.tolist() == [False, True]
    np.testing.assert_array_equal(ds["theta"], whole["theta"])
    if archived:
        ds.close()
        with gf.resume(file, flow, observables={"o": torch.sum}) as ds:
            assert ds.attrs["status"] == "t_end"
            assert ds["o"].notnull().all()
            np.testing.assert_array_equal(ds["theta"], whole["theta"])


def test_a_second_ctrl_c_in_an_observable_of_the_last_snapshot_keeps_the_walk():
    first = Pressed(square, 20)
    pressed = {"o": Pressed(torch.sum, lambda: first.done)}
    flow = flow_of(lambda t: t[0] ** 2 + 4 * t[1] ** 2, [1.0, 0.5], first)
    first.calls = 0
    ds = gf.walk(flow, "dopri5", max_snapshots=2, observables=pressed)
    assert first.done
    assert pressed["o"].done
    assert ds.attrs["status"] == "interrupted"
    assert ds.sizes["step"] > 1
    assert int(ds["snapshot_step"][-1]) == ds.sizes["step"] - 1
    assert ds["o"].isnull().values.tolist() == [False, True]
