"""A loss, an R and an observable may differentiate in the parameters by ``torch.autograd.grad``."""

import cloudpickle
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import geoflow as gf
from geoflow.analysis.networks import predictions
from geoflow.errors import InputError
from geoflow.problems import inner

D = torch.float64
X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=D)
Y = X.sum(1, keepdim=True).sin()
MSE = nn.functional.mse_loss


def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()


NET = net()
PROBLEM = gf.Problem.from_module(net(), MSE, X, Y)
THETA = PROBLEM.theta0


def of_theta(theta):
    return MSE(functional_call(NET, PROBLEM.unflatten(theta), (X,)), Y)


def expected(theta):
    return of_theta(theta) + 0.1 * grad(of_theta)(theta).square().sum()


def penalised(theta):
    loss = of_theta(theta)
    (slope,) = torch.autograd.grad(loss, theta, create_graph=True)
    return loss + 0.1 * slope.square().sum()


def batch_loss(module, batch):
    loss = MSE(module(batch[0]), batch[1])
    slopes = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
    return (loss + 0.1 * sum(s.square().sum() for s in slopes)) * len(batch[0]), len(batch[0])


def of_those_that_require_it(module, batch):
    loss = MSE(module(batch[0]), batch[1])
    wanted = [p for p in module.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss, wanted, create_graph=True)
    return loss + 0.1 * sum(s.square().sum() for s in slopes), 1.0


class Penalised(nn.Module):
    def forward(self, module, batch):
        return batch_loss(module, batch)


def inner_step(module, batch):
    named = dict(module.named_parameters())
    loss = MSE(module(batch[0]), batch[1])
    slopes = torch.autograd.grad(loss, list(named.values()), create_graph=True)
    moved = {n: p - 0.1 * s for (n, p), s in zip(named.items(), slopes, strict=True)}
    return MSE(functional_call(module, moved, (batch[0],)), batch[1]), 1.0


def after_a_step(theta):
    return of_theta(theta - 0.1 * grad(of_theta)(theta))


MADE = {
    "batches": (lambda: gf.Problem.from_batches(net(), batch_loss, [(X, Y)]), expected),
    "those that require it": (
        lambda: gf.Problem.from_batches(net(), of_those_that_require_it, [(X, Y)]),
        expected,
    ),
    "a module": (lambda: gf.Problem.from_batches(net(), Penalised(), [(X, Y)]), expected),
    "an inner step": (lambda: gf.Problem.from_batches(net(), inner_step, [(X, Y)]), after_a_step),
    "function": (lambda: gf.Problem.from_function(penalised, THETA), expected),
}


@pytest.mark.parametrize(("make", "right"), MADE.values(), ids=MADE)
def test_a_loss_may(make, right):
    problem, at = make(), THETA + 0.1
    assert float(problem.loss(at)) == pytest.approx(float(right(at)), rel=1e-13)
    assert not problem.loss(at).requires_grad
    value, gradient = problem.value_and_gradient(at)
    assert float(value) == pytest.approx(float(right(at)), rel=1e-13)
    torch.testing.assert_close(gradient, grad(right)(at), rtol=1e-10, atol=1e-12)
    v = torch.ones_like(at)
    product = grad(lambda t: grad(right)(t) @ v)(at)
    torch.testing.assert_close(problem.hvp(at, v), product, rtol=1e-8, atol=1e-10)
    copied = cloudpickle.loads(cloudpickle.dumps(problem))
    assert torch.equal(copied.loss(at), problem.loss(at))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, t_end=0.01, stop=None)
    assert ds.attrs["status"] == "t_end"
    theta = torch.from_numpy(ds["theta"].values[-1])
    assert float(right(theta)) == pytest.approx(ds.attrs["level"], rel=2e-6)


def test_an_r_an_observable_and_an_event_may(tmp_path):
    path = tmp_path / "walk.nc"

    def flow():
        return gf.RegularizingFlow(gf.LevelSet(PROBLEM), penalised)

    def given():
        event = gf.Event(lambda t: penalised(t).detach(), value=1e3, name="far")
        return {"observables": {"o": penalised}, "events": [event]}

    gf.walk(flow(), t_end=0.01, stop=None, archive=path, **given()).close()
    with gf.resume(path, flow(), t_end=0.02, **given()) as ds:
        for theta, value in zip(ds["theta"].values, ds["o"].values, strict=True):
            assert value == pytest.approx(float(expected(torch.from_numpy(theta))), rel=1e-12)
        assert ds["regularizer"].values[-1] == pytest.approx(ds["o"].values[-1], rel=1e-12)


def test_of_a_part_of_the_parameters():
    problem = gf.Problem.from_batches(net(), batch_of_head, [(X, Y)], parameters="2.*")
    right = gf.Problem.from_batches(net(), func_of_head, [(X, Y)], parameters="2.*")
    at = problem.theta0 + 0.1
    for a, b in zip(problem.value_and_gradient(at), right.value_and_gradient(at), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def batch_of_head(module, batch):
    loss = MSE(module(batch[0]), batch[1])
    (slope,) = torch.autograd.grad(loss, module[2].weight, create_graph=True)
    return loss + slope.square().sum(), 1.0


def func_of_head(module, batch):
    def loss(weight):
        return MSE(functional_call(module, {"2.weight": weight}, (batch[0],)), batch[1])

    weight = module[2].weight
    return loss(weight) + grad(loss)(weight).square().sum(), 1.0


def test_the_function_never_gets_theta_itself_nor_a_second_call_for_another_error():
    theta, calls = torch.ones(2), []

    def fails(theta):
        calls.append(theta.zero_())
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"):
        inner.value(fails, theta)
    assert len(calls) == 1
    assert torch.equal(theta, torch.ones(2))


def test_what_is_fixed_has_no_slope_for_a_value_alone_either():
    def of_what_moves(module, batch):
        loss = MSE(module(batch[0]), batch[1])
        (slope,) = torch.autograd.grad(loss, module[2].weight, create_graph=True)
        moving = sum(p.requires_grad for p in module.parameters())
        return loss + moving * slope.square().sum(), 1.0

    problem = gf.Problem.from_batches(net(), of_what_moves, [(X, Y)], parameters="2.*")
    assert problem.loss(problem.theta0) == problem.value_and_gradient(problem.theta0)[0]


def test_where_it_cannot_be_done_the_remedy_is_said():
    class Differentiating(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            out = self.inner(x)
            slopes = torch.autograd.grad(out.sum(), self.inner[0].weight, create_graph=True)
            return out + slopes[0].square().sum()

    with pytest.raises(InputError, match=r"does not require grad.*torch.func.grad.*batch_loss"):
        gf.Problem.from_module(Differentiating(), MSE, X, Y)
    with pytest.raises(InputError, match="a part of it is not in the gradient"):
        gf.Problem.from_function(
            lambda t: of_theta(t) + torch.autograd.grad(of_theta(t), t)[0].square().sum(), THETA
        )


def test_a_theta_with_a_graph_of_its_own_is_taken_where_there_are_none():
    theta = (THETA + 0.1).requires_grad_()
    with torch.no_grad():
        found = inner.OfTheta(penalised)(theta)
    assert float(found) == pytest.approx(float(expected(theta.detach())), rel=1e-13)
    assert not found.requires_grad


class Slopes(nn.Module):
    """A network of derivatives of another in its inputs."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(self.inner(x).sum(), x, create_graph=True)[0]


def test_outputs_that_are_derivatives_are_found_without_gradients_too():
    module, classes = Slopes(), (X[:, 0] > 0).long()
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, X, classes)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.margin(sign=-1))
    logits = module.double()(X).detach()
    # Of two classes the margin is the difference of their logits.
    expected = ((2.0 * classes - 1) * (logits[:, 1] - logits[:, 0])).mean()
    margin = gf.regularizers.margin.bind(problem).value_and_gradient(problem.theta0)[0]
    assert torch.isclose(margin, expected)
    ds = gf.walk(flow, t_end=1e-3)
    with torch.no_grad():
        assert problem.n_outputs == 60
        found = predictions.along(ds, module, {"train": X}, classification=True)
    ends = [
        functional_call(module, problem.unflatten(t), (X,)).detach() for t in first_and_last(ds)
    ]
    expected = (ends[1] - ends[0]).square().mean().sqrt()
    assert float(found["output_distance"][0, 0, -1]) == pytest.approx(float(expected), rel=1e-12)


def first_and_last(ds):
    return [torch.tensor(ds["theta"].values[i]) for i in (0, -1)]
