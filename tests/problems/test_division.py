"""Chunks are the whole, or refused: also where examples act on each other."""

from collections import namedtuple
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems import division
from geoflow.problems.division import divided, weighed
from geoflow.problems.neighbours import Neighbours
from geoflow.problems.of_outputs import MeanAndSum, OfOutputs
from geoflow.problems.parts import ModulePart

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
SEQUENCES = torch.randn(64, 5, 6, generator=torch.Generator().manual_seed(1))
MSE = functional.mse_loss


def seeded(make, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments)


class Coupled(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.enter, self.leave, self.act = nn.Linear(6, 8), nn.Linear(8, 1), act

    def forward(self, x):
        return self.leave(torch.tanh(self.act(self.enter(x))))


class OverTime(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.leave = nn.LSTM(6, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.leave(self.cells(x)[0])


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.leave = nn.MultiheadAttention(6, 2), nn.Linear(6, 1)

    def forward(self, x):
        return self.leave(self.attend(x, x, x)[0].mean(1))


class WithGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 1)

    def forward(self, x):
        found = self.inner(x)
        return found, found.T @ found


def batch_norm(hidden):
    return functional.batch_norm(hidden, None, None, training=True)


COUPLED = {
    "batch mean": (lambda: Coupled(lambda h: h - h.mean(0)), X),
    "batch norm": (lambda: Coupled(batch_norm), X),
    "normalised over examples": (lambda: Coupled(lambda h: functional.normalize(h, dim=0)), X),
    "softmax over examples": (lambda: Coupled(lambda h: h * h.softmax(0)), X),
    "series": (OverTime, X),
    "attention": (Attending, SEQUENCES),
}


class Similar(nn.Module):
    """Similarities of all examples with all."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 8)

    def forward(self, x):
        return self.inner(x) @ self.inner(x + 0.1).T


class Weighing(nn.Module):
    """Weights of two losses beside the outputs."""

    def __init__(self):
        super().__init__()
        self.inner, self.scales = nn.Linear(6, 1), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.inner(x), self.scales


def weighed_losses(outputs, targets):
    found, scales = outputs
    return MSE(found, targets) * scales[0].exp() + found.abs().mean() * scales[1].exp()


WHOLE_ONLY = {
    "targets of all": (Similar, functional.cross_entropy, torch.arange(64)),
    "an output of none": (Weighing, weighed_losses, Y),
}


@pytest.mark.parametrize("name", WHOLE_ONLY)
def test_a_loss_that_fails_on_some_of_the_examples_is_refused_by_the_size(name):
    make, loss_fn, targets = WHOLE_ONLY[name]
    gf.Problem.from_module(seeded(make), loss_fn, X, targets)
    message = "batch_size=7: the loss fails on 7 of the examples .* use batch_size=None, or Problem"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_module(seeded(make), loss_fn, X, targets, 7)


def test_the_reduction_of_a_compiled_loss_is_its_own():
    module = seeded(nn.Linear, 6, 3)
    compiled = torch.compile(nn.CrossEntropyLoss(ignore_index=2), backend="eager")
    chunked = gf.Problem.from_module(module, compiled, X, LABELS, 7)
    whole = gf.Problem.from_module(module, nn.CrossEntropyLoss(ignore_index=2), X, LABELS)
    assert float(chunked.loss(whole.theta0)) == pytest.approx(
        float(whole.loss(whole.theta0)), rel=1e-14
    )


# Of one example there are no statistics.
ONE = "the loss fails on . of the examples .Expected more than 1 value per channel"


@pytest.mark.parametrize(
    "size", [1, 7, *(pytest.param(n, marks=pytest.mark.slow) for n in (16, 40))]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", COUPLED)
def test_examples_that_act_on_each_other_are_not_divided(name, dtype, size):
    make, inputs = COUPLED[name]
    module = seeded(make)
    gf.Problem.from_module(module, MSE, inputs, Y, dtype=dtype)
    with pytest.raises(InputError, match=f"batch_size={size}: .* act on each other|{ONE}"):
        gf.Problem.from_module(module, MSE, inputs, Y, size, dtype=dtype)


def test_nor_are_those_of_a_process():
    module = seeded(Coupled, lambda h: h - h.mean(0)).double()
    part = ModulePart(module, {}, X.double(), Y.double(), MSE)
    with pytest.raises(InputError, match=r"module: .* act on each other"):
        weighed(part, dict(module.named_parameters()))


@pytest.mark.parametrize("size", [1, 7, 16, 63])
def test_what_is_of_a_chunk_counts_where_the_loss_uses_it(size):
    module = seeded(WithGram)
    with pytest.raises(InputError, match=r"act on each other|no mean over examples"):
        gf.Problem.from_module(module, lambda o, t: MSE(o[0], t) + 1e-3 * o[1].sum(), X, Y, size)
    plain = gf.Problem.from_module(module.inner, MSE, X, Y)
    found = gf.Problem.from_module(module, lambda o, t: MSE(o[0], t), X, Y, size)
    theta = plain.theta0
    assert float(found.loss(theta)) == pytest.approx(float(plain.loss(theta)), rel=1e-13)


def hooked():
    features = {}
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)))
    module[1].register_forward_hook(lambda m, i, o: features.update(h=o))
    return module, features


@pytest.mark.parametrize("size", [7, 16])
def test_what_a_hook_keeps_is_that_of_the_chunk(size):
    module, features = hooked()
    with pytest.raises(InputError, match="act on each other"):
        gf.Problem.from_module(
            module, lambda o, t: MSE(o, t) + 1e-3 * features["h"].abs().sum(), X, Y, size
        )

    def mean(outputs, targets):
        return MSE(outputs, targets) + 1e-3 * features["h"].abs().mean()

    whole, divided = (gf.Problem.from_module(module, mean, X, Y, s) for s in (None, size))
    theta = whole.theta0
    assert float(divided.loss(theta)) == pytest.approx(float(whole.loss(theta)), rel=1e-13)


class WeighsByTheFirst(nn.Module):
    """Class weights of the first targets it sees."""

    weights = None

    def forward(self, outputs, targets):
        if self.weights is None:
            self.weights = 1 / torch.bincount(targets, minlength=3).clamp(min=1).to(outputs)
        each = functional.cross_entropy(outputs, targets, reduction="none")
        return (each * self.weights[targets]).mean()


def test_a_loss_that_keeps_something_of_the_first_chunk_is_refused():
    module = nn.Linear(6, 3)
    gf.Problem.from_module(module, WeighsByTheFirst(), X, LABELS)
    with pytest.raises(InputError, match="or the loss keeps something of the first"):
        gf.Problem.from_module(module, WeighsByTheFirst(), X, LABELS, 7)


Named = namedtuple("Named", "logits inputs")


class NamedOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return Named(self.inner(x), x)


def test_named_outputs_keep_their_names_in_chunks():
    def loss(outputs, targets):
        return functional.cross_entropy(outputs.logits, targets)

    whole, divided = (
        gf.Problem.from_module(seeded(NamedOutputs), loss, X, LABELS, s) for s in (None, 7)
    )
    theta = whole.theta0
    assert float(divided.loss(theta)) == pytest.approx(float(whole.loss(theta)), rel=1e-13)


class WithItsPenalty(NamedOutputs):
    def forward(self, x):
        found = self.inner(x)
        return {"logits": found, "penalty": found.square().mean()}


def test_a_number_of_all_examples_is_no_output_of_a_chunk():
    with pytest.raises(InputError, match="module: its outputs hold a number of all examples"):
        gf.Problem.from_module(
            WithItsPenalty(),
            lambda o, t: functional.cross_entropy(o["logits"], t) + o["penalty"],
            X,
            LABELS,
            7,
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_scripted_loss_is_divided_by_its_mean():
    losses = [
        gf.Problem.from_module(seeded(nn.Linear, 6, 1), loss, X, Y, 7)
        for loss in (nn.MSELoss(), torch.jit.script(nn.MSELoss()))
    ]
    theta = losses[0].theta0
    assert float(losses[1].loss(theta)) == pytest.approx(float(losses[0].loss(theta)), rel=1e-13)


def test_two_evaluations_of_two_chunks_as_one_are_all_that_is_asked_for():
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    counts = {}
    for size in (None, 16):
        calls.clear()
        gf.Problem.from_module(seeded(Counted, 6, 1), MSE, X, Y, size)
        counts[size] = sum(calls)
    calls.clear()
    # Two at other parameters, chunk by chunk, and one of the chunks in pairs; the seven evaluations
    # of a copy, and the one that tells of complex views, are of the first chunk alone.
    assert counts[16] == counts[None] + 3 * len(X) - 8 * (len(X) - 16)


@pytest.mark.parametrize("size", [1, 7, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_that_cancel_are_divided(dtype, size):
    module = seeded(nn.Linear, 6, 3).double()
    inputs = X.double()
    outputs = module(inputs).detach()
    targets = torch.randn(64, 3, generator=torch.Generator().manual_seed(2)).double()
    targets -= (outputs * targets).sum() / outputs.square().sum() * outputs
    whole, apart = (
        gf.Problem.from_module(module, lambda o, t: (o * t).mean(), inputs, targets, s, dtype=dtype)
        for s in (None, size)
    )
    theta = whole.theta0
    assert abs(float(whole.loss(theta))) < 1e-7
    expected, found = (p.value_and_gradient(theta)[1] for p in (whole, apart))
    assert float((found - expected).norm() / expected.norm()) < 1e-5


class WithVariance(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 1)
        self.variance = nn.Parameter(torch.full((3,), 1e-3))

    def forward(self, x):
        return self.inner(x), self.variance.expand(len(x), 3)


def by_formula(outputs, targets):
    mean, variance = outputs
    return ((mean - targets) ** 2 / variance + variance.log()).mean()


def by_distribution(outputs, targets):
    mean, variance = outputs
    return -torch.distributions.Normal(mean, variance.sqrt()).log_prob(targets).mean()


def summed_up(outputs, targets):
    return by_formula(outputs, targets) * len(targets)


@pytest.mark.parametrize("loss", [by_formula, by_distribution])
def test_a_loss_that_is_not_defined_everywhere_is_compared_where_it_is(loss):
    module = seeded(WithVariance).double()
    part, at = ModulePart(module, {}, X.double(), Y.double(), loss), dict(module.named_parameters())
    chunks = [p.sum_and_weight(at) for p in divided(part, 7, at)]
    found = sum(float(total.detach()) for total, _ in chunks) / sum(float(w) for _, w in chunks)
    assert found == pytest.approx(float(part.sum_and_weight(at)[0].detach()), rel=1e-13)
    with pytest.raises(InputError, match="a sum over the examples, no mean over examples"):
        divided(replace(part, loss_fn=summed_up), 7, at)


SUMS = {
    "module": nn.MSELoss(reduction="sum"),
    "partial": partial(MSE, reduction="sum"),
    "lambda": lambda outputs, targets: (outputs - targets).square().sum(),
}


@pytest.mark.parametrize("name", SUMS)
def test_of_a_sum_over_the_examples_the_mean_is_asked_for(name):
    module = seeded(nn.Linear, 6, 1).double()
    gf.Problem.from_module(module, SUMS[name], X, Y)
    message = "{}: loss_fn is a sum over the examples.* give the mean .reduction='mean'"
    with pytest.raises(InputError, match=message.format("batch_size=7")):
        gf.Problem.from_module(module, SUMS[name], X, Y, 7)
    part = ModulePart(module, {}, X.double(), Y.double(), SUMS[name])
    with pytest.raises(InputError, match=message.format("whole=False")):
        weighed(part, dict(module.named_parameters()))


def test_a_problem_whose_loss_has_a_domain_is_divided():
    whole, apart = (
        gf.Problem.from_module(seeded(WithVariance), by_formula, X, Y, size) for size in (None, 7)
    )
    theta = whole.theta0
    assert float(apart.loss(theta)) == pytest.approx(float(whole.loss(theta)), rel=1e-13)


def test_nothing_beside_the_outputs_is_nothing_in_each_chunk():
    module = seeded(nn.Linear, 6, 1)

    class WithNothing(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = module

        def forward(self, x):
            return {"logits": self.inner(x), "attentions": None, "more": (None,)}

    plain = gf.Problem.from_module(module, MSE, X, Y)
    apart = gf.Problem.from_module(WithNothing(), lambda o, t: MSE(o["logits"], t), X, Y, 7)
    theta = plain.theta0
    assert float(apart.loss(theta)) == pytest.approx(float(plain.loss(theta)), rel=1e-13)


def of_the_first(outputs, targets):
    return outputs[0].square().mean()


def of_the_states(outputs, targets):
    return outputs[1][0].square().mean()


class Ragged(nn.Module):
    """As long as the longest of a chunk."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 2)

    def forward(self, x):
        return (self.inner(x[:, : int(x.abs().sum(0).count_nonzero()), None]),)


RAGGED = torch.ones(64, 6).where(torch.arange(6) <= torch.arange(64)[:, None] // 12, 0)


@pytest.mark.parametrize(
    ("module", "loss", "inputs"),
    [
        (nn.LSTM(6, 8, batch_first=True), of_the_states, SEQUENCES),
        (Ragged(), of_the_first, RAGGED),
    ],
    ids=["states", "padded"],
)
def test_outputs_that_do_not_fit_each_other_are_not_divided(module, loss, inputs):
    gf.Problem.from_module(module, loss, inputs, Y)
    with pytest.raises(
        InputError, match=r"^module: its outputs cannot be joined .*batch_size=None"
    ):
        gf.Problem.from_module(module, loss, inputs, Y, 7)


class ActingFromAfar(nn.Module):
    """Examples beyond 100 act on all that are evaluated with them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x) + torch.relu(x - 100).mean()


@pytest.mark.parametrize("place", range(6))
def test_each_chunk_is_evaluated_with_another_once_of_an_odd_number_too(place):
    x = torch.linspace(-1, 1, 6)[:, None]
    x[place] = 101.0
    with pytest.raises(InputError, match="they act on each other"):
        gf.Problem.from_module(ActingFromAfar(), functional.mse_loss, x, x.sin(), batch_size=2)


def test_a_loss_that_is_no_mean_over_examples_by_little_is_refused():
    def loss(outputs, targets):
        return MSE(outputs, targets) * (1 + 1e-11 * len(outputs))

    module = seeded(nn.Linear, 6, 1)
    with pytest.raises(InputError, match="no mean over examples"):
        gf.Problem.from_module(module, loss, X[:12], Y[:12], batch_size=4)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, InputError])
def test_beside_theta0_a_loss_may_have_no_value_and_memory_and_arguments_have_to_do(
    error, monkeypatch
):
    def raising(what):
        def evaluated(parts, parameters):
            raise what("said")

        monkeypatch.setattr(division, "_evaluated", evaluated)

    at = {"weight": torch.ones(2)}
    raising(RuntimeError)
    assert division._beside((), at) == []
    raising(error)
    with pytest.raises(error, match="said"):
        division._beside((), at)


THRESHOLDS = {
    "flooding": lambda mean: lambda o, t: (mean(o, t) - 0.1).abs() + 0.1,
    "clamp": lambda mean: lambda o, t: mean(o, t).clamp(min=0.05),
    "upper clamp": lambda mean: lambda o, t: mean(o, t).clamp(max=20.0),
    "relu": lambda mean: lambda o, t: functional.relu(mean(o, t) - 0.3),
    "Huber of the mean": lambda mean: (
        lambda o, t: (lambda q: torch.where(q > 0.2, q, q * q / 0.4 + 0.1))(mean(o, t))
    ),
    "on the outputs": lambda mean: lambda o, t: mean(o, t) + functional.relu(o.mean().abs() - 5),
}
MEANS = {
    "cross-entropy": (3, functional.cross_entropy, LABELS),
    "squared": (1, MSE, 3 * Y),
    "absolute": (1, functional.l1_loss, 3 * Y),
}


@pytest.mark.parametrize("size", [7, pytest.param(63, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("mean", MEANS)
def test_a_threshold_on_the_mean_is_not_divided(mean, name, dtype, size):
    width, loss, targets = MEANS[mean]
    module = seeded(nn.Linear, 6, width)
    flooded = THRESHOLDS[name](loss)
    gf.Problem.from_module(module, flooded, X, targets, dtype=dtype)
    gf.Problem.from_module(module, loss, X, targets, size, dtype=dtype)
    with pytest.raises(InputError, match="no mean over examples"):
        gf.Problem.from_module(module, flooded, X, targets, size, dtype=dtype)


@pytest.mark.parametrize("mean", MEANS)
def test_nor_is_it_by_a_process(mean):
    width, loss, targets = MEANS[mean]
    module = seeded(nn.Linear, 6, width).double()
    targets = targets.double() if targets.is_floating_point() else targets
    part = ModulePart(module, {}, X.double(), targets, THRESHOLDS["flooding"](loss))
    at = {n: p.detach() for n, p in module.named_parameters()}
    weighed(replace(part, loss_fn=loss), at)
    with pytest.raises(InputError, match=r"whole=False: .* no mean over examples"):
        weighed(part, at)


class Gated(nn.Module):
    """Weights that add up to 1 for each example, to rounding, and a mask that θ does not move."""

    def __init__(self):
        super().__init__()
        self.leave, self.gate = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.leave(x), self.gate(x).softmax(1), (torch.arange(len(x)) % 2).to(x.dtype)


def bags(outputs, targets):
    first = targets - targets.min()
    each = [outputs[first == i, 0].logsumexp(0) for i in range(int(first.max()) + 1)]
    return torch.stack(each).mean()


CLASSES = torch.arange(60) % 3
# Each a mean over its chunks at any θ, and not over single examples, or of no other outputs.
DIVIDED = {
    "weights of each chunk alike": (
        lambda: nn.Linear(6, 3),
        lambda o, t: functional.cross_entropy(o, t, weight=o.new_tensor([1.0, 10.0, 0.1])),
        CLASSES,
    ),
    "mean over classes": (
        lambda: nn.Linear(6, 3),
        lambda o, t: torch.stack(
            [functional.cross_entropy(o[t == k], t[t == k]) for k in range(3)]
        ).mean(),
        CLASSES,
    ),
    "pairs": (
        lambda: nn.Linear(6, 1),
        lambda o, t: -functional.logsigmoid(o[0::2] - o[1::2]).mean(),
        None,
    ),
    "bags": (lambda: nn.Linear(6, 1), bags, torch.arange(60) // 6),
    "weights of outputs": (
        Gated,
        lambda o, t: (o[1] * (o[0] - t) ** 2).sum() / o[1].sum(),
        SEQUENCES[:60, 0, :3],
    ),
    "a mask": (
        Gated,
        lambda o, t: (o[2] * (o[0] - t).square().mean(1)).sum() / o[2].sum(),
        SEQUENCES[:60, 0, :3],
    ),
    "probabilities": (
        lambda: nn.Sequential(nn.Linear(6, 3), nn.Sigmoid()),
        lambda o, t: functional.binary_cross_entropy(o, t),
        SEQUENCES[:60, 0, :3].sigmoid(),
    ),
    "an example squeezed": (
        lambda: nn.Linear(6, 1),
        lambda o, t: MSE(o.squeeze(), t.squeeze()),
        Y[:60],
    ),
    "clamped one by one": (
        lambda: nn.Linear(6, 1),
        lambda o, t: (o - t).square().clamp(0.1, 1).mean(),
        Y[:60],
    ),
    "all of a chunk ignored": (
        lambda: nn.Linear(6, 3),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 10.0, 0.1]), label_smoothing=0.1),
        CLASSES.where(torch.arange(60) >= 18, -100),
    ),
    "in place": (lambda: nn.Linear(6, 1), lambda o, t: o.sub_(t).square_().mean(), Y[:60]),
    "taken out": (
        lambda: nn.Linear(6, 3),
        lambda o, t: functional.cross_entropy(o, t.pop("labels")),
        {"labels": CLASSES},
    ),
}


@pytest.mark.parametrize("size", [6, 18, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", DIVIDED)
def test_what_is_a_mean_over_its_chunks_is_divided(name, dtype, size):
    make, loss, targets = DIVIDED[name]
    if size == 18 and name != "all of a chunk ignored":
        size = 12
    whole, apart = (
        gf.Problem.from_module(seeded(make), loss, X[:60], targets, s, dtype=dtype)
        for s in (None, size)
    )
    rel = 1e-13 if dtype == torch.float64 else 1e-6
    expected, found = (p.value_and_gradient(p.theta0) for p in (whole, apart))
    assert float(found[0]) == pytest.approx(float(expected[0]), rel=rel)
    assert float((found[1] - expected[1]).norm() / expected[1].norm()) < 10 * rel


@pytest.mark.parametrize("size", [100, 200, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_few_padded_tokens_of_many_are_found_in_float32_too(dtype, size):
    inputs = torch.randn(600, 8, 6, generator=torch.Generator().manual_seed(0))
    tokens = (inputs.sum(2) > 0).long() + (inputs[..., 0] > 0).long()

    def loss(outputs, targets):
        return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    module = seeded(nn.Linear, 6, 3)
    gf.Problem.from_module(module, loss, inputs, tokens, size, dtype=dtype)
    tokens[3, 1:] = -100
    with pytest.raises(InputError, match=f"batch_size={size}: the mean over .* no mean over ex"):
        gf.Problem.from_module(module, loss, inputs, tokens, size, dtype=dtype)


class MaskFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x):
        return {"mask": x[..., 0] > -9, "logits": self.inner(x)}


def test_the_first_of_the_outputs_does_not_tell_the_digits_of_the_loss():
    tokens = (SEQUENCES.sum(2) > 0).long()
    tokens[5, 4] = -100

    def loss(outputs, targets):
        return functional.cross_entropy(outputs["logits"].flatten(0, 1), targets.flatten())

    with pytest.raises(InputError, match="no mean over examples"):
        gf.Problem.from_module(seeded(MaskFirst), loss, SEQUENCES, tokens, 16)


def in_single(outputs, targets):
    """In float32 whatever it is given, as NumPy may be told to."""

    class Squared(torch.autograd.Function):
        @staticmethod
        def forward(ctx, o, t):
            off = (o.detach().numpy() - t.numpy()).astype("float32")
            ctx.save_for_backward(torch.from_numpy(off).to(o))
            return o.new_tensor(float((off * off).mean()))

        @staticmethod
        def backward(ctx, gradient):
            (off,) = ctx.saved_tensors
            return gradient * 2 * off / off.numel(), None

    return Squared.apply(outputs, targets)


def test_a_loss_that_computes_in_float32_only_is_compared_in_that():
    found = gf.Problem.from_module(seeded(nn.Linear, 6, 1), in_single, X, Y, 7, dtype=torch.float32)
    whole = gf.Problem.from_module(seeded(nn.Linear, 6, 1), MSE, X, Y, dtype=torch.float32)
    theta = whole.theta0
    assert float(found.loss(theta)) == pytest.approx(float(whole.loss(theta)), rel=1e-6)


def test_on_the_cpu_a_pair_is_compared_as_on_another_device():
    pair = Neighbours(
        MeanAndSum(OfOutputs(THRESHOLDS["flooding"](MSE)), None), Y[:32] * 0.5, Y[:32], (16, 16)
    )
    pair = replace(pair, losses=pair.losses.in_float64(pair.outputs, pair.targets))
    found = [p.elsewhere(Y[:32] * 0.6, first=True) for p in (pair, pair.on_cpu())]
    assert found[0] == found[1]
    assert abs(found[0].apart - found[0].together) > 1e-3
