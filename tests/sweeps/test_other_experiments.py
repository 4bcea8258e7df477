"""A sweep of an experiment of one's own takes none of its walks up once it is another."""

import json

import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.errors import InputError
from geoflow.experiments import registry
from geoflow.sweeps.runs import _walk
from geoflow.walking.settings import WalkSettings

SEEDS = range(2)
SETTINGS = {"t_end": 0.01, "max_snapshots": 3}


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


def registered(
    monkeypatch, *, loss=nn.functional.cross_entropy, scale=1.0, module=references.small_module
):
    def mine(seed, dtype=torch.float64):
        torch.manual_seed(seed)
        inputs, targets = references.small_data(seed=seed)
        return gf.Problem.from_module(module(), loss, scale * inputs, targets, dtype=dtype)

    monkeypatch.setattr(registry, "_REGISTERED", {})
    gf.experiments.register("mine", mine)


def smoothed(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)


def another_module():
    return nn.Sequential(*references.small_module(), nn.Linear(2, 2))


@pytest.fixture(params=["", "by_class"])
def folder(request, tmp_path, monkeypatch):
    registered(monkeypatch)
    settings = {
        "experiment": "mine",
        **WalkSettings(**SETTINGS).resolved(torch.float64).config,
        "regularizer": "squared_norm",
        "constraints": request.param or None,
        **dict.fromkeys(("epochs", "data", "device")),
        "dtype": "float64",
        "threads": 1,
    }
    manifest = {"geoflow_sweep": "1.0", "kind": "walks", **settings}
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    for seed in SEEDS:
        _walk(str(tmp_path / f"seed-{seed:04d}.nc"), **settings, seed=seed)
    return tmp_path


def sweep(folder):
    constraints = json.loads((folder / "sweep.json").read_text())["constraints"]
    return gf.sweep(
        "mine", SEEDS, folder, constraints=constraints, dtype="float64",
        scheduler="tcp://nowhere:1", **SETTINGS
    )  # fmt: skip


def test_the_same_experiment_is_taken_up_and_the_generator_stays(folder):
    state = torch.get_rng_state()
    assert [outcome.new for outcome in sweep(folder)] == [False, False]
    assert torch.equal(state, torch.get_rng_state())


OTHERS = {
    "data_sha256": {"scale": 3.0},
    "network": {"module": another_module},
    "loss at its first snapshot": {"loss": smoothed},
}


@pytest.mark.parametrize(("name", "other"), OTHERS.items(), ids=OTHERS)
def test_another_is_refused_by_what_differs(folder, name, other, monkeypatch):
    registered(monkeypatch, **other)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=f"not of this sweep: its {name} is .* move it elsewhere"):
        sweep(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_this_process_cannot_make_is_not_compared(folder, monkeypatch):
    def fails(seed, dtype=None):
        raise RuntimeError("no data here")

    monkeypatch.setattr(registry, "_REGISTERED", {})
    gf.experiments.register("mine", fails)
    assert [outcome.new for outcome in sweep(folder)] == [False, False]
