"""A loss with a ``reduction`` is divided by that where it gives sums, and else by its means."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems.division import weighed

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (24,), generator=torch.Generator().manual_seed(1))
ENTROPY = functional.cross_entropy


class HandedOn(nn.Module):
    """Read when it is made, as combined losses of libraries have it."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction
        self.inner = nn.CrossEntropyLoss(reduction=reduction)

    def forward(self, outputs, targets):
        return self.inner(outputs, targets)


class InPart(HandedOn):
    """One term is summed by the option, and one is not."""

    def forward(self, outputs, targets):
        smooth = ENTROPY(outputs, targets, label_smoothing=0.2, reduction=self.reduction)
        return smooth + 0.1 * self.inner(outputs, targets)


class Unused(nn.Module):
    reduction = "mean"

    def forward(self, outputs, targets):
        return ENTROPY(outputs, targets)


def unused(outputs, targets, reduction="mean"):
    return ENTROPY(outputs, targets)


class OfTheBatch(HandedOn):
    """A mean over all examples at once, which that of chunks is not."""

    def forward(self, outputs, targets):
        return self.inner(outputs, targets).sqrt()


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


LOSSES = {"handed on": HandedOn(), "in part": InPart(), "unused": Unused(), "function": unused}


@pytest.mark.parametrize(
    "size", [1, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 23))]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_a_mean_whose_option_gives_no_sum_is_divided(name, dtype, size):
    whole, chunked = (
        gf.Problem.from_module(net(), LOSSES[name], X, Y, s, dtype=dtype) for s in (None, size)
    )
    theta = whole.theta0
    tight = 1e-13 if dtype == torch.float64 else 1e-6
    assert float(chunked.loss(theta)) == pytest.approx(float(whole.loss(theta)), rel=tight)
    expected, found = (p.value_and_gradient(theta)[1] for p in (whole, chunked))
    assert float((found - expected).norm() / expected.norm()) < 10 * tight


@pytest.mark.parametrize("name", LOSSES)
def test_beside_others_it_weighs_as_many_examples_as_there_are(name):
    problem = gf.Problem.from_module(net(), LOSSES[name], X, Y)
    (part,) = problem._parts
    at = problem.unflatten(problem.theta0)
    total, weight = weighed(part, at).sum_and_weight(at)
    assert float(weight) == len(X)
    assert float(total) == pytest.approx(len(X) * float(problem.loss(problem.theta0)), rel=1e-13)


def test_one_that_is_no_mean_is_refused_by_the_mean_over_chunks():
    module, loss = net().double(), OfTheBatch()
    with torch.no_grad():
        outputs = module(X.double())
    chunks = zip(outputs.split(7), Y.split(7), strict=True)
    found = sum(len(t) * float(loss(o, t)) for o, t in chunks) / len(X)
    said = f"the mean over chunks is {found:.6g} where the loss of all examples is "
    with pytest.raises(InputError, match=re.escape(f"{said}{float(loss(outputs, Y)):.6g},")):
        gf.Problem.from_module(module, loss, X, Y, 7)


def test_class_weights_that_add_up_to_one_are_counted_all_the_same():
    counts = torch.bincount(Y, minlength=3)
    weighted = nn.CrossEntropyLoss(weight=(counts / counts.square().sum()).double())
    whole, chunked = (gf.Problem.from_module(net(), weighted, X, Y, s) for s in (None, 7))
    theta = whole.theta0
    assert float(chunked.loss(theta)) == pytest.approx(float(whole.loss(theta)), rel=1e-13)
