"""From level to level: how the way is divided where a level is not reached at once."""

from types import SimpleNamespace

import pytest

import geoflow as gf
import references
from geoflow.paths import continuation
from geoflow.paths.branch import FarError, Reached
from geoflow.paths.continuation import MAX_HALVINGS, Continuation
from geoflow.paths.learned import Bearing

REFUSED = gf.ConvergenceError("refused", iterations=1, residual=1.0, reason="kkt")


def at(level):
    flow = SimpleNamespace(level_set=SimpleNamespace(level=level))
    return Reached(None, flow, "corrector", 0, 1)


def following(monkeypatch, fails):
    """A continuation whose steps fail where told so; and the levels that it tries."""
    tried = []

    def step(self, level, before):
        tried.append(level)
        if fails(before.c, level):
            raise REFUSED
        return at(level)

    monkeypatch.setattr(Continuation, "_step", step)
    monkeypatch.setattr(continuation, "check_near", lambda before, after: None)
    monkeypatch.setattr(continuation, "check_no_fold", lambda before, after: None)
    found = Continuation(references.sphere_linear().flow, 1e-3, 179.0)
    found.left = 100
    return found, tried


def test_a_way_that_was_halved_is_doubled_after_its_second_step(monkeypatch):
    # From L = 1 no step comes further than to 2, from 2 to 4; then 256 is near.
    furthest = {1.0: 2.0, 2.0: 4.0, 4.0: 16.0, 16.0: 256.0}
    path, tried = following(monkeypatch, lambda here, level: level > 1.01 * furthest[round(here)])
    reached = path.to(256.0, at(1.0), 100)
    assert tried == pytest.approx([256, 16, 4, 2, 4, 16, 256])
    assert (reached.c, reached.n_between, reached.n_corrections) == (256.0, 3, 4)


def test_a_way_is_halved_eight_times_and_no_more(monkeypatch):
    path, tried = following(monkeypatch, lambda here, level: True)
    with pytest.raises(gf.ConvergenceError, match="refused"):
        path.to(256.0, at(1.0), 100)
    assert tried == pytest.approx([2.0 ** (8 / 2**k) for k in range(MAX_HALVINGS + 1)])
    assert MAX_HALVINGS == 8


def test_only_the_shortest_steps_are_let_off_being_near(monkeypatch):
    path, tried = following(monkeypatch, lambda here, level: False)

    def far(before, after):
        raise FarError

    monkeypatch.setattr(continuation, "check_near", far)
    reached = path.to(4.0, at(1.0), 10_000)
    # What is too far is tried from nearer, down to one 256th of the way.
    assert tried[8] == pytest.approx(4 ** (1 / 256))
    assert path.refused
    assert reached.c == 4.0
    assert reached.n_between == reached.n_corrections - 1 == 255


def test_a_new_level_is_come_to_without_the_bearing_of_an_arc_before(monkeypatch):
    path, _ = following(monkeypatch, lambda here, level: False)
    path.memory.bearing = Bearing(None, 1.0, 1.0)
    path.to(4.0, at(1.0), 100)
    assert path.memory.bearing is None


@pytest.mark.parametrize(
    ("ends", "levels", "here", "passed"),
    [
        # The first that lies between them, whichever way, but not where the way began.
        ((1.0, 5.0), [3.0, 4.0, 2.0, 6.0], 9.0, 2.0),
        ((5.0, 1.0), [3.0, 4.0, 2.0, 6.0], 9.0, 4.0),
        ((1.0, 5.0), [2.0, 3.0], 2.00001, 3.0),
        ((1.0, 5.0), [2.0, 3.0], 2.0001, 2.0),
        ((1.0, 5.0), [1.0, 5.0, 0.5], 9.0, None),
    ],
)
def test_the_level_passed_is_the_first_on_the_way(ends, levels, here, passed):
    assert continuation._passed(*ends, levels, here) == passed
