"""Networks as their users bring them: right from the gradient to the archive, or refused."""

import warnings

import numpy as np
import pytest
import torch
from networks import CASES, LABELS, N, X, classify, mlp, randn, supervised
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.analysis import extreme_eigenvalues, loss_hessian
from geoflow.errors import InputError
from geoflow.problems.modules import duplicate, unwrap

SPECTRUM_BY_DIFFERENCES = {"weight_norm"}


def users_own(case, dtype=torch.float64):
    """The user's module in a dtype, wrapper taken off: what plain autograd differentiates."""
    module = duplicate(unwrap(case.module))
    for buffer in module.buffers():
        if buffer.is_complex():
            buffer.data = buffer.data.to(torch.complex128)
    return module._apply(
        lambda t: t if t.is_complex() or not t.is_floating_point() else t.to(dtype)
    )


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_are_those_of_the_users_own_model(name):
    case = CASES[name]()
    problem = case.problem()
    module = users_own(case)
    loss = case.loss(module)
    loss.backward()
    own = dict(module.named_parameters())
    expected = torch.cat([own[t.name].grad.reshape(-1) for t in problem.tensors])
    value, gradient = problem.value_and_gradient(problem.theta0)
    assert float(value) == pytest.approx(float(loss.detach()), rel=1e-13)
    assert torch.linalg.vector_norm(gradient - expected) <= 1e-13 * expected.norm()
    assert float(problem.loss(problem.theta0)) == pytest.approx(float(value), rel=1e-14)
    assert problem.counts == {"gradient": 1, "hvp": 0}


@pytest.mark.parametrize("name", CASES)
def test_loss_is_differentiable_in_theta(name):
    problem = CASES[name]().problem()
    theta = problem.theta0.clone().requires_grad_()
    (found,) = torch.autograd.grad(problem.loss(theta), theta)
    expected = problem.value_and_gradient(problem.theta0)[1]
    assert torch.linalg.vector_norm(found - expected) <= 1e-13 * expected.norm()


@pytest.mark.parametrize("name", CASES)
def test_hessian_products_are_differences_of_gradients(name):
    problem = CASES[name]().problem()
    v = randn(problem.n_parameters, seed=9).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        product = problem.hvp(problem.theta0, v)
    assert any("differences" in str(w.message) for w in caught) == (name in SPECTRUM_BY_DIFFERENCES)
    assert problem.counts == {"gradient": 0, "hvp": 1}
    errors = []
    # ReLU networks have kinks: of some steps one crosses none.
    for h in (1e-5, 1e-7, 1e-8):
        ahead, behind = (problem.value_and_gradient(problem.theta0 + s * v)[1] for s in (h, -h))
        difference = (ahead - behind) / (2 * h)
        errors.append(float((product - difference).norm() / difference.norm()))
    assert min(errors) < 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "lstm",
        "gru",
        "convolution_with_batch_norm",
        "residual_group_norm",
        "transformer_with_padding",
    ],
)
def test_products_in_float32_are_those_of_float64(name):
    # By kernels of their own, which float64 does not have.
    single, double = (CASES[name]().problem(dtype=d) for d in (torch.float32, torch.float64))
    v = randn(double.n_parameters, seed=9)
    for product in ("hvp", "gauss_newton_product"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = getattr(single, product)(single.theta0, v)
        expected = getattr(double, product)(double.theta0, v.double())
        assert (found.double() - expected).norm() <= 1e-4 * expected.norm(), product


# Of so many kinds of network the default run takes every third.
@pytest.mark.parametrize(
    "name",
    [pytest.param(c, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, c in enumerate(CASES)],
)
@pytest.mark.filterwarnings("ignore:.*differences of gradients")
def test_it_walks_and_keeps_its_level_and_goes_on_and_back(name, tmp_path):
    case = CASES[name]()
    problem = case.problem()
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    path = tmp_path / "walk.nc"
    settings = {"stop": gf.Stationary(179.9), "max_snapshots": 4}
    gf.walk(flow, archive=path, max_evaluations=60, **settings).close()
    with gf.resume(path, flow, max_evaluations=90) as ds:
        ds.load()
    # Untrained, some come to a minimum of R with a lower loss; one's loss has R as its penalty.
    endings = ("max_evaluations", "stationary", "negative_multiplier", "at_rest")
    assert ds.attrs["status"] in endings
    level = flow.level_set.level
    assert np.abs(ds["level_residual"]).max() <= 1e-6 * level
    assert ds["regularizer"][-1] < ds["regularizer"][0]
    module = users_own(case)
    gf.load_into(module, ds)
    assert float(case.loss(module).detach()) == pytest.approx(float(ds["train_loss"][-1]), 1e-12)
    theta = torch.from_numpy(ds["theta"].values[-1])
    (top,) = extreme_eigenvalues(loss_hessian(problem, theta), k=1, tol=1e-4).values
    assert np.isfinite(top)
    assert gf.validate(path) == []


def test_the_names_of_a_compiled_module_are_its_own():
    module = mlp(nn.Tanh)
    compiled = torch.compile(module)
    problem = gf.Problem.from_module(compiled, classify, X, LABELS)
    plain = gf.Problem.from_module(module, classify, X, LABELS)
    assert [t.name for t in problem.tensors] == [t.name for t in plain.tensors]
    assert torch.equal(problem.theta0, plain.theta0)


def test_tied_weights_move_together():
    problem = CASES["language_model_tied"]().problem()
    names = [t.name for t in problem.tensors]
    assert "embed.weight" in names
    assert "leave.weight" not in names


def test_only_what_is_named_moves():
    problem = CASES["head_only"]().problem()
    assert [t.name for t in problem.tensors] == ["2.weight", "2.bias"]
    with pytest.raises(InputError, match=r"parameters='3.\*' is the name of no parameter"):
        gf.Problem.from_module(mlp(nn.Tanh), classify, X, LABELS, parameters="3.*")


def test_a_users_module_is_as_it_was():
    for name in ("convolution_with_batch_norm", "module_that_keeps_an_activation"):
        case = CASES[name]()
        before = {n: t.clone() for n, t in case.module.state_dict().items()}
        problem = case.problem()
        problem.value_and_gradient(problem.theta0)
        after = case.module.state_dict()
        assert all(torch.equal(after[n], t) for n, t in before.items())


# What is refused, in one line.


class LeavesTheGraph(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(nn.Tanh)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.body(x) * torch.from_numpy(self.scale.detach().numpy())


class MakesItsOwnFloat(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(nn.Tanh)

    def forward(self, x):
        return self.body(x.float())


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(nn.Tanh)

    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(self.body, x, use_reentrant=False)


def embedding_with_max_norm():
    return nn.Sequential(nn.Embedding(11, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))


def complex_parameter():
    module = mlp(nn.Tanh)
    module.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    return module


def penalty_of_the_live_module():
    module = mlp(nn.Tanh)

    def loss(outputs, targets):
        return classify(outputs, targets) + sum(p.square().sum() for p in module.parameters())

    return supervised(module, loss, X, LABELS)


def weighted_by_a_lambda():
    weight = torch.tensor([1.0, 10.0, 0.1], dtype=torch.float64)
    return supervised(
        mlp(nn.Tanh), lambda o, y: functional.cross_entropy(o, y, weight=weight), X, LABELS
    )


class HoldsItsWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(nn.Tanh)
        self.held = [self.body[2].weight]

    def forward(self, x):
        return self.body(x) + self.held[0].square().sum()


class Centred(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp(nn.Tanh)

    def forward(self, x):
        return self.body(x - x.mean(0))


class Penalised(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, outputs, targets):
        penalty = sum(p.square().sum() for p in self.module.parameters())
        return classify(outputs, targets) + penalty


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs, targets):
        return classify(outputs * self.log_scale.exp(), targets)


def loss_that_holds_the_network():
    module = mlp(nn.Tanh)
    return supervised(module, Penalised(module), X, LABELS)


def one_memory():
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    module[2].weight.data = module[0].weight.data
    return module


class Normalising(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("initialised", torch.tensor(False))
        self.shift, self.head = nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

    def forward(self, x):
        if not self.initialised:
            self.shift.data.copy_(x.mean(0))
            self.initialised.fill_(True)
        return self.head(x - self.shift)


REFUSED = {
    "max_norm": (
        lambda: gf.Problem.from_module(
            embedding_with_max_norm(), classify, torch.arange(2 * N).reshape(N, 2) % 11, LABELS
        ),
        r"Embedding\) has max_norm=1.0, which changes the parameters",
    ),
    "complex parameter": (
        lambda: gf.Problem.from_module(complex_parameter(), classify, X, LABELS),
        "phase is complex, and θ is real",
    ),
    "lazy": (
        lambda: gf.Problem.from_module(nn.LazyLinear(3), classify, X, LABELS),
        "weight is not initialised yet; run the module once",
    ),
    "initialised by its first data": (
        lambda: gf.Problem.from_module(Normalising(), classify, X, LABELS),
        r"its first evaluation sets shift, .*call module\(inputs\) once before",
    ),
    "out of the graph": (
        lambda: gf.Problem.from_module(LeavesTheGraph(), classify, X, LABELS),
        "a part of it is not in the gradient",
    ),
    "checkpointing": (
        lambda: gf.Problem.from_module(Checkpointed(), classify, X, LABELS),
        "not in the gradient .*checkpointing",
    ),
    "float in forward": (
        lambda: gf.Problem.from_module(MakesItsOwnFloat(), classify, X, LABELS),
        r"evaluated in float64, and a tensor of yours .*not .float\(\)\), or give dtype=torch.floa",
    ),
    "penalty of the live module": (
        lambda: penalty_of_the_live_module().problem(),
        "uses the parameters of the module itself.*Problem.from_batches",
    ),
    "weights in a lambda, in chunks": (
        lambda: weighted_by_a_lambda().problem(batch_size=7),
        r"batch_size=7: the mean over chunks is .* no mean over examples",
    ),
    "examples that act on each other, in chunks": (
        lambda: supervised(Centred(), classify, X, LABELS).problem(batch_size=7),
        r"batch_size=7: the losses .* act on each other .* use batch_size=None",
    ),
    "weights in a list": (
        lambda: supervised(HoldsItsWeights(), classify, X, LABELS).problem(),
        "module: it holds body.2.weight beside its parameters",
    ),
    "loss that holds the network": (
        lambda: loss_that_holds_the_network().problem(),
        "uses the parameters of the module itself",
    ),
    "loss with parameters of its own": (
        lambda: supervised(mlp(nn.Tanh), Scaled(), X, LABELS).problem(),
        r"loss_fn: its parameter log_scale is no part of θ",
    ),
    "two parameters in one memory": (
        lambda: supervised(one_memory(), classify, X, LABELS).problem(),
        "module: 0.weight and 2.weight share memory",
    ),
    "inputs that are written into": (
        lambda: supervised(
            nn.Sequential(nn.ReLU(inplace=True), mlp(nn.Tanh)), classify, X, LABELS
        ).problem(),
        "inputs: an in-place operation writes into them",
    ),
    "batches that are used up": (
        lambda: gf.Problem.from_batches(mlp(nn.Tanh), lambda m, b: None, iter([(X, LABELS)])),
        "can be iterated once only",
    ),
    "shuffled batches": (
        lambda: gf.Problem.from_batches(
            mlp(nn.Tanh),
            lambda m, b: None,
            torch.utils.data.DataLoader(X, batch_size=4, shuffle=True),
        ),
        "two passes gave different batches.*shuffle=False",
    ),
    "no weight": (
        lambda: gf.Problem.from_batches(mlp(nn.Tanh), lambda m, b: m(b).sum(), [X]),
        r"batch_loss returned a Tensor; return \(sum of losses, weight\)",
    ),
    "vector_to_parameters": (
        lambda: vector_to_parameters(),
        "no derivative in θ.*vector_to_parameters",
    ),
    "data in a list of strings": (
        lambda: gf.Problem.from_module(mlp(nn.Tanh), classify, "data", LABELS),
        "inputs is a str; give a tensor.*from_batches",
    ),
}


def vector_to_parameters():
    module = mlp(nn.Tanh).double()

    def loss(theta):
        nn.utils.vector_to_parameters(theta, module.parameters())
        return classify(module(X.double()), LABELS)

    theta0 = nn.utils.parameters_to_vector(module.parameters()).detach()
    return gf.Problem.from_function(loss, theta0)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_in_one_line(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_weights_in_a_lambda_are_right_where_nothing_is_divided():
    case = weighted_by_a_lambda()
    whole = case.problem()
    assert float(whole.loss(whole.theta0)) == pytest.approx(
        float(case.loss(users_own(case)).detach()), rel=1e-14
    )


def test_chunks_of_a_weighted_loss_are_the_whole():
    case = CASES["class_weights"]()
    losses = [
        case.problem(batch_size=size).value_and_gradient(case.problem().theta0)
        for size in (None, 5, 7, 20)
    ]
    for value, gradient in losses[1:]:
        assert float(value) == pytest.approx(float(losses[0][0]), rel=1e-14)
        assert torch.linalg.vector_norm(gradient - losses[0][1]) <= 1e-13 * gradient.norm()


def test_a_network_in_float32_at_a_small_squared_error_keeps_its_level():
    targets = X.sum(1, keepdim=True).sin()
    module = mlp(nn.Tanh, n_out=1)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(4000):
        optimizer.zero_grad()
        loss = functional.mse_loss(module(X), targets)
        loss.backward()
        if float(loss.detach()) < 1e-4:
            break
        optimizer.step()
    problem = gf.Problem.from_module(module, functional.mse_loss, X, targets, dtype=torch.float32)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=200)
    assert flow.level_set.level < 1.1e-4
    assert ds.attrs["status"] in ("max_evaluations", "stationary")
    # What float32 resolves of such a loss, and says so; without a floor it was 4 to 142%.
    assert np.abs(ds["level_residual"]).max() <= 1e-4 * flow.level_set.level
    assert ds["regularizer"][-1] < ds["regularizer"][0]
