"""Where a walk ends inside a step, and what it records there."""

import json
import math

import numpy as np
import pytest
import torch

import geoflow as gf
import invariants
import references
from geoflow.errors import ArchiveError, InputError
from geoflow.walking.events import locate
from geoflow.walking.inside import Inside


def sphere():
    """A flow on a sphere, with the exact times at which R and the distance from its axis come."""
    reference = references.sphere_linear(seed=2)
    start = reference.flow.problem.theta0
    a = references._normal(6, 3)
    radius, speed = float(start.norm()), float(a.norm())
    rapidity = math.atanh(float(torch.dot(start, a)) / radius / speed)

    def time_of(value):
        """When R = a·θ comes to a value."""
        return (rapidity - math.atanh(value / radius / speed)) * radius / speed

    def off_axis(theta):
        return float((theta - torch.dot(theta, a) / speed**2 * a).norm())

    return reference.flow, time_of, off_axis, float(torch.dot(start, a))


@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc", "dopri5", "dopri8", "rk4"])
@pytest.mark.parametrize("degrees", [135.0, 150.0])
def test_a_walk_ends_at_its_angle_on_the_level_set(solver, degrees):
    ds = gf.walk(
        references.small_network(),
        solver,
        rtol=1e-4,
        stop=gf.Stationary(degrees),
        max_snapshots=500,
    )
    assert ds.attrs["status"] == "stationary"
    angle = ds["angle"].values
    assert degrees <= angle[-1] <= degrees + 0.01
    assert (angle[:-1] < degrees).all()
    assert f"reached {angle[-1]:.3f}°" in ds.attrs["status_message"]
    invariants.check_walk(ds, references.small_network())
    assert np.isclose(ds["step_size"].sum(), ds["time"][-1], rtol=1e-12)


@pytest.mark.parametrize(("solver", "rtol"), [("exponential", 1e-3), ("bdf", 1e-5)])
@pytest.mark.parametrize(
    "degrees", [140.0, 175.0, *(pytest.param(d, marks=pytest.mark.slow) for d in (150.0, 160.0))]
)
def test_an_angle_is_found_for_five_evaluations_more(solver, rtol, degrees):
    ds = gf.walk(references.small_network(), solver, rtol=rtol, stop=gf.Stationary(degrees))
    # The same steps, the last of them whole.
    steps = ds.sizes["step"]
    whole = gf.walk(references.small_network(), solver, rtol=rtol, stop=None, t_end=10.0)
    assert np.array_equal(whole["time"][: steps - 1], ds["time"][:-1])
    assert whole["time"][steps - 1] >= ds["time"][-1]
    assert 0 <= int(ds["n_gradient"][-1] - whole["n_gradient"][steps - 1]) <= 5


@pytest.mark.parametrize("solver", ["exponential", "bdf", "dopri5"])
def test_a_value_of_r_is_come_to_at_its_time(solver):
    flow, time_of, _, start = sphere()
    value = start - 2.0
    ds = gf.walk(flow, solver, rtol=1e-7, atol=0.0, stop=gf.Event("regularizer", value=value))
    assert ds.attrs["status"] == "event"
    assert ds.attrs["status_message"].startswith("regularizer came to ")
    r, time = ds["regularizer"].values, ds["time"].values
    fall = r[-2] - value + 0.3 * (r[-3] - r[-2])
    assert value - 1e-2 * fall <= r[-1] <= value
    assert (r[:-1] > value).all()
    # The walk's own error, as it has been where it comes to.
    assert math.isclose(time[-1], time_of(r[-1]), rel_tol=1e-5)


def test_an_extremum_is_recorded_and_the_steps_are_the_same():
    flow, time_of, off_axis, start = sphere()
    assert start > 0
    settings = {"rtol": 1e-6, "atol": 0.0, "stop": None, "t_end": time_of(-start)}
    plain = gf.walk(flow, **settings)
    events = [
        gf.Event(off_axis, -1, rate=True, name="furthest"),
        gf.Event(off_axis, 1, rate=True, name="nearest"),
        gf.Event(lambda theta: float(theta.norm()), value=0.0, name="never"),
        gf.Event("distance", value=off_axis(flow.problem.theta0) * 1.05, name="twice"),
    ]
    ds = gf.walk(flow, events=events, observables={"distance": off_axis}, **settings)
    mask = ds["event"].values
    assert ds["event"].attrs["flag_meanings"] == "furthest nearest never twice"
    assert ds["event"].attrs["flag_masks"].tolist() == [1, 2, 4, 8]
    (furthest,) = np.flatnonzero(mask == 1)
    assert not (mask & (2 | 4)).any()
    # Furthest from the axis at the equator, R = 0; there a function is flat, and so is its error.
    longest = plain["step_size"].values.max()
    assert abs(float(ds["time"][furthest]) - time_of(0.0)) <= 1e-2 * longest
    up, down = np.flatnonzero(mask & 8)
    assert up < furthest < down
    distances = ds["distance"].values[np.isin(ds["snapshot_step"].values, [up, down])]
    assert np.allclose(distances, off_axis(flow.problem.theta0) * 1.05, rtol=1e-3)
    # What is recorded beside the steps changes none of them.
    steps = ds.isel(step=mask == 0)
    for name in ("time", "regularizer", "error_estimate"):
        assert np.array_equal(steps[name], plain[name], equal_nan=True)
    assert np.array_equal(ds["theta"][-1], plain["theta"][-1])
    assert np.abs(ds["level_residual"]).max() <= flow.level_set.tolerance


@pytest.mark.parametrize(("direction", "found"), [(0, 2), (1, 1), (-1, 1)])
def test_a_crossing_is_seen_in_its_direction(direction, found):
    flow, time_of, off_axis, start = sphere()
    event = gf.Event(off_axis, direction, value=off_axis(flow.problem.theta0) * 1.1)
    ds = gf.walk(flow, rtol=1e-5, stop=None, t_end=time_of(-start), events=[event])
    assert np.count_nonzero(ds["event"]) == found
    assert gf.Event("angle", direction).direction == direction


def kept(path, **kwargs):
    flow, time_of, off_axis, start = sphere()
    events = [
        gf.Event("distance", -1, rate=True, name="furthest"),
        gf.Event("regularizer", value=0.5 * start),
    ]
    settings = {"rtol": 1e-5, "t_end": time_of(-start), "stop": None, "events": events}
    return gf.walk(flow, observables={"distance": off_axis}, archive=path, **settings | kwargs)


@pytest.mark.parametrize(
    "budget", [20, 30, *(pytest.param(n, marks=pytest.mark.slow) for n in (40, 45, 50))]
)
def test_resumed_a_walk_has_the_events_of_one_that_went_on(tmp_path, budget):
    whole = kept(tmp_path / "whole.nc", max_evaluations=10_000).load()
    assert np.count_nonzero(whole["event"]) == 2
    kept(tmp_path / "cut.nc", max_evaluations=budget).close()
    flow, _, off_axis, _ = sphere()
    with gf.resume(
        tmp_path / "cut.nc", flow, max_evaluations=10_000, observables={"distance": off_axis}
    ) as resumed:
        assert invariants.same(resumed, whole)
    assert gf.validate(tmp_path / "cut.nc") == []
    assert whole.attrs["geoflow_schema"] == "1.1"


@pytest.mark.parametrize("budget", [30, 40, 50])
def test_resumed_with_few_snapshots_those_of_events_are_kept_too(tmp_path, budget):
    few = {"max_snapshots": 4}
    whole = kept(tmp_path / "whole.nc", max_evaluations=10_000, **few).load()
    assert set(whole["time"].values[whole["event"] > 0]) <= set(whole["snapshot_time"].values)
    kept(tmp_path / "cut.nc", max_evaluations=budget, **few).close()
    flow, _, off_axis, _ = sphere()
    with gf.resume(
        tmp_path / "cut.nc", flow, max_evaluations=10_000, observables={"distance": off_axis}
    ) as resumed:
        assert invariants.same(resumed, whole)


def test_a_function_of_ones_own_is_given_again(tmp_path):
    flow, time_of, off_axis, start = sphere()
    path = tmp_path / "walk.nc"
    event = gf.Event(off_axis, -1, rate=True)
    kept(path, events=[event], t_end=0.1).close()
    assert gf.validate(path) == []
    again = {"observables": {"distance": off_axis}, "t_end": time_of(-start)}
    with pytest.raises(InputError, match=r"off_axis_rate.* pass events="):
        gf.resume(path, flow, **again)
    with pytest.raises(InputError, match=r"events: the walk's are .* give the same"):
        gf.resume(path, flow, events=[gf.Event(off_axis)], **again)
    with gf.resume(path, flow, events=[event], **again) as ds:
        assert np.count_nonzero(ds["event"]) == 1
    stop = tmp_path / "stop.nc"
    kept(stop, events=[], stop=gf.Event(off_axis, -1, rate=True), max_evaluations=20).close()
    with pytest.raises(InputError, match="pass stop="):
        gf.resume(stop, flow, observables=again["observables"], max_evaluations=10_000)


@pytest.mark.parametrize("solver", ["exponential", "bdf", "dopri5"])
def test_extended_from_inside_a_step_a_walk_is_the_one_that_went_there_at_once(solver, tmp_path):
    def walk(name, degrees):
        return gf.walk(
            references.small_network(),
            solver,
            rtol=1e-4,
            stop=gf.Stationary(degrees),
            max_snapshots=8,
            archive=tmp_path / name,
        )

    with walk("short.nc", 135.0) as short:
        ended = short.load()
    assert gf.validate(tmp_path / "short.nc") == []
    config = json.loads(ended.attrs["config"])
    assert config["stop"] == {"name": "Stationary", "degrees": 135.0}
    resumed = gf.resume(
        tmp_path / "short.nc", references.small_network(), stop=gf.Stationary(150.0)
    )
    with resumed, walk("long.nc", 150.0) as long:
        assert invariants.same(resumed, long)
        # Another step in the place of the one that was cut short.
        assert long["time"][ended.sizes["step"] - 1] > ended["time"][-1]


@pytest.mark.parametrize(
    "goal", [{"stop": gf.Stationary(135.0)}, {"t_end": 1e-3}, {"max_evaluations": 3}]
)
def test_a_goal_that_is_passed_is_refused_and_the_archive_stays(tmp_path, goal):
    path = tmp_path / "walk.nc"
    gf.walk(references.small_network(), stop=gf.Stationary(140.0), archive=path).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=next(iter(goal))):
        gf.resume(path, references.small_network(), **goal)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_interrupted_while_the_last_step_is_made_again_the_archive_stays(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    gf.walk(references.small_network(), stop=gf.Stationary(140.0), archive=path).close()
    before = path.read_bytes()

    def interrupted(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(gf.solvers.BDF, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gf.resume(path, references.small_network(), stop=gf.Stationary(150.0))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_a_budget_too_small_to_go_on_is_refused(tmp_path):
    path = tmp_path / "walk.nc"
    ds = gf.walk(references.small_network(), stop=gf.Stationary(140.0), archive=path)
    spent = int(ds["n_gradient"][-1])
    ds.close()
    before = path.read_bytes()
    with gf.resume(
        path, references.small_network(), stop=gf.Stationary(150.0), max_evaluations=spent + 1
    ) as further:
        assert further.attrs["status"] == "max_evaluations"
    assert path.read_bytes() != before


@pytest.mark.parametrize(
    ("function", "most"),
    [(lambda t: t - 0.3, 4), (lambda t: t**9 - 1e-3, 20), (lambda t: 1.0 if t > 0.7 else -1.0, 16)],
)
def test_a_crossing_is_located_from_behind(function, most):
    trials = []

    def level(time):
        trials.append(time)
        return function(time)

    time, found = locate(level, 1.0, (function(0.0), function(1.0)), 1e-4, 1e-3)
    assert found >= 0
    assert found <= 1e-4 or function(time - 1e-3) <= 0
    assert len(trials) <= most
    # The other way round it is the same.
    mirrored = locate(lambda t: -function(t), 1.0, (-function(0.0), -function(1.0)), 1e-4, 1e-3)
    assert mirrored == (time, -found)


def test_a_scalar_is_no_observable_of_the_flow_and_the_walk_says_so(network):
    for kwargs in ({"stop": gf.Event("nothing")}, {"events": [gf.Event("nothing")]}):
        with pytest.raises(InputError, match="the walk has no 'nothing'; use one of train_loss"):
            gf.walk(network, **kwargs)
    with pytest.raises(InputError, match="'angle' is a scalar of the flow"):
        gf.walk(network, stop=gf.Event("angle", rate=True))
    with pytest.raises(InputError, match="'event' is taken"):
        gf.walk(network, events=[gf.Event("angle")], observables={"event": lambda t: 0.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gf.Event(3), "function=3"),
        (lambda: gf.Event(""), "function=''"),
        (lambda: gf.Event("angle", 2), "direction=2"),
        (lambda: gf.Event("angle", value=math.nan), "value=nan"),
        (lambda: gf.Event("angle", value="3"), "value='3'"),
        (lambda: gf.Event("angle", rate="yes"), "rate='yes'"),
        (lambda: gf.Event("angle", np.ones(2)), "direction="),
        (lambda: gf.Event("angle", value=None), "value=None"),
        (lambda: gf.Event("angle", value=[1.0]), r"value=\[1.0\]"),
        (lambda: gf.Event("angle", value=10**400), "value=1000"),
        (lambda: gf.walk(None, stop=gf.Event), "use Stationary"),
        (lambda: gf.walk(None, solver=gf.solvers.BDF), "use one of"),
        (
            lambda: gf.walk(None, events=[gf.Event("angle", name=f"e{i}") for i in range(64)]),
            "there are 64; give at most 63",
        ),
        (lambda: gf.walk(None, events=[gf.Event(lambda t: "x", name="f")]), "event 'f': .*'x'"),
        (lambda: gf.walk(None, stop=gf.Event(lambda t: 1j, name="f")), "event 'f': .*gave 1j"),
        (lambda: gf.walk(None, stop=gf.Event(lambda t: 1 / 0, name="f")), "ZeroDivisionError"),
        (lambda: gf.walk(None, stop=gf.Event(lambda t: math.nan, name="f")), "it gave nan"),
        (lambda: gf.walk(None, checkpoint_seconds="3"), "checkpoint_seconds='3'"),
        (lambda: gf.walk(None, checkpoint_seconds=math.nan), "checkpoint_seconds=nan"),
        (lambda: gf.walk(None, provenance=[1]), "provenance="),
        (lambda: gf.walk(None, stop="Stationary:degrees=200"), "degrees=200"),
        (lambda: gf.walk(None, stop="Plateau:window=-1"), "window=-1"),
        (lambda: gf.Event("angle", name="two words"), "name='two words'"),
        (lambda: gf.walk(None, events=gf.Event("angle")), "is no list"),
        (lambda: gf.walk(None, events=[gf.Stationary()]), "use Event"),
        (lambda: gf.walk(None, events=2 * [gf.Event("angle")]), "two are called 'angle'"),
    ],
)
def test_bad_input(make, message, network, monkeypatch):
    walk = gf.walk
    monkeypatch.setattr(gf, "walk", lambda _, **kwargs: walk(network, **kwargs))
    with pytest.raises(InputError, match=message):
        make()


def test_on_the_command_line_an_event_is_a_name_with_options():
    written = gf.walk(references.small_network(), stop="Event:function=regularizer,value=100")
    assert written.attrs["status"] == "event"
    assert 99 < written["regularizer"].values[-1] <= 100
    config = json.loads(written.attrs["config"])["stop"]
    assert config == {"name": "Event", **gf.Event("regularizer", value=100).options}


def test_an_attribute_of_events_that_cannot_be_used_is_refused():
    with pytest.raises(ArchiveError, match="attribute events cannot be used"):
        gf.trajectories.schema.event_names({"events": "[1]"})


def test_a_state_inside_is_evaluated_once(network):
    state, _ = network.start(network.problem.theta0)
    solver, tolerance = gf.solvers.get("exponential"), gf.solvers.Tolerance(1e-3, 1e-6)
    result = solver.step(network, state, solver.init(network, state, tolerance), tolerance, 1.0)
    inside = Inside(network, state, result, None)
    first = inside.state(0.4 * result.time)
    with network.problem.budget(0):
        assert inside.state(0.4 * result.time) is first
        assert inside.state(0.0) is state
        assert inside.state(result.time) is result.state


def test_as_many_events_as_there_are_bits_are_kept(network):
    events = [gf.Event("angle", value=91.0 + i, name=f"e{i}") for i in range(63)]
    ds = gf.walk(network, events=events, stop=gf.Stationary(165.0))
    masks = ds["event"].values
    reached = {i for i in range(63) if (masks & (1 << i)).any()}
    started = math.floor(float(ds["angle"][0])) - 91
    assert set(range(max(started + 2, 0), 63)) <= reached


@pytest.mark.parametrize("is_stop", [True, False])
def test_an_event_that_becomes_no_number_ends_the_walk_and_is_named(network, is_stop):
    seen = []

    def function(theta):
        seen.append(theta)
        return 1.0 if len(seen) < 5 else math.nan

    event = gf.Event(function, name="mine")
    ds = gf.walk(
        network, t_end=5.0, stop=event if is_stop else None, events=[] if is_stop else [event]
    )
    assert ds.attrs["status"] == "observable_failed"
    assert "event 'mine' came to nan" in ds.attrs["status_message"]
    assert ds.sizes["step"] > 1


def test_a_stop_has_its_name_when_the_walk_is_resumed(tmp_path):
    event = gf.Event("regularizer", value=100, name="mine")
    whole = gf.walk(references.small_network(), stop=event)
    assert whole.attrs["status_message"].startswith("mine came to")
    cut = tmp_path / "cut.nc"
    gf.walk(references.small_network(), stop=event, archive=cut, max_evaluations=25).close()
    with gf.resume(cut, references.small_network(), max_evaluations=100_000) as ds:
        assert ds.attrs["status_message"] == whole.attrs["status_message"]


@pytest.mark.parametrize("solver", ["bdf", "exponential", "dopri5", "rkc"])
@pytest.mark.parametrize("stop", [gf.Stationary(150.0), gf.Event("angle", value=150.0, name="end")])
def test_an_event_at_the_goal_of_the_walk_is_recorded(network, solver, stop):
    other = gf.Event("angle", value=151.0, name="beyond")
    ds = gf.walk(network, solver, stop=stop, events=[gf.Event("angle", value=150.0), other])
    # It may be located nearer to the angle than the end is, and be a step of its own.
    assert sorted(ds["event"].values)[-2:] == [0, 1]
    assert ds["event"].values[-2:].any()
    assert float(ds["angle"][-1]) < 150.02


@pytest.mark.parametrize("value", [0.75, 0.99, 1.0 - 1e-4, 1.0])
@pytest.mark.parametrize(
    "solver",
    ["bdf", *(pytest.param(s, marks=pytest.mark.slow) for s in ("exponential", "dopri5", "rk4"))],
)
def test_what_comes_to_its_value_and_stays_is_located_where_it_comes(solver, value):
    """Of the circle's x, an accuracy that rises to 1 at once: θ is there at its time."""
    theta0 = torch.tensor([math.cos(2.0), math.sin(2.0)], dtype=torch.float64)
    flow = gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(lambda t: torch.dot(t, t), theta0)), lambda t: -t[0]
    )
    n_asked = 0

    def accuracy(theta):
        nonlocal n_asked
        n_asked += 1
        return 0.5 + 0.5 * float(theta[0] > 0.2)

    def falling(theta):
        return -accuracy(theta)

    expected = math.log(math.tan(1.0) / math.tan(math.acos(0.2) / 2))
    for event in (gf.Event(accuracy, 1, value=value), gf.Event(falling, -1, value=-value)):
        n_asked = 0
        ds = gf.walk(flow, solver, rtol=1e-6, stop=event)
        assert ds.attrs["status"] == "event"
        size = np.diff(gf.walk(flow, solver, rtol=1e-6, stop=None, t_end=1.0)["time"]).max()
        assert float(ds["time"][-1]) == pytest.approx(expected, abs=1e-3 * size + 1e-5)
        assert n_asked <= ds.sizes["step"] + 2 + 40
        beside = gf.walk(flow, solver, rtol=1e-6, stop=None, t_end=1.0, events=[event])
        at = beside["time"].values[beside["event"].values > 0]
        assert at == pytest.approx([float(ds["time"][-1])], abs=1e-12)


def test_to_come_to_a_value_is_an_event_and_to_leave_it_or_to_start_there_is_none():
    def located(before, after):
        event = gf.Event("regularizer", value=0.0)
        return event.crosses(before, after)

    assert located(-1.0, 0.0)
    assert located(1.0, 0.0)
    assert not located(0.0, 1.0)
    assert not located(0.0, -1.0)
    assert not located(0.0, 0.0)


def test_where_the_function_stays_just_beyond_the_crossing_the_step_is_halved():
    trials = []

    def level(time):
        trials.append(time)
        return -0.3 if time < 0.37 else 1e-9

    time, found = locate(level, 1.0, (-0.3, 1e-9), 5e-10, 1e-3)
    assert (found, time) == (1e-9, pytest.approx(0.37, abs=1e-3))
    # A line through both ends would come nearer by a billionth of the step.
    assert len(trials) <= 20


def test_an_event_that_writes_into_what_it_gets_changes_nothing():
    def writes(theta):
        found = float(theta[0])
        theta.zero_()
        return found

    walks = []

    def reads(theta):
        return float(theta[0])

    reads.__name__ = writes.__name__
    for function in (reads, writes):
        flow = references.oja().flow
        start = flow.problem.theta0.clone()
        event = gf.Event(function, value=1.1 * float(start[0]), name="first")
        rate = gf.Event(function, rate=True, name="rate")
        walks.append(gf.walk(flow, t_end=0.3, stop=None, events=[event, rate]))
        assert torch.equal(flow.problem.theta0, start)
    assert walks[0]["event"].values.any()
    assert invariants.same(*walks)
