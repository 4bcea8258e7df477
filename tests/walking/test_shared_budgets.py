"""The problems of R have one budget together: a walk costs at most twice its own."""

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geoflow as gf
from geoflow.baselines import predictor_corrector
from geoflow.errors import EvaluationLimitError, InputError
from geoflow.problems.counting import shared_budget

R = gf.regularizers


def problem(shift):
    torch.manual_seed(0)
    inputs, targets = torch.randn(30, 4), torch.randint(0, 3, (30,))
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return gf.Problem.from_module(network, F.cross_entropy, inputs + shift, targets)


def flow_down_three():
    terms = [(1.0, problem(0.1 * shift)) for shift in (1, 2, 3)]
    return gf.RegularizingFlow(gf.LevelSet(problem(0.0)), R.weighted_sum(*terms))


def flow_down_two():
    """One that the command line takes."""
    both = R.get("1.0*margin:sign=-1 + 0.1*jacobian_norm")
    return gf.RegularizingFlow(gf.LevelSet(problem(0.0)), both)


def bdf(flow, budget):
    return gf.walk(flow, max_evaluations=budget, stop=None)


def dopri5(flow, budget):
    return gf.walk(flow, "dopri5", max_evaluations=budget, stop=None)


def the_loop(flow, budget):
    return predictor_corrector(flow, max_evaluations=budget)


@pytest.mark.parametrize("walk", [bdf, dopri5, the_loop])
@pytest.mark.parametrize("make", [flow_down_three, flow_down_two])
def test_the_problems_of_r_take_no_more_than_one_budget_together(walk, make):
    flow = make()
    before = [p.evaluations for p in (flow.problem, *flow.regularizer_problems)]
    ds = walk(flow, 50)
    now = [p.evaluations for p in (flow.problem, *flow.regularizer_problems)]
    own, *apart = (later - earlier for later, earlier in zip(now, before, strict=True))
    assert ds.attrs["status"] == "max_evaluations"
    assert own <= 50
    # An evaluation of R takes one of each, and a step some.
    assert 50 - 3 * len(apart) <= sum(apart) <= 50
    assert int(ds["n_regularizer_gradient"][-1]) <= sum(apart)


def test_a_walk_down_three_problems_that_was_cut_off_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole = gf.walk(flow_down_three(), max_evaluations=200, stop=None, archive=tmp_path / "one.nc")
    assert whole.attrs["status"] == "max_evaluations"
    path, calls = tmp_path / "walk.nc", []
    value_and_gradient = gf.Problem.value_and_gradient

    def cut(self, theta):
        calls.append(1)
        if len(calls) == 200:
            raise KeyboardInterrupt
        return value_and_gradient(self, theta)

    flow = flow_down_three()
    with monkeypatch.context() as patch:
        patch.setattr(gf.Problem, "value_and_gradient", cut)
        ds = gf.walk(flow, max_evaluations=200, stop=None, archive=path)
        assert ds.attrs["status"] == "interrupted"
        # More than a third of the budget, which of each by itself would leave less than it needs.
        assert 67 < int(ds["n_regularizer_gradient"][-1]) < 200
        ds.close()
    resumed = gf.resume(path, flow_down_three())
    assert [d for d in gf.diff(whole, resumed) if not d.agrees] == []


def test_a_walk_that_its_budget_ended_goes_on_with_more(tmp_path):
    path = tmp_path / "walk.nc"
    first = gf.walk(flow_down_two(), max_evaluations=60, stop=None, archive=path)
    n = first.sizes["step"]
    first.close()
    whole = gf.walk(flow_down_two(), max_evaluations=90, stop=None)
    with gf.resume(path, flow_down_two(), max_evaluations=90) as ds:
        assert ds.sizes["step"] == whole.sizes["step"] > n
        assert np.array_equal(ds["theta"][-1], whole["theta"][-1])


def test_the_budget_that_ended_a_walk_is_refused_and_nothing_is_touched(tmp_path):
    """A step takes more than what is left of it."""
    path, flow = tmp_path / "walk.nc", gf.RegularizingFlow(gf.LevelSet(problem(0.0)), R.l1)
    budget = 30
    with gf.walk(flow, "rk4", max_evaluations=budget, stop=None, archive=path) as ds:
        assert ds.attrs["status"] == "max_evaluations"
        spent = int(ds["n_gradient"][-1])
    assert spent < budget
    before = path.read_bytes()
    for given in (spent + 1, budget):
        with pytest.raises(InputError, match=f"max_evaluations={given}: the walk has come to its"):
            gf.resume(path, flow, max_evaluations=given)
        assert path.read_bytes() == before
    with gf.resume(path, flow, max_evaluations=2 * budget) as ds:
        assert int(ds["n_gradient"][-1]) > budget


def test_what_r_has_spent_is_said_of_r(tmp_path):
    path = tmp_path / "walk.nc"
    gf.walk(flow_down_three(), max_evaluations=50, stop=None, archive=path).close()
    with pytest.raises(InputError, match=r"max_evaluations=40: R has spent 4\d already"):
        gf.resume(path, flow_down_three(), max_evaluations=40)


def test_several_problems_draw_from_one_budget():
    one, other = problem(0.0), problem(1.0)
    theta = one.theta0
    with shared_budget([one, other], 4):
        one.value_and_gradient(theta)
        other.hvp(theta, theta)
        # What is measured inside is no cost, and stops nothing.
        with one.uncounted():
            one.value_and_gradient(theta)
            one.value_and_gradient(theta)
        other.value_and_gradient(theta)
        for spent in (one, other):
            with pytest.raises(EvaluationLimitError, match="4 evaluations of them all"):
                spent.value_and_gradient(theta)
    assert (one.evaluations, other.evaluations) == (1, 3)
    other.value_and_gradient(theta)
    # Of one alone it is that of its own.
    with shared_budget([one], 1):
        one.value_and_gradient(theta)
        with pytest.raises(EvaluationLimitError):
            one.value_and_gradient(theta)


def test_a_copy_that_is_made_meanwhile_has_no_part_in_it():
    first, second = problem(0.0), problem(0.1)
    with shared_budget([first, second], 2):
        copied = cloudpickle.loads(cloudpickle.dumps(first))
    with copied.budget(3):
        for _ in range(3):
            copied.value_and_gradient(copied.theta0)
        with pytest.raises(EvaluationLimitError):
            copied.value_and_gradient(copied.theta0)
