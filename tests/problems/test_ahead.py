"""Batches are handed out in their order, each while the next is under way."""

import pytest
import torch

from geoflow.problems import ahead
from geoflow.problems.ahead import moved, one_ahead

CPU = torch.device("cpu")


def recorded(items):
    """What is read, started and finished, in the order in which it happens."""
    seen = []

    def read():
        for item in items:
            seen.append(("read", item))
            yield item

    def mark(what):
        def done(item):
            seen.append((what, item))
            return item

        return done

    return seen, one_ahead(read(), mark("start"), mark("finish"))


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_all_are_given_once_and_in_order(n):
    seen, found = recorded(range(n))
    assert list(found) == list(range(n))
    for what in ("read", "start", "finish"):
        assert [item for w, item in seen if w == what] == list(range(n))


def test_the_next_is_started_before_one_is_given_and_no_other():
    seen, found = recorded(range(4))
    for item in found:
        started = [i for w, i in seen if w == "start"]
        assert started == list(range(min(item + 2, 4)))


def test_what_reading_raises_comes_after_what_was_read_before_it():
    def read():
        yield from (0, 1, 2)
        raise OSError("gone")

    found = one_ahead(read(), lambda i: i, lambda i: i)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        next(found)


def test_who_stops_early_leaves_nothing_behind():
    closed = []

    def read():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    found = one_ahead(read(), lambda i: i, lambda i: i)
    assert next(found) == 0
    found.close()
    del found
    assert closed == [True]


def test_on_a_cpu_each_is_read_when_it_is_its_turn():
    read = []

    def batches():
        for i in range(3):
            read.append(i)
            yield torch.full((2,), float(i)), {"label": torch.tensor([i])}

    for i, (x, rest) in enumerate(moved(batches(), torch.float64, CPU)):
        assert read == list(range(i + 1))
        assert x.dtype == torch.float64
        assert rest["label"].dtype == torch.int64
        assert torch.equal(x, torch.full((2,), float(i), dtype=torch.float64))


class Stream:
    """Says what is asked of it, as one of CUDA would."""

    def __init__(self, said, name):
        self.said, self.name = said, name

    def __getattr__(self, asked):
        def ask(*arguments):
            self.said.append((self.name, asked))
            return f"event {len(self.said)}"

        return ask


@pytest.mark.parametrize("sparse", [False, True])
def test_a_batch_is_used_only_once_its_copy_is_there(monkeypatch, sparse):
    """The order of what a GPU is asked for; the copies themselves are made on the CPU."""
    said = []
    own, current = Stream(said, "copies"), Stream(said, "computes")

    class Within:
        def __init__(self, stream):
            assert stream is own

        def __enter__(self):
            said.append(("copies", "entered"))

        def __exit__(self, *_):
            said.append(("copies", "left"))

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: own)
    monkeypatch.setattr(torch.cuda, "stream", Within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: said.append("pinned") or t)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: said.append("held"))
    given = [torch.arange(3.0) + i for i in range(3)]
    given = [t.to_sparse() for t in given] if sparse else given
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda t, *a, **k: to(t, *(x for x in a if not isinstance(x, torch.device)), **k),
    )
    found = []
    for batch in ahead.moved(given, torch.float64, torch.device("cuda", 0)):
        said.append("computing")
        found.append(batch)
    # A sparse tensor is not pinned; its indices and its values are held.
    pinned, held = ([], ["held"] * 2) if sparse else (["pinned"], ["held"])
    copied = [("copies", "entered"), *pinned, ("copies", "record_event"), ("copies", "left")]
    ready = [("computes", "wait_event"), *held, "computing"]
    assert said == [*copied, *copied, *ready, *copied, *ready, *ready]
    for one, other in zip(found, given, strict=True):
        assert one.layout == other.layout
        assert torch.equal(one.to_dense(), other.double().to_dense())
