"""An evaluation within ``torch.autocast`` is the one outside of it, bit for bit."""

import importlib.util

import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.problems import arithmetic
from geoflow.problems.grouped import by_class, each_example


def network():
    return gf.Problem.from_module(
        references.small_module(),
        nn.functional.cross_entropy,
        *references.small_data(),
        batch_size=7,
        dtype=torch.float32,
    )


def batches():
    def batch_loss(module, batch):
        inputs, targets = batch
        return nn.functional.cross_entropy(module(inputs), targets, reduction="sum"), len(targets)

    inputs, targets = references.small_data()
    return gf.Problem.from_batches(
        references.small_module(), batch_loss, [(inputs, targets)], dtype=torch.float32
    )


def function():
    inputs = torch.linspace(-1, 1, 12).view(4, 3)
    return gf.Problem.from_function(
        lambda theta: (inputs @ theta.view(3, 5)).tanh().square().mean(), torch.linspace(-1, 2, 15)
    )


def numbers(make):
    problem = make()
    theta = problem.theta0 * 1.1
    v = torch.linspace(-1, 1, len(theta))
    found = [*problem.value_and_gradient(theta), problem.hvp(theta, v), problem.loss(theta)]
    if make is network:
        found += [problem.gauss_newton_product(theta, v), problem.losses(theta[None])]
        for divided in (by_class(problem), each_example(problem)):
            weights = torch.ones(len(divided.loss(theta)))
            found += [*divided.value_and_gradient(theta), divided.loss(theta)]
            found += [divided.weighted_gradient(theta, weights), divided.hvp(theta, v)]
    return found


@pytest.mark.parametrize("make", [network, batches, function])
def test_values_and_derivatives_are_those_outside(make):
    expected = numbers(make)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = numbers(make)
        assert torch.is_autocast_enabled("cpu")
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def test_a_kind_of_device_that_has_no_autocast_is_not_asked(monkeypatch):
    """PyTorch 2.4 has none for Apple's, and raises where it is asked for."""

    def enabled(kind):
        assert kind != "mps"
        return False

    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: kind != "mps")
    monkeypatch.setattr(torch, "is_autocast_enabled", enabled)
    spec = importlib.util.spec_from_file_location("once_more", arithmetic.__file__)
    there = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(there)
    with there.without_autocast():
        pass
