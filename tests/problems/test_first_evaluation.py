"""A problem's loss is that of its module as it is given, whatever a first evaluation sets."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.errors import InputError

X = 3 * torch.randn(24, 4, generator=torch.Generator().manual_seed(0)) + 1
Y = X.sum(1, keepdim=True).sin()
MSE = functional.mse_loss
FIRST = "as a layer does that is initialised by the first data it sees"


def seeded(make, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make(*arguments)


class ActNorm(nn.Module):
    """As flows have it: the first batch in training mode gets mean 0 and deviation 1."""

    def __init__(self, how="data", *, frozen=False):
        super().__init__()
        self.how = how
        self.register_buffer("initialized", torch.tensor(False))
        self.log_scale = nn.Parameter(torch.zeros(4), requires_grad=not frozen)
        self.shift = nn.Parameter(torch.zeros(4), requires_grad=not frozen)

    @torch.no_grad()
    def initialise(self, x):
        scale, shift = -x.std(0).log(), -(x / x.std(0)).mean(0)
        if self.how == "data":
            self.log_scale.data, self.shift.data = scale, shift
            self.initialized.data = torch.tensor(True)
        elif self.how == "in place":
            self.log_scale.data.copy_(scale)
            self.shift.copy_(shift)
            self.initialized.fill_(True)
        else:
            # A buffer that is replaced is what it was at the next evaluation of a problem.
            self.log_scale.data, self.shift.data = scale, shift
            self.initialized = torch.tensor(True)

    def forward(self, x):
        if self.training and not self.initialized:
            self.initialise(x)
        return self.log_scale.exp() * x + self.shift


class Jittered(nn.Module):
    """As variational strategies have it: noise is added to the first values."""

    def __init__(self):
        super().__init__()
        self.register_buffer("initialized", torch.tensor(0))
        self.mean = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        if not self.initialized:
            self.mean.data.add_(torch.randn(4), alpha=1e-3)
            self.initialized.fill_(1)
        return x + self.mean


def followed(first):
    return seeded(lambda: nn.Sequential(first, nn.Linear(4, 1)))


def of(module, *arguments, **options):
    return gf.Problem.from_module(module, MSE, X, Y, *arguments, **options)


def of_batches(module, **options):
    def batch_loss(m, batch):
        return MSE(m(batch[0]), batch[1], reduction="sum"), len(batch[0])

    return gf.Problem.from_batches(module, batch_loss, [(X[:10], Y[:10]), (X[10:], Y[10:])])


def value(problem):
    return float(problem.loss(problem.theta0))


def own(module):
    with torch.no_grad():
        return float(MSE(copy.deepcopy(module).double()(X.double()), Y.double()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("how", ["data", "in place", "replaced"])
def test_parameters_that_the_first_evaluation_sets_are_refused_until_it_has(how, dtype):
    module = followed(ActNorm(how))
    message = rf"module: its first evaluation sets 0.log_scale, 0.shift, {FIRST}.* call module\("
    with pytest.raises(InputError, match=message):
        of(module, dtype=dtype)
    with pytest.raises(InputError, match=message):
        of(module, 7, dtype=dtype)
    with pytest.raises(InputError, match=message):
        of_batches(module)
    assert not module[0].initialized
    assert not module[0].shift.any()
    module(X)
    problem = of(module, dtype=dtype)
    rel = 1e-13 if dtype == torch.float64 else 1e-6
    assert value(problem) == pytest.approx(own(module), rel=rel)


def test_in_evaluation_mode_it_sets_nothing():
    module = followed(ActNorm()).eval()
    assert value(of(module)) == pytest.approx(own(module), rel=1e-13)


def test_theta0_is_not_drawn_at_random():
    module = followed(Jittered())
    with pytest.raises(InputError, match=rf"module: its first evaluation sets 0.mean, {FIRST}"):
        of(module)
    module(X)
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    assert torch.equal(of(module).theta0, expected.double())


def test_what_is_set_of_weights_is_refused_in_buffers_and_frozen_parameters_too():
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 4), ActNorm(frozen=True), nn.Linear(4, 1)))
    message = rf"its first evaluation sets 1.log_scale, 1.shift, 1.initialized, {FIRST}"
    with pytest.raises(InputError, match=message):
        of(module)
    with pytest.raises(InputError, match=message):
        of_batches(module)
    module(X)
    assert value(of(module)) == pytest.approx(own(module), rel=1e-13)


def test_an_initialisation_of_the_data_alone_is_the_modules_own_but_in_chunks():
    module = followed(ActNorm(frozen=True))
    assert value(of(module)) == pytest.approx(own(module), rel=1e-13)
    # Of the first chunk it is another.
    with pytest.raises(InputError, match="or the loss keeps something of the first"):
        of(module, 7)
    module(X)
    assert value(of(module, 7)) == pytest.approx(own(module), rel=1e-13)


class Counting(nn.Module):
    """Counts its evaluations, keeps the largest input and a table that it makes when asked for."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("largest", torch.tensor(torch.nan))
        self.register_buffer("table", torch.zeros(0))
        self.steps = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x):
        self.count += 1
        self.steps.add_(1)
        self.largest.copy_(x.detach().max())
        if not len(self.table):
            self.table.data = torch.arange(4.0, dtype=x.dtype)
        return self.inner(x + self.table)


@pytest.mark.parametrize("size", [None, 7])
def test_counters_and_tables_are_none_of_the_loss(size):
    module = seeded(Counting)
    assert value(of(module, size)) == pytest.approx(own(module), rel=1e-13)
    assert value(of_batches(module)) == pytest.approx(own(module), rel=1e-13)
    assert module.count == 0


class Cached:
    """As a lazily evaluated operator of a library: tensors in an object."""

    def __init__(self, tensor):
        self.tensor = tensor


class Caching(nn.Module):
    """In training mode it computes anew, and in evaluation mode once."""

    def __init__(self, *, always=False):
        super().__init__()
        self.inner, self.cache, self.always = nn.Linear(4, 4), {}, always

    def train(self, mode=True):
        self.cache.clear()
        return super().train(mode)

    def forward(self, x):
        if self.training:
            self.cache.clear()
        if "root" not in self.cache:
            self.cache["root"] = Cached(self.inner.weight @ self.inner.weight.T)
        return x @ self.cache["root"].tensor


def test_a_cache_in_a_graph_is_named_with_what_empties_it():
    module = followed(Caching())
    module(X).sum().backward()
    message = (
        r"module: Sequential cannot be copied with what it has computed and keeps in 0.cache; "
        r"empty that, as module.eval\(\) and then module.train\(\) .*state_dict\(\) of this one$"
    )
    with pytest.raises(InputError, match=message):
        of(module)
    fresh = followed(Caching())
    fresh.load_state_dict(module.state_dict())
    module.eval().train()
    for emptied in (module, fresh):
        assert value(of(emptied)) == pytest.approx(own(emptied), rel=1e-13)


def test_what_is_kept_in_evaluation_mode_is_told_from_weights_in_a_list():
    module = followed(Caching()).eval()
    message = (
        r"keeps something that its first evaluation computed from 0.inner.weight.* "
        r"module.train\(\) if it is kept in evaluation mode only"
    )
    with pytest.raises(InputError, match=message):
        of(module)
    assert value(of(module.train())) == pytest.approx(own(module), rel=1e-13)


class Logarithms(nn.Module):
    """Of weights so small that the loss has no value near them, beside what it keeps of these."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([*[1e-3] * 29, 1.0]))
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.weights.detach().sum()
        return self.kept * (x @ self.weights.log())


def test_where_a_loss_is_not_finite_nearby_it_is_looked_at_nearer():
    x = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="its first evaluation computed from its weights"):
        gf.Problem.from_module(Logarithms(), MSE, x, x[:, 0])


class KnowsTheWhole(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 1)

    def forward(self, x):
        return self.inner(x)


def test_what_cannot_be_copied_is_named_and_not_what_refers_to_it():
    module = nn.Sequential(KnowsTheWhole(), KnowsTheWhole())
    module[0].__dict__["whole"] = module
    module[1].numbers = (n for n in range(3))
    with pytest.raises(InputError, match=r"\(.*generator.*\); remove 1.numbers, which it keeps"):
        of(module)


@pytest.mark.parametrize(
    "loss",
    [
        lambda module, x, y: MSE(module(x), y),
        lambda module, x, y: MSE(module[0].weight @ x[0], y[0]),
        lambda module, x, y: MSE(module(torch.from_numpy(x)), y),
        lambda module, x, y: (y - module(torch.from_numpy(x))).square().mean(),
    ],
)
def test_numpy_arrays_in_a_batch_are_named_with_the_remedy(loss):
    batch = X.double().numpy(), Y.double().numpy()
    module = seeded(lambda: nn.Sequential(nn.Linear(4, 1)))
    message = r"batches: they hold NumPy arrays.*give torch.from_numpy\(array\)"
    with pytest.raises(InputError, match=message):
        gf.Problem.from_batches(module, lambda m, b: (loss(m, *b), 1), [batch])


def test_those_that_batch_loss_converts_are_taken():
    def batch_loss(module, batch):
        x, y = map(torch.from_numpy, batch)
        return MSE(module(x), y, reduction="sum"), len(x)

    module = seeded(nn.Linear, 4, 1)
    batch = X.double().numpy(), Y.double().numpy()
    problem = gf.Problem.from_batches(module, batch_loss, [batch])
    assert value(problem) == pytest.approx(own(module), rel=1e-13)


class Holding(nn.Module):
    """A layer beside a buffer."""

    def __init__(self, held):
        super().__init__()
        self.layer = nn.Linear(4, 1)
        self.register_buffer("held", held)

    def forward(self, x):
        held = self.held.dequantize() if self.held.is_quantized else self.held[:4]
        return self.layer(x * held.to(x))


@pytest.mark.filterwarnings("ignore:torch.quantize", "ignore:TypedStorage")
def test_a_quantized_buffer_is_data():
    held = torch.quantize_per_tensor(torch.arange(4.0), 0.1, 0, torch.quint8)
    problem = gf.Problem.from_module(Holding(held), MSE, torch.ones(5, 4), torch.ones(5, 1))
    assert problem.n_parameters == 5


def test_an_expanded_buffer_is_not_written_out():
    # Of a number it would be 24 GB.
    held = torch.ones(1, dtype=torch.float64).expand(3_000_000_000)
    problem = gf.Problem.from_module(Holding(held), MSE, torch.ones(5, 4), torch.ones(5, 1))
    assert problem.n_parameters == 5
