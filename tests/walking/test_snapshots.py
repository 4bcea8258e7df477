import math

import numpy as np
import pytest

import geoflow as gf
import references
from geoflow.errors import InputError, NumericalError
from geoflow.walking.snapshots import AtTimes, Every, Thinned, between, rule_for


def kept_after(rule, arcs):
    kept = []
    for step, arc in enumerate(arcs):
        keep, dropped = rule.offer(step, float(arc), float(arc))
        kept = [k for k in kept if k not in dropped] + [step] * keep
    return kept


@pytest.mark.parametrize("limit", [2, 3, 10, 100])
@pytest.mark.parametrize("n", [1, 5, 99, 100, 1000, 5000])
def test_thinned_keeps_the_first_and_leaves_a_place_for_the_last(limit, n):
    rng = np.random.default_rng(n)
    kept = kept_after(Thinned(limit), np.cumsum(rng.exponential(size=n)))
    assert kept[0] == 0
    assert len(kept) <= max(limit - 1, 1)
    assert kept == sorted(set(kept))


def test_thinned_keeps_everything_where_there_is_room():
    assert kept_after(Thinned(101), np.arange(100.0)) == list(range(100))


def test_thinned_is_even_in_arc_length_whatever_the_steps():
    # Steps that shrink by a factor of a thousand on the way.
    arcs = np.cumsum(np.geomspace(1, 1e-3, 4000))
    kept = kept_after(Thinned(50), arcs)
    gaps = np.diff(arcs[kept])
    largest_step = 1.0
    assert len(kept) >= 20
    assert gaps.max() <= 2.5 * gaps.min() + 2 * largest_step


def test_thinned_doubles_its_spacing_where_there_is_no_room():
    rule = Thinned(5)
    # Four places and one for the walk's end. The first spacing is the arc over those four; each
    # time there is no room it doubles, and what lies closer than that is dropped.
    arcs = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    offers = [rule.offer(step, arc, arc) for step, arc in enumerate(arcs)]
    assert offers == [
        (True, []),
        (True, []),
        (True, []),
        (True, []),
        (True, [1, 3]),
        (False, []),
        (True, []),
        (False, []),
        (True, [2, 6]),
    ]
    assert rule.spacing == 4.0


def test_two_snapshots_are_the_first_and_the_last():
    rule = Thinned(2)
    assert [rule.offer(k, k, float(k)) for k in range(4)] == [(True, [])] + 3 * [(False, [])]
    assert rule.keeps_last
    assert rule.next_time(0.3) == math.inf


def test_a_walk_has_one_rule():
    assert isinstance(rule_for([1.0], None, 10), AtTimes)
    assert isinstance(rule_for(None, 0.5, 10), Every)
    assert rule_for(None, None, 10).limit == 10
    assert not rule_for([1.0], None, 10).keeps_last
    assert not rule_for(None, 0.5, 10).keeps_last
    with pytest.raises(InputError, match="choose one"):
        rule_for([1.0], 0.5, 10)


def test_at_times_and_every_name_the_next_time_and_keep_it_exactly():
    rule = AtTimes([0.0, 0.1, 0.7])
    assert rule.next_time(0.0) == 0.1
    assert rule.next_time(0.7) == math.inf
    assert [rule.offer(0, t, 0)[0] for t in (0.0, 0.05, 0.7)] == [True, False, True]
    every = Every(0.1)
    times = [0.0]
    while times[-1] < 2:
        times.append(every.next_time(times[-1]))
    assert np.allclose(times, 0.1 * np.arange(len(times)), rtol=1e-14)
    assert all(every.offer(0, t, 0)[0] for t in times)
    assert not every.offer(0, 0.15, 0)[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AtTimes([]), "snapshot_times"),
        (lambda: AtTimes([1.0, 0.5]), "snapshot_times"),
        (lambda: AtTimes([1.0, 1.0]), "snapshot_times"),
        (lambda: AtTimes([math.nan]), "snapshot_times"),
        (lambda: Every(math.inf), "snapshot_every=inf"),
        (lambda: AtTimes([-1.0]), "snapshot_times"),
        (lambda: AtTimes([math.inf]), "snapshot_times"),
        (lambda: Every(0.0), "snapshot_every=0.0"),
        (lambda: AtTimes(range(40_001)), "there are 40,001; give at most 40,000"),
        (lambda: Thinned(1), "max_snapshots=1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize("interval", [0.1, 0.3, 1 / 3, 1.0])
def test_the_next_multiple_is_the_one_after_whatever_the_division_rounds_to(interval):
    rule = Every(interval)
    for n in range(200):
        assert rule.next_time(n * interval) == (n + 1) * interval
        assert rule.next_time(math.nextafter(n * interval, math.inf)) == (n + 1) * interval
        if n:
            assert rule.next_time(math.nextafter(n * interval, 0)) == n * interval


def test_where_nothing_moves_thinned_keeps_what_there_is_room_for():
    rule = Thinned(4)
    offers = [rule.offer(step, float(step), 0.0) for step in range(6)]
    assert offers == [(True, [])] * 3 + [(False, [])] * 3
    # And goes on where something does again.
    assert rule.offer(6, 6.0, 1.0)[0]


@pytest.mark.parametrize("solver", ["bdf", "rk4"])
@pytest.mark.parametrize("interval", [1e-300, 1e-20, 1e-9])
def test_more_snapshots_than_a_step_can_hold_are_refused_and_nothing_is_left(
    solver, interval, tmp_path
):
    def walk():
        return gf.walk(
            references.sphere_linear().flow,
            solver,
            snapshot_every=interval,
            t_end=1e-2,
            stop=None,
            max_evaluations=300,
            archive=tmp_path / "a.nc",
        )

    if solver == "bdf":
        with pytest.raises(InputError, match=f"snapshot_every={interval:g}: a step of"):
            walk()
        assert not any(tmp_path.iterdir())
    else:
        ended = ("numerical_failure", "step_size_underflow", "max_steps", "max_evaluations")
        assert walk().attrs["status"] in ended


def test_a_later_step_with_too_many_ends_the_walk():
    with pytest.raises(NumericalError, match=r"a step of 0\.5 holds more than 100,000 of these"):
        between(Every(1e-9), 0.5, 1.0)


def test_multiples_below_the_rounding_of_the_time_are_refused():
    last = 2.0**53
    assert Every(1.0).next_time(last - 2) == last - 1
    with pytest.raises(NumericalError, match="its multiples are below rounding"):
        Every(1.0).next_time(last + 8)


def test_a_time_beside_a_multiple_is_none():
    every = Every(0.1)
    assert every.offer(0, 3 * 0.1, 0)[0]
    assert not every.offer(0, 3 * 0.1 + 1e-12, 0)[0]
