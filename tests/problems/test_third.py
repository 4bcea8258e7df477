"""∇³L[v, v] beside dense third derivatives: PyTorch's, and by differences of products."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian

import geoflow as gf
from geoflow.errors import ConvergenceError, EvaluationLimitError
from geoflow.problems.footprint import product_bytes, third_bytes
from geoflow.problems.third import by_differences, error_of, third_product

SCALES = [1.0, 1e3]


def raw(scale, dtype=torch.float64, activation=nn.Tanh, n=50, **options):
    """A network of inputs in units of ``scale``, and its loss in float64."""
    torch.manual_seed(0)
    x = torch.randn(n, 3, dtype=torch.float64)
    y = x.sum(1, keepdim=True).sin()
    module = nn.Sequential(nn.Linear(3, 6), activation(), nn.Linear(6, 1)).double()
    with torch.no_grad():
        module[0].weight.div_(scale)
    problem = gf.Problem.from_module(
        module, nn.functional.mse_loss, x * scale, y, dtype=dtype, **options
    )
    like = gf.Problem.from_module(module, nn.functional.mse_loss, x * scale, y)

    def loss(theta):
        outputs = functional_call(module, like.unflatten(theta), (x * scale,))
        return nn.functional.mse_loss(outputs, y)

    return problem, loss


def signs(problem, seed=2):
    generator = torch.Generator().manual_seed(seed)
    found = 2.0 * torch.randint(0, 2, (problem.n_parameters,), generator=generator) - 1
    return found.to(problem.theta0)


def dense(loss, theta, v):
    """∇²L v and ∇(vᵀ∇²L v), by forward over reverse mode, in float64."""
    at = theta.double().detach().clone().requires_grad_()
    product = hessian(loss)(at) @ v.double()
    (slope,) = torch.autograd.grad(product @ v.double(), at)
    return product.detach(), slope


def check(found, expected, rtol):
    for one, right in zip(found, expected, strict=True):
        assert float((one.double() - right).norm() / right.norm()) < rtol


class Bare:
    """A problem that has products with ∇²L, and no higher derivatives."""

    def __init__(self, problem):
        self.problem = problem

    def __getattr__(self, name):
        if name == "third_product":
            raise AttributeError(name)
        return getattr(self.problem, name)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_it_is_exact_in_any_units(scale, dtype, rtol):
    problem, loss = raw(scale, dtype)
    v = signs(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = problem.third_product(problem.theta0, v)
    check(found, dense(loss, problem.theta0, v), rtol)
    assert problem.counts == {"gradient": 0, "hvp": 2}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_so_are_differences_of_products_nearly(scale, dtype, rtol):
    problem, loss = raw(scale, dtype)
    v = signs(problem)
    found = third_product(Bare(problem))(problem.theta0, v)
    check(found, dense(loss, problem.theta0, v), rtol)


def test_they_take_shorter_steps_beside_kinks():
    problem, _ = raw(1.0, activation=nn.ReLU, n=200_000)
    v = signs(problem)
    exact = problem.third_product(problem.theta0, v)
    before = problem.counts["hvp"]
    check(third_product(Bare(problem))(problem.theta0, v), exact, 1e-3)
    assert problem.counts["hvp"] - before > 5


def test_noise_is_refused_and_a_quadratic_function_is_none():
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def noisy(at, v):
        return v * (1 + 1e-3 * torch.rand(5, generator=generator, dtype=torch.float64))

    with pytest.raises(ConvergenceError, match="of its Hessian-vector products over two steps"):
        by_differences(noisy, theta, torch.ones_like(theta))
    axes = torch.linspace(1, 1e6, 5, dtype=torch.float64)
    _, slope = by_differences(lambda at, v: axes * v, theta, torch.ones_like(theta))
    assert float(slope.norm()) < 1e-3
    problem = gf.Problem.from_function(lambda t: (axes * t**2).sum(), theta)
    assert not problem.third_product(theta, theta)[1].any()


def test_rounding_of_the_products_is_no_noise():
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    axes = torch.linspace(1, 1e6, 5, dtype=torch.float64)
    v = torch.ones_like(theta)
    # Of a quadratic function too, as by gradients whose parts cancel.
    _, slope = by_differences(lambda at, v: axes * (v + at) - axes * at, theta, v)
    assert 0 < float(slope.norm()) < 1e-4


def test_they_take_a_longer_step_where_products_are_inexact():
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def inexact(at, v):
        off = 1e-5 * torch.rand(5, generator=generator, dtype=torch.float64)
        return v * (1 + at.sum()) * (1 + off)

    v = torch.ones_like(theta)
    _, slope = by_differences(inexact, theta, v)
    assert torch.allclose(slope, v * v.sum(), rtol=0.1)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-5])
def test_the_scale_of_theta_is_of_no_effect(scale):
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def loss(theta):
        u = theta / scale
        return (torch.cosh(u) * weights).sum() + (u[0] * u[1]) ** 2

    theta0 = torch.tensor([0.5, -0.7, 0.9], dtype=torch.float64) * scale
    problem = gf.Problem.from_function(loss, theta0)
    v = signs(problem)
    expected = dense(loss, theta0, v)
    check(problem.third_product(theta0, v), expected, 1e-12)
    check(third_product(Bare(problem))(theta0, v), expected, 1e-8)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_in_chunks_it_is_that_of_the_whole(activation):
    whole, _ = raw(1e3, activation=activation)
    chunks, _ = raw(1e3, activation=activation, batch_size=7)
    v = signs(whole)
    check(chunks.third_product(whole.theta0, v), whole.third_product(whole.theta0, v), 1e-13)
    assert chunks.n_chunks > 1


def test_of_batches_too():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def batch_loss(network, batch):
        return (network(batch) - batch.sum(1, keepdim=True)).square().sum(), len(batch)

    problems = [gf.Problem.from_batches(module, batch_loss, x.split(n)) for n in (50, 8)]
    v = signs(problems[0])
    found, expected = (p.third_product(p.theta0, v) for p in problems)
    check(found, expected, 1e-13)


class WrongThird(torch.autograd.Function):
    """sin, with a gradient and a second derivative that are right, and no third."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * Cosine.apply(x)


class Cosine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.cos()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return -gradient * x.detach().sin()


class NearlyRight(WrongThird):
    """sin, its third derivative off by a part."""

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * NearlyCosine.apply(x)


class NearlyCosine(Cosine):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return -gradient * (x.sin() - PART * (x.sin() - x.detach().sin()))


PART = 0.04


class MissingThird(WrongThird):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * OnceCosine.apply(x)


class OnceCosine(Cosine):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return Last.apply(gradient, x)


class Last(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient, x):
        return -gradient * x.sin()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("the derivative for 'last' is not implemented")


class Own(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (WrongThird, "third derivatives of it are not those of its Hessian"),
        (MissingThird, "it has no third derivative .*for 'last' is not implemented"),
    ],
)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_wrong_and_missing_ones_give_place_to_differences(function, said, dtype, rtol):
    problem, _ = raw(1.0, dtype, activation=lambda: Own(function.apply))
    right, loss = raw(1.0, activation=lambda: Own(torch.sin))
    v = signs(problem)
    with pytest.warns(UserWarning, match=f"^loss: .*{said}.* third derivatives are differences"):
        found = problem.third_product(problem.theta0, v)
    check(found, dense(loss, problem.theta0, v.double()), rtol)
    # Said once.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.third_product(problem.theta0, v)
        gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.sharpness)
    assert right.n_parameters == problem.n_parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_float32_cannot_tell_float64_does(dtype):
    # By less than what differences in float32 are off.
    problem, _ = raw(1.0, dtype, activation=lambda: Own(NearlyRight.apply))
    with pytest.warns(UserWarning, match="third derivatives of it are not those"):
        problem.third_product(problem.theta0, signs(problem))


class WrongSecond(WrongThird):
    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.detach().cos()


def test_where_products_are_differences_it_says_what_is_left():
    problem, _ = raw(1.0, activation=lambda: Own(WrongSecond.apply))
    _, loss = raw(1.0, activation=lambda: Own(torch.sin))
    v = signs(problem)
    with pytest.warns(UserWarning, match="derivatives") as said:
        found = problem.third_product(problem.theta0, v)
    texts = [str(one.message) for one in said]
    assert len(texts) == 2
    assert "Hessian-vector products are differences of gradients" in texts[0]
    assert texts[1].endswith("of about 1e-07 where it is smooth and larger beside kinks")
    check(found, dense(loss, problem.theta0, v), 1e-6)


def test_which_they_are_is_decided_where_they_are_asked_for():
    eps = torch.finfo(torch.float64).eps
    problem, _ = raw(1.0)
    assert third_product(problem) == problem.third_product
    assert error_of(problem, problem.theta0) == eps
    assert error_of(Bare(problem), problem.theta0) == eps
    for function, rounding in ((WrongThird, eps), (WrongSecond, eps ** (2 / 3))):
        problem, _ = raw(1.0, activation=lambda function=function: Own(function.apply))
        with pytest.warns(UserWarning, match="are differences of"):
            third_product(problem)
        assert error_of(problem, problem.theta0) == pytest.approx(rounding ** (2 / 3))
        assert problem.evaluations == 0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        tokens = x[:, None] * torch.tensor([1.0, -0.5, 2.0], dtype=x.dtype)[:, None]
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.cell(x.view(len(x), 3, 2))[0][:, -1])


KINDS = {
    "attention": Attention,
    "recurrent": Recurrent,
    "normalised": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 1)
    ),
    "normalised by torch": lambda: nn.Sequential(
        nn.Linear(6, 8), Own(lambda x: torch.layer_norm(x, (8,))), nn.GELU(), nn.Linear(8, 1)
    ),
    "batches": lambda: nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Tanh(), nn.Linear(8, 1)
    ),
    "in groups": lambda: nn.Sequential(
        nn.Linear(6, 6),
        nn.Unflatten(1, (2, 3)),
        nn.InstanceNorm1d(2, affine=True),
        nn.GroupNorm(2, 2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(6, 1),
    ),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 3, 3), nn.SiLU(), nn.Flatten(), nn.Linear(12, 1)
    ),
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 2e-2)])
def test_layers_of_many_kinds_have_them(make, dtype, rtol):
    torch.manual_seed(0)
    x = torch.randn(40, 6)
    problem = gf.Problem.from_module(
        make(), nn.functional.mse_loss, x, x.sum(1, keepdim=True), dtype=dtype
    )
    v = signs(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = problem.third_product(problem.theta0, v)
    check(third_product(Bare(problem))(problem.theta0, v), [t.double() for t in found], rtol)


def test_a_budget_that_does_not_hold_it_is_kept():
    problem, _ = raw(1.0)
    with problem.budget(3), pytest.raises(EvaluationLimitError):
        problem.third_product(problem.theta0, problem.theta0)
    assert problem.evaluations == 0
    with problem.budget(4):
        problem.third_product(problem.theta0, problem.theta0)


def test_a_walk_reckons_with_its_memory():
    problem, _ = raw(1.0, n=2000)
    assert third_bytes(problem) > product_bytes(problem) > 0
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.hessian_trace(sign=-1))
    assert flow.regularizer_bytes == third_bytes(problem)
    assert math.isfinite(flow.regularizer_bytes)
    plain = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    assert plain.regularizer_bytes == 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_kinks_are_no_fault(activation, dtype):
    """In float32 there are some within every step, whose jumps add up to a derivative."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(20, 100), activation(), nn.Linear(100, 100), activation(), nn.Linear(100, 10)
    )
    x, y = torch.randn(1000, 20), torch.randint(0, 10, (1000,))
    problem = gf.Problem.from_module(network, nn.functional.cross_entropy, x, y, dtype=dtype)
    v = signs(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = problem.third_product(problem.theta0, v)
    at = problem.theta0.double().clone().requires_grad_()
    outputs = functional_call(network, problem_views(problem, at), (x.double(),))
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(outputs, y), at, create_graph=True
    )
    (product,) = torch.autograd.grad(gradient, at, v.double(), create_graph=True)
    (slope,) = torch.autograd.grad(product, at, v.double())
    check(found, (product.detach(), slope), 1e-4 if dtype == torch.float32 else 1e-12)


def problem_views(problem, theta):
    sizes = [math.prod(s.shape) for s in problem.tensors]
    parts = zip(problem.tensors, theta.split(sizes), strict=True)
    return {s.name: part.view(s.shape) for s, part in parts}
