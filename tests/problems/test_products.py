"""Products with ∇²L are checked in each tensor."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
from geoflow.problems.products import HessianProducts

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.sum(1, keepdim=True).sin()


class Tanh(torch.autograd.Function):
    """Its gradient is right, and that gradient's own is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.detach().tanh() ** 2)


class Gated(nn.Module):
    """A small branch beside a large one."""

    def __init__(self, function, size=0.02, depth=1):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 1)
        self.c, self.d = nn.Linear(6, 4), nn.Linear(4, 1)
        self.more = nn.Sequential(*(nn.Linear(16, 16) for _ in range(depth - 1)))
        self.d.weight.data *= size
        self.function = function

    def forward(self, x):
        return 5 * self.b(self.more(torch.tanh(self.a(x)))) + self.d(self.function(self.c(x)))


def problem_of(function, dtype=torch.float64, **options):
    module = Gated(function, **options)
    return gf.Problem.from_module(module, nn.functional.mse_loss, X, Y, dtype=dtype)


def along(problem, name):
    v = torch.zeros_like(problem.theta0)
    spec = next(s for s in problem.tensors if s.name == name)
    chosen = v.narrow(0, spec.offset, spec.shape[0] * spec.shape[1])
    chosen.copy_(torch.randn(len(chosen), generator=torch.Generator().manual_seed(1)))
    return v


@pytest.mark.parametrize("options", [{}, {"size": 0.0}, {"depth": 30}], ids=str)
def test_a_small_wrong_block_is_found(options):
    problem, right = problem_of(Tanh.apply, **options), problem_of(torch.tanh, **options)
    v = along(problem, "c.weight")
    with pytest.warns(UserWarning, match=r"^loss: PyTorch's second derivatives"):
        found = problem.hvp(problem.theta0, v)
    expected = right.hvp(problem.theta0, v)
    assert float((found - expected).norm() / expected.norm()) < 1e-8


class Attention(nn.Module):
    """The bias of its keys has a gradient of rounding alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        tokens = x[:, None] * torch.tensor([1.0, -0.5, 2.0], dtype=x.dtype)[:, None]
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def deep(activation, depth):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16)]
    for _ in range(depth):
        layers += [activation(), nn.Linear(16, 16)]
    return nn.Sequential(*layers, activation(), nn.Linear(16, 1))


RIGHT = {
    "gated": lambda: Gated(torch.tanh),
    "many tensors": lambda: Gated(torch.tanh, depth=60),
    "attention": Attention,
    "deep relu": lambda: deep(nn.ReLU, 4),
    "deep gelu": lambda: deep(nn.GELU, 4),
    "a branch of zeros": lambda: Gated(torch.tanh, size=0.0),
    "linear": lambda: nn.Linear(6, 1),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("make", RIGHT.values(), ids=RIGHT)
def test_right_second_derivatives_are_taken_as_they_are(make, dtype):
    problem = gf.Problem.from_module(make(), nn.functional.mse_loss, X, Y, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem.hvp(problem.theta0, problem.theta0)
    assert problem.counts == {"gradient": 0, "hvp": 1}


class Normalised(nn.Module):
    """Weights of a given length, by PyTorch's fused kernel or written out."""

    def __init__(self, n_in, n_out, fused):
        super().__init__()
        layer = nn.Linear(n_in, n_out)
        self.direction, self.bias = layer.weight, layer.bias
        self.length = nn.Parameter(layer.weight.detach().norm(dim=1, keepdim=True))
        self.fused = fused

    def forward(self, x):
        if self.fused:
            weight = torch._weight_norm(self.direction, self.length, 0)
        else:
            size = self.direction.norm(dim=1, keepdim=True)
            weight = self.length * self.direction / size
        return nn.functional.linear(x, weight, self.bias)


def with_kinks(activation, dtype, linear=nn.Linear):
    torch.manual_seed(0)
    network = nn.Sequential(
        linear(20, 100), activation(), linear(100, 100), activation(), nn.Linear(100, 10)
    )
    x, y = torch.randn(1000, 20), torch.randint(0, 10, (1000,))
    problem = gf.Problem.from_module(network, nn.functional.cross_entropy, x, y, dtype=dtype)
    v = torch.randn(problem.n_parameters, generator=torch.Generator().manual_seed(1)).to(dtype)

    def loss(theta):
        outputs = torch.func.functional_call(network, problem.unflatten(theta), (x.to(dtype),))
        return nn.functional.cross_entropy(outputs, y)

    return problem, v, loss


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_many_kinks_are_no_fault(activation, dtype):
    problem, v, loss = with_kinks(activation, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = problem.hvp(problem.theta0, v)
    expected = torch.autograd.functional.hvp(loss, problem.theta0, v)[1]
    rtol = {torch.float64: 1e-12, torch.float32: 1e-4}[dtype]
    assert float((found - expected).norm() / expected.norm()) < rtol


def test_what_is_wrong_is_found_among_many_kinks():
    right, v, _ = with_kinks(nn.ReLU, torch.float64, lambda *n: Normalised(*n, fused=False))
    wrong, _, _ = with_kinks(nn.ReLU, torch.float64, lambda *n: Normalised(*n, fused=True))
    with pytest.warns(UserWarning, match="and larger beside kinks"):
        wrong.hvp(wrong.theta0, v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right.hvp(right.theta0, v)


@pytest.mark.parametrize("least", [5e-4, 2e-5])
def test_where_a_function_fails_beside_theta0_products_are_compared_at_it(least):
    """A Cholesky factorisation does, of a matrix that is hardly positive."""

    def function(theta):
        root = torch.linalg.cholesky(theta.view(2, 2))
        return root.diagonal().log().sum().square()

    def with_gradient(theta):
        return function(theta), torch.func.grad(function)(theta)

    def right(theta, v):
        return torch.autograd.functional.hvp(function, theta, v)[1]

    def wrong(theta, v):
        return 1.01 * right(theta, v)

    # Positive by less than what a point beside it is moved by, and then than a step.
    theta = torch.tensor([1.0, 0.0, 0.0, least], dtype=torch.float64)
    chosen = HessianProducts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen.choose(right, with_gradient, theta, [4])
    assert chosen.exact
    with pytest.warns(UserWarning, match="differences of gradients"):
        HessianProducts().choose(wrong, with_gradient, theta, [4])


def test_the_step_that_told_of_one_product_is_the_first_for_the_next():
    """Among many kinks larger steps tell nothing, and would else be tried each time."""
    problem, _, _ = with_kinks(nn.LeakyReLU, torch.float32)
    calls = []

    def with_gradient(theta):
        calls.append(theta)
        return problem.value_and_gradient(theta)

    chosen = HessianProducts()
    sizes = [tensor.numel() for tensor in problem.unflatten(problem.theta0).values()]
    chosen.choose(problem.hvp, with_gradient, problem.theta0, sizes)
    assert chosen.exact
    # One beside θ0; six for the first of five products, two for each other.
    assert len(calls) == 1 + 6 + 4 * 2


def test_kinks_within_every_step_of_float32_are_no_fault():
    torch.manual_seed(0)
    x = torch.randn(20_000, 3)
    module = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
    y = (x.sum(1) > 0).long()
    narrow, wide = (
        gf.Problem.from_module(module, nn.functional.cross_entropy, x, y, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    v = torch.ones_like(narrow.theta0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = narrow.hvp(narrow.theta0, v)
    expected = wide.hvp(wide.theta0, v.double())
    assert float((found.double() - expected).norm() / expected.norm()) < 1e-5


class Once(Tanh):
    """The same, which says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - x.tanh() ** 2)


def from_small(function, size, dtype):
    """A network that starts from zero or from little, where its wrong part is little too."""

    class Activation(nn.Module):
        def forward(self, x):
            return function(x)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 5), Activation(), nn.Linear(5, 1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(size)
    return gf.Problem.from_module(network, nn.functional.mse_loss, X, Y, dtype=dtype)


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("function", [Tanh.apply, Once.apply], ids=["detached", "once"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_what_is_wrong_is_found_in_either_dtype_from_any_start(size, function, dtype, rtol):
    """Elsewhere it is a third of the products, and more than rounding of float32 at the start."""
    problem, right = (from_small(f, size, d) for f, d in ((function, dtype), (torch.tanh, X.dtype)))
    generator = torch.Generator().manual_seed(1)
    move, v = torch.randn((2, *right.theta0.shape), generator=generator, dtype=X.dtype)
    theta = problem.theta0 + (0.5 * move).to(dtype)
    with pytest.warns(UserWarning, match=r"^loss: .*Hessian-vector products are differences"):
        found = problem.hvp(theta, v.to(dtype))
    expected = right.hvp(theta.double(), v)
    assert float((found - expected).norm() / expected.norm()) < rtol


@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_is_right_is_taken_from_any_start(size, dtype):
    for function in (torch.tanh, torch.relu, nn.functional.gelu, torch.sigmoid):
        problem = from_small(function, size, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            problem.hvp(problem.theta0, torch.ones_like(problem.theta0))


class InFloat32(torch.autograd.Function):
    """tanh by NumPy, which computes in float32 whatever it is given; its derivatives are right."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.from_numpy(np.tanh(x.detach().numpy().astype(np.float32)))

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (1 - InFloat32.apply(x) ** 2)


@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0])
def test_what_is_computed_in_float32_at_any_rate_is_no_fault(size):
    narrow, right = (
        from_small(f, size, d) for f, d in ((InFloat32.apply, torch.float32), (torch.tanh, X.dtype))
    )
    v = torch.ones_like(narrow.theta0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = narrow.hvp(narrow.theta0, v)
    expected = right.hvp(narrow.theta0.double(), v.double())
    assert float((found - expected).norm() / expected.norm()) < 1e-4
