"""What has no end, or is far too long, is refused before it is listed, and shown in a few words."""

import itertools
import os
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.analysis import periodogram, spectra
from geoflow.errors import LONGEST, ArchiveError, InputError
from geoflow.problems import modules
from geoflow.system import kinds
from geoflow.walking.snapshots import MOST_TIMES

BILLIONS = range(10**12)


@pytest.fixture(scope="module")
def walked():
    flow = references.ellipsoid()
    return flow, gf.walk(flow, t_end=0.05, stop=None)


LISTS = {
    "snapshot_times": lambda flow, ds, v: gf.walk(flow, snapshot_times=v),
    "levels": lambda flow, ds, v: gf.regularization_path(flow, v),
    "seeds": lambda flow, ds, v: gf.sweep("iris_ff", v, "nowhere"),
    "penalties": lambda flow, ds, v: gf.sweep_weight_decay("iris_ff", [0], "no", penalties=v),
    "snapshots": lambda flow, ds, v: spectra.along(ds, flow, snapshots=v),
    "operators": lambda flow, ds, v: spectra.along(ds, flow, operators=v),
    "scalars": lambda flow, ds, v: periodogram.along(ds, v),
    "datasets": lambda flow, ds, v: gf.analysis.pca.along(v),
    "rtols": lambda flow, ds, v: gf.comparisons.compare(flow, ["dopri5"], v),
    "times": lambda flow, ds, v: gf.comparisons.compare(flow, ["dopri5"], [1e-3], v),
    "paths": lambda flow, ds, v: gf.baselines.open_weight_decay(v),
    "parameters": lambda flow, ds, v: modules.moving_parameters(nn.Linear(2, 1), v),
    "tensors": lambda flow, ds, v: gf.regularizers.squared_norm(tensors=v),
}


@pytest.mark.parametrize("name", LISTS)
def test_sequences_without_an_end_are_refused(name, walked):
    with pytest.raises(InputError, match=rf"{name}: there are 1,000,000,000,000; give at most \d"):
        LISTS[name](*walked, BILLIONS)
    for endless in (itertools.count(1), itertools.repeat("angle")):
        with pytest.raises(InputError, match=rf"{name}: there are more than [\d,]+; give at most"):
            LISTS[name](*walked, endless)
    for number in (np.array(3), torch.tensor(3), np.int64(3)):
        with pytest.raises(InputError, match=rf"{name}=.*; give "):
            LISTS[name](*walked, number)


@pytest.mark.parametrize("of", [torch.ones(3, device="meta"), torch.ones(3).to_sparse()])
def test_tensors_without_values_are_no_levels(of, walked):
    flow, _ = walked
    with pytest.raises(InputError, match=r"level=tensor.*; give real numbers"):
        gf.LevelSet(flow.problem, of)
    with pytest.raises(InputError, match=r"levels=tensor.*; give one finite"):
        gf.regularization_path(flow, of if of.is_meta else torch.ones(3, device="meta"))
    with pytest.raises(InputError, match=r"max_evaluations=.*; give a whole number"):
        gf.regularization_path(flow, [1.0], max_evaluations=np.timedelta64(3, "s"))


def test_an_index_is_a_whole_number(walked):
    _, ds = walked
    module = nn.Module()
    module.theta = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    gf.load_into(module, ds, np.array(-1))
    np.testing.assert_array_equal(module.theta.detach(), ds["theta"][-1])
    for index in (np.timedelta64(0, "s"), True, 0.0):
        with pytest.raises(InputError, match=r"snapshot=.*; give a whole number"):
            gf.load_into(module, ds, index)


def test_what_a_generator_gives_is_taken_where_it_ends(walked):
    flow, _ = walked
    again = gf.walk(flow, t_end=0.05, stop=None, snapshot_times=(0.01 * k for k in range(5)))
    np.testing.assert_array_equal(again["snapshot_time"], 0.01 * np.arange(5))
    assert kinds.listed(iter(range(7)), "seven", "numbers", most=7) == list(range(7))
    assert kinds.as_names(np.array(["a", "b"]), "names") == ["a", "b"]
    assert len(gf.walk(flow, t_end=0.05, snapshot_times=np.arange(MOST_TIMES))["theta"]) == 1


def test_times_between_snapshots_are_as_many_as_memory_holds(walked, monkeypatch):
    flow, ds = walked
    with pytest.raises(InputError, match=r"times: there are 1,000,000,000,000; give at most"):
        gf.interpolate(ds, BILLIONS, flow)
    with pytest.raises(InputError, match=r"times=\[range\(0, .*; give fewer numbers"):
        gf.interpolate(ds, [range(10**15)], flow)
    monkeypatch.setattr("geoflow.system.memory.available_memory", lambda *_: 10)
    with pytest.raises(InputError, match="times: 2 of them"):
        gf.interpolate(ds, [0.01, 0.02], flow)


def test_values_that_hold_themselves_or_a_network_are_shown_in_a_few_words():
    itself: dict = {}
    itself["a"] = itself
    assert kinds.shown(itself).endswith("{...}}}}}}}")
    deep: dict = {}
    for _ in range(2_000):
        deep = {"a": deep}
    assert len(kinds.shown(deep)) <= kinds.LONGEST

    class Counting(nn.Parameter):
        shown = 0

        def __repr__(self, **kwargs):
            Counting.shown += 1
            return "a parameter"

    state = OrderedDict((f"{i}", Counting(torch.ones(1))) for i in range(1_000))
    assert kinds.shown(state).startswith("{'0': a parameter, ")
    assert Counting.shown <= 4


def test_paths_are_names_whatever_gives_them(tmp_path, walked):
    class Bytes:
        def __init__(self, of):
            self.of = of

        def __fspath__(self):
            return self.of

    _, ds = walked
    file = tmp_path / "wälk.nc"
    gf.save_trajectory(ds, Bytes(os.fsencode(file)))
    with gf.open_trajectory(Bytes(os.fsencode(file))) as again:
        assert again.sizes == ds.sizes
    with pytest.raises(InputError, match=r"path=.* names nothing; give the name of a file"):
        gf.open_trajectory(Bytes(3))
    for function in (gf.open_trajectory, gf.open_path, gf.validate, gf.open_sweep):
        with pytest.raises(InputError, match=r"'a.x00b' is no name of a file"):
            function("a\0b")
    with pytest.raises((InputError, ArchiveError), match="x"):
        gf.open_sweep("x" * 100_000)


@pytest.mark.parametrize(
    "call",
    [
        lambda text: gf.walk(references.ellipsoid(), theta_dtype=text),
        lambda text: gf.Problem.from_module(
            nn.Linear(2, 1), nn.MSELoss(), torch.ones(3, 2), torch.ones(3, 1), device=text
        ),
        lambda text: gf.RegularizingFlow(references.ellipsoid().level_set, text),
        lambda text: gf.experiments.get(text),
        lambda text: gf.experiments.register(text, None),
        lambda text: gf.open_trajectory(text),
        lambda text: gf.walk(references.ellipsoid(), text),
    ],
)
def test_messages_are_one_line_of_some_length_whatever_is_given(call):
    for text in ("x" * 100_000, "a\nb\r\nc\x85d\u2028e"):
        with pytest.raises((InputError, ArchiveError)) as caught:
            call(text)
        assert len(str(caught.value)) <= LONGEST
        assert len(str(caught.value).splitlines()) == 1


def test_of_a_long_message_the_beginning_and_the_remedy_are_left():
    said = str(InputError(f"name={'x' * 10**6}; use a short one"))
    assert len(said) == LONGEST
    assert said.startswith("name=xxx")
    assert said.endswith("xxx; use a short one")
    assert str(InputError("as\nit is")) == "as it is"
    assert InputError("as it is").args == ("as it is",)
