"""A problem goes to another process where its parts do; one that is walked is not shared."""

import copy
import pickle
import threading

import cloudpickle
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import geoflow as gf
import references
from geoflow.errors import InputError


class Locked(nn.Module):
    """Holds what can be neither pickled nor seen by the loss."""

    def __init__(self):
        super().__init__()
        self.inner = references.small_module()
        self.hook = lambda x: x

    def forward(self, x):
        return self.inner(x)


def batch_loss(module, batch):
    inputs, targets = batch
    return nn.functional.cross_entropy(module(inputs), targets, reduction="sum"), len(targets)


def quartic(theta):
    return (theta**4).sum()


def of_module(loss_fn=nn.functional.cross_entropy, module=None, **options):
    module = module or references.small_module()
    return gf.Problem.from_module(module, loss_fn, *references.small_data(), **options)


def of_loader(loss=batch_loss, module=None, **options):
    loader = DataLoader(TensorDataset(*references.small_data()), batch_size=7, **options)
    return gf.Problem.from_batches(module or references.small_module(), loss, loader)


def of_function(loss=quartic):
    return gf.Problem.from_function(loss, torch.linspace(-1, 1, 5, dtype=torch.float64))


CASES = {
    "whole": of_module,
    "chunks": lambda: of_module(batch_size=7),
    "loss module": lambda: of_module(nn.CrossEntropyLoss(label_smoothing=0.1), batch_size=7),
    "float32": lambda: of_module(dtype=torch.float32),
    "part of the network": lambda: of_module(parameters="0.*"),
    "DataLoader": of_loader,
    "function": of_function,
}


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_keeps_every_bit_and_starts_counting_anew(case):
    problem = CASES[case]()
    theta = problem.theta0 + 0.1
    expected = *problem.value_and_gradient(theta), problem.hvp(theta, problem.theta0)
    with problem.budget(5):
        others = [pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem), copy.copy(problem)]
    before = problem.counts
    for other in others:
        assert other.counts == {"gradient": 0, "hvp": 0}
        with other.budget(3):
            found = *other.value_and_gradient(theta), other.hvp(theta, other.theta0)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert other.counts == {"gradient": 1, "hvp": 1}
        assert other.tensors == problem.tensors
        assert other.data_sha256 == problem.data_sha256
    assert problem.counts == before


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: of_module(lambda o, t: nn.functional.cross_entropy(o, t)), "loss_fn"),
        (lambda: of_module(module=Locked().eval()), "module"),
        (lambda: of_loader(lambda m, b: batch_loss(m, b)), "batch_loss"),
        (lambda: of_loader(worker_init_fn=lambda i: None), "batches"),
        (lambda: of_function(lambda t: t @ t), "loss"),
    ],
)
def test_what_pickle_does_not_take_is_named(make, name):
    problem = make()
    with pytest.raises(InputError, match=f"^{name} of the problem cannot be pickled .*") as caught:
        pickle.dumps(problem)
    assert "\n" not in str(caught.value)
    # Copies need no pickle, and cloudpickle takes functions by what they do.
    theta = problem.theta0
    for other in (copy.deepcopy(problem), cloudpickle.loads(cloudpickle.dumps(problem))):
        assert torch.equal(other.value_and_gradient(theta)[1], problem.value_and_gradient(theta)[1])


def test_a_problem_has_one_walk_at_a_time():
    problem = of_function()
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    refused = "another walk is evaluating it; make a problem for each walk"
    inside, leave, ends = threading.Event(), threading.Event(), []

    def wait(theta):
        if not torch.equal(theta, problem.theta0):
            inside.set()
            assert leave.wait(60)
        return 0.0

    def first():
        times = {"snapshot_times": [0.0, 0.005, 0.01], "observables": {"wait": wait}}
        ds = gf.walk(flow, "dopri5", t_end=0.01, stop=None, **times)
        ends.append(ds.attrs["status"])

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    try:
        with pytest.raises(InputError, match=refused):
            gf.walk(flow, "dopri5", t_end=0.01, stop=None)
    finally:
        leave.set()
        thread.join()
    assert ends == ["t_end"]
    # The refused one took nothing from the other, and the problem is free again.
    assert gf.walk(flow, "dopri5", t_end=0.01, stop=None).attrs["status"] == "t_end"


def test_a_walk_inside_a_walk_of_the_same_problem_is_refused():
    problem = of_function()
    with problem.budget(10):
        with pytest.raises(InputError, match="another walk is evaluating it"), problem.budget(5):
            pass
        # That of the outer one holds on.
        problem.value_and_gradient(problem.theta0)
        with pytest.raises(InputError, match="another walk"), problem.budget(5):
            pass
    with problem.budget(1):
        problem.value_and_gradient(problem.theta0)


@pytest.mark.parametrize("made", [of_module, of_loader])
@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_parametrized_modules_are_said_to_be_taken_by_neither(made, dumps):
    module = references.small_module()
    nn.utils.parametrizations.weight_norm(module[0])
    problem = made(module=module)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    for one in (problem, flow):
        with pytest.raises(InputError, match=r"module of the problem has parametrizations .* anew"):
            dumps(one)
    copied = copy.deepcopy(problem)
    assert torch.equal(copied.loss(problem.theta0), problem.loss(problem.theta0))
