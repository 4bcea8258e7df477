"""What lies in a step beside the crossing that is looked for: other events, snapshots, its end."""

import math

import numpy as np
import pytest
import torch

import geoflow as gf
import invariants
from geoflow.errors import DivergenceError, ObservableError, ProcessLostError
from geoflow.walking import ending
from geoflow.walking.crossings import Found
from geoflow.walking.events import Event

CURVED = torch.arange(1.0, 7.0, dtype=torch.float64)
SLOW = 1e-2


def ellipsoid():
    """R = −θ·S·θ/2 on a sphere."""
    start = torch.from_numpy(np.random.default_rng(1).standard_normal(6) * 1.3)
    problem = gf.Problem.from_function(lambda theta: theta @ theta, start)
    return gf.RegularizingFlow(gf.LevelSet(problem), curved)


def curved(theta):
    return -SLOW * (theta @ (CURVED * theta)) / 2


def circle():
    problem = gf.Problem.from_function(
        lambda theta: theta @ theta, torch.tensor([1.0, 1.0], dtype=torch.float64)
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[0])


@pytest.mark.parametrize(
    "solver",
    ["bdf", *(pytest.param(s, marks=pytest.mark.slow) for s in ("exponential", "dopri5", "rkc"))],
)
def test_events_at_one_point_are_all_recorded(solver):
    settings = {"rtol": 1e-5, "t_end": 3.0 / SLOW, "stop": None}
    r = gf.walk(ellipsoid(), solver, **settings)["regularizer"].values
    for value in np.linspace(r[1], r[-2], 7):
        # The same crossing, to rounding.
        events = [
            gf.Event("regularizer", value=value),
            gf.Event(lambda t: float(curved(t)), value=value, name="own"),
            gf.Event(lambda t: float(t @ (CURVED * t)), value=-2 * value / SLOW, name="other"),
            gf.Event(lambda t: 1e3 * float(curved(t)), value=1e3 * value, name="large"),
        ]
        ds = gf.walk(ellipsoid(), solver, events=events, **settings)
        masks = ds["event"].values
        assert [int((masks >> i & 1).sum()) for i in range(4)] == [1, 1, 1, 1]
        assert (np.diff(ds["time"]) > 0).all()
        assert (ds["regularizer"].values[masks > 0] <= value + 1e-12 * abs(value)).all()


class Placed:
    """In the place of a seeker: what is found in each step, by parts of it."""

    n_recorded = 2

    def __init__(self, times):
        self.times = times

    def look(self, inside, before):
        found = [
            Found(time(inside.duration), inside.state(time(inside.duration)), mask)
            for time, mask in self.times
        ]
        return [*found, Found(inside.duration, inside.state(inside.duration), 0)], None, []


@pytest.mark.parametrize(
    ("late", "where"),
    [(lambda h: math.nextafter(h, 0.0), "end"), (lambda h: 1e-30 * h, "begin")],
)
def test_an_event_within_rounding_of_an_end_of_its_step_is_kept(late, where, monkeypatch):
    plain = gf.walk(circle(), "exponential", rtol=1e-5, t_end=1.0, stop=None)
    seeker = Placed([(late, 1), (late, 2)])
    monkeypatch.setattr("geoflow.walking.loop.Seeker", lambda *args: seeker)
    event = gf.Event("angle", value=1.0)
    another = gf.Event("regularizer", value=9.0)
    ds = gf.walk(circle(), "exponential", rtol=1e-5, t_end=1.0, stop=None, events=[event, another])
    masks, time = ds["event"].values, ds["time"].values
    n = plain.sizes["step"] - 1
    assert masks[masks > 0].tolist() == [3] * n
    assert (np.diff(time) > 0).all()
    # The ends of the steps are as they were.
    at = np.isin(time, plain["time"].values)
    assert at.sum() == n + 1
    assert np.array_equal(ds["regularizer"].values[at], plain["regularizer"].values)
    if where == "begin":
        # From the second step on, at the next time there is.
        begun = plain["time"].values[1:-1]
        assert np.isin(np.nextafter(begun, math.inf), time[masks == 3]).all()


@pytest.mark.parametrize("solver", ["bdf", "exponential", "dopri5"])
@pytest.mark.parametrize("n", [1, 5, pytest.param(2, marks=pytest.mark.slow)])
def test_snapshots_in_the_step_that_a_walk_ends_in_are_kept(solver, n, tmp_path):
    whole = gf.walk(circle(), solver, t_end=1.0, stop=None)
    k = whole.sizes["step"] // 2
    time, r = whole["time"].values, whole["regularizer"].values
    # In the last step, some before the walk ends and one after.
    times = [*np.linspace(time[k], time[k + 1], 2 * n + 2)[1 : n + 1], time[k + 1]]
    value = 0.05 * r[k] + 0.95 * r[k + 1]
    path = tmp_path / "walk.nc"
    settings = {"snapshot_times": times, "stop": gf.Event("regularizer", value=value)}
    with gf.walk(circle(), solver, t_end=1.0, archive=path, **settings) as ds:
        assert ds.attrs["status"] == "event"
        assert ds["snapshot_time"].values.tolist() == times[:-1]
        assert time[k] < ds["time"][-1] < time[k + 1]
    # Gone on with, it has each once.
    with (
        gf.resume(path, circle(), t_end=1.0) as resumed,
        gf.walk(circle(), solver, t_end=1.0, stop=None, snapshot_times=times) as at_once,
    ):
        assert resumed["snapshot_time"].values.tolist() == times
        assert invariants.same(resumed, at_once)


@pytest.mark.parametrize("solver", ["bdf", "exponential", "rk4"])
@pytest.mark.parametrize("rule", [{"max_snapshots": 5}, {"snapshot_every": 0.125}])
def test_ended_at_the_end_of_a_step_it_is_the_walk_that_went_on(solver, rule, tmp_path):
    settings = {"rtol": 1e-4, "t_end": 1.0, **rule}
    if solver == "rk4":
        settings["reproject_every"] = 0.02
    whole = gf.walk(circle(), solver, stop=None, **settings)
    # Of the records some may be snapshots within a step.
    plain = whole if solver == "rk4" else gf.walk(circle(), solver, 1e-4, t_end=1.0, stop=None)
    step = plain.sizes["step"] // 2
    value, time = float(plain["regularizer"][step]), float(plain["time"][step])
    path = tmp_path / "walk.nc"
    stop = gf.Event("regularizer", value=value)
    with gf.walk(circle(), solver, stop=stop, archive=path, **settings) as ds:
        assert ds.attrs["status"] == "event"
        assert ds["time"][-1] == time
        if "snapshot_every" in rule:
            asked = whole["snapshot_time"].values
            assert np.array_equal(ds["snapshot_time"], asked[asked <= time])
    with gf.resume(path, circle(), t_end=1.0) as resumed:
        for name in ("n_gradient", "n_hvp", "n_reprojection", "theta", "time"):
            assert np.array_equal(resumed[name], whole[name]), name


def one_over_zero(theta):
    return 1.0 if theta[0] > 0.9 else 1 / 0


def root_below_zero(theta):
    return 1.0 if theta[0] > 0.9 else math.sqrt(-1.0)


def nothing(theta):
    return 1.0 if theta[0] > 0.9 else None


def not_there(theta):
    return 1.0 if theta[0] > 0.9 else [][1]


def not_real(theta):
    return 1.0 if theta[0] > 0.9 else np.complex128(1 + 2j)


@pytest.mark.parametrize("rate", [False, True])
@pytest.mark.parametrize(
    ("function", "said"),
    [
        (one_over_zero, "ZeroDivisionError: division by zero"),
        (root_below_zero, "ValueError: "),
        (nothing, "TypeError: "),
        (not_there, "IndexError: list index out of range"),
        (not_real, r"TypeError: (1+2j) is complex"),
    ],
)
@pytest.mark.parametrize("is_stop", [False, True])
def test_the_function_of_an_event_that_raises_ends_the_walk_and_is_named(
    function, said, is_stop, rate
):
    event = Event(function, value=0.5, rate=rate, name="mine")
    given = {"stop": event} if is_stop else {"stop": None, "events": [event]}
    ds = gf.walk(circle(), "bdf", t_end=1.0, **given)
    assert ds.attrs["status"] == "observable_failed"
    assert f"the function of event 'mine' raised {said}" in ds.attrs["status_message"]
    assert ds.sizes["step"] > 1


def test_an_observable_by_its_name_in_an_event_is_named_too():
    ds = gf.walk(
        circle(),
        t_end=1.0,
        stop=None,
        observables={"norm": one_over_zero},
        events=[Event("norm", value=0.5)],
        snapshot_times=[1.0],
    )
    assert ds.attrs["status"] == "observable_failed"
    assert "event 'norm' raised ZeroDivisionError" in ds.attrs["status_message"]


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (ProcessLostError("process 1 has ended"), "process_lost"),
        (DivergenceError("not the same"), "processes_diverged"),
        (ZeroDivisionError("division by zero"), "observable_failed"),
    ],
)
def test_a_process_lost_in_a_users_function_is_a_process_lost(cause, status):
    error = ObservableError(f"observables['x'] raised {cause}")
    error.__cause__ = cause
    assert ending.of_error(error, 1) == (status, str(cause if status[0] == "p" else error))
