"""A float32 loss that is rounded more coarsely than its level is kept: measured, and said."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geoflow as gf
from geoflow.problems import rounding, sampling

SAID = r"in float32 the loss( of constraint \d+)? is known to .* use float64, or level_rtol="


def trained(loss_fn, targets, n_outputs, until):
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    y = targets(x)
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, n_outputs))
    optimizer = torch.optim.Adam(module.parameters(), 0.03)
    for _ in range(3000):
        optimizer.zero_grad()
        loss = loss_fn(module(x), y)
        loss.backward()
        optimizer.step()
        if loss.item() < until:
            break
    return module, x, y


def classes(x):
    return (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def sine(x):
    return x.sum(1, keepdim=True).sin()


def quiet_level_set(problem, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return gf.LevelSet(problem, **kwargs)


def losses_in_float64(parts, thetas):
    exact = gf.Problem.from_module(*parts)
    return np.array([float(exact.loss(torch.tensor(t).double())) for t in thetas])


def test_a_cross_entropy_at_a_low_level_says_how_well_it_is_known():
    module, x, y = trained(F.cross_entropy, classes, 3, 1e-4)
    parts = (module, F.cross_entropy, x, y)
    problem = gf.Problem.from_module(*parts, dtype=torch.float32)
    with pytest.warns(UserWarning, match=r"^level_rtol=1e-06: " + SAID):
        level_set = gf.LevelSet(problem)
    # Once.
    gf.LevelSet(problem)
    flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=150, stop=None)
    assert "in float32 the loss is known to" in ds.attrs["status_message"]
    # It is held up by nothing, and keeps the level to what was said and to no less.
    assert ds.attrs["status"] == "max_evaluations"
    exact = losses_in_float64(parts, ds["theta"].values)
    part = float(level_set.rounding[0]) / level_set.level
    off = abs(exact / exact[0] - 1).max()
    assert 1e-5 < part < 1e-3
    assert 1e-5 < off < 5 * part
    assert abs(ds["level_residual"]).max() <= 3 * level_set.rounding[0]


def test_a_level_rtol_that_is_large_enough_says_nothing():
    module, x, y = trained(F.cross_entropy, classes, 3, 1e-4)
    problem = gf.Problem.from_module(module, F.cross_entropy, x, y, dtype=torch.float32)
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-3), "squared_norm")
    ds = gf.walk(flow, max_evaluations=60, stop=None)
    assert "float32" not in ds.attrs["status_message"]


@pytest.mark.parametrize("loss_fn", [F.mse_loss, F.huber_loss])
@pytest.mark.parametrize("until", [1e-2, 1e-4, 1e-6])
def test_a_squared_error_is_rounded_as_its_theta_is(loss_fn, until):
    module, x, y = trained(loss_fn, sine, 1, until)
    problem = gf.Problem.from_module(module, loss_fn, x, y, dtype=torch.float32)
    # A warning is an error in these tests.
    assert (gf.LevelSet(problem).rounding == 0).all()


def test_nor_is_one_that_is_larger_beside_theta0():
    # At the end of training: what lies beside it has a greater loss, and so a greater error.
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    y = x.sum(1, keepdim=True).sin()
    module = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(module(x.double()), y.double())
        loss.backward()
        return loss

    optimizer.step(closure)
    problem = gf.Problem.from_module(module, F.mse_loss, x, y, dtype=torch.float32)
    assert (gf.LevelSet(problem).rounding == 0).all()


def test_in_float64_nothing_is_measured():
    module, x, y = trained(F.cross_entropy, classes, 3, 1e-4)
    problem = gf.Problem.from_module(module, F.cross_entropy, x, y)
    assert (gf.LevelSet(problem).rounding == 0).all()


@pytest.mark.parametrize(("division", "until"), [(gf.by_class, 1e-4), (gf.each_example, 1e-1)])
def test_of_groups_each_has_its_own(division, until):
    module, x, y = trained(F.cross_entropy, classes, 3, until)
    grouped = division(gf.Problem.from_module(module, F.cross_entropy, x, y, dtype=torch.float32))
    with pytest.warns(UserWarning, match=SAID):
        level_set = gf.LevelSet(grouped)
    exact = division(gf.Problem.from_module(module, F.cross_entropy, x, y))
    off = abs(level_set.levels - exact.loss(exact.theta0).numpy())
    assert level_set.rounding.shape == off.shape
    # Of those that rounding of θ explains nothing is known beyond it.
    known = np.maximum(level_set.rounding, (2e-4 if len(off) > 3 else 1e-6) * level_set.levels)
    assert (off <= known).all()
    assert level_set.rounding.max() < 3e-7


def test_of_several_problems_each_has_its_own():
    module, x, y = trained(F.cross_entropy, classes, 3, 1e-4)
    low = gf.Problem.from_module(module, F.cross_entropy, x, y, dtype=torch.float32)
    high = gf.Problem.from_module(module, F.cross_entropy, x, 2 - y, dtype=torch.float32)
    with pytest.warns(UserWarning, match="the loss of constraint 1 is known to"):
        level_set = gf.LevelSet([high, low])
    assert level_set.rounding[0] == 0 < level_set.rounding[1]


def test_of_what_float64_does_not_take_nothing_is_said():
    module, x, y = trained(F.cross_entropy, classes, 3, 1e-4)

    def in_float32_only(outputs, targets):
        assert outputs.detach().numpy().dtype == "float32"
        return F.cross_entropy(outputs, targets)

    problem = gf.Problem.from_module(module, in_float32_only, x, y, dtype=torch.float32)
    assert (gf.LevelSet(problem).rounding == 0).all()


def test_a_function_that_is_another_in_float64_is_not_taken_for_rounding():
    def noisy(t):
        # What a generator gives in float32 it does not give in float64.
        noise = torch.rand(4, generator=torch.Generator().manual_seed(0), dtype=t.dtype)
        return (t.square() * (1 + 0.01 * noise)).sum()

    theta0 = torch.tensor([1.0, 0.5, -0.5, 2.0])
    problem = gf.Problem.from_function(noisy, theta0)
    assert (gf.LevelSet(problem).rounding == 0).all()
    # Nor is a function that is one for each dtype, if it is off by as much.
    wide = [lambda t: (t.square().sum() * (1 + 0.01 * (t.dtype == torch.float64)), t)]
    assert (rounding.measured(wide, theta0) == 0).all()


def test_digits_are_rounded_up():
    one = np.array([2.41e-9])
    said = rounding.beyond(one, one / 100, np.array([1e-6]))
    assert said.endswith("level_rtol=2.5e-03 where that is enough")
    assert not rounding.beyond(one, 2.5e-3 * np.array([1e-6]), np.array([1e-6]))


@pytest.mark.parametrize("batch_size", [10_000, 5_000, 500, 250])
@pytest.mark.parametrize(
    "loss_fn", [F.cross_entropy, lambda o, t: F.cross_entropy(o, t)], ids=["sum", "mean"]
)
def test_the_rounding_of_a_loss_in_chunks_is_that_of_the_whole(loss_fn, batch_size):
    """It is measured on the first examples of a chunk, which then weighs what they do."""
    torch.manual_seed(0)
    y = torch.arange(20_000) % 3
    x = F.one_hot(y, 3).float() + 0.05 * torch.randn(len(y), 3)
    module = nn.Linear(3, 3)
    with torch.no_grad():
        module.weight.copy_(12 * torch.eye(3))
        module.bias.copy_(torch.tensor([0.3, -0.2, 0.1]))
    whole, chunks = (
        gf.Problem.from_module(module, loss_fn, x, y, size, dtype=torch.float32)
        for size in (None, batch_size)
    )
    sample = sampling.some(chunks._parts, torch.float32, sampling.EXAMPLES)
    value = float(chunks._evaluated(chunks.theta0, sample)[0])
    assert value == pytest.approx(float(whole.loss(whole.theta0)), rel=0.1)
    assert 1 / 3 < float(chunks._rounding[0] / whole._rounding[0]) < 3
    with pytest.warns(UserWarning, match=SAID):
        gf.LevelSet(chunks, level_rtol=1e-5)
