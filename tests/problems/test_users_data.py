"""Data, modules and losses as users hand them over: kept apart from theirs, or refused."""

import ctypes
import dataclasses
import threading
from collections import UserDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems import data

DOUBLE = torch.float64
X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True).sin()
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
MSE, ENTROPY = functional.mse_loss, functional.cross_entropy
SQUARED = gf.regularizers.squared_norm


def net(out=1, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layers = nn.Linear(6, 16, **options), nn.Tanh(), nn.Linear(16, out, **options)
    return nn.Sequential(*layers)


def of(module=None, loss_fn=MSE, inputs=X, targets=Y, *arguments, **options):
    module = net() if module is None else module
    return gf.Problem.from_module(module, loss_fn, inputs, targets, *arguments, **options)


def summed(module, batch):
    return MSE(module(batch[0]), batch[1], reduction="sum"), len(batch[0])


def of_batches(*batches, batch_loss=summed):
    return gf.Problem.from_batches(net(), batch_loss, list(batches))


def value(problem):
    return float(problem.loss(problem.theta0))


# A problem's data are its own.


@pytest.mark.parametrize("size", [None, 7])
def test_what_becomes_of_the_users_tensors_is_of_no_effect(size):
    x, y = X.double(), Y.double()
    problem = of(inputs=(x,), targets=y, batch_size=size)
    before = value(problem)
    x.mul_(3)
    y.zero_()
    assert value(problem) == before
    assert before == pytest.approx(value(of()), rel=1e-13)


def clamped(outputs, targets):
    return MSE(outputs, targets.clamp_(0, 1))


def clamped_batch(module, batch):
    return MSE(module(batch[0].clamp_(min=0)), batch[1], reduction="sum"), len(batch[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: of(nn.Sequential(nn.ReLU(inplace=True), net()), MSE, x, y), "inputs: an in"),
        (lambda x, y: of(net(), clamped, x, y), "targets: an in-place operation writes into them"),
        (lambda x, y: of_batches((x, y), batch_loss=clamped_batch), "batches: an in-place"),
    ],
)
def test_data_that_are_written_into_are_refused_and_the_users_are_as_they_were(
    make, message, dtype
):
    x, y = X.to(dtype, copy=True), Y.to(dtype, copy=True)
    with pytest.raises(InputError, match=message):
        make(x, y)
    assert torch.equal(x, X.to(dtype))
    assert torch.equal(y, Y.to(dtype))


# Losses that are modules.


class OfAComplexNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("z", torch.tensor([1 + 2j]))

    def forward(self, outputs, targets):
        return (outputs * self.z - targets).abs().square().mean()


def test_complex_buffers_of_a_loss_stay_complex():
    loss, module = OfAComplexNumber(), net().double()
    expected = float(loss(module(X.double()), Y.double()).detach())
    assert value(of(module, loss)) == pytest.approx(expected, rel=1e-12)
    assert loss.z.dtype == torch.complex64


class KeepsItsLast(nn.MSELoss):
    def forward(self, outputs, targets):
        self.last = super().forward(outputs, targets)
        return self.last


@pytest.mark.parametrize("size", [None, 7])
def test_a_loss_that_keeps_its_last_value_is_taken(size):
    loss = KeepsItsLast()
    loss(net()(X), Y)
    assert value(of(net(), loss, X, Y, size)) == pytest.approx(value(of()), rel=1e-13)


def with_lock():
    loss = nn.MSELoss()
    loss.lock = threading.Lock()
    return loss


def with_pointer():
    module = net()
    module.pointer = ctypes.pointer(ctypes.c_int(3))
    return module


# Parameters in one memory.


def sharing():
    module = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    module[2].weight.data = module[0].weight.data
    return module


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.whole = nn.Parameter(torch.ones(8, 6))
        self.top = nn.Parameter(self.whole.data[:4])
        self.leave = nn.Linear(8, 1)

    def forward(self, x):
        return self.leave(torch.tanh(x @ self.whole.T)) + (x @ self.top.T).sum(1, keepdim=True)


class Expanded(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.leave = nn.Parameter(torch.ones(1).expand(6)), nn.Linear(6, 1)

    def forward(self, x):
        return self.leave(x * self.scale)


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 1)
        self.register_buffer("same", self.inner.weight.detach())

    def forward(self, x):
        return self.inner(x) + x @ self.same.T


def test_columns_of_one_matrix_are_two_parameters():
    matrix = torch.randn(16, 12, generator=torch.Generator().manual_seed(2))
    module = net()
    module[0].weight = nn.Parameter(matrix[:, :6])
    module[0].spare = nn.Parameter(matrix[:, 6:])
    assert of(module).n_parameters == of().n_parameters + matrix[:, 6:].numel()


def test_a_walk_is_not_put_into_parameters_that_share_memory():
    ds = gf.walk(
        gf.RegularizingFlow(gf.LevelSet(of(net(), targets=Y)), SQUARED), max_evaluations=20
    )
    module = net()
    module[0].bias.data = module[2].weight.data[0]
    before = [p.detach().clone() for p in module.parameters()]
    with pytest.raises(InputError, match=r"0.bias and 2.weight share memory"):
        gf.load_into(module, ds)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))


# Wrappers.


class Twice(nn.DataParallel):
    def forward(self, x):
        return 2 * super().forward(x)


class Delegating(nn.DataParallel):
    """As many write it: the attributes of the module inside."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


class Doubled(nn.Module):
    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return 2 * self._orig_mod(x)


def hooked(wrapper):
    wrapper.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return wrapper


def test_what_a_users_own_wrapper_computes_is_part_of_the_network():
    module = Doubled(net()).double()
    problem = of(module)
    expected = float(MSE(2 * net().double()(X.double()), Y.double()).detach())
    assert value(problem) == pytest.approx(expected, rel=1e-13)
    assert problem.tensors[0].name == "_orig_mod.0.weight"
    ds = gf.walk(gf.RegularizingFlow(gf.LevelSet(problem), SQUARED), max_evaluations=20)
    gf.load_into(module, ds)
    found = float(MSE(module(X.double()), Y.double()).detach())
    assert found == pytest.approx(float(ds["train_loss"][-1]), rel=1e-12)


@pytest.mark.parametrize("wrap", [nn.DataParallel, Delegating, torch.compile])
def test_what_wraps_a_module_or_a_part_of_it_is_taken_off(wrap):
    module = net().double()
    module[0] = wrap(module[0])
    for wrapped in (module, wrap(net())):
        problem = of(wrapped)
        assert [t.name for t in problem.tensors] == [n for n, _ in net().named_parameters()]
        assert value(problem) == pytest.approx(value(of()), rel=1e-13)
    ds = gf.walk(gf.RegularizingFlow(gf.LevelSet(of(module)), SQUARED), max_evaluations=20)
    gf.load_into(module, ds)
    plain = net().double()
    gf.load_into(plain, ds)
    assert torch.equal(module[2].weight, plain[2].weight)


# Batches.


def keyed(module, batch):
    return MSE(module(batch["x"]), batch["y"], reduction="sum"), len(batch["x"])


class Batch(dict):
    """A dictionary that is made of something else, and counts what is put into it."""

    def __init__(self, x, y):
        super().__init__(x=x, y=y)
        self.device = "here"


def filled(x, y):
    batch = defaultdict(list)
    batch.update(x=x, y=y)
    return batch


@pytest.mark.parametrize("made", [dict, UserDict, Batch, filled])
def test_batches_may_be_mappings_of_any_kind(made):
    def loss(module, batch):
        assert type(batch) is type(made(x=X, y=Y))
        return keyed(module, batch)

    problem = of_batches(made(x=X, y=Y), batch_loss=loss)
    assert value(problem) == pytest.approx(value(of()), rel=1e-13)
    assert value(of(inputs={"input": X})) == pytest.approx(value(of()), rel=1e-13)
    bad = X.clone()
    bad[3] = torch.nan
    with pytest.raises(InputError, match=r"batches\[0\]\['x'\] have 6 non-finite values"):
        of_batches(made(x=bad, y=Y), batch_loss=keyed)


class OutputsInADefaultDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        found = defaultdict(list)
        found["o"] = self.inner(x)
        return found


@pytest.mark.parametrize("size", [None, 7])
def test_outputs_may_be_too(size):
    problem = of(OutputsInADefaultDict(), lambda o, t: MSE(o["o"], t), X, Y, size)
    expected = of().gauss_newton_product(problem.theta0, problem.theta0)
    found = problem.gauss_newton_product(problem.theta0, problem.theta0)
    assert torch.allclose(found, expected, rtol=1e-12)


class Switched(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x, sign=1, mask=None, kind="odd", double=True):
        assert mask is None
        found = self.inner(x) if kind == "odd" else self.inner(x).abs()
        return {"o": sign * found * (2 if double else 1), "kind": kind}


@pytest.mark.parametrize("size", [None, 7])
def test_constants_among_keywords_are_what_they_are(size):
    given = {"x": X, "sign": -1, "mask": None, "kind": "even", "double": False}

    def loss(outputs, targets):
        assert outputs["kind"] == "even"
        return (outputs["o"] - targets["y"]).abs().pow(targets["power"]).mean()

    problem = of(Switched(), loss, given, {"y": Y, "power": 4}, size)
    plain = of(net(), lambda o, t: (o.abs() + t).pow(4).mean(), X, Y, size)
    theta = plain.theta0
    assert value(problem) == pytest.approx(value(plain), rel=1e-13)
    each = gf.each_example(problem)
    assert torch.allclose(each.loss(theta), gf.each_example(plain).loss(theta), rtol=1e-12)
    other = of(Switched(), loss, {**given, "double": True}, {"y": Y, "power": 4}, size)
    assert other.data_sha256 != problem.data_sha256


def test_a_graph_and_constants_without_a_name_are_told_where_to_go():
    edges = torch.randint(len(X), (2, 60))
    with pytest.raises(InputError, match=r"examples first: a graph, .* Problem.from_batches"):
        of(net(), MSE, {"x": X, "edges": edges}, Y)
    with pytest.raises(InputError, match=r"inputs\[1\] is a bool; give .*a name of its own in a"):
        of(Switched(), MSE, (X, True), Y)
    with pytest.raises(InputError, match=r"\['mode'\]\[0\] is a int; .* number, text or None"):
        of(Switched(), MSE, {"x": X, "mode": [1, 2]}, Y)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.int8])
@pytest.mark.parametrize("size", [None, 9])
def test_a_number_of_numpy_is_a_constant_as_one_of_python_is(kind, size):
    def loss(outputs, targets):
        return (outputs - targets["y"]).abs().pow(targets["power"]).mean()

    found, plain = (of(net(), loss, X, {"y": Y, "power": p}, size) for p in (kind(4), 4))
    assert value(found) == pytest.approx(value(plain), rel=1e-13)


@pytest.mark.parametrize("weight", [torch.tensor(-4.0), torch.tensor(torch.nan), np.array(-4.0)])
def test_a_weight_of_a_later_batch_is_looked_at_too(weight):
    def loss(module, batch):
        return summed(module, batch)[0], 20 if len(batch[0]) == 20 else weight

    with pytest.raises(InputError, match=r"batch_loss returned the weight .*; return a finite"):
        of_batches((X[:20], Y[:20]), (X[20:], Y[20:]), batch_loss=loss)


# Dtypes.


@pytest.mark.parametrize(
    "dtype",
    [*(np.int8, np.int16, np.int32), *(np.uint8, np.uint16, np.uint32, np.uint64)],
)
def test_whole_targets_are_int64_whatever_they_were(dtype):
    def loss(outputs, targets):
        assert targets.dtype == torch.int64
        return -outputs.log_softmax(1).gather(1, targets[:, None]).mean()

    found = of(net(3), loss, X, LABELS.numpy().astype(dtype))
    assert value(found) == pytest.approx(value(of(net(3), ENTROPY, X, LABELS)), rel=1e-13)


def test_wide_and_narrow_inputs_are_converted():
    wide = X.numpy().astype(np.longdouble)
    assert value(of(inputs=wide)) == pytest.approx(value(of()), rel=1e-13)
    narrow = X.to(torch.float8_e4m3fn)
    assert value(of(inputs=narrow)) == pytest.approx(value(of(inputs=narrow.float())), rel=1e-13)
    with pytest.raises(InputError, match="inputs have 1 non-finite values"):
        of(inputs=torch.where(X.max() == X, torch.nan, X).to(torch.float8_e4m3fn))


def test_views_are_hashed_as_what_they_show():
    z = torch.fft.fft(X.double())
    assert data.sha256(z.conj()) == data.sha256(z.conj().resolve_conj())
    assert data.sha256(z.conj().imag) == data.sha256(z.conj().imag.resolve_neg())
    assert data.sha256(z.conj()) != data.sha256(z)


def with_nan():
    module = net()
    module.spare = nn.Parameter(torch.full((3,), torch.nan))
    return module


def nested():
    return torch.nested.nested_tensor([X[:3], X[:2]], layout=torch.jagged)


def lazy():
    loss = nn.MSELoss()
    loss.inner = nn.LazyLinear(3)
    return loss


BCE = functional.binary_cross_entropy_with_logits
WHOLE = (X > 0).long()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: of(net(), with_lock()), "loss_fn: MSELoss cannot be copied .*lock"),
        (lambda: of(with_pointer()), "module: Sequential cannot be copied .*pointers"),
        (lambda: of(sharing(), targets=X), "0.weight and 2.weight share memory .*tie them as one"),
        (lambda: of(sharing(), targets=X, parameters="2.*"), "0.weight and 2.weight share memory"),
        (lambda: of(Part()), "whole and top share memory|top and whole share memory"),
        (lambda: of(Expanded()), "scale has elements that share memory .*expand it in forward"),
        (lambda: of(Buffered()), "inner.weight and same share|same and inner.weight share"),
        (lambda: of(Twice(net())), r"module \(Twice\) has a forward pass of its own"),
        (lambda: of(hooked(nn.DataParallel(net()))), "has a forward hook, and is taken off"),
        (lambda: of(hooked(torch.compile(net()))), "has a forward hook, and is taken off"),
        (lambda: of(with_nan()), "module: spare has 3 non-finite values"),
        (lambda: of(net(), nn.MSELoss), r"loss_fn=MSELoss is a class; .*MSELoss\(\)"),
        (lambda: of(net(), lazy()), "loss_fn: inner.weight is not initialised yet"),
        (lambda: of(inputs=nested(), targets=Y[:2]), "inputs are nested; give .to_padded"),
        (lambda: of_batches(nested()), r"batches\[0\] are nested"),
        (lambda: of(inputs=list(X)), r"so give one tensor, torch.stack\(inputs\)"),
        (lambda: of(targets=list(Y)), r"so give one tensor, torch.stack\(targets\)"),
        (lambda: of(inputs=()), r"inputs=\(\) holds nothing"),
        (lambda: of(inputs=(), targets=()), r"inputs=\(\) holds nothing"),
        (lambda: of(inputs={}), r"inputs=\{\} holds nothing"),
        (lambda: of(net(3), ENTROPY, X, LABELS.float()), r"give them as .long\(\)"),
        (lambda: of(inputs=X.long()), r"given whole numbers beside float64 .*\.float\(\)"),
        (lambda: of(net(6), BCE, X, WHOLE), r"given whole numbers beside float64 .*\.float\(\)"),
        (lambda: of(net(6), BCE, X, WHOLE.bool()), r"given whole numbers beside .*\.float\(\)"),
    ],
)
def test_it_is_refused_with_its_remedy(make, message):
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@dataclasses.dataclass(frozen=True)
class Batch:
    inputs: torch.Tensor
    targets: torch.Tensor
    names: tuple = ("a", "b")


def test_batches_may_be_dataclasses():
    def batch_loss(module, batch):
        assert batch.names == ("a", "b")
        return summed(module, (batch.inputs, batch.targets))

    batches = [Batch(X[:7], Y[:7]), Batch(X[7:], Y[7:])]
    problem, whole = gf.Problem.from_batches(net(), batch_loss, batches), of()
    assert float(problem.loss(whole.theta0)) == pytest.approx(
        float(whole.loss(whole.theta0)), rel=1e-14
    )
    assert batches[0].inputs.dtype == torch.float32
