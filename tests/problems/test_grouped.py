"""The losses of classes and of single examples, beside problems of their own."""

import copy
import pickle
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import geoflow as gf
import references
from geoflow.errors import CriticalPointError, EvaluationLimitError, InputError
from geoflow.problems import grouped
from geoflow.problems.grouped import Grouped, divided

INPUTS, TARGETS = references.small_data()


def whole(batch_size=None):
    return references.small_network(batch_size=batch_size).problem


def of(indices):
    return gf.Problem.from_module(
        references.small_module(), cross_entropy, INPUTS[indices], TARGETS[indices]
    )


def singles():
    return [of([i]) for i in range(len(INPUTS))]


def classes():
    return [of(k == TARGETS) for k in range(2)]


@pytest.mark.parametrize("batch_size", [None, 7, 1])
@pytest.mark.parametrize(("divide", "apart"), [(gf.each_example, singles), (gf.by_class, classes)])
def test_values_and_gradients_are_those_of_problems_apart(divide, apart, batch_size):
    problem, problems = divide(whole(batch_size)), apart()
    theta = problem.theta0 + 0.1
    before = problem.counts
    values, gradients = problem.value_and_gradient(theta)
    assert problem.counts == {"gradient": before["gradient"] + 1, "hvp": 0}
    expected = [one.value_and_gradient(theta) for one in problems]
    assert torch.allclose(values, torch.stack([v for v, _ in expected]), rtol=1e-12)
    assert torch.allclose(gradients, torch.stack([g for _, g in expected]), rtol=1e-10, atol=1e-14)
    assert torch.allclose(problem.loss(theta), values, rtol=1e-12)
    weights = torch.linspace(-1, 1, len(values), dtype=torch.float64)
    assert torch.allclose(
        problem.weighted_gradient(theta, weights), weights @ gradients, rtol=1e-10, atol=1e-13
    )
    v = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    products = torch.stack([one.hvp(theta, v) for one in problems])
    assert torch.allclose(problem.hvp(theta, v), products, rtol=0, atol=1e-7)
    assert problem.counts == {"gradient": before["gradient"] + 2, "hvp": 1}
    assert torch.allclose(problem.values(theta), values, rtol=1e-12)
    assert problem.counts == {"gradient": before["gradient"] + 3, "hvp": 1}


def test_in_parts_as_large_as_memory_allows_the_gradients_are_the_same(monkeypatch):
    problem = gf.each_example(whole())
    _, at_once = problem.value_and_gradient(problem.theta0)
    monkeypatch.setattr("geoflow.problems.groups.BYTES_AT_ONCE", 5 * 50 * 8)
    _, in_parts = problem.value_and_gradient(problem.theta0)
    assert torch.allclose(at_once, in_parts, rtol=1e-13)


def test_several_inputs_are_taken_apart_too():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2).double()

        def forward(self, a, b):
            return torch.tanh(self.linear(a + b))

    problem = gf.Problem.from_module(Sum(), cross_entropy, (INPUTS, 2 * INPUTS), TARGETS)
    problem_each = gf.each_example(problem)
    values, gradients = problem_each.value_and_gradient(problem.theta0)
    value, gradient = problem.value_and_gradient(problem.theta0)
    assert torch.allclose(values.mean(), value)
    assert torch.allclose(gradients.mean(0), gradient)


def test_an_example_that_is_there_twice_is_one_constraint():
    order = [0, 1, 2, 3, 1, 1]
    problem = gf.each_example(of(order))
    assert len(problem.loss(problem.theta0)) == 4
    assert torch.allclose(
        problem.loss(problem.theta0), gf.each_example(of(order[:4])).loss(problem.theta0)
    )
    other = TARGETS[order].clone()
    other[4] = 1 - other[4]
    problem = gf.Problem.from_module(references.small_module(), cross_entropy, INPUTS[order], other)
    # With another target it is another.
    assert len(gf.each_example(problem).loss(problem.theta0)) == 5


def test_a_budget_is_of_full_passes():
    problem = gf.by_class(whole())
    with problem.budget(1):
        problem.value_and_gradient(problem.theta0)
        with pytest.raises(EvaluationLimitError):
            problem.value_and_gradient(problem.theta0)
    # A product is of two, and none is made where one is left.
    before = problem.counts["hvp"]
    with problem.budget(1), pytest.raises(EvaluationLimitError):
        problem.hvp(problem.theta0, problem.theta0)
    assert problem.counts["hvp"] == before


BALANCED = len(TARGETS) / (2 * torch.bincount(TARGETS)).double()
WEIGHTED = {
    "of few": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0])),
    "balanced": nn.CrossEntropyLoss(weight=BALANCED),
    "in float32": nn.CrossEntropyLoss(weight=BALANCED.float()),
    "function": partial(cross_entropy, weight=BALANCED),
    "smoothed": nn.CrossEntropyLoss(weight=BALANCED, label_smoothing=0.1),
    "hinge": nn.MultiMarginLoss(p=2, margin=0.1, weight=BALANCED),
}


@pytest.mark.parametrize("batch_size", [None, 7, 1])
@pytest.mark.parametrize("name", WEIGHTED)
def test_the_loss_of_a_group_is_what_the_weighted_loss_makes_of_it(name, batch_size):
    module, loss = references.small_module().double(), WEIGHTED[name]
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).double()
    problem = gf.Problem.from_module(module, WEIGHTED[name], INPUTS, TARGETS, batch_size)
    outputs = module(INPUTS).detach()
    of_classes = [loss(outputs[k == TARGETS], TARGETS[k == TARGETS]) for k in range(2)]
    of_each = [loss(outputs[i : i + 1], TARGETS[i : i + 1]) for i in range(len(TARGETS))]
    for divide, expected in ((gf.by_class, of_classes), (gf.each_example, of_each)):
        found = divide(problem)
        # A hinge loss is weighted by its class whatever it is beside.
        rtol = 1e-7 if name == "in float32" else 1e-12
        assert torch.allclose(found.loss(problem.theta0), torch.stack(expected), rtol=rtol)


def test_a_mean_of_several_outputs_is_that_of_an_example_in_chunks_too():
    targets = INPUTS[:, :2]
    whole, chunks = (
        gf.Problem.from_module(references.small_module(), mse_loss, INPUTS, targets, size)
        for size in (None, 7)
    )
    expected = gf.each_example(whole).loss(whole.theta0)
    assert torch.allclose(gf.each_example(chunks).loss(whole.theta0), expected, rtol=1e-13)


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.leave = nn.GRU(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.leave(self.cells(x[:, :, None])[1][0])


def likelihood(outputs, targets):
    mean, variance = outputs[:, 0], outputs[:, 1].exp()
    return nn.functional.gaussian_nll_loss(mean, targets.to(mean), variance)


def by_a_value(outputs, targets):
    signs = [1.0 if float(o) > 0 else 2.0 for o in outputs[:, 0].detach()]
    return (cross_entropy(outputs, targets, reduction="none") * outputs.new_tensor(signs)).mean()


NOT_TOGETHER = {
    "recurrent": (Gated, cross_entropy),
    "likelihood": (references.small_module, likelihood),
    "decided by a value": (references.small_module, by_a_value),
}


@pytest.mark.parametrize("name", NOT_TOGETHER)
def test_what_vmap_does_not_take_is_evaluated_example_by_example(name):
    make, loss = NOT_TOGETHER[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make()
    problem = gf.Problem.from_module(module, loss, INPUTS, TARGETS)
    apart = [
        gf.Problem.from_module(module, loss, INPUTS[i : i + 1], TARGETS[i : i + 1])
        for i in range(len(INPUTS))
    ]
    found, theta = gf.each_example(problem), problem.theta0
    values, gradients = found.value_and_gradient(theta)
    expected = [one.value_and_gradient(theta) for one in apart]
    assert torch.allclose(values, torch.stack([v for v, _ in expected]), rtol=1e-13)
    assert torch.allclose(gradients, torch.stack([g for _, g in expected]), rtol=1e-12, atol=1e-15)
    weights = torch.linspace(-1, 1, len(values), dtype=torch.float64)
    assert torch.allclose(found.weighted_gradient(theta, weights), weights @ gradients, atol=1e-13)
    assert repr(found).startswith("Grouped(24 examples")
    again = pickle.loads(cloudpickle.dumps(found))
    assert torch.equal(again.loss(theta), found.loss(theta))


class WithSlopes(nn.Module):
    """Outputs and their derivatives in the inputs."""

    def __init__(self):
        super().__init__()
        self.inner = references.small_module()

    def forward(self, x):
        x = x.detach().requires_grad_()
        found = self.inner(x)
        (slopes,) = torch.autograd.grad(found.sum(), x, create_graph=True)
        return found, slopes


def with_slopes(outputs, targets):
    return cross_entropy(outputs[0], targets) + outputs[1].square().mean()


def test_derivatives_inside_the_network_are_those_of_each_group():
    problem = gf.Problem.from_module(WithSlopes(), with_slopes, INPUTS, TARGETS)
    for divide in (gf.by_class, gf.each_example):
        found = divide(problem)
        value, gradient = problem.value_and_gradient(problem.theta0)
        weights = value.new_ones(24) / 24
        if divide is gf.by_class:
            weights = torch.bincount(TARGETS).double() / 24
        values, gradients = found.value_and_gradient(problem.theta0)
        assert torch.allclose(found.loss(problem.theta0), values, rtol=1e-13)
        assert torch.allclose(weights @ values, value, rtol=1e-13)
        assert torch.allclose(weights @ gradients, gradient, rtol=1e-11, atol=1e-14)


class OfSlopes(nn.Module):
    """Logits that are derivatives in the inputs."""

    def __init__(self):
        super().__init__()
        self.inner = references.small_module()

    def forward(self, x):
        x = x.detach().requires_grad_()
        energy = self.inner(x).square().sum()
        (slopes,) = torch.autograd.grad(energy, x, create_graph=True)
        return slopes


@pytest.mark.parametrize("divide", [gf.by_class, gf.each_example])
def test_a_weighted_loss_of_such_a_network_is_divided_too(divide):
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0, 0.1]))
    found, plain = (
        divide(gf.Problem.from_module(OfSlopes(), loss, INPUTS, TARGETS))
        for loss in (weighted, cross_entropy)
    )
    # One weight cancels in the mean of a class, as in that of an example.
    assert torch.allclose(found.loss(found.theta0), plain.loss(plain.theta0), rtol=1e-13)


IGNORED = TARGETS.clone()
IGNORED[[3, 5]] = -100


class OnAGraph(nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.inner, self.dense = references.small_module(), dense
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("matrix", torch.rand(24, 24, generator=generator))
        self.register_buffer("edges", torch.randint(24, (2, 60), generator=generator))

    def forward(self, x):
        found = self.inner(x)
        if self.dense:
            return self.matrix @ found
        return torch.zeros_like(found).index_add(0, self.edges[1], found[self.edges[0]])


def of_ignored(divide, targets, **options):
    loss = nn.CrossEntropyLoss(**options)
    return divide(gf.Problem.from_module(references.small_module(), loss, INPUTS, targets))


def contrastive(outputs, targets):
    """Of all pairs of one class."""
    others = ~torch.eye(len(targets), dtype=torch.bool)
    pairs = (targets[:, None] == targets) & others
    return (outputs @ outputs.T)[pairs].mean()


def ranked(outputs, targets):
    """Of all pairs of two classes."""
    return (outputs[targets == 1, None] - outputs[targets == 0]).sigmoid().mean()


NO_CLASS = [0.0, 1.0]
REFUSED = {
    "class of ignored": (
        lambda: of_ignored(gf.by_class, IGNORED),
        "targets: the loss is nan on the group of example 3 alone, .* leave such examples out",
    ),
    "ignored": (
        lambda: of_ignored(gf.each_example, IGNORED),
        "targets: the loss is nan on example 3, 5 alone, as where its target is ignored",
    ),
    "no weight": (
        lambda: of_ignored(gf.by_class, TARGETS, weight=torch.tensor(NO_CLASS)),
        "its class weighs 0, or examples act on each other",
    ),
    **{
        f"contrastive {divide.__name__}": (
            lambda divide=divide, options=options: divide(
                gf.Problem.from_module(references.small_module(), *options)
            ),
            f"loss: it is nan on each {one} alone, so examples act on each other",
        )
        for divide, one, options in (
            (gf.each_example, "example", (contrastive, INPUTS, TARGETS)),
            (gf.by_class, "group", (ranked, INPUTS, TARGETS)),
        )
    },
    "several targets": (
        lambda: gf.by_class(
            gf.Problem.from_module(
                nn.Embedding(3, 3).double(),
                lambda o, t: cross_entropy(o.flatten(0, 1), t.flatten()),
                torch.arange(24).reshape(8, 3) % 3,
                TARGETS.reshape(8, 3),
            )
        ),
        r"several of each example, shape .8, 3., .* make a problem whose other targets the loss",
    ),
    "a sum": (
        lambda: of_ignored(gf.by_class, TARGETS, reduction="sum"),
        "by_class: loss_fn is a sum over the examples, no mean over examples; give the mean",
    ),
    "each of a sum": (
        lambda: of_ignored(gf.each_example, TARGETS, reduction="sum"),
        "each_example: loss_fn is a sum over the examples, no mean over examples; give the mean",
    ),
    "weights in a lambda": (
        lambda: gf.by_class(
            gf.Problem.from_module(
                references.small_module(),
                lambda o, t: cross_entropy(o, t, weight=o.new_tensor([1.0, 5.0])),
                INPUTS,
                TARGETS,
            )
        ),
        "so it is no mean over examples, or they act on each other; make a problem for each",
    ),
    **{
        f"graph {dense} {divide.__name__}": (
            lambda dense=dense, divide=divide: divide(
                gf.Problem.from_module(OnAGraph(dense), cross_entropy, INPUTS, TARGETS)
            ),
            "loss: it fails on some of the examples by themselves .* act on each other .nodes of",
        )
        for dense in (False, True)
        for divide in (gf.by_class, gf.each_example)
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_loss_of_each_group_is_refused_in_a_line(name):
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as failure:
        make()
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: gf.each_example(
                gf.Problem.from_function(references.half_square, torch.ones(3).double())
            ),
            "a constraint for each example needs a network's outputs",
        ),
        (
            lambda: gf.by_class(
                gf.Problem.from_module(
                    nn.Linear(3, 1).double(), mse_loss, INPUTS, TARGETS[:, None].double()
                )
            ),
            "they are no classes",
        ),
        (lambda: gf.by_class(of(TARGETS < 1)), "there is 1 of examples"),
        (lambda: divided(whole(), "by_sign"), "constraints='by_sign'"),
        (lambda: Grouped(whole(), 3, "x"), "groups=3"),
        (lambda: Grouped(whole(), [[0, 1], [2]], "x"), "example 3 is in none"),
        (lambda: Grouped(whole(), [range(13), range(12, 24)], "x"), "example 12 is in two"),
        (lambda: Grouped(whole(), [range(12), range(12, 25)], "x"), "there is no example 24"),
        (lambda: Grouped(whole(), [[0.5], [1]], "x"), r"groups\[0\]=\[0.5\]"),
        (lambda: Grouped(whole(), [[], [1]], "x"), r"groups\[0\]=\[\]"),
        (lambda: gf.LevelSet([gf.by_class(whole()), whole()]), r"problems\[0\] is several"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message) as failure:
        make()
    assert "\n" not in str(failure.value)


def test_it_shows_itself_in_a_line():
    assert repr(gf.each_example(whole())) == "Grouped(24 examples, 50 parameters)"
    assert repr(gf.by_class(whole())) == "Grouped(2 groups of examples, 50 parameters)"


def test_more_constraints_than_parameters_are_dependent_and_say_of_which_rank():
    module = nn.Linear(3, 2).double()
    problem = gf.each_example(gf.Problem.from_module(module, cross_entropy, INPUTS, TARGETS))
    assert isinstance(problem, Grouped)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    # Of a softmax's two outputs only the difference counts: four directions of eight.
    with pytest.raises(CriticalPointError, match=r"the 24 constraints .* \(rank 4: beside"):
        flow.evaluate(problem.theta0)


def test_levels_close_to_zero_take_an_absolute_tolerance():
    problem = gf.each_example(whole())
    level_set = gf.LevelSet(problem, level_rtol=1e-10, level_atol=1e-8)
    assert np.allclose(level_set.tolerances, 1e-8 + 1e-10 * level_set.levels)
    theta = problem.theta0 + 1e-3
    projection = level_set.project(theta)
    residuals = abs(problem.loss(projection.theta).numpy() - level_set.levels)
    assert (residuals <= level_set.tolerances).all()
    with pytest.raises(InputError, match="level_atol=-1"):
        gf.LevelSet(problem, level_atol=-1)


def test_groups_are_lists_too():
    lists = Grouped(whole(), [list(range(10)), list(range(10, 24))], "halves")
    arrays = Grouped(whole(), [np.arange(10), np.arange(10, 24)], "halves")
    assert torch.equal(lists.loss(lists.theta0), arrays.loss(arrays.theta0))


def test_what_vmap_advises_is_kept_from_users():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    module = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 8, generator=generator)
    y = torch.randint(3, (4,), generator=generator)
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, x, y)
    # A warning is an error in these tests.
    found = problem.losses(torch.stack([problem.theta0, 0.5 * problem.theta0]))
    assert float(found[0]) == pytest.approx(float(problem.loss(problem.theta0)), rel=1e-12)
    gf.each_example(problem).value_and_gradient(problem.theta0)
    # To others it is given as before.
    with pytest.warns(UserWarning, match="performance drop"):
        torch.func.vmap(problem.loss)(problem.theta0[None])


@pytest.mark.parametrize("division", [gf.by_class, gf.each_example])
@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_with_the_hessians_are_exact(division, scale, activation, dtype):
    """In raw units, and with kinks within every step of a difference."""
    torch.manual_seed(0)
    n = 60 if division is gf.each_example else 2000
    x = torch.randn(n, 3, dtype=torch.float64)
    y = (x.sum(1) > 0).long()
    module = nn.Sequential(nn.Linear(3, 16), activation(), nn.Linear(16, 2)).double()
    with torch.no_grad():
        module[0].weight.div_(scale)
    loss = nn.functional.cross_entropy
    grouped = division(gf.Problem.from_module(module, loss, scale * x, y, dtype=dtype))
    theta, v = grouped.theta0, torch.ones_like(grouped.theta0)
    found = grouped.hvp(theta, v)
    assert grouped.counts == {"gradient": 0, "hvp": 1}
    of = [y == 0, y == 1] if division is gf.by_class else torch.eye(n).bool()
    for i in (0, 1):
        one = gf.Problem.from_module(module, loss, scale * x[of[i]], y[of[i]])
        expected = one.hvp(theta.double(), v.double())
        error = (found[i].double() - expected).norm() / expected.norm()
        assert float(error) < (1e-12 if dtype == torch.float64 else 1e-4)


def test_what_vmap_does_not_take_twice_is_multiplied_one_by_one(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, x, x[:, :1])
    expected = gf.each_example(problem).hvp(problem.theta0, problem.theta0)
    grouped = gf.each_example(problem)

    def refusing(*arguments):
        raise RuntimeError("no rule")

    monkeypatch.setattr("geoflow.problems.groups._product_of_one", refusing)
    found = grouped.hvp(problem.theta0, problem.theta0)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-14)
    value, _ = grouped.value_and_gradient(problem.theta0)
    assert value.shape == (12,)


class Halved(torch.autograd.Function):
    """sin, with a gradient that is right and no second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * x.detach().cos()


class Sine(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.filterwarnings("ignore:loss. PyTorch's second derivatives:UserWarning")
def test_where_second_derivatives_are_wrong_products_are_differences(size):
    torch.manual_seed(0)
    x = torch.randn(12, 3, dtype=torch.float64)
    layers = [nn.Linear(3, 4).double(), nn.Linear(4, 1).double()]
    made = []
    for function in (Halved.apply, torch.sin):
        module = nn.Sequential(layers[0], Sine(function), layers[1])
        made.append(gf.each_example(gf.Problem.from_module(module, mse_loss, x, x[:, :1])))
    theta = made[0].theta0
    v = size * torch.ones_like(theta)
    found, expected = (grouped.hvp(theta, v) for grouped in made)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-7 * size)
    assert made[0].counts == {"gradient": 0, "hvp": 1}


def test_of_a_weighted_loss_an_example_that_is_there_twice_counts_twice():
    order, weight = [0, 1, 2, 3, 1, 1], torch.tensor([1.0, 5.0], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight)
    module = references.small_module().double()
    problem = gf.Problem.from_module(module, loss, INPUTS[order], TARGETS[order])
    assert len(set(TARGETS[order[:4]].tolist())) == 2
    found = gf.each_example(problem).loss(problem.theta0)
    expected = cross_entropy(module(INPUTS[order[:4]]), TARGETS[order[:4]], reduction="none")
    assert torch.allclose(found, expected.detach(), rtol=1e-12)


def test_of_a_weighted_loss_single_examples_may_have_none():
    module = references.small_module().double()
    with torch.no_grad():
        for parameter in module[-1].parameters():
            parameter.mul_(1e5)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0], dtype=torch.float64))
    targets = TARGETS.clone()
    targets[0] = 1 - targets[0]
    problem = gf.Problem.from_module(module, loss, INPUTS, targets)
    found = gf.each_example(problem).loss(problem.theta0)
    assert 0 < int((found == 0).sum()) < len(found)


@pytest.mark.parametrize("unit", [1.0, 1e-20, 1e-100, 1e100])
@pytest.mark.parametrize("divide", [gf.each_example, gf.by_class])
def test_in_any_unit_a_loss_is_a_mean_or_none(unit, divide):
    def of_loss(loss):
        return gf.Problem.from_module(
            references.small_module(), lambda o, t: unit * loss(o, t), INPUTS, TARGETS
        )

    def of_all(outputs, targets):
        return cross_entropy(outputs, targets) + outputs.mean(0).square().sum()

    grouped, expected = divide(of_loss(cross_entropy)), divide(whole())
    values = unit * expected.loss(expected.theta0)
    assert torch.allclose(grouped.loss(grouped.theta0), values, rtol=1e-12, atol=0)
    with pytest.raises(InputError, match="or they act on each other; make a problem for each"):
        divide(of_loss(of_all))


class OverRoot(nn.Module):
    """A sum over √N: a mean of no examples, though sums of its groups add up to it."""

    reduction = "mean"

    def forward(self, outputs, targets):
        losses = (outputs - targets).square()
        return losses.sum() / (len(losses) ** 0.5 if self.reduction == "mean" else 1)


def test_a_loss_whose_groups_weigh_other_than_its_whole_is_no_mean():
    problem = gf.Problem.from_module(
        nn.Linear(INPUTS.shape[1], 1), OverRoot(), INPUTS, INPUTS.sum(1, keepdim=True)
    )
    with pytest.raises(InputError, match="no mean over examples"):
        Grouped(problem, [np.arange(3), np.arange(3, len(INPUTS))], "by_class")


@pytest.mark.parametrize("unit", [1.0, 1e-20])
@pytest.mark.parametrize("divide", [gf.each_example, gf.by_class])
def test_rounding_of_a_loss_that_all_but_vanishes_is_no_fault(unit, divide):
    """Of its terms it is no more than the last digit, and another one of each group."""
    torch.manual_seed(0)
    module = nn.Linear(INPUTS.shape[1], 3).double()
    for parameter in module.parameters():
        parameter.data *= 1e-8

    def loss(outputs, targets):
        return unit * ((1 + outputs.square().sum(1)).mean() - 1)

    divide(gf.Problem.from_module(module, loss, INPUTS, TARGETS))


@pytest.mark.parametrize("divide", [gf.each_example, gf.by_class])
def test_a_loss_has_a_graph_where_gradients_are_on(divide):
    problem = divide(whole())
    theta = problem.theta0.clone().requires_grad_()
    with torch.no_grad():
        found = problem.loss(theta)
    assert not found.requires_grad
    assert problem.loss(theta).requires_grad
    assert not problem.loss(theta.detach()).requires_grad


@pytest.mark.slow
def test_examples_are_numbered_in_one_pass(monkeypatch):
    """By counting those before it each, this many would take minutes."""
    n = 60_000
    x = torch.arange(n, dtype=torch.float64)[:, None] / n
    x[[n - 1, 7]] = x[[3, 3]]
    problem = gf.Problem.from_module(nn.Linear(1, 1), mse_loss, x, x, n // 4)
    monkeypatch.setattr(grouped, "Grouped", lambda problem, groups, division: groups)
    groups = gf.each_example(problem)
    assert len(groups) == n - 2
    assert [group.tolist() for group in groups[2:8]] == [[2], [3, 7, n - 1], [4], [5], [6], [8]]


def test_classes_are_in_their_order_and_so_are_their_examples(monkeypatch):
    monkeypatch.setattr(grouped, "Grouped", lambda problem, groups, division: groups)
    targets = torch.tensor([2, 0, 4, 2, 0, 2])
    problem = gf.Problem.from_module(nn.Linear(1, 5), cross_entropy, torch.rand(6, 1), targets)
    assert [group.tolist() for group in gf.by_class(problem)] == [[1, 4], [0, 3, 5], [2]]
