"""Paths down an R that evaluates problems of its own: these have a budget, and what they cost."""

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.archive import path_files
from geoflow.errors import EvaluationLimitError
from geoflow.paths.continuation import Continuation, at_level
from geoflow.trajectories import path_schema

START = torch.tensor([0.9, -1.3, 0.4, 0.8, -0.2], dtype=torch.float64)
STEEP = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5], dtype=torch.float64)
FAR = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0], dtype=torch.float64)


def loss(theta):
    return (STEEP * (theta - FAR).square()).sum() + 0.1


def flow():
    """Down a sum of two problems: each evaluation of R takes one of both."""
    here, square, quartic = (
        gf.Problem.from_function(function, START)
        for function in (loss, lambda t: t @ t, lambda t: (t**4).sum())
    )
    both = gf.regularizers.weighted_sum((1.0, square), (0.1, quartic))
    return gf.RegularizingFlow(gf.LevelSet(here), both)


def levels(a_flow):
    return [a_flow.level_set.level * k for k in (1.1, 1.2, 1.3)]


def spent(a_flow):
    return sum(problem.evaluations for problem in a_flow.regularizer_problems)


def test_a_path_has_what_the_problems_of_r_cost(tmp_path):
    a_flow = flow()
    own, of_r = a_flow.problem.evaluations, spent(a_flow)
    archive = tmp_path / "path.nc"
    with gf.regularization_path(a_flow, levels(a_flow), 179.0, archive=archive) as ds:
        assert ds.attrs["status"] == "complete"
        assert ds.attrs["geoflow_path"] == path_schema.WITH_COST_OF_R
        assert int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]) == a_flow.problem.evaluations - own
        assert int(ds["n_regularizer_gradient"][-1]) == spent(a_flow) - of_r > 0
        assert (np.diff(ds["n_regularizer_gradient"]) > 0).all()
    assert gf.validate(archive) == []
    # Where R evaluates nothing there is no such variable.
    plain = gf.RegularizingFlow(a_flow.level_set, lambda t: t @ t)
    ds = gf.regularization_path(plain, levels(plain), 179.0)
    assert "n_regularizer_gradient" not in ds
    assert ds.attrs["geoflow_path"] == path_schema.VERSION


@pytest.mark.parametrize("part", [0.5, 0.8, 0.95])
def test_r_takes_no_more_than_the_budget_of_the_path(part):
    whole = gf.regularization_path(flow(), levels(flow()), 179.0)
    n_first, n_all = (int(whole["n_regularizer_gradient"][i]) for i in (0, -1))
    budget = int(n_first + part * (n_all - n_first))
    a_flow = flow()
    own, of_r = a_flow.problem.evaluations, spent(a_flow)
    ds = gf.regularization_path(a_flow, levels(a_flow), 179.0, max_evaluations=budget)
    assert ds.attrs["status"] == "max_evaluations"
    assert 0 < ds.sizes["level"] < whole.sizes["level"]
    assert a_flow.problem.evaluations - own <= budget
    assert budget - 4 <= spent(a_flow) - of_r <= budget


def test_a_path_that_was_cut_off_goes_on_with_what_r_has_left(tmp_path, monkeypatch):
    whole = gf.regularization_path(flow(), levels(flow()), 179.0)
    budget = int(whole["n_regularizer_gradient"][2]) + 5
    expected = gf.regularization_path(flow(), levels(flow()), 179.0, max_evaluations=budget)
    assert expected.sizes["level"] == 3
    archive = tmp_path / "path.nc"
    record = gf.paths.recording.Recording._record

    def cut(self, reached):
        if len(self.points) == 2:
            raise KeyboardInterrupt
        return record(self, reached)

    with monkeypatch.context() as patch:
        patch.setattr(gf.paths.recording.Recording, "_record", cut)
        with pytest.raises(KeyboardInterrupt):
            gf.regularization_path(
                flow(), levels(flow()), 179.0, max_evaluations=budget, archive=archive
            )
    with gf.resume_path(archive, flow()) as ds:
        for name in ("theta", "n_gradient", "n_regularizer_gradient"):
            assert np.array_equal(ds[name], expected[name]), name
        assert ds.attrs["status"] == "max_evaluations"
    with pytest.raises(gf.InputError, match=f"max_evaluations={budget}: the path has spent"):
        gf.resume_path(archive, flow(), max_evaluations=budget)
    with gf.resume_path(archive, flow(), max_evaluations=10_000) as ds:
        assert ds.attrs["status"] == "complete"


def test_a_path_of_before_has_it_not_and_goes_on_without(tmp_path):
    archive = tmp_path / "path.nc"
    ds = gf.regularization_path(flow(), levels(flow())[:2], 179.0)
    then = ds.drop_vars("n_regularizer_gradient")
    then.attrs["geoflow_path"] = "1.1"
    path_files.save_path(then, archive)
    assert gf.validate(archive) == []
    with gf.resume_path(archive, flow(), levels(flow())[2:]) as further:
        assert further.attrs["status"] == "complete"
        assert further.attrs["geoflow_path"] == "1.1"
        assert "n_regularizer_gradient" not in further
        assert np.array_equal(further["theta"][:3], ds["theta"])
    assert gf.validate(archive) == []


def _at_the_first(left_of_r):
    a_flow = flow()
    found = Continuation(a_flow, path_schema.kkt_limit(179.0), 179.0)
    found.left = 10_000
    first = found.start()
    found.left, found.left_of_r = 10_000, left_of_r
    return a_flow, found, first


def test_where_r_has_nothing_left_the_path_ends_and_is_not_given_up():
    a_flow, continuation, first = _at_the_first(4)
    with pytest.raises(EvaluationLimitError):
        continuation.to(levels(a_flow)[0], first, 2000)


def test_a_walk_on_the_way_takes_no_more_of_r_than_there_is_left():
    a_flow, continuation, first = _at_the_first(20)
    before = spent(a_flow)
    with pytest.raises(EvaluationLimitError):
        continuation._by_flow(at_level(a_flow, 2 * first.c), first.state)
    assert spent(a_flow) - before <= 20


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([9, 8, 10, 11], "n_regularizer_gradient falls, though it counts up"),
        ([-3, 8, 10, 11], "n_regularizer_gradient is negative"),
    ],
)
def test_a_cost_of_r_that_can_be_none_is_found(values, said):
    ds = gf.regularization_path(flow(), levels(flow()), 179.0)
    assert path_schema.defects(ds) == path_schema.inconsistencies(ds) == []
    ds["n_regularizer_gradient"] = ds["n_regularizer_gradient"].copy(data=values)
    assert said in (path_schema.defects(ds) or path_schema.inconsistencies(ds))


def test_a_budget_that_r_has_spent_is_refused_whatever_the_loss_has(tmp_path):
    archive = tmp_path / "path.nc"
    with gf.regularization_path(flow(), levels(flow())[:1], 179.0, archive=archive) as ds:
        own = int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1])
        of_r = int(ds["n_regularizer_gradient"][-1])
    assert own < of_r
    with pytest.raises(gf.InputError, match=f"the path has spent {of_r}"):
        gf.resume_path(archive, flow(), levels(flow())[1:], max_evaluations=(own + of_r) // 2)
