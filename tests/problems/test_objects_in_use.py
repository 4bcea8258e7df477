"""Batches that are objects: what their use leaves in them, what they refer to, how deep they go."""

import dataclasses
import functools
import itertools
import time
import uuid

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import geoflow as gf
import references
from geoflow.errors import InputError
from geoflow.problems import contents, data

X, Y = references.small_data()
X = X.double()
EDGES = torch.arange(24).roll(1)


class Lazy:
    """As ``cached_property`` of other libraries."""

    def __init__(self, function):
        self.function, self.name = function, function.__name__

    def __get__(self, one, kind=None):
        found = one.__dict__[self.name] = self.function(one)
        return found


class Graph:
    def __init__(self, x=X, y=Y, **more):
        self.x, self.y, self.edges = x, y, EDGES
        vars(self).update(more)

    @functools.cached_property
    def degree(self):
        return torch.bincount(self.edges).clamp(min=1)

    @Lazy
    def half(self):
        return self.x / 2


def batch_loss(module, batch):
    return F.cross_entropy(module(batch.x), batch.y, reduction="sum"), len(batch.y)


def problem(batches, loss=batch_loss):
    return gf.Problem.from_batches(references.small_module(), loss, batches)


def using(module, batch):
    batch.noted = batch.degree + 1
    batch.y, before = batch.y.clone(), batch.y
    return batch_loss(module, Graph(2 * batch.half / batch.degree[:, None], before))


def test_the_hash_is_the_same_after_use(tmp_path):
    batches = [Graph()]
    first, again = problem(batches, using), problem(batches, using)
    used = Graph()
    assert used.degree is used.degree
    assert used.half is used.half
    assert {first.data_sha256, again.data_sha256, problem([used], using).data_sha256} == {
        problem([Graph()], using).data_sha256
    }
    assert set(vars(batches[0])) == {"x", "y", "edges"}

    def flow(of):
        return gf.RegularizingFlow(gf.LevelSet(of), gf.regularizers.squared_norm)

    then = gf.walk(flow(first), max_evaluations=30, archive=tmp_path / "walk.nc")
    now = gf.resume(tmp_path / "walk.nc", flow(problem([used], using)), max_evaluations=60)
    assert now.sizes["step"] > then.sizes["step"]


def test_what_an_evaluation_keeps_is_there_at_the_next():
    """In an attribute, a property, or by the object itself."""
    asked, by_object = [], {}

    class Kept(Graph):
        @functools.cached_property
        def twice(self):
            asked.append("property")
            return 2 * self.x

    def loss(module, batch):
        if not hasattr(batch, "thrice"):
            asked.append("attribute")
            batch.thrice = 3 * batch.x
        if batch not in by_object:
            asked.append("object")
            by_object[batch] = batch.thrice - batch.twice
        return batch_loss(module, Graph(by_object[batch], batch.y))

    made = problem([Kept(X[:9], Y[:9]), Kept(X[9:], Y[9:])], loss)
    expected = problem([Graph()])
    for _ in range(3):
        value = float(made.loss(made.theta0))
        assert value == pytest.approx(float(expected.loss(made.theta0)), rel=1e-13)
    assert len(asked) == 6


def test_only_what_a_property_keeps_is_left_out():
    class Shadowed(Graph):
        kept = torch.ones(2)

        def method(self):
            return 1

        @property
        def own(self):
            return vars(self)["own"]

    for name in ("kept", "method", "own", "new"):
        made = [Shadowed(**{name: torch.ones(2)}), Shadowed(**{name: torch.zeros(2)})]
        assert len({data.sha256(one) for one in made}) == 2


def test_an_object_that_cannot_be_copied_is_given_as_it_is():
    class Closing(Graph):
        closed = False

        def __del__(self):
            Closing.closed = True

    class Uncopied(Graph):
        def __copy__(self):
            raise TypeError("one only")

    for one in (Closing(), Uncopied()):
        made = problem([one])
        assert contents.copied(one) is one
        assert float(made.loss(made.theta0)) == float(problem([Graph()]).loss(made.theta0))
        assert not Closing.closed


SPARSE = ["sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc"]


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_in_objects_are_hashed_by_indices_and_values(layout):
    dense = torch.zeros(24, 24, dtype=torch.float64)
    dense[torch.arange(24), EDGES] = 1.0
    block = (2, 2) if layout in ("sparse_bsr", "sparse_bsc") else None

    def made(matrix):
        return Graph(near=matrix.to_sparse(layout=getattr(torch, layout), blocksize=block))

    def loss(module, batch):
        return batch_loss(module, Graph(batch.near.to_dense() @ batch.x, batch.y))

    hashes = {problem([made(m)], loss).data_sha256 for m in (dense, dense.clone())}
    hashes |= {problem([made(m)], loss).data_sha256 for m in (2 * dense, dense.T.contiguous())}
    assert len(hashes) == 3
    whole = problem([made(dense)], loss)
    expected = problem([Graph(dense @ X)])
    assert float(whole.loss(whole.theta0)) == float(expected.loss(whole.theta0))


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_in_tuples_and_dicts_are_converted_and_hashed(layout, dtype):
    dense = torch.zeros(24, 24)
    dense[torch.arange(24), EDGES] = 0.3
    block = (2, 2) if layout in ("sparse_bsr", "sparse_bsc") else None

    def near(matrix):
        return matrix.to_sparse(layout=getattr(torch, layout), blocksize=block)

    def loss(module, batch):
        x, given, labels = batch.values() if isinstance(batch, dict) else batch
        assert given.layout == getattr(torch, layout)
        assert given.dtype == dtype
        return batch_loss(module, Graph(given.to_dense() @ x, labels))

    def made(batch):
        return gf.Problem.from_batches(references.small_module(), loss, [batch], dtype=dtype)

    expected = problem([Graph(dense.double() @ X)])
    hashes = set()
    for batch in ((X, near(dense), Y), {"x": X, "near": near(dense), "y": Y}):
        found = made(batch)
        value, gradient = found.value_and_gradient(found.theta0)
        right = expected.value_and_gradient(expected.theta0)
        rtol = 1e-13 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(value.double(), right[0], rtol=rtol, atol=0)
        torch.testing.assert_close(gradient.double(), right[1], rtol=10 * rtol, atol=rtol)
        hashes.add(found.data_sha256)
    assert len(hashes) == 1
    for other in (2 * dense, dense.T.contiguous()):
        hashes.add(made((X, near(other), Y)).data_sha256)
    assert len(hashes) == 3


class Averaged(nn.Module):
    """Takes from each example's neighbours, by a sparse matrix that it keeps."""

    def __init__(self, near):
        super().__init__()
        self.inner = references.small_module()
        self.register_buffer("near", near)

    def forward(self, x):
        return torch.sparse.mm(self.near, self.inner(x))


@pytest.mark.parametrize("layout", SPARSE[:3])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_module_may_keep_a_sparse_tensor_of_any_layout(layout):
    dense = torch.zeros(24, 24)
    dense[torch.arange(24), EDGES] = 0.3
    near = dense.to_sparse(layout=getattr(torch, layout))
    entropy = nn.functional.cross_entropy
    made, expected = (
        gf.Problem.from_module(Averaged(matrix), entropy, X, Y) for matrix in (near, dense)
    )
    theta, v = made.theta0, torch.ones_like(made.theta0)
    torch.testing.assert_close(made.loss(theta), expected.loss(theta), rtol=1e-13, atol=0)
    torch.testing.assert_close(made.hvp(theta, v), expected.hvp(theta, v), rtol=1e-11, atol=1e-13)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested", "ignore:torch.quantize")
def test_tensors_of_any_form_in_objects_are_hashed():
    nested = [torch.nested.nested_tensor([torch.ones(2), torch.ones(n)]) for n in (2, 3)]
    quantized = [torch.quantize_per_tensor(X.float(), s, 0, torch.quint8) for s in (0.1, 0.2)]
    meta = [torch.ones(n, device="meta") for n in (2, 3)]
    for pair in (nested, quantized, meta):
        assert len({problem([Graph(kept=one)]).data_sha256 for one in pair}) == 2


def test_chains_and_rings_of_objects_are_hashed_whatever_their_length():
    def chain(n, last):
        one = None
        for i in range(n):
            one = Graph(torch.full((2,), last if i == 0 else 1.0), following=one)
        return one

    hashes = {data.sha256(chain(3000, last)) for last in (1.0, 1.0, 2.0)}
    assert len(hashes) == 2

    def ring(last):
        nodes = [Graph(torch.ones(1)) for _ in range(1500)]
        for i, node in enumerate(nodes):
            node.near = [nodes[(i + 1) % 1500], nodes[(7 * i) % 1500]]
        nodes[-1].x = torch.full((1,), last)
        return nodes[0]

    assert len({data.sha256(ring(last)) for last in (1.0, 1.0, 2.0)}) == 2


def test_a_data_set_that_a_batch_knows_is_not_hashed_with_each():
    class Counting(TensorDataset):
        asked = 0

        def __reduce_ex__(self, protocol):
            Counting.asked += 1
            return super().__reduce_ex__(protocol)

    source = Counting(X, Y)
    loader = DataLoader(source, batch_size=24)
    made = problem([Graph(dataset=source, loader=loader) for _ in range(3)])
    assert made.data_sha256 == problem([Graph() for _ in range(3)]).data_sha256
    assert not Counting.asked

    def of_examples(module, batch):
        return batch_loss(module, Graph(*batch[:]))

    # One that is the batch itself is what its data are.
    hashes = {problem([TensorDataset(x, Y)], of_examples).data_sha256 for x in (X, 2 * X)}
    assert len(hashes) == 2


class Keyed:
    """A part of a set, whose order is another from one pass to the next."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return 1


def test_sets_of_objects_are_hashed_whatever_their_order():
    def made(order):
        return Graph(tags={Keyed(i) for i in order}, names=frozenset("abc"))

    hashes = {data.sha256(made(o)) for o in itertools.permutations(range(4))}
    assert len(hashes) == 1
    assert hashes != {data.sha256(made([0, 1, 2, 4]))}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Graph(number=uuid.uuid4()), r"batches\[0\]\.number\S*, .* leave it out"),
        (lambda: Graph(loaded=time.perf_counter()), r"batches\[0\]\.loaded, .* leave it out"),
        (
            lambda: (X, {"noise": torch.rand(3)}),
            r"first in batches\[0\]\[1\]\['noise'\]; .*shuffle",
        ),
    ],
)
def test_what_differs_between_two_passes_is_named(made, said):
    class Made:
        def __iter__(self):
            return iter([made()])

    with pytest.raises(InputError, match=rf"two passes gave different batches.*{said}"):
        problem(Made())


@dataclasses.dataclass
class Record:
    seed: int = 0

    def __post_init__(self):
        self.x, self.itself = self.seed_of() * X, self

    @functools.cached_property
    def twice(self):
        return 2 * self.x

    def seed_of(self):
        return 1


class Other(Record):
    def seed_of(self):
        return 2


class Items(dict):
    def __init__(self, x):
        super().__init__(y=Y)
        self.x = x


class Parts(list):
    def __init__(self, x):
        super().__init__([Y])
        self.x = x


@pytest.mark.parametrize("within", [lambda b: b, lambda b: [b], lambda b: Graph(b)])
def test_attributes_beside_fields_and_items_are_hashed(within):
    used = Record()
    assert used.twice is used.twice
    assert data.sha256(within(used)) == data.sha256(within(Record()))
    for one, same, other in (
        (Record(), Record(), Other()),
        (Items(X), Items(X.clone()), Items(2 * X)),
        (Parts(X), Parts(X.clone()), Parts(2 * X)),
    ):
        assert data.sha256(within(one)) == data.sha256(within(same)) != data.sha256(within(other))


@pytest.mark.parametrize("made", [lambda: lambda: X, references.small_module, lambda: len])
@pytest.mark.parametrize("within", [lambda b: b, lambda b: [b], lambda b: {"x": b}])
def test_a_batch_that_is_code_alone_is_refused(made, within):
    with pytest.raises(InputError, match=r"batches\[0\]: a \w+, in which no data are found"):
        problem([within(made())])
