"""A loss is tested at θ0 itself too, and for what a module keeps of its weights."""

import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.errors import InputError

INPUTS, TARGETS = references.small_data()
START = torch.tensor([0.5, -0.8, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_loss_that_jumps_at_theta0_is_refused(dtype):
    torch.manual_seed(0)
    tall = nn.utils.parametrizations.orthogonal(nn.Linear(3, 8))
    module = nn.Sequential(tall, nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(InputError, match="it jumps there"):
        gf.Problem.from_module(module, nn.functional.cross_entropy, INPUTS, TARGETS, dtype=dtype)


def test_a_gradient_that_is_not_finite_at_theta0_is_refused():
    with pytest.raises(InputError, match="its gradient at theta0 is not finite"):
        gf.Problem.from_function(lambda t: 1 + t.square().sum().sqrt(), torch.zeros(3))


@pytest.mark.parametrize(
    "loss",
    [
        lambda t: 1 + (t - START).abs().sum(),
        lambda t: 1 + (t - START).relu().sum() - (START - t).relu().sum(),
        lambda t: 1 + torch.linalg.vector_norm(t - START),
        lambda t: 1 + 1e6 * (t - START).square().sum(),
        lambda t: (t - START).square().sum(),
    ],
    ids=["absolute value", "two kinks that cancel", "norm", "steep", "minimum"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_kink_or_a_minimum_at_theta0_is_none(loss, dtype):
    start = START.to(dtype)
    problem = gf.Problem.from_function(lambda t: loss(t.double()).to(dtype), start)
    assert torch.isfinite(problem.value_and_gradient(start)[1]).all()
