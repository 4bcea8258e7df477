"""A part of a float32 function that leaves the graph is found as surely as one of float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems.widened import Either

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
MSE = functional.mse_loss


class Gated(nn.Module):
    """Two layers and a gate, with a part left out of the graph or not."""

    def __init__(self, out="", activation=torch.tanh, single=False):
        super().__init__()
        self.out, self.activation, self.single = out, activation, single
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 1)
        self.gate = nn.Parameter(torch.ones(16))

    def forward(self, x):
        if self.single:  # in float32 whatever is asked for
            x = x.float() + torch.zeros(6, dtype=torch.float32)
        hidden = self.activation(self.a(x))
        return self.c(self.gate * self.branch(hidden) + hidden)

    def branch(self, hidden):
        if self.out == "no_grad":
            with torch.no_grad():
                return self.activation(self.b(hidden))
        if self.out == "data":
            return self.activation(hidden @ self.b.weight.data.T + self.b.bias)
        if self.out == "numpy":
            return self.activation(torch.from_numpy(self.b(hidden).detach().numpy()))
        found = self.activation(self.b(hidden))
        return found.detach() if self.out == "detach" else found


def batch_loss(module, batch):
    return MSE(module(batch[0]), batch[1], reduction="sum"), len(batch[0])


def of_function(module):
    names = {n: p.shape for n, p in module.named_parameters()}
    own = [p.requires_grad_(False) for p in module.parameters()]

    def loss(theta):
        parts = theta.split([p.numel() for p in own])
        named = {n: t.view(names[n]) for n, t in zip(names, parts, strict=True)}
        return MSE(torch.func.functional_call(module, named, (X,)), Y)

    return loss, torch.cat([p.detach().reshape(-1) for p in own])


def as_regularizer(module):
    loss, theta0 = of_function(module)
    problem = gf.Problem.from_function(lambda theta: theta @ theta, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), loss)


MAKES = {
    "module": lambda m: gf.Problem.from_module(m, MSE, X, Y, dtype=torch.float32),
    "chunks": lambda m: gf.Problem.from_module(m, MSE, X, Y, 9, dtype=torch.float32),
    "batches": lambda m: gf.Problem.from_batches(m, batch_loss, [(X, Y)], dtype=torch.float32),
    "function": lambda m: gf.Problem.from_function(*of_function(m)),
    "regularizer": as_regularizer,
}


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("out", ["no_grad", "detach", "data", "numpy"])
@pytest.mark.parametrize(
    "activation", [torch.tanh, pytest.param(torch.relu, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("single", [False, True])
def test_a_part_that_is_out_of_the_graph_is_found(make, out, activation, single):
    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        MAKES[make](Gated(out, activation, single))
    MAKES[make](Gated("", activation, single))


@pytest.mark.parametrize("examples", [600, 1100])
def test_a_loss_that_wants_all_of_many_examples_is_looked_at_too(examples):
    x = X.repeat(examples // 48 + 1, 1)[:examples]
    weights = torch.linspace(0, 1, examples).reshape(-1, 1)

    def loss(outputs, targets):
        return (weights[: len(weights)] * (outputs - targets).square()).mean()

    def make(module):
        return gf.Problem.from_module(module, loss, x, x[:, :1].sin(), dtype=torch.float32)

    make(Gated())
    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        make(Gated("detach"))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.GELU])
def test_rounding_of_a_low_loss_is_none(activation):
    """Cross-entropy of large outputs is known less finely than float32 resolves a low one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hidden = nn.Linear(6, 24), activation(), nn.Linear(24, 24), activation()
        module = nn.Sequential(*hidden, nn.Linear(24, 3))
    labels = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(600):
        optimizer.zero_grad()
        functional.cross_entropy(module(X), labels).backward()
        optimizer.step()
    for _ in range(3):
        problem = gf.Problem.from_module(
            module, functional.cross_entropy, X, labels, dtype=torch.float32
        )
        assert float(problem.loss(problem.theta0)) < 1e-4
        with torch.no_grad():
            module[4].weight.mul_(1.2)


class Rounding(torch.autograd.Function):
    """tanh by NumPy in float32, whatever it is given."""

    @staticmethod
    def forward(ctx, x):
        found = torch.from_numpy(x.detach().float().numpy().astype("float32")).tanh()
        ctx.save_for_backward(found)
        return found

    @staticmethod
    def backward(ctx, slope):
        (found,) = ctx.saved_tensors
        return slope * (1 - found * found)


@pytest.mark.parametrize("constant", [0.0, 1e4])
def test_what_computes_in_float32_alone_is_taken(constant):
    for activation in (Rounding.apply, lambda h: checkpoint(torch.tanh, h, use_reentrant=False)):
        problem = gf.Problem.from_module(
            Gated("", activation, True),
            lambda outputs, targets: MSE(outputs, targets) + constant,
            X,
            Y,
            dtype=torch.float32,
        )
        assert problem.dtype == torch.float32


def test_a_function_in_float64_is_that_of_a_copy_in_float64():
    module = nn.Sequential(nn.Conv1d(1, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(16, 3)
    module.append(head).eval()
    weights, labels = torch.tensor([1.0, 10.0, 0.1]), torch.arange(48) % 3
    bound = dict(module.named_parameters())

    def function(theta):
        variable = theta.detach().requires_grad_()
        assert variable.dtype == torch.float32
        named = dict(zip(bound, variable.split([p.numel() for p in bound.values()]), strict=True))
        named = {n: t.view(bound[n].shape) for n, t in named.items()}
        found = torch.func.functional_call(module, named, (X[:, None],)).float().half()
        value = functional.cross_entropy(found, labels, weight=weights) + torch.ones(3).mean()
        return value.detach(), torch.autograd.grad(value, variable)[0]

    theta = torch.cat([p.detach().reshape(-1) for p in bound.values()]).double()
    either = Either(lambda dtype: function)
    value, gradient = either(theta)
    assert value.dtype == gradient.dtype == torch.float64
    assert either.fewer_digits
    assert module[0].weight.dtype == torch.float32
    module.double()
    loss = functional.cross_entropy(module(X[:, None].double()), labels, weight=weights.double())
    expected = torch.autograd.grad(loss, list(module.parameters()))
    assert float(value) == pytest.approx(float(loss.detach()) + 1, rel=1e-14)
    torch.testing.assert_close(
        gradient, torch.cat([g.reshape(-1) for g in expected]), rtol=1e-11, atol=1e-14
    )
