"""A small part without a gradient is found; what is inexact otherwise is not taken for it."""

import warnings

import pytest
import torch
import torchdiffeq
from torch import nn
from torch.func import functional_call
from torch.nn import functional

import geoflow as gf
import references
from geoflow.errors import InputError

D = torch.float64
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=D)
Y = X.sum(1, keepdim=True).sin()
MSE = functional.mse_loss
REFUSED = r"off by .* over every step, so a part of it is not in the gradient"


def net(activation=nn.Tanh, width=16):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, width), activation(), nn.Linear(width, 1))


PROBLEM = gf.Problem.from_module(net(), MSE, X, Y)
THETA = PROBLEM.theta0


def as_loss(function, theta0=THETA):
    return gf.Problem.from_function(function, theta0)


def as_regularizer(function):
    return gf.RegularizingFlow(gf.LevelSet(PROBLEM), function)


def loaded(weight):
    module = net().double().requires_grad_(False)

    def function(theta):
        module.load_state_dict(PROBLEM.unflatten(theta))
        return theta @ theta + weight * MSE(module(X), Y)

    return function


SMALL = {
    "a share": lambda t: t @ t + 5e-4 * (t.detach() @ t.detach()),
    "a loss": lambda t: PROBLEM.loss(t) + 1e-3 * PROBLEM.loss(t.detach()),
    "weights that are loaded": loaded(3e-3),
    "a number": lambda t: t @ t + 5e-4 * (t @ t).item(),
    "of an offset": lambda t: 100 + t @ t + 5e-4 * (t.detach() @ t.detach()),
}


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
@pytest.mark.parametrize("function", SMALL.values(), ids=SMALL)
def test_a_small_part_without_a_gradient_is_refused(take, function):
    with pytest.raises(InputError, match=REFUSED) as caught:
        take(function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("decay", [1e-3, 1e-4])
def test_weight_decay_out_of_the_graph_is_refused(dtype, decay):
    def batch_loss(module, batch):
        penalty = sum(p.square().sum() for p in module.parameters()).item()
        total = MSE(module(batch[0]), batch[1], reduction="sum")
        return total + len(batch[0]) * decay * penalty, len(batch[0])

    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        gf.Problem.from_batches(net(), batch_loss, [(X, Y)], dtype=dtype)


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
def test_of_a_smaller_one_a_warning_says_how_small(take):
    with pytest.warns(UserWarning, match=r"^(loss|regularizer): .* off by [45]\.\de-05"):
        take(lambda t: t @ t + 5e-5 * (t.detach() @ t.detach()))


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, t, h):
        return 3 * self.second(torch.tanh(self.first(h)))


class Ordinary(nn.Module):
    """A neural ODE whose steps depend on its weights, and which are in no graph."""

    def __init__(self, tolerance):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.field, self.head = Field(), nn.Linear(6, 1)
        self.tolerance = tolerance

    def forward(self, x):
        times = torch.tensor([0.0, 1.0]).to(x)
        rtol = atol = self.tolerance
        return self.head(torchdiffeq.odeint(self.field, x, times, rtol=rtol, atol=atol)[-1])


@pytest.mark.parametrize("tolerance", [1e-6, 1e-8])
def test_a_neural_ode_is_taken_without_a_word(tolerance):
    gf.Problem.from_module(Ordinary(tolerance), MSE, X, Y)


TAKEN = {
    "largest": lambda t: t.abs().max() + t @ t,
    "sorted": lambda t: t.sort().values[3:].square().sum(),
    "median": lambda t: t.median() + t @ t,
    "singular values": lambda t: torch.linalg.svdvals(t[:96].view(16, 6)).sum(),
    "an offset": lambda t: 1e9 + t @ t,
    "a large scale": lambda t: 1e12 * (t @ t),
    "steep": lambda t: torch.exp(20 * t).sum(),
    "waves": lambda t: torch.sin(300 * t).sum() + t @ t,
    "short waves": lambda t: torch.sin(8e3 * t).sum() / 8e3 + t @ t,
    "an outlier": lambda t: 1e5 * t[0] ** 2 + (t @ t),
    "powers": lambda t: (t.abs() ** 1.5).sum(),
    "in float32 by a small part": lambda t: t @ t + 1e-6 * t.float().square().sum(),
}


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
@pytest.mark.parametrize("function", TAKEN.values(), ids=TAKEN)
def test_whose_gradient_is_all_there_is_taken_without_a_word(take, function):
    take(function)


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
def test_a_kink_beside_the_point_that_is_looked_at_is_none(take):
    # Differences over every step are beyond it, and have half of the slopes of its two sides.
    noise = torch.randn(THETA.shape, generator=torch.Generator().manual_seed(0), dtype=D)
    there = THETA + noise * (1e-3 * max(float(THETA.norm()), 1.0) / len(THETA) ** 0.5)
    unit = noise / noise.norm()
    assert float(unit @ (there - THETA)) > 0
    take(lambda t: t @ t + 1e-4 * (unit @ (t - there) + 1e-10).abs())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh, nn.Softshrink])
@pytest.mark.parametrize("width", [4, 64, 400])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_kinks_are_none(activation, width, offset):
    for n in (8, 64):
        gf.Problem.from_module(
            net(activation, width), lambda o, y: offset + functional.l1_loss(o, y), X[:n], Y[:n]
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_quantized_data_are_no_part_of_the_gradient(dtype):
    rounded = torch.fake_quantize_per_tensor_affine(X.float(), 0.1, 0, -128, 127)
    gf.Problem.from_module(net(nn.ReLU), MSE, rounded, Y, dtype=dtype)


@pytest.mark.parametrize("name", sorted(gf.regularizers.REGULARIZERS))
def test_named_regularizers_are_taken_without_a_word(name):
    module = references.small_module()
    inputs, targets = references.small_data()
    problem = gf.Problem.from_module(module, functional.cross_entropy, inputs, targets)
    one = gf.regularizers.REGULARIZERS[name]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        gf.RegularizingFlow(gf.LevelSet(problem), one)
    assert not [w for w in said if "over every step" in str(w.message)]


def proximal(function, weight):
    kept = []

    def with_the_previous(theta):
        before = kept[-1] if kept else theta.detach()
        kept[:] = [theta.detach().clone()]
        return function(theta) + weight * (theta - before).square().sum()

    return with_the_previous


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
@pytest.mark.parametrize("weight", [1e-3, 1.0, 100.0])
def test_what_is_kept_from_one_evaluation_to_the_next_is_said(take, weight):
    function = proximal(PROBLEM.loss, weight)
    with pytest.raises(InputError, match="keeps something from one evaluation to the next"):
        take(function)


def test_of_batches_too():
    def batch_loss(module, batch, kept=[]):  # noqa: B006
        flat = nn.utils.parameters_to_vector(module.parameters())
        before = kept[-1] if kept else flat.detach()
        kept[:] = [flat.detach().clone()]
        return MSE(module(batch[0]), batch[1]) + (flat - before).square().sum(), 1.0

    with pytest.raises(InputError, match="keeps something from one evaluation to the next"):
        gf.Problem.from_batches(net(), batch_loss, [(X, Y)])


def test_what_is_kept_of_all_evaluations_alike_is_none():
    kept = {}

    def function(theta):
        reference = kept.setdefault("first", theta.detach().clone())
        return (theta - reference).square().sum() + theta @ theta

    as_regularizer(function)


def test_the_functional_form_is_taken():
    module = net().double()

    def function(theta):
        return theta @ theta + 1e-2 * MSE(functional_call(module, PROBLEM.unflatten(theta), X), Y)

    as_regularizer(function)


class Adapted(nn.Module):
    """A low-rank branch whose last weights start at zero, and whose first have no gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Parameter(torch.randn(2, 6))
        self.up = nn.Parameter(torch.zeros(6, 2))
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        return self.head(x + (x @ self.down.T).detach() @ self.up.T)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_part_that_vanishes_at_the_start_is_refused_by_what_it_is_further_on(dtype):
    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        gf.Problem.from_module(Adapted(), MSE, X, Y, dtype=dtype)
