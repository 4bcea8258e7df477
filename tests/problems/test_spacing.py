"""Differences over steps of the right length, whatever units θ is in and however small it is."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems.scaling import length
from geoflow.problems.spacing import Spacing, chosen
from geoflow.problems.third import by_differences, third_product

START = torch.tensor([0.9, 0.6, -0.4, 0.5], dtype=torch.float64)
ALONG = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)


class Quartic(torch.autograd.Function):
    """Σ x⁴, without a second derivative in PyTorch."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x**4).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 4 * x**3


class Tanh(torch.autograd.Function):
    """The same of tanh."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.tanh() ** 2)


def promised(recorded):
    (found,) = [re.search("errors of about (.*) at theta0", str(w.message)) for w in recorded]
    return float(found[1])


def off(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("unit", "dtype"),
    [
        *((unit, torch.float64) for unit in (1.0, 1e-2, 1e-3, 1e-6, 1e-8, 1e-10, 1e-14)),
        # Products are 1e38 and more below it.
        *((unit, torch.float32) for unit in (1.0, 1e-2, 1e-3, 1e-6, 1e-8)),
    ],
)
def test_products_are_right_in_any_unit(unit, dtype):
    theta, v = (START * unit).to(dtype), (ALONG * unit).to(dtype)
    problem = gf.Problem.from_function(
        lambda y: Quartic.apply(y / unit) + (y / unit) @ (y / unit), theta
    )
    with pytest.warns(UserWarning, match="products are differences of gradients") as recorded:
        found = problem.hvp(theta, v)
    error = off(found.double() * unit, (12 * START**2 + 2) * ALONG)
    assert error < (1e-9 if dtype == torch.float64 else 2e-3)
    assert error < 10 * promised(recorded)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-9, 1e-12, 0.0])
def test_products_are_right_where_a_network_starts_all_but_at_zero(size):
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = size * torch.linspace(-1, 1, 6, dtype=torch.float64)
    v = torch.linspace(1, -0.5, 6, dtype=torch.float64)

    def loss(tanh):
        def of(y):
            hidden = tanh(x @ (y[:4].view(2, 2) + 0.5))
            return ((hidden.sum(1) + y[4] + y[5].sin() - 1) ** 2).mean()

        return of

    right = gf.Problem.from_function(loss(torch.tanh), theta).hvp(theta, v)
    problem = gf.Problem.from_function(loss(Tanh.apply), theta)
    with pytest.warns(UserWarning, match="products are differences of gradients") as recorded:
        found = problem.hvp(theta, v)
    error = off(found, right)
    assert error < 1e-8
    assert error < 10 * promised(recorded)


class Uneven(nn.Module):
    """One tensor in small units, and one that is not; the loss is theirs."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit
        self.small = nn.Parameter(START * unit)
        self.large = nn.Parameter(START.flip(0).clone())

    def forward(self, x, quartic=Quartic.apply):
        u, w = self.small / self.unit, self.large
        return quartic(u + x[0]) + quartic(w) + (u * w).sum()


@pytest.mark.parametrize("unit", [1e-6, 1e-9])
def test_a_tensor_in_units_of_its_own_has_steps_of_its_own(unit):
    module = Uneven(unit)
    problem = gf.Problem.from_module(
        module, lambda outputs, _: outputs, torch.zeros(1, 4), torch.zeros(1)
    )
    plain = Uneven(unit)
    parts = plain.small.detach(), plain.large.detach()

    def product(v):
        def of(small, large):
            values = {"small": small, "large": large}
            options = {"quartic": lambda t: (t**4).sum()}
            x = torch.zeros(1, 4, dtype=torch.float64)
            return torch.func.functional_call(plain, values, (x,), options)

        return torch.cat(torch.autograd.functional.hvp(of, parts, (v[:4], v[4:]))[1])

    nothing = torch.zeros_like(ALONG)
    for v in (
        torch.cat([unit * ALONG, ALONG]),
        torch.cat([ALONG, ALONG]),
        torch.cat([ALONG, nothing]),
        torch.cat([nothing, ALONG]),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = problem.hvp(problem.theta0, v)
        assert off(found, product(v)) < 1e-8


def test_the_steps_of_a_usual_theta_stay_as_they_are():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
    for layer in network:
        nn.init.constant_(layer.bias, 1e-7)
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
    problem = gf.Problem.from_module(
        network, lambda o, y: Quartic.apply(o - y) / len(o), x, x[:, :1]
    )
    theta, v = problem.theta0, torch.ones_like(problem.theta0)
    assert theta.norm() > 1
    with pytest.warns(UserWarning, match="products are differences of gradients"):
        found = problem.hvp(theta, v)
    assert problem._products.spacing == Spacing()
    assert problem._products.error == 0
    step = torch.finfo(torch.float64).eps ** (1 / 3) * float(theta.norm()) / float(v.norm())
    ahead, behind = (problem.value_and_gradient(theta + s * v)[1] for s in (step, -step))
    assert torch.equal(found, (ahead - behind) / (2 * step))


def test_where_differences_agree_nowhere_steps_are_the_usual_ones_and_it_says_so():
    found = chosen(lambda y: (1e17 * y).sin(), 1e-3 * START, [4], [ALONG])
    assert found.spacing == Spacing()
    assert found.error > 0.1


@pytest.mark.parametrize("unit", [1e-1, 1e-6, 1e-9])
def test_each_constraint_has_the_steps_of_their_mean(unit):
    class Scaled(nn.Module):
        def __init__(self, tanh):
            super().__init__()
            self.tanh, self.w = tanh, nn.Parameter(START[:2] * unit)

        def forward(self, x):
            return self.tanh(x @ (self.w / unit))

    x = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -0.9]], dtype=torch.float64)
    found = []
    for tanh in (torch.tanh, Tanh.apply):
        problem = gf.Problem.from_module(
            Scaled(tanh), nn.functional.mse_loss, x, torch.tensor([1.0, -1.0, 0.5])
        )
        constraints = gf.each_example(problem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(constraints.hvp(problem.theta0, ALONG[:2] * unit))
            nothing = constraints.hvp(problem.theta0, 0 * ALONG[:2])
        assert nothing.shape == found[-1].shape
        assert not nothing.any()
    assert off(found[1], found[0]) < 1e-8


class Bare:
    """A problem of another make, without third derivatives of its own."""

    def __init__(self, problem):
        self.theta0, self.hvp = problem.theta0, problem.hvp


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_third_derivatives_are_right_where_a_network_starts_all_but_at_zero(size):
    problem = gf.Problem.from_function(lambda y: (y + 1).exp().sum() + y.prod(), size * START)
    exact = problem.third_product(problem.theta0, ALONG)[1]
    assert off(third_product(Bare(problem))(problem.theta0, ALONG)[1], exact) < 1e-6


def test_third_derivatives_of_a_quadratic_function_are_none_however_small_theta_is():
    axes = torch.linspace(1, 1e6, 4, dtype=torch.float64)
    _, slope = by_differences(lambda at, v: axes * (v + at) - axes * at, 1e-9 * START, ALONG)
    assert float(slope.norm()) < 1e-3


class Wrong(torch.autograd.Function):
    """tanh, whose gradient is right, and that gradient's own not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.detach().tanh() ** 2)


@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e-8])
def test_wrong_second_derivatives_are_found_in_any_unit(unit):
    right, problem = (
        gf.Problem.from_function(lambda y, t=t: t(y / unit).sum() + (y / unit).sum(), unit * START)
        for t in (torch.tanh, Wrong.apply)
    )
    with pytest.warns(UserWarning, match="second derivatives of it are not"):
        found = problem.hvp(problem.theta0, unit * ALONG)
    assert off(found, right.hvp(problem.theta0, unit * ALONG)) < 1e-8


@pytest.mark.parametrize("unit", [1.0, 1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_without_a_part_of_its_function_is_refused_in_any_unit(unit, dtype):
    def loss(y):
        u = y / unit
        return (u.tanh() + 0.2 * (u * u.detach()).tanh()).sum() + 2

    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        gf.Problem.from_function(loss, (unit * START).to(dtype))


@pytest.mark.parametrize("function", [torch.exp, torch.sin, torch.cosh, torch.relu])
@pytest.mark.parametrize("unit", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_gradients_are_taken_in_any_unit(function, unit, dtype):
    theta = (unit * START).to(dtype)
    problem = gf.Problem.from_function(lambda y: function(y / unit).sum() + 2, theta)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        product = problem.hvp(theta, theta)
    assert product.isfinite().all()


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-9, 1e-12, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_network_all_but_at_zero_whose_loss_is_low_is_taken(size, dtype):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(30, 3)
    with torch.no_grad():
        for p in network.parameters():
            p *= size
        # Of rounding the loss has as much as the outputs that cancel in it.
        y = 1 + 1e-5 * torch.randn(30, 1)

    def loss(outputs, y):
        return ((outputs + 1 - y) ** 2).mean()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = gf.Problem.from_module(network, loss, x, y, dtype=dtype)
        problem.hvp(problem.theta0, torch.ones_like(problem.theta0))


@pytest.mark.parametrize(
    ("dtype", "rtol", "sizes"),
    [
        (torch.float32, 1e-4, (1e-37, 1e-30, 1e-24, 1e-10, 1.0, 1e15, 1e22)),
        (torch.float64, 1e-8, (1e-300, 1e-170, 1e-24, 1.0, 1e100, 1e200)),
    ],
)
def test_products_with_short_and_long_vectors_are_as_right(dtype, rtol, sizes):
    """Their squares have no place in the dtype."""
    problem = gf.Problem.from_function(Quartic.apply, START.to(dtype))
    theta, along = problem.theta0, ALONG.to(dtype)
    for size in sizes:
        v = size * along
        assert length(v) == pytest.approx(size * length(ALONG), rel=1e-6, abs=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = problem.hvp(theta, v) / size
        assert off(found, 12 * theta**2 * along) < rtol


def test_the_length_of_what_is_zero_or_not_finite():
    for dtype in (torch.float32, torch.float64):
        assert length(torch.zeros(3, dtype=dtype)) == length(torch.empty(0, dtype=dtype)) == 0
        assert length(torch.tensor([1.0, torch.inf], dtype=dtype)) == torch.inf
        assert length(torch.tensor([1.0, torch.nan], dtype=dtype)) != 1


def test_a_step_along_the_shortest_vectors_is_finite():
    theta, v = torch.ones(2), torch.tensor([1e-42, 0.0])
    for spacing in (Spacing(), Spacing(of_tensors=((1, 1.0), (1, 1.0)))):
        assert torch.isfinite(spacing.step(theta, v) * v).all()
