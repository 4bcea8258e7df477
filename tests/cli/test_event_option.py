"""``geoflow run --event``: noted on the way, kept in the file, and noted again by ``--like``."""

import json
from pathlib import Path

import numpy as np
import pytest

import geoflow as gf
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DONE
from geoflow.report import report

PROBLEM = """
import torch
import geoflow as gf

def ring(seed):
    return gf.experiments.PreparedExperiment(
        gf.Problem.from_function(
            lambda theta: theta[0] ** 2 + 4 * theta[1] ** 2,
            torch.tensor([0.6, 0.4], dtype=torch.float64)),
        observables={"first": lambda theta: float(theta[0])})
"""
RUN = ["run", "--problem", "ring.py:ring", "--quiet", "--t-end", "3", "--angle", "179.9"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ring.py").write_text(PROBLEM, encoding="utf-8")


def test_events_are_recorded_and_the_walk_goes_on_and_again_with_like():
    events = ["--event", "regularizer:value=0.4,name=low", "--event", "first:value=0.5"]
    assert cli.main([*RUN, *events, "--out", "a.nc"]) == DONE
    like = ["run", "--like", "a.nc", "--problem", "ring.py:ring", "--quiet", "--out"]
    assert cli.main([*like, "b.nc"]) == DONE
    with gf.open_trajectory("a.nc") as ds:
        assert json.loads(ds.attrs["events"]) == ["low", "first"]
        low = ds.regularizer.values[ds.event.values == 1]
        assert low == pytest.approx([0.4], rel=1e-3)
        assert ds.sizes["step"] > np.flatnonzero(ds.event.values).max() + 1
    assert cli.main(["diff", "a.nc", "b.nc"]) == DONE
    assert cli.main([*like, "c.nc", "--event", "regularizer:value=0.45"]) == DONE
    with gf.open_trajectory("c.nc") as ds:
        assert json.loads(ds.attrs["events"]) == ["regularizer"]


@pytest.mark.slow
def test_a_walk_that_stops_at_an_event_has_reached_its_goal(capsys):
    stop = ["--stop", "Event:function=regularizer,value=0.4"]
    own = ["--problem", "ring.py:ring", "--quiet", *stop]
    assert cli.main(["run", *own, "--out", "a.nc"]) == DONE
    assert cli.main(["sweep", *own, "--seeds", "0", "--workers", "1", "--out", "s"]) == DONE
    for path in ("a.nc", "s/seed-0000.nc"):
        with gf.open_trajectory(path) as ds:
            assert ds.attrs["status"] == "event"
    (section,) = report(["a.nc"], "page.html")
    assert section.warnings == []


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (["nope"], "the walk has no 'nope'"),
        (["angle:foo=1"], "its options are value, direction, rate and name"),
        (["angle:value=x"], "each value a number"),
        (["angle:value=90", "angle:value=91"], "two are called 'angle'"),
        ([""], "function=''"),
    ],
)
def test_what_is_no_event_is_one_line(events, said, capsys):
    given = [word for text in events for word in ("--event", text)]
    assert cli.main([*RUN, *given]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("geoflow: error: ")
    assert said in line
