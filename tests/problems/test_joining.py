"""What a network gives beside that which its loss uses, in chunks; and what no chunks can have."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import geoflow as gf
from geoflow.errors import InputError
from geoflow.problems.joining import detached, joined

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(9, 8, 3, generator=GENERATOR)
LENGTHS = torch.randint(3, 9, (9,), generator=GENERATOR)
LABELS = torch.randint(3, (9, 8), generator=GENERATOR)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells, self.leave = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x, lengths):
        given = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        found, _ = self.cells(given)
        return found._replace(data=self.leave(found.data))


def unpacked(outputs, targets):
    found, lengths = pad_packed_sequence(outputs, batch_first=True)
    there = torch.arange(found.shape[1]) < lengths[:, None]
    return functional.cross_entropy(found[there], targets[:, : found.shape[1]][there])


def test_packed_sequences_are_taken_whole_and_not_joined():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Packed()
    whole = gf.Problem.from_module(module, unpacked, (X, LENGTHS), LABELS)
    expected = unpacked(module.double()(X.double(), LENGTHS), LABELS)
    assert float(whole.loss(whole.theta0)) == pytest.approx(float(expected.detach()), rel=1e-12)
    with pytest.raises(InputError, match=r"module: its outputs hold a PackedSequence.*unpack it"):
        gf.Problem.from_module(module, unpacked, (X, LENGTHS), LABELS, 4)


class Cache:
    """No tree of tensors."""

    def __init__(self, states):
        self.states = states


@dataclass
class Said:
    logits: torch.Tensor
    cache: Cache
    total: torch.Tensor
    states: tuple
    heads: int = 2
    seconds: float = 0.0


class Speaking(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(24, 3)

    def forward(self, x):
        found = self.inner(x.flatten(1))
        states = (found[None], found.detach().T.to_sparse(), None, "a name")
        return Said(found, Cache(found), found.sum(), states, seconds=float(len(x)))


def of_logits(outputs, targets):
    assert (outputs.heads, outputs.states[2:]) == (2, (None, "a name"))
    return functional.cross_entropy(outputs.logits, targets)


def speaking():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Speaking()


@pytest.mark.parametrize("size", [1, 4, 8])
def test_what_the_loss_does_not_use_need_not_be_joined(size):
    whole, chunks = (
        gf.Problem.from_module(speaking(), of_logits, X, LABELS[:, 0], s) for s in (None, size)
    )
    for found, expected in zip(
        chunks.value_and_gradient(whole.theta0),
        whole.value_and_gradient(whole.theta0),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


USES = {
    "attribute": (lambda o: o.cache.states.sum(), "hold a Cache, which .*use_cache = False"),
    "function": (lambda o: torch.tanh(o.total), "hold a number of all examples, which has no part"),
    "product": (lambda o: 0.1 * o.total, "hold a number of all examples"),
    "sum": (lambda o: o.logits.sum() + o.total, "hold a number of all examples"),
    "loss": (lambda o: functional.mse_loss(o.total, o.logits.sum()), "hold a number of all"),
    "item": (lambda o: o.logits.sum() * float(o.total.detach()), "hold a number of all examples"),
    "padded": (lambda o: o.states[0][0].square().mean(), "cannot be joined over chunks"),
    "sparse": (lambda o: o.states[1].to_dense().mean(), "hold a torch.sparse_coo tensor"),
    "constant": (lambda o: o.logits.mean() * o.seconds, "hold a float that is another in each"),
}


@pytest.mark.parametrize("name", USES)
def test_whatever_use_of_it_is_refused_by_what_it_is(name):
    use, message = USES[name]
    with pytest.raises(InputError, match=f"^module: its outputs {message}.*batch_size=None"):
        gf.Problem.from_module(speaking(), lambda o, t: use(o), X, LABELS[:, 0], 4)


def test_nested_tensors_are_not_joined():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    whole = joined([detached(nested), detached(nested)])
    with pytest.raises(InputError, match="hold a nested tensor"):
        whole.unbind()


def test_a_chunk_is_kept_without_its_graph():
    theta = torch.ones(3, requires_grad=True)
    found = detached({"a": (2 * theta, Cache(2 * theta)), "b": None})
    assert not found["a"][0].requires_grad
    with pytest.raises(InputError, match="hold a Cache"):
        found["a"][1].states.sum()
