"""The hash of data tells apart whatever a batch may hold."""

import collections
import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.problems import data


@dataclasses.dataclass
class Batch:
    x: object
    label: str = ""


Named = collections.namedtuple("Named", "x y")
X = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (X.numpy(), X.numpy() + 1),
        (X.numpy(), X.double().numpy()),
        (np.float64(1), np.float64(2)),
        (1, 2),
        (1, 1.0),
        (1, True),
        (1.0, np.nextafter(1.0, 2).item()),
        ("a", "b"),
        (b"a", "a"),
        (("a", "bc"), ("ab", "c")),
        (np.array(["a", None], dtype=object), np.array(["b", None], dtype=object)),
        (Batch(X), Batch(X + 1)),
        (Batch(X, "a"), Batch(X, "b")),
        (Named(X.numpy(), 1), Named(X.numpy(), 2)),
        (collections.UserDict(x=X), collections.UserDict(x=X + 1)),
    ],
)
def test_what_differs_has_another_hash(a, b):
    for held in (lambda x: x, lambda x: (X, x), lambda x: {"x": [x]}):
        assert data.sha256(held(a)) != data.sha256(held(b))
        assert data.sha256(held(a)) == data.sha256(held(a))


def test_of_arrays_the_values_count_and_not_where_they_lie():
    array = X.numpy()
    assert data.sha256(array) == data.sha256(np.asfortranarray(array))
    names = np.array(["one", "two"], dtype=object)
    assert data.sha256(names) == data.sha256(np.array(["".join(n) for n in names], dtype=object))


def test_the_hash_of_tensors_alone_is_that_of_older_archives():
    y = torch.tensor([1, 0])
    said = [b"torch.float32(2, 3)", X.numpy().tobytes(), b"torch.int64(2,)", y.numpy().tobytes()]
    expected = hashlib.sha256(b"".join(said)).hexdigest()
    for tree in ((X, y), [X, (y,)], {"x": X, "y": y}, Named(X, y), (X, None, y)):
        assert data.sha256(tree) == expected


def test_batches_of_arrays_are_told_apart():
    def batch_loss(module, batch):
        inputs, targets = (torch.from_numpy(array) for array in batch)
        return nn.functional.cross_entropy(module(inputs), targets, reduction="sum"), len(targets)

    inputs, targets = references.small_data()
    hashes = {
        gf.Problem.from_batches(
            references.small_module(), batch_loss, [((inputs + shift).numpy(), targets.numpy())]
        ).data_sha256
        for shift in (0, 1)
    }
    assert len(hashes) == 2
