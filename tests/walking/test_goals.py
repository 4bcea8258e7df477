import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError
from geoflow.walking.stopping import Goals, from_config


def record(time, regularizer=1.0, angle=100.0):
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    return {
        "angle": angle,
        "tangent_norm": sine,
        "multiplier": -cosine,
        "gradient_norm": 1.0,
        "time": time,
        "regularizer": regularizer,
    }


def test_without_goals_a_budget_is_left():
    goals = Goals.checked(None, None, None)
    assert goals.config == {"t_end": None, "stop": None, "max_evaluations": 100_000}
    assert goals.look_back == 0
    assert goals.judge([record(1e9, angle=179.9)]) is None


def test_the_time_is_reached_at_the_time_itself_and_the_criterion_comes_first():
    goals = Goals.checked(2.0, gf.Stationary(), 7)
    stop = {"name": "Stationary", "degrees": 175.0}
    assert goals.config == {"t_end": 2.0, "stop": stop, "max_evaluations": 7}
    assert goals.judge([record(1.99)]) is None
    assert goals.judge([record(2.0)])[0] == "t_end"
    assert goals.judge([record(2.5)])[0] == "t_end"
    assert goals.judge([record(2.0, angle=176.0)])[0] == "stationary"


def test_records_are_kept_as_far_back_as_the_criterion_looks():
    assert Goals.checked(None, gf.Stationary(), None).look_back == 0
    assert Goals.checked(None, gf.Plateau(window=3.0), None).look_back == 3.0
    assert Goals.checked(None, lambda records: None, None).look_back == math.inf


@pytest.mark.parametrize("stop", [gf.Stationary(), gf.Stationary(120.0), gf.Plateau(2.0, 1e-3)])
def test_a_criterion_is_made_again_from_its_name_and_options(stop):
    config = {"name": type(stop).__name__, **stop.options}
    again = from_config(config)
    assert type(again) is type(stop)
    assert again.options == stop.options


@pytest.mark.parametrize("config", [{"name": "Mine"}, {"name": "Plateau", "degrees": 3.0}, {}])
def test_a_criterion_of_ones_own_must_be_passed_again(config):
    with pytest.raises(InputError, match="pass stop="):
        from_config(config)


def circle():
    """A quarter of a turn to go, in many steps."""
    start = torch.tensor([0.0, -1.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: t.square().sum(), start)
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t[0] + 2 * t[1].square())


class Ends:
    """A criterion that ends a walk at its fourth record, as it is told."""

    def __init__(self, end):
        self.end, self.options = end, {}

    def __call__(self, records):
        return self.end if len(records) == 4 else None


@pytest.mark.parametrize("walked", [gf.walk, gf.baselines.predictor_corrector])
@pytest.mark.parametrize("end", [1, True, "xy", ("event",), ("event", 3), ("flat", "R is flat")])
def test_what_a_criterion_returns_that_ends_no_walk_is_named_and_the_walk_kept(walked, end):
    ds = walked(circle(), stop=Ends(end), max_evaluations=60)
    assert (ds.attrs["status"], ds.sizes["step"]) == ("evaluation_failed", 4)
    assert f"stop=Ends returned {end!r}; return None to go on, or" in ds.attrs["status_message"]
    ds = walked(circle(), stop=Ends([np.str_("event"), "R is flat"]), max_evaluations=60)
    assert (ds.attrs["status"], ds.attrs["status_message"]) == ("event", "R is flat")


def test_an_archive_is_written_whatever_a_criterion_of_ones_own_calls_its_end(tmp_path):
    path = tmp_path / "walk.nc"
    gf.walk(circle(), stop=Ends(("flat", "R is flat")), archive=path)
    assert gf.validate(path) == []
    assert "the status one of stationary, t_end" in gf.open_trajectory(path).status_message


@pytest.mark.parametrize("fall", [0.0099, 0.0101])
def test_a_plateau_is_judged_against_the_last_step_a_window_or_more_ago(fall):
    # The steps at 0 and 0.9 lie outside: one too far back, one within the window.
    records = [record(0.0, 5.0), record(0.5, -2.0), record(0.9, 7.0), record(1.5, -2.0 - 2 * fall)]
    end = gf.Plateau(window=1.0, rtol=0.01)(records)
    assert (end is not None) == (fall < 0.01)


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ((0.0, None, None), "t_end=0.0"),
        ((math.nan, None, None), "t_end=nan"),
        ((None, None, 0), "max_evaluations=0"),
    ],
)
def test_bad_goals(goals, message):
    with pytest.raises(InputError, match=message):
        Goals.checked(*goals)
