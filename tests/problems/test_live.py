"""Functions of θ that use the parameters of a module itself are refused, and nothing else is."""

import copy
import functools
import gc
import threading
import types
import weakref
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import nn
from torch.func import functional_call

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems import live, reach
from waiting import Told, join, start, wait

D = torch.float64
X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=D)
Y = X.sum(1, keepdim=True).sin()


def module():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def penalty(net):
    return sum(p.square().sum() for p in net.parameters())


LIVE = module()
VECTOR = nn.utils.parameters_to_vector(LIVE.parameters())
POINTS = X.clone().requires_grad_()
PROBLEM = gf.Problem.from_module(LIVE, nn.functional.mse_loss, X, Y)
THETA = PROBLEM.theta0
COPY = copy.deepcopy(LIVE).requires_grad_(False)
STATE = LIVE.state_dict()


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, theta, scale):
        ctx.save_for_backward(theta, scale)
        return scale * (theta @ theta)

    @staticmethod
    def backward(ctx, gradient):
        theta, scale = ctx.saved_tensors
        return 2 * gradient * scale * theta, None


@torch.enable_grad()
def physics(theta, points=POINTS):
    outputs = functional_call(LIVE, PROBLEM.unflatten(theta), (points,))
    (slope,) = torch.autograd.grad(outputs.sum(), points, create_graph=True)
    return slope.square().mean()


def fresh_physics(theta):
    return physics(theta, X.clone().requires_grad_())


def head_alone(theta):
    named = {n: t for n, t in PROBLEM.unflatten(theta).items() if n.startswith("2.")}
    return functional_call(LIVE, named, (X,)).square().mean()


LIVE_ONES = {
    "a constant": lambda t: t @ t + 10 * penalty(LIVE),
    "a factor": lambda t: (t @ t) * penalty(LIVE),
    "a vector": lambda t: (
        (t - nn.utils.parameters_to_vector(LIVE.parameters())).square().sum() + t @ t
    ),
    "in a function of one's own": lambda t: Scale.apply(t, LIVE[0].weight[0, 0]),
    "beside a problem": lambda t: PROBLEM.loss(t) + penalty(LIVE),
    "in functional_call": head_alone,
    "a constant out of the graph": lambda t: t @ t + penalty(LIVE).detach(),
    "a number": lambda t: (t @ t) * LIVE[0].weight.norm().item(),
    "in NumPy": lambda t: t @ t + float((LIVE[0].weight.detach().numpy() ** 2).sum()),
    "a state": lambda t: t @ t + sum(v.square().sum() for v in LIVE.state_dict().values()),
    "a state of before": lambda t: t @ t + STATE["0.weight"].square().sum(),
    "a distance": lambda t: (
        (t - nn.utils.parameters_to_vector(LIVE.parameters()).detach()).square().sum() + t @ t
    ),
    "beside those of another": lambda t: t @ t * penalty(REFERENCE) + penalty(LIVE).detach(),
}

REFERENCE = module()
FROZEN = module()
gf.Problem.from_module(FROZEN, nn.functional.mse_loss, X, Y)
FROZEN.requires_grad_(False)
COLLOCATION = nn.Parameter(X.clone())

# Of modules that no problem was made of: they may be meant to stay.
OTHERS = {
    "a reference": lambda t: (
        (functional_call(LIVE, PROBLEM.unflatten(t), (X,)) - REFERENCE(X)).square().mean() + t @ t
    ),
    "points": lambda t: physics(t, COLLOCATION),
    "a penalty": lambda t: (t @ t) * penalty(REFERENCE),
}

FINE = {
    "frozen": lambda t: t @ t + penalty(COPY),
    "frozen without a graph": lambda t: t @ t + penalty(FROZEN).detach(),
    "a vector of before": lambda t: (t - VECTOR).square().sum() + t.sum(),
    "a problem": PROBLEM.loss,
    "inner derivatives": fresh_physics,
    "inner derivatives at given points": physics,
    "its parameters by name": lambda t: sum(w.abs().sum() for w in PROBLEM.unflatten(t).values()),
}


def as_loss(function):
    return gf.Problem.from_function(function, THETA)


def as_regularizer(function):
    return gf.RegularizingFlow(gf.LevelSet(PROBLEM), function)


def in_a_sum(function):
    total = gf.regularizers.weighted_sum((1.0, function), (1.0, gf.regularizers.l1))
    return as_regularizer(total)


@pytest.mark.filterwarnings("ignore:.*that is not of θ")
@pytest.mark.parametrize("take", [as_loss, as_regularizer, in_a_sum])
@pytest.mark.parametrize("function", LIVE_ONES.values(), ids=LIVE_ONES)
def test_parameters_of_a_module_itself_are_refused(take, function):
    with pytest.raises(InputError, match=r"^(loss|regularizer): .* itself.*unflatten") as caught:
        take(function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("take", [as_loss, as_regularizer, in_a_sum])
@pytest.mark.parametrize("function", FINE.values(), ids=FINE)
def test_what_is_of_theta_alone_is_taken(take, function):
    assert take(function) is not None


@pytest.mark.parametrize("take", [as_loss, as_regularizer, in_a_sum])
@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_parameters_of_another_module_are_warned_of(take, function):
    with pytest.warns(UserWarning, match=r"^(loss|regularizer): .* not of θ.*requires_grad_"):
        taken = take(function)
    assert taken is not None


def test_a_module_is_remembered_as_long_as_it_is_there():
    held = [module()]
    gf.Problem.from_batches(
        held[0], lambda m, b: (nn.functional.mse_loss(m(b[0]), b[1]), 1.0), [(X, Y)]
    )
    with pytest.raises(InputError, match=r"of a module itself.*copy where they are data"):
        as_loss(lambda t: (t @ t) * penalty(held[0]))
    gone = weakref.ref(held.pop())
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
def test_a_function_without_theta_is_refused(take):
    with pytest.raises(InputError, match="no derivative in θ"):
        take(lambda t: penalty(LIVE))


def test_a_criterion_with_parameters_of_its_own_may_be_in_a_regularizer():
    class Criterion(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(3.0))

        def forward(self, outputs, targets):
            return self.weight * nn.functional.mse_loss(outputs, targets)

    other = gf.Problem.from_module(LIVE, Criterion().requires_grad_(False), X, Y)
    flow = as_regularizer(lambda t: other.loss(t) + t @ t)
    expected = 3 * PROBLEM.loss(THETA) + THETA @ THETA
    assert flow.evaluate(THETA).regularizer == pytest.approx(float(expected), rel=1e-12)


def test_batches_must_use_the_module_they_are_given():
    other = module()

    def ignoring(own, batch):
        return nn.functional.mse_loss(other(batch[0]), batch[1], reduction="sum"), len(batch[0])

    def with_a_teacher(own, batch):
        outputs = own(batch[0]) - other(batch[0])
        return outputs.square().sum() + own(batch[0]).square().sum(), len(batch[0])

    with pytest.raises(InputError, match="of another module than the one given"):
        gf.Problem.from_batches(LIVE, ignoring, [(X, Y)])
    assert gf.Problem.from_batches(LIVE, with_a_teacher, [(X, Y)]).n_parameters == len(THETA)


@pytest.mark.parametrize(
    "function",
    [
        lambda t: PROBLEM.loss(t + 0.01 * torch.randn_like(t)),
        lambda t: nn.functional.dropout(t, 0.5).square().sum(),
        lambda t: (t * torch.randn_like(t)).sum() ** 2,
    ],
    ids=["noise in the loss", "dropout", "a probe"],
)
def test_a_random_regularizer_is_not_said_to_have_a_wrong_gradient(function):
    with (
        torch.random.fork_rng(devices=[]),
        pytest.raises(InputError, match=r"R\(θ\) is random.*a generator that R makes anew"),
    ):
        as_regularizer(function)


def test_noise_of_a_generator_made_anew_is_none():
    def noisy(theta):
        generator = torch.Generator().manual_seed(0)
        return PROBLEM.loss(theta + 0.01 * torch.randn(len(theta), generator=generator, dtype=D))

    as_regularizer(noisy)


def test_a_random_regularizer_is_refused_however_small():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(InputError, match="regularizer: two evaluations at theta0 differ"):
        as_regularizer(
            lambda t: (t @ t) * (1 + 1e-9 * torch.rand((), generator=generator, dtype=D))
        )


def scaled(theta, own):
    return theta @ theta * penalty(own).item()


def shifted(theta, by):
    return theta @ theta + float(by.sum())


class Holding:
    def __init__(self, held):
        self.held = held

    def __call__(self, theta):
        return theta @ theta * float(self.held["net"][0].weight.detach().norm())


def within(net):
    def outer(theta):
        def inner():
            return float(net[0].bias.detach().sum())

        return theta @ theta + inner()

    return outer


def by_default(net):
    def function(theta, *, own=net):
        return scaled(theta, own)

    return function


def by_attribute(net):
    def function(theta):
        return scaled(theta, function.own)

    function.own = net
    return function


def by_class(net):
    class Kept:
        own = net

        def __call__(self, theta):
            return scaled(theta, self.own)

    return Kept()


def by_property(net):
    class Kept:
        @property
        def own(self):
            return net

        def __call__(self, theta):
            return scaled(theta, self.own)

    return Kept()


def by_static(net):
    class Kept:
        @staticmethod
        def own():
            return net

        def __call__(self, theta):
            return scaled(theta, self.own())

    return Kept()


def by_module(net):
    there = {"mine": types.ModuleType("mine"), "scaled": scaled}
    there["mine"].net = net
    exec("def function(theta):\n    return scaled(theta, mine.net)", there)
    return there["function"]


def by_inner_name(net):
    return lambda theta: theta @ theta + (lambda: LIVE[0].bias.detach().sum())()


@pytest.mark.parametrize(
    "make",
    [
        *(by_default, by_attribute, by_class, by_property, by_static, by_module, by_inner_name),
        lambda net: functools.partial(scaled, own=net),
        lambda net: Holding({"net": net}),
        lambda net: Holding({"net": net}).__call__,
        within,
        lambda net: functools.partial(shifted, by=net[2].weight.detach().numpy()[0]),
        lambda net: functools.partial(shifted, by=net[2].weight.detach().numpy()[0, 1:]),
        lambda net: functools.partial(shifted, by=net[2].weight.detach()[0, 1:].numpy()),
        lambda net: functools.partial(shifted, by=net[2].weight.data.view(-1)),
    ],
    ids=[
        *("default", "attribute", "class", "property", "static", "module", "name"),
        *("partial", "object", "method", "closure", "array", "part", "array of a part", "view"),
    ],
)
def test_whatever_way_a_function_comes_to_weights_they_are_found(make):
    net = module()
    gf.Problem.from_module(net, nn.functional.mse_loss, X, Y)
    with pytest.raises(InputError, match="it changes with the parameters of a module itself"):
        as_regularizer(make(net))


def test_weights_that_a_function_cannot_come_to_stay_where_they_are(monkeypatch):
    # Another thread may be training them.
    net, moved, has_part = module(), [], live.displaced.has_part
    gf.Problem.from_module(net, nn.functional.mse_loss, X, Y)

    def watched(parameters, evaluate, value):
        moved.extend(parameters)
        return has_part(moved, evaluate, value)

    monkeypatch.setattr(live.displaced, "has_part", watched)
    target, sparse = THETA.clone(), torch.eye(2).to_sparse()

    def unfilled(theta):
        return theta @ theta if len(theta) else later

    for function in (
        unfilled,
        lambda theta: theta @ theta + float(torch.sparse.sum(sparse)),
        gf.regularizers.squared_norm,
        gf.regularizers.l1(epsilon=0.1),
        lambda theta: (theta - target).square().sum(),
        lambda theta: theta @ theta + 0.1 * penalty(COPY).detach(),
    ):
        as_regularizer(function)
    later = None
    assert not moved
    with pytest.raises(InputError):
        as_regularizer(lambda theta: theta @ theta + penalty(net).detach())
    assert {id(p) for p in moved} == {id(p) for p in net.parameters()}


def test_no_more_is_looked_at_than_a_bound(monkeypatch):
    monkeypatch.setattr(reach, "MOST", 10)
    assert len(list(reach.reachable(functools.partial(shifted, by=[*torch.ones(30)])))) < 10


def test_what_was_theta_of_one_problem_stays_so_beside_another():
    net = module()
    gf.Problem.from_module(net, nn.functional.mse_loss, X, Y)
    net[0].requires_grad_(False)
    gf.Problem.from_module(net, nn.functional.mse_loss, X, Y)
    net[0].requires_grad_(True)
    with pytest.raises(InputError, match="it changes with the parameters of a module itself"):
        as_regularizer(functools.partial(shifted, by=net[0].bias.detach()))


@pytest.mark.parametrize("take", [as_loss, as_regularizer])
def test_beside_what_was_computed_of_parameters_before_others_are_refused(take):
    before = LIVE[0].weight.sum()

    def function(theta):
        return before * (theta @ theta) + LIVE[2].bias.item()

    with pytest.raises(InputError, match=r"changes with the parameters .* out of the graph"):
        take(function)


def test_a_module_that_another_thread_remembers_meanwhile_is_no_error(monkeypatch):
    come, others, modules = threading.Event(), [], [nn.Linear(1, 1) for _ in range(3)]

    def remember():
        live.remember(modules[2], ["weight"])
        come.set()

    class Remembered(WeakKeyDictionary):
        def items(self):
            for item in super().items():
                others or others.append(start(remember))
                wait(come)
                yield item

    remembered = Remembered({module: {"bias"} for module in modules[:2]})
    monkeypatch.setattr(live, "_THETAS", remembered)
    monkeypatch.setattr(live, "_LOCK", Told(come.set))
    assert len(live._thetas()) == 2
    join(*others)
    assert len(live._thetas()) == 3


def test_a_module_whose_problem_was_refused_is_of_none():
    net = module()
    with pytest.raises(InputError, match="its gradient"):
        gf.Problem.from_module(net, lambda o, t: (o.detach() - t).square().mean() + o.mean(), X, Y)
    # As of any other module that may be meant to stay.
    with pytest.warns(UserWarning, match=r"uses a parameter of shape .* that is not of θ"):
        gf.Problem.from_function(lambda theta: theta @ theta * penalty(net), THETA)
