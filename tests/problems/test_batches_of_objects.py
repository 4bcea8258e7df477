"""Batches that are objects of a class of their own: what they hold is hashed, checked, compared."""

import threading
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import geoflow as gf
import references
from geoflow.errors import ArchiveError, InputError
from geoflow.problems import contents, data, making

X, Y = references.small_data()
X = X.double()


class Plain:
    def __init__(self, x, y):
        self.x, self.y = x, y


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x, y):
        self.x, self.y = x, y


class Stored:
    """As PyTorch Geometric has them: tensors in a mapping of a storage that knows its owner."""

    class Storage:
        def __init__(self, owner, **tensors):
            self.mapping, self.owner = tensors, weakref.ref(owner)

        def __getstate__(self):
            return {**vars(self), "owner": self.owner()}

    def __init__(self, x, y):
        self.store = self.Storage(self, x=x, y=y)
        self.lock = threading.Lock()

    @property
    def x(self):
        return self.store.mapping["x"]

    @property
    def y(self):
        return self.store.mapping["y"]


class Reduced:
    """Tells what it is made of itself, and keeps an address beside."""

    def __init__(self, x, y):
        self.x, self.y, self.address = x, y, id(self)

    def __reduce__(self):
        return Reduced, (self.x, self.y)


class Deep(Plain):
    """Holds more of its kind, and itself."""

    def __init__(self, x, y):
        super().__init__(x, y)
        self.more = [Plain(x, {"y": y}), {"names": {"a", "b"}}]
        self.itself = self


KINDS = [Plain, Slotted, Stored, Reduced, Deep]


def batch_loss(module, batch):
    return F.cross_entropy(module(batch.x), batch.y, reduction="sum"), len(batch.y)


def problem(batches, loss=batch_loss):
    return gf.Problem.from_batches(references.small_module(), loss, batches)


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_is_that_of_what_they_hold(kind):
    def made(x=X, y=Y):
        return problem([kind(x[:9], y[:9]), kind(x[9:], y[9:])])

    assert made().data_sha256 == made(X.clone(), Y.clone()).data_sha256
    changed = X.clone()
    changed[20, 1] += 1e-9
    hashes = {made().data_sha256, made(changed).data_sha256, made(2 * X).data_sha256}
    assert len({*hashes, made(X, 1 - Y).data_sha256, data.sha256()}) == 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("within", [lambda b: b, lambda b: (b, 1), lambda b: {"graph": [b]}])
def test_a_hash_tells_which_attribute_is_which(kind, within):
    a, b = torch.ones(3), torch.zeros(3)
    assert data.sha256(within(kind(a, b))) != data.sha256(within(kind(b, a)))
    assert data.sha256(within(kind(a, b))) == data.sha256(within(kind(a.clone(), b.clone())))


def test_arrays_numbers_and_texts_in_objects_count_too():
    hashes = {
        data.sha256(Plain(x, y))
        for x, y in ((np.ones(2), 1), (np.ones(2), 2), (np.ones(2), "1"), (np.zeros(2), 1))
    }
    assert len(hashes) == 4
    # Shared or not.
    one, other = Plain(1, 2), Plain(1, 2)
    assert data.sha256(Plain(one, one)) == data.sha256(Plain(one, other))


@pytest.mark.parametrize("kind", KINDS)
def test_what_no_loss_uses_may_be_anything(kind):
    """Labels that are missing, a matrix of neighbours, positions that are not known."""
    x = X.clone()
    x[3, 0] = torch.nan

    def loss(module, batch):
        return batch_loss(module, Plain(torch.nan_to_num(batch.x), batch.y))

    hashes = {problem([kind(one, Y)], loss).data_sha256 for one in (x, x.clone(), X)}
    assert len(hashes) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_batches_are_found_whatever_their_sum_rounds_to(kind):
    class Shuffled:
        passes = 0

        def __iter__(self):
            self.passes += 1
            starts = (0, 12) if self.passes % 2 else (12, 0)
            return iter([kind(X[s : s + 12], Y[s : s + 12]) for s in starts])

    with pytest.raises(InputError, match="two passes gave different batches"):
        problem(Shuffled())


class Blank:
    """Its data are in C, say, of which Python sees nothing."""

    __slots__ = ()
    x, y = X, Y


def test_what_holds_no_data_that_are_found_is_refused():
    class Closed(Blank):
        __slots__ = ()

        def __reduce_ex__(self, protocol):
            raise TypeError("cannot pickle")

    for batch in (Closed(), Blank(), threading.Lock()):
        with pytest.raises(InputError, match=r"batches\[0\]: a \w+, in which no data are found"):
            problem([batch])


def test_no_batch_at_all_is_none_of_these():
    """Where the examples are the loss's own."""

    def loss(module, batch):
        return F.cross_entropy(module(X), Y, reduction="sum"), len(Y)

    for batch in ((), {}, [None]):
        assert problem([batch], loss).data_sha256 == data.sha256()


def test_objects_are_named_where_their_tensors_are_of_another_dtype():
    said = (
        r"evaluated in float64, and the batch has a Plain, whose tensors, of float32, .*"
        r"batch\.x\.to\(torch\.float64\)"
    )
    with pytest.raises(InputError, match=said):
        problem([(Plain(X.float(), Y),)], lambda module, batch: batch_loss(module, batch[0]))


@pytest.mark.parametrize("made", ["from_module", "from_batches"])
def test_a_plain_attribute_is_named_where_it_is_of_another_dtype(made):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(3, 4)
            self.inner = nn.Module()
            self.inner.masks = [torch.ones(4, 2)]

        def forward(self, x):
            return self.body(x) @ self.inner.masks[0]

    given = (batch_loss, [Plain(X, Y)]) if made == "from_batches" else (F.cross_entropy, X, Y)
    with pytest.raises(InputError, match=r"the module's inner\.masks\[0\], .* register_buffer"):
        getattr(gf.Problem, made)(Masked(), *given)


def before_objects(batches):
    """As geoflow hashed batches before it knew of objects."""
    digest = making.hashlib.sha256()
    for batch in batches:
        data.update(digest, batch, objects=False)
    return digest.hexdigest()


@pytest.mark.parametrize("several", [False, True])
def test_archives_with_the_earlier_hash_are_resumed(several, tmp_path, monkeypatch):
    def flow(shift=0.0):
        batches = [(Plain(X[:9], Y[:9]), 1), (Plain(X[9:], Y[9:]), 2)]
        of = problem(batches, lambda module, batch: batch_loss(module, batch[0]))
        other = problem([Plain(X + 0.1 + shift, Y)])
        level_set = gf.LevelSet([of, problem([Plain(X[:5], Y[:5])])] if several else of)
        return gf.RegularizingFlow(level_set, other)

    path = tmp_path / "walk.nc"
    with monkeypatch.context() as patched:
        patched.setattr(making, "hash_of", before_objects)
        then = gf.walk(flow(), max_evaluations=30, archive=path)
    assert then.attrs["regularizer_data_sha256"] == data.sha256()
    now = gf.resume(path, flow(), max_evaluations=60)
    assert now.sizes["step"] > then.sizes["step"]
    # One of now tells other data apart, by less than R changes.
    gf.walk(flow(), max_evaluations=30, archive=path, overwrite=True)
    with pytest.raises(ArchiveError, match="regularizer's data"):
        gf.resume(path, flow(1e-14), max_evaluations=60)


def test_what_a_copy_is_made_of_is_named():
    assert [n for n, _ in contents.parts(Plain(1, 2))] == [".x", ".y"]
    assert [n for n, _ in contents.leaves(Slotted(1, (2, 3)), "b")] == ["b.x", "b.y[0]", "b.y[1]"]
    iterator = iter([1, 2])
    assert [leaf for _, leaf in contents.leaves(iterator, "")][:2] == [1, 2]
    assert list(iterator) == [1, 2]
