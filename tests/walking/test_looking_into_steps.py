"""What is found inside a step, of functions of its time alone: where, in which order, how fast."""

import math
from types import SimpleNamespace

import pytest
import torch

import references
from geoflow.walking.crossings import Seeker
from geoflow.walking.events import Point, locate
from geoflow.walking.inside import Inside


class Step:
    """A step of duration 1 whose state holds its own time, in θ and beside it."""

    duration = 1.0

    def flat(self, time):
        assert 0 <= time <= self.duration
        return torch.full((8,), time, dtype=torch.float64)

    def state(self, time):
        return SimpleNamespace(flat=self.flat(time))


class Passing:
    """Time passes an instant: a crossing that is located as closely as it is told."""

    within = 1e-12

    def __init__(self, instant, located=1e-9):
        self.instant, self.located = instant, located

    def level(self, at):
        return at.time - self.instant

    def crosses(self, before, after):
        return before < 0 <= after

    def tolerance(self, before, after):
        return self.located

    def message(self, level):
        return "event", f"{level:.3f}"


def found_in(events, stop=None, before=()):
    found, end, after = Seeker(None, {}, events, stop).look(Step(), before)
    return [(round(at.time, 3), at.events) for at in found], end, after


def test_events_of_one_instant_are_one_point_and_all_are_in_order():
    events = [Passing(0.75), Passing(0.25), Passing(0.75), Passing(1.5)]
    points, end, after = found_in(events)
    assert points == [(0.25, 0b10), (0.75, 0b101), (1.0, 0)]
    assert end is None
    assert after == pytest.approx([0.25, 0.75, 0.25, -0.5])


def test_what_is_crossed_before_the_end_of_a_walk_is_of_it_and_nothing_after_it():
    # The first is located at 0.503, after the end; so is the second, which is crossed there.
    events = [Passing(0.5, 0.01), Passing(0.502, 0.01), Passing(0.9), Passing(0.1)]
    points, end, _ = found_in(events, Passing(0.501))
    assert points == [(0.1, 0b1000), (0.501, 0b1)]
    assert end == ("event", "0.000")


def test_a_step_begins_where_the_one_before_left_it():
    # A level that the last step came to is not crossed again; of a new one this step tells.
    points, _, _ = found_in([Passing(0.5), Passing(0.25)], before=[0.0])
    assert points == [(0.25, 0b10), (1.0, 0)]


@pytest.mark.parametrize("turned", [False, True])
def test_a_curved_function_is_located_in_a_dozen_trials_from_either_side(turned):
    trials = []

    def level(time):
        trials.append(time)
        return 5 - math.exp(8 * (1 - time)) if turned else math.exp(8 * time) - 5

    tolerance = 1e-6 * math.exp(8)
    time, found = locate(level, 1.0, (level(0.0), level(1.0)), tolerance, 1e-9)
    exact = math.log(5) / 8
    assert 0 <= found <= tolerance
    assert time == pytest.approx(1 - exact if turned else exact, abs=1e-3)
    assert len(trials) - 2 <= 12


@pytest.mark.parametrize(
    ("time", "expected"),
    # A thousandth of the step to each side, or to that which is of the step.
    [(0.5, 0.75 + 1e-6), (0.0, 1e-6), (1.0, 3 - 3e-3 + 1e-6)],
)
def test_a_rate_is_by_central_differences_as_far_as_the_step_goes(time, expected):
    point = Point(references.sphere_linear().flow, {}, Step(), time)
    sizes = []

    def cube(theta):
        sizes.append(len(theta))
        return float(theta[0]) ** 3

    assert point.rate(cube, "cube") == pytest.approx(expected, rel=1e-9)
    # Of θ alone, whatever the state holds beside it.
    assert sizes == [6, 6]


@pytest.mark.parametrize(
    ("known", "around"),
    [
        ([0.0, 1.0], [0.0, 1.0]),
        ([0.0, 0.4, 0.5, 1.0], [0.0, 0.4, 0.5, 1.0]),
        # Those nearer to the inner two than half of what these are apart are passed over.
        ([0.0, 0.3, 0.38, 0.4, 0.5, 0.52, 0.6, 1.0], [0.3, 0.4, 0.5, 0.6]),
        ([0.0, 0.5, 0.7, 1.0], [0.0, 0.5, 1.0]),
    ],
)
def test_a_correction_is_made_of_two_on_each_side(known, around):
    inside = object.__new__(Inside)
    inside.corrections = dict.fromkeys(known)
    assert inside._around(0.45 if 0.4 in known else 0.2) == around
