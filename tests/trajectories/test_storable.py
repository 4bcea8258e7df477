"""What no file could hold is refused before the first step; what is let through comes back."""

import json

import netCDF4
import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ArchiveError, InputError
from geoflow.experiments.prepared import check_seed
from geoflow.trajectories.storable import check_attributes, storable


def walk(path, **kwargs):
    return gf.walk(references.ellipsoid(), t_end=0.02, stop=None, archive=path, **kwargs)


NAMES = [
    "checkpoint",
    "step",
    "tensor",
    "constraint",
    "theta",
    "e\u0301nergie",
    "a" * 256,
    "é" * 128,
    "a b",
    "",
    3,
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_names_that_no_file_could_hold_are_refused(name, tmp_path):
    flow = references.ellipsoid()
    with pytest.raises(InputError, match=r"observables: .*; (use|choose)"):
        gf.walk(flow, t_end=0.02, archive=tmp_path / "walk.nc", observables={name: torch.sum})
    assert flow.problem.counts["gradient"] == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["énergie", "a" * 255, "_FillValue", "_NCProperties", "ª", "状"])
def test_names_that_pass_come_back(name, tmp_path):
    walk(tmp_path / "walk.nc", observables={name: lambda theta: float(theta.norm())}).close()
    assert gf.validate(tmp_path / "walk.nc") == []
    with gf.open_trajectory(tmp_path / "walk.nc") as ds:
        assert float(ds[name][0]) == pytest.approx(
            float(references.ellipsoid().problem.theta0.norm())
        )


cycle: dict = {}
cycle["itself"] = cycle


def nested(depth):
    found: dict = {}
    for _ in range(depth - 1):
        found = {"a": found}
    return found


PROVENANCE = [
    (nested(100), "provenance, .* is nested more than 100 deep; flatten it"),
    (nested(800), "provenance, .* is nested more than 100 deep; flatten it"),
    ({"title": None}, "title=None; use a text"),
    ({"title": "a\0b"}, "title='a.x00b' has a NUL"),
    ({"title": "\ud800"}, "is no Unicode text"),
    ({"experiment": True}, "experiment=True; use a text"),
    ({"seed": "three"}, "seed='three'; use a number"),
    ({"seed": 10**26}, r"seed=1\d+; use .* below 2\*\*63"),
    ({"seed": -2}, "seed=-2"),
    ({"seed": True}, "seed=True; use a number"),
    ({"note": "x" * 1_100_000}, r"provenance, .* has 1,10\d,\d\d\d bytes; use at most 1,048,576"),
    ({"note": torch.ones(2)}, "provenance, .* cannot be kept as JSON"),
    ({"note": float("nan")}, "provenance, .* cannot be kept as JSON"),
    ({("a", "b"): 1}, "provenance, .* cannot be kept as JSON"),
    (cycle, "provenance, .* cannot be kept as JSON"),
]


@pytest.mark.parametrize(("provenance", "message"), PROVENANCE, ids=[m for _, m in PROVENANCE])
def test_provenance_that_no_file_could_hold_is_refused(provenance, message, tmp_path):
    flow = references.ellipsoid()
    with pytest.raises(InputError, match=message):
        gf.walk(flow, t_end=0.02, archive=tmp_path / "walk.nc", provenance=provenance)
    assert flow.problem.counts["gradient"] == 0
    assert not list(tmp_path.iterdir())


def test_provenance_at_the_limit_comes_back(tmp_path):
    note = "é" * 100_000
    walk(tmp_path / "walk.nc", provenance={"note": note, "seed": 2**63 - 1, "title": "t"}).close()
    assert gf.validate(tmp_path / "walk.nc") == []
    with gf.open_trajectory(tmp_path / "walk.nc") as ds:
        assert json.loads(ds.attrs["config"])["provenance"]["note"] == note
        assert ds.attrs["seed"] == 2**63 - 1
    with netCDF4.Dataset(tmp_path / "walk.nc") as file:
        assert file.seed == 2**63 - 1


def test_provenance_as_deep_as_it_may_be_is_resumed(tmp_path):
    file = tmp_path / "walk.nc"
    walk(file, provenance=nested(99)).close()
    assert gf.validate(file) == []
    with gf.resume(file, references.ellipsoid(), t_end=0.03) as ds:
        assert json.loads(ds.attrs["config"])["provenance"] == nested(99)
        # What has been put deeper by hand is not written as what could not be gone on with.
        deep = ds.load()
    deep.attrs["config"] = json.dumps(json.loads(deep.attrs["config"]) | {"own": nested(100)})
    with pytest.raises(ArchiveError, match=r"not written to .* is nested more than 100 deep"):
        gf.save_trajectory(deep, tmp_path / "other.nc")
    assert [path.name for path in tmp_path.iterdir()] == ["walk.nc"]


def test_a_path_with_provenance_nested_too_deep_is_refused_before_its_first_step():
    flow = references.ellipsoid()
    with pytest.raises(InputError, match="is nested more than 100 deep"):
        gf.regularization_path(flow, [flow.level_set.level / 2], provenance=nested(100))
    assert flow.problem.counts["gradient"] == 0


def test_numbers_of_numpy_are_kept_as_numbers(tmp_path):
    given = {"n": np.int64(3), "x": np.float32(0.5), "is": np.bool_(True), "of": [np.int8(1)]}
    walk(tmp_path / "walk.nc", provenance=given, rtol=np.float32(0.25)).close()
    with gf.open_trajectory(tmp_path / "walk.nc") as ds:
        config = json.loads(ds.attrs["config"])
    assert config["provenance"] == {"n": 3, "x": 0.5, "is": True, "of": [1]}
    with pytest.raises(InputError, match="cannot be kept as JSON"):
        walk(tmp_path / "other.nc", provenance={"x": np.float64("nan")})


def test_names_of_tensors_and_of_r_are_held_too(tmp_path):
    module = torch.nn.Linear(2, 1)
    module.register_parameter("a\0b", torch.nn.Parameter(torch.ones(1)))
    x, y = torch.ones(3, 2), torch.zeros(3, 1)

    def loss(outputs, targets):
        return ((outputs - targets) ** 2).mean()

    problem = gf.Problem.from_module(module, loss, x, y)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    with pytest.raises(InputError, match=r"the name of a parameter tensor='a.x00b' has a NUL"):
        gf.walk(flow, archive=tmp_path / "walk.nc")

    def r(theta):
        return theta @ theta

    r.__name__ = "r\udc80"
    flow = references.ellipsoid()
    with pytest.raises(InputError, match=r"regularizer_name=.* is no Unicode text"):
        gf.walk(gf.RegularizingFlow(flow.level_set, r), archive=tmp_path / "walk.nc")
    assert not list(tmp_path.iterdir())


def test_the_message_of_an_error_never_loses_a_walk(tmp_path):
    calls = iter(range(100))

    def fails_later(theta):
        if next(calls) > 2:
            raise ValueError("a\0b \ud800 " + "x" * 10_000_000)
        return 0.0

    with walk(tmp_path / "walk.nc", observables={"late": fails_later}, snapshot_every=0.002) as ds:
        assert ds.attrs["status"] == "observable_failed"
        assert "a\N{REPLACEMENT CHARACTER}b ? xxx" in ds.attrs["status_message"]
        assert len(ds.attrs["status_message"]) < 3_000
        assert ds.sizes["step"] > 1
    assert gf.validate(tmp_path / "walk.nc") == []


def test_whole_numbers_as_files_hold_them():
    for seed in (-1, 2**63 - 1):
        check_attributes({"seed": seed}, [])
    for seed in (-2, 2**63, True, 1.0):
        with pytest.raises(InputError, match=r"seed=.*; use "):
            check_attributes({"seed": seed}, [])


def test_texts_as_files_hold_them():
    assert storable("as it is — ü") == "as it is — ü"
    assert storable("x" * 3_000) == "x" * 2_000 + "…"


@pytest.mark.parametrize("seed", ["three", 1.0, True, -1, 2**63, None])
def test_seeds_that_cannot_be_kept(seed):
    with pytest.raises(InputError, match="seed="):
        check_seed(seed)


def test_a_seed_beyond_archives_is_refused_before_the_training():
    for function in (
        lambda: gf.experiments.get("iris_ff").prepare(seed=2**63),
        lambda: gf.baselines.weight_decay("iris_ff", seeds=[2**63]),
        lambda: gf.sweep("iris_ff", [0, 2**63], "nowhere"),
    ):
        with pytest.raises(InputError, match=r"seed=9223372036854775808; use .* below 2\*\*63"):
            function()
