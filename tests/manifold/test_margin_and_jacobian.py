"""Which examples the margin is of, and of which networks there is a Jacobian for each example."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geoflow as gf
from geoflow.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(22, 4, generator=GENERATOR, dtype=torch.float64)
TARGETS = torch.randint(0, 3, (22,), generator=GENERATOR)


def network(*between):
    generator = torch.Generator().manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 6), *between, nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


def value(name, module, loss_fn, targets, batch_size=None):
    problem = gf.Problem.from_module(module, loss_fn, INPUTS, targets, batch_size)
    bound = gf.regularizers.get(name).bind(problem)
    return float(bound.value_and_gradient(problem.theta0)[0])


def margin(kept):
    outputs, targets = network()(INPUTS).detach()[kept], TARGETS[kept]
    right = outputs.gather(1, targets[:, None])[:, 0]
    wrong = outputs.scatter(1, targets[:, None], -torch.inf)
    return float((right - wrong.logsumexp(1)).mean())


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_margin_is_of_the_examples_that_the_loss_counts(batch_size):
    there = torch.arange(22) % 4 != 0
    for ignored, targets, losses in (
        (-100, torch.where(there, TARGETS, -100), (F.cross_entropy, nn.CrossEntropyLoss())),
        (255, torch.where(there, TARGETS, 255), (nn.CrossEntropyLoss(ignore_index=255),)),
        (2, TARGETS, (partial(F.cross_entropy, ignore_index=2),)),
    ):
        for loss_fn in losses:
            found = value("margin", network(), loss_fn, targets, batch_size)
            assert found == pytest.approx(margin(targets != ignored), rel=1e-13)


@pytest.mark.parametrize("target", [-100, 3])
def test_targets_that_are_no_class_are_refused_by_the_name_of_the_margin(target):
    targets = TARGETS.clone()
    targets[3:5] = target

    def loss_fn(outputs, given):
        return F.cross_entropy(outputs, given, ignore_index=target)

    with pytest.raises(InputError, match=rf"'margin': 2 targets, as {target}, .* ignore_index"):
        value("margin", network(), loss_fn, targets)


class OfWords(nn.Module):
    """Logits of each word of a sequence, with the classes along some axis."""

    def __init__(self, axis, n_classes=3):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        values = torch.randn(5, n_classes, generator=generator, dtype=torch.float64)
        self.embedding, self.axis = nn.Embedding.from_pretrained(values, freeze=False), axis

    def forward(self, words):
        return self.embedding(words).movedim(-1, self.axis)


WORDS = torch.randint(5, (22, 4), generator=GENERATOR)
NEXT = torch.randint(3, (22, 4), generator=GENERATOR)


def of_words(axis, targets=NEXT, n_classes=3, batch_size=None, words=WORDS, **options):
    def loss_fn(outputs, targets, reduction="mean", ignore_index=-100):
        return F.cross_entropy(
            outputs.movedim(axis, 1), targets, reduction=reduction, ignore_index=ignore_index
        )

    module = OfWords(axis, n_classes)
    problem = gf.Problem.from_module(module, loss_fn, words, targets, batch_size)
    bound = gf.regularizers.margin(**options).bind(problem)
    return problem, float(bound.value_and_gradient(problem.theta0)[0])


def margin_of_words(targets=NEXT, n_classes=3, words=WORDS):
    """The mean over all words that have a target, one after the other."""
    logits = OfWords(-1, n_classes)(words).detach().flatten(0, -2)
    found = [
        row[k] - torch.cat([row[:k], row[k + 1 :]]).logsumexp(0)
        for row, k in zip(logits, targets.flatten().tolist(), strict=True)
        if k != -100
    ]
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("batch_size", [None, 5])
@pytest.mark.parametrize("axis", [1, -1])
def test_the_margin_of_a_language_model_is_the_mean_over_words(axis, batch_size):
    ragged = torch.where(torch.arange(4) < 1 + torch.arange(22)[:, None] % 4, NEXT, -100)
    for targets in (NEXT, ragged):
        for options in ({}, {"class_dim": axis}):
            _, found = of_words(axis, targets, batch_size=batch_size, **options)
            assert found == pytest.approx(margin_of_words(targets), rel=1e-13)


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_the_margin_of_pixels_is_the_mean_over_them(axis):
    words, targets = WORDS[:20].reshape(10, 2, 4), NEXT[:20].reshape(10, 2, 4)
    _, found = of_words(axis, targets, words=words)
    assert found == pytest.approx(margin_of_words(targets, words=words), rel=1e-13)


def test_the_axis_of_the_classes_is_asked_for_where_several_may_be_it():
    with pytest.raises(InputError, match=r"'margin': .* along axis 1 or 2; give that as class_dim"):
        of_words(-1, n_classes=4)
    for axis in (1, -1):
        _, found = of_words(axis, n_classes=4, class_dim=axis)
        assert found == pytest.approx(margin_of_words(n_classes=4), rel=1e-13)
    with pytest.raises(InputError, match=r"class_dim=1, and .* along axis 2; give that"):
        of_words(-1, class_dim=1)


def test_an_axis_of_classes_is_in_the_name():
    made = gf.regularizers.margin(class_dim=-1, sign=-1)
    assert made.__name__ == "margin:class_dim=-1,sign=-1"
    assert gf.regularizers.get(made.__name__).__name__ == made.__name__
    assert gf.regularizers.margin(class_dim=None).__name__ == "margin"


def test_the_classes_of_words_are_kept_as_problems_of_their_own():
    problem, _ = of_words(-1)
    with pytest.raises(InputError, match=r"several of each example, shape \(22, 4\)"):
        gf.by_class(problem)
    each = [of_words(-1, torch.where(k == NEXT, NEXT, -100))[0] for k in range(3)]
    level = gf.LevelSet(each)
    losses = torch.tensor([float(p.loss(p.theta0)) for p in each], dtype=torch.float64)
    sizes = torch.bincount(NEXT.flatten())
    assert float(losses @ sizes.double() / sizes.sum()) == pytest.approx(
        float(problem.loss(problem.theta0)), rel=1e-13
    )
    flow = gf.RegularizingFlow(level, gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=60, stop=None)
    assert abs(ds["constraint_residual"][-1] / losses.numpy()).max() < 1e-6


class OfPairs(nn.Module):
    """Adds up the outputs of two examples that follow on each other."""

    def __init__(self):
        super().__init__()
        self.of_one = network()

    def forward(self, x):
        found = self.of_one(x).view(-1, 2, 3)
        return found.sum(1, keepdim=True).expand(-1, 2, 3).reshape(-1, 3)


class OnGraph(nn.Module):
    """Takes from each example's neighbour on a ring, so that it wants all of them."""

    def __init__(self, reach):
        super().__init__()
        self.of_one = network()
        self.register_buffer("adjacency", torch.eye(22).roll(reach, 0).double())

    def forward(self, x):
        return self.of_one(self.adjacency @ x)


@pytest.mark.parametrize(
    "module",
    [network(nn.BatchNorm1d(6, track_running_stats=False).double()), OfPairs(), OnGraph(1)],
)
def test_examples_that_act_on_each_other_have_no_jacobian(module):
    with pytest.raises(InputError, match=r"'jacobian_norm': .* change with the inputs of others"):
        value("jacobian_norm", module, F.cross_entropy, TARGETS)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_one = network()

    def forward(self, x):
        outputs = self.of_one(x)
        return torch.complex(outputs, outputs**2)


def test_outputs_that_are_not_real_are_refused_by_name():
    def loss(outputs, targets):
        return outputs.abs().square().mean()

    with pytest.raises(InputError, match=r"'jacobian_norm': .* torch\.complex128; give real ones"):
        value("jacobian_norm", Complex(), loss, TARGETS)


def test_a_network_that_takes_a_certain_number_of_examples_has_one():
    found = value("jacobian_norm", OnGraph(0), F.cross_entropy, TARGETS)
    assert found == value("jacobian_norm", network(), F.cross_entropy, TARGETS)


class OnOne(nn.Module):
    """Every output depends on one of the examples."""

    def __init__(self, k):
        super().__init__()
        self.k, self.of_one = k, network()

    def forward(self, x):
        return self.of_one(x + x[self.k])


@pytest.mark.parametrize("k", range(0, 22, 3))
def test_one_example_that_acts_on_all_others_is_seen_in_either_half(k):
    with pytest.raises(InputError, match="change with the inputs of others"):
        value("jacobian_norm", OnOne(k), F.cross_entropy, TARGETS)


@dataclass
class Given:
    logits: torch.Tensor


class Within(nn.Module):
    """A network whose logits are within what it gives."""

    def __init__(self, give):
        super().__init__()
        self.inner, self.give = network(), give

    def forward(self, x):
        return self.give(self.inner(x))


WITHIN = {
    "dict": (lambda f: {"logits": f}, lambda o: o["logits"]),
    "tuple": (lambda f: (f, f.sum()), lambda o: o[0]),
    "Given": (Given, lambda o: o.logits),
    "SimpleNamespace": (lambda f: SimpleNamespace(logits=f), lambda o: o.logits),
}


def refused(name, problem):
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    said = []
    for call in (
        lambda: gf.RegularizingFlow(flow.level_set, gf.regularizers.get(name)),
        lambda: gf.regularizers.get(name).bind(problem),
        lambda: gf.walk(flow, observables={"its": gf.regularizers.get(name)}),
    ):
        with pytest.raises(InputError) as failure:
            call()
        said.append(str(failure.value))
    return said


@pytest.mark.parametrize("kind", WITHIN)
def test_logits_within_what_a_network_gives_are_refused_in_one_line(kind):
    give, take = WITHIN[kind]
    problem = gf.Problem.from_module(
        Within(give), lambda o, t: F.cross_entropy(take(o), t), INPUTS, TARGETS
    )
    for line in refused("margin", problem):
        assert f"'margin': the outputs, a {kind}, are no logits and classes; let the mod" in line
        assert "\n" not in line
    for line in refused("jacobian_norm", problem):
        assert "no tensor with a row for each example; use another R" in line


def test_one_number_of_all_examples_has_no_jacobian_for_each():
    problem = gf.Problem.from_module(
        Within(lambda f: f.square().mean()), lambda o, t: o, INPUTS, TARGETS
    )
    for line in refused("jacobian_norm", problem):
        assert "no tensor with a row for each example; use another R" in line
    for line in refused("margin", problem):
        assert "outputs of shape () and targets of (22,) are no logits" in line


class Detached(nn.Module):
    """A network that takes its inputs out of the graph, into one of its own or none."""

    def __init__(self, again):
        super().__init__()
        self.inner, self.again = network(), again

    def forward(self, x):
        x = x.detach().requires_grad_(self.again)
        return self.inner(x)


@pytest.mark.parametrize("again", [False, True])
def test_inputs_that_forward_detaches_have_no_jacobian(again):
    problem = gf.Problem.from_module(Detached(again), F.cross_entropy, INPUTS, TARGETS)
    for line in refused("jacobian_norm", problem):
        assert "'jacobian_norm': the outputs have no derivative in the inputs: forward" in line
        assert "detach them only if not x.requires_grad" in line
