"""One's own experiments, by name, in Python."""

import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DONE
from geoflow.comparisons.cost import bench
from geoflow.comparisons.work_precision import compare_experiment
from geoflow.errors import InputError
from geoflow.experiments import registry
from geoflow.walking.rerunning import like


def small(seed, epochs=0, dtype=torch.float64):
    data = references.small_data(seed=seed)
    problem = gf.Problem.from_module(
        references.small_module(), nn.functional.cross_entropy, *data, dtype=dtype
    )
    assert epochs >= 0
    return problem


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture
def mine():
    gf.experiments.register("mine", small)
    return "mine"


def test_a_name_is_known_and_given_once(mine):
    assert gf.experiments.names()[-1] == mine
    prepared = gf.experiments.get(mine).prepare(3)
    assert torch.equal(prepared.problem.theta0, small(3).theta0)
    assert prepared.provenance["experiment"] == mine
    assert prepared.provenance["seed"] == 3
    for taken in (mine, "iris_ff"):
        with pytest.raises(InputError, match=f"name='{taken}' is taken"):
            gf.experiments.register(taken, lambda seed: small(seed))
    # As a cell of a notebook does that is run again.
    gf.experiments.register(mine, small)


@pytest.mark.parametrize(
    ("name", "function", "message"),
    [
        ("a b", small, "name='a b'; use letters"),
        ("../a", small, "use letters"),
        ("", small, "use letters"),
        (3, small, "name=3"),
        ("a", 3, "'a' is a int; give a function of a seed"),
        ("a", lambda: None, "cannot be called with a seed alone"),
        ("a", lambda seed, x: None, "cannot be called with a seed alone"),
    ],
)
def test_what_cannot_be_registered(name, function, message):
    with pytest.raises(InputError, match=message):
        gf.experiments.register(name, function)
    assert len(gf.experiments.names()) == 5


def test_options_go_to_the_function_that_names_them():
    given = []

    def all_of_them(seed, *, data=None, epochs=1, dtype=None, device="cpu", progress=None):
        given.append((seed, data, epochs, dtype, device, progress))
        return small(seed)

    gf.experiments.register("all", all_of_them)
    gf.experiments.register("none", lambda s: small(s))
    gf.experiments.get("all").prepare(1, data="x", epochs=7, dtype=torch.float64)
    assert given == [(1, "x", 7, torch.float64, "cpu", False)]
    gf.experiments.get("all").prepare(1)
    assert given[1] == (1, None, 1, None, "cpu", False)
    for name, value in (("data", "x"), ("epochs", 1), ("dtype", torch.float64), ("device", "cpu")):
        with pytest.raises(InputError, match=f"does not name {name} in its signature"):
            gf.experiments.get("none").prepare(0, **{name: value})
    with pytest.raises(InputError, match="seed=-1"):
        gf.experiments.get("none").prepare(-1)
    with pytest.raises(InputError, match=r"dtype=float32: .* gives a problem in float64"):
        gf.experiments.get("all").prepare(0, dtype=torch.float32)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "returned a NoneType; return"),
        (gf.experiments.PreparedExperiment(3), "is a int without theta0"),
        (gf.experiments.PreparedExperiment(small(0), train=3), "train of 'bad' is a int"),
        (gf.experiments.PreparedExperiment(small(0), provenance={"x": {1}}), "as JSON"),
    ],
)
def test_what_cannot_be_returned(returned, message):
    gf.experiments.register("bad", lambda seed: returned)
    with pytest.raises(InputError, match=message):
        gf.experiments.get("bad").prepare(0)


def walk(path, name="mine", **settings):
    prepared = gf.experiments.get(name).prepare(1, epochs=2)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    given = {"t_end": 0.05, "stop": None} | settings
    return gf.walk(flow, archive=path, provenance=prepared.provenance, **given)


def test_an_archive_is_resumed_analysed_and_run_again_where_the_name_is_registered(mine, tmp_path):
    path = tmp_path / "walk.nc"
    with walk(path) as ds:
        attributes, theta = dict(ds.attrs), torch.as_tensor(ds["theta"].values[-1])
        loss = float(ds["train_loss"][-1])
    rebuilt = gf.experiments.rebuild(attributes)
    assert float(rebuilt.flow.problem.loss(theta)) == pytest.approx(loss, rel=1e-12)
    run = like(path)
    assert run.experiment == mine
    assert run.preparation == {"seed": 1, "epochs": 2}
    gf.resume(path, t_end=0.08).close()
    again = run.prepare()
    assert again.provenance == json.loads(attributes["config"])["provenance"]

    registry._REGISTERED.clear()
    for function, argument in (
        (gf.resume, path),
        (like, path),
        (gf.experiments.rebuild, attributes),
    ):
        with pytest.raises(InputError, match="register it first, or name its file with --problem"):
            function(argument)
    # Another problem under the name is no way round.
    gf.experiments.register(mine, lambda seed, epochs=0: small(seed + 1))
    with pytest.raises(InputError, match="are not those of the walk"):
        gf.experiments.rebuild(attributes)


def test_an_archive_can_name_no_code(mine, tmp_path):
    """Whatever the provenance says, only a registered name is looked up."""
    path = tmp_path / "walk.nc"
    with walk(path) as ds:
        attributes = dict(ds.attrs)
    config = json.loads(attributes["config"])
    for name in ("os:system", "geoflow.cli:main", f"{__file__}:small", "/x.py:f"):
        config["provenance"]["experiment"] = name
        attributes |= {"experiment": name, "config": json.dumps(config)}
        with pytest.raises(InputError, match="is not known"):
            gf.experiments.rebuild(attributes)


def test_methods_are_compared_on_it(mine):
    found = bench(mine, max_evaluations=60)
    assert found["predictor_corrector"]["final"]["evaluations"] <= 60
    ds = compare_experiment(mine, ["rkc"], [1e-2], [0.02], reference_rtol=1e-5)
    assert float(ds["theta_error"].max()) < 1e-2


def test_the_command_line_takes_it_in_this_process(mine, tmp_path, capsys):
    path = tmp_path / "walk.nc"
    assert cli.main(["experiments"]) == DONE
    assert "registered here" in capsys.readouterr().out
    assert cli.main(["run", mine, "--t-end", "0.02", "--out", str(path), "--quiet"]) == DONE
    assert cli.main(["resume", str(path), "--t-end", "0.03", "--quiet"]) == DONE
    capsys.readouterr()
    assert cli.main(["baseline", mine, "--out", str(tmp_path / "b.nc")]) == BAD_INPUT
    assert "does not know how its network is trained" in capsys.readouterr().err


def test_a_function_that_cannot_be_carried_is_refused_before_the_sweep(tmp_path):
    lock = __import__("threading").Lock()
    gf.experiments.register("held", lambda seed: small(seed) if lock else None)
    with pytest.raises(InputError, match="cannot be carried to the workers"):
        gf.sweep("held", [0], tmp_path / "s")
    assert not (tmp_path / "s").exists()


SCRIPT = """
import sys
import torch
import geoflow as gf

LEAST = 1.0

def ellipsoid(seed):
    weights = torch.linspace(LEAST, 3, 6, dtype=torch.float64) + seed
    return gf.Problem.from_function(lambda t: (weights * t**2).sum(), torch.ones(6).double())

if __name__ == "__main__":
    gf.experiments.register("ellipsoid", ellipsoid)
    outcomes = gf.sweep("ellipsoid", [0, 1], sys.argv[1], t_end=0.1, workers=1)
    print(*[o.status for o in outcomes], *[o.message for o in outcomes if o.status == "failed"])
"""


@pytest.mark.slow
def test_a_sweep_carries_the_function_to_its_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "s")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "t_end t_end"
    with gf.open_trajectory(tmp_path / "s" / "seed-0001.nc") as ds:
        assert ds.attrs["experiment"] == "ellipsoid"
        weights = np.linspace(1, 3, 6) + 1
        assert np.allclose(ds["train_loss"], weights.sum(), rtol=1e-6)


def test_every_experiment_takes_the_same_options():
    own, paper = (
        set(inspect.signature(kind.prepare).parameters)
        for kind in (gf.experiments.OwnExperiment, gf.experiments.Experiment)
    )
    assert own == paper
