"""Flows, regularisation functions and experiments in another process, and their copies."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.experiments.paper import EXPERIMENTS
from geoflow.manifold.regularizers.named import REGULARIZERS

R = gf.regularizers


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return gf.Problem.from_module(module, functional.cross_entropy, x, x.argmax(1))


def doubled(theta):
    return 2 * (theta**2).sum()


MADE = {
    **{name: (lambda p, f=f: f) for name, f in REGULARIZERS.items()},
    "tensors": lambda p: R.l1(epsilon=0.1, tensors=("*.weight", "2.bias")),
    "sign": lambda p: R.group_lasso(axis=1, sign=-1),
    "distance_to": lambda p: R.distance_to(2 * p.theta0, tensors="*.bias", sign=-1),
    "loss": lambda p: R.loss(gf.Problem.from_function(doubled, p.theta0), sign=-1),
    "sum": lambda p: R.weighted_sum((1.0, R.squared_norm), (0.5, R.hessian_trace(probes=2))),
    "a problem": lambda p: gf.Problem.from_function(doubled, p.theta0),
    "one's own": lambda p: doubled,
}


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
@pytest.mark.parametrize("name", MADE)
def test_a_flow_is_the_same_in_another_process(name, again):
    p = problem()
    flow = gf.RegularizingFlow(gf.LevelSet(p), MADE[name](p))
    other = again(flow)
    assert other.regularizer_name == flow.regularizer_name
    here, there = flow.evaluate(p.theta0), other.evaluate(p.theta0)
    assert (here.regularizer, here.angle) == (there.regularizer, there.angle)
    assert torch.equal(here.velocity, there.velocity)


def test_to_make_it_again_costs_nothing_that_is_counted():
    flow = gf.RegularizingFlow(gf.LevelSet(problem()), R.sharpness)
    assert pickled(flow).problem.counts == {"gradient": 0, "hvp": 0}


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, pickled])
def test_a_regularizer_with_options_keeps_them(again):
    p = problem()
    for made in (partial(MADE[name], p) for name in ("tensors", "sign", "distance_to", "loss")):
        regularizer = made()
        other = again(regularizer)
        assert isinstance(other, type(regularizer))
        assert (other.__name__, other.sign) == (regularizer.__name__, regularizer.sign)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_the_same_in_another_process(name):
    experiment = gf.experiments.get(name)
    other = pickled(experiment)
    assert (other.name, other.n_parameters) == (name, experiment.n_parameters)
