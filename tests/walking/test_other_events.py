"""An event's function of the same name is taken up only where its value is the walk's."""

import numpy as np
import pytest
import torch

import geoflow as gf
import invariants
import references
from geoflow.errors import ArchiveError

BUDGET = 30


def size(factor=1.0):
    def squared(theta):
        return factor * float(theta @ theta)

    return squared


def event(factor=1.0, **options):
    return gf.Event(size(factor), -1, value=60.0, **options)


def cut(path, **options):
    settings = {"max_evaluations": BUDGET, "archive": path} | options
    gf.walk(references.small_network(), **settings).close()


@pytest.mark.parametrize(
    "factor",
    [*(pytest.param(f, marks=pytest.mark.slow) for f in (0.5, 1.5)), 1 + 1e-6],
)
@pytest.mark.parametrize("as_stop", [False, True])
def test_another_function_is_refused_and_the_archive_stays(factor, as_stop, tmp_path):
    def given(factor):
        return {"stop": event(factor)} if as_stop else {"events": [event(factor)]}

    path = tmp_path / "walk.nc"
    cut(path, **given(1.0))
    before = path.read_bytes()
    further = {"max_evaluations": 60}
    with pytest.raises(ArchiveError, match=r"the function of event 'squared' is .* recorded"):
        gf.resume(path, references.small_network(), **further, **given(factor))
    assert path.read_bytes() == before
    with gf.resume(path, references.small_network(), **further, **given(1.0)) as ds:
        at_once = tmp_path / "whole.nc"
        with gf.walk(references.small_network(), archive=at_once, **further, **given(1.0)) as whole:
            assert invariants.same(ds, whole)


def test_a_rate_and_another_stop_are_taken(tmp_path):
    path = tmp_path / "walk.nc"
    rate = gf.Event(size(), -1, rate=True)
    cut(path, stop=event(), events=[rate])
    another = event(0.5, name="half")
    with gf.resume(
        path, references.small_network(), stop=another, events=[rate], max_evaluations=60
    ) as ds:
        assert np.all(np.diff(ds["time"]) > 0)


def test_where_another_stop_stood_says_nothing_of_the_one_that_takes_its_place(tmp_path):
    def flow():
        """On a circle, down to within 1 of a point: R is below 0.5 nowhere."""
        theta0 = torch.tensor([-1.2, 1.6], dtype=torch.float64)
        problem = gf.Problem.from_function(lambda t: t @ t, theta0)
        point = torch.tensor([3.0, 0.0], dtype=torch.float64)
        return gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - point).square().sum())

    path = tmp_path / "walk.nc"
    gf.walk(flow(), t_end=0.05, stop=gf.Stationary(175.0), archive=path).close()
    with gf.resume(path, flow(), t_end=0.1, stop=gf.Event("regularizer", value=0.5)) as ds:
        assert ds.status == "t_end"
