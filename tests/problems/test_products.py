"""Products with ∇²L are checked in each tensor."""

import warnings

import pytest
import torch
from torch import nn

import geoflow as gf

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
