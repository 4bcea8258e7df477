"""What an archive says of its walk is checked before it is used, and nothing is left behind."""

import json
from pathlib import Path

import netCDF4
import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.archive import seal
from geoflow.cli import terminal
from geoflow.errors import ArchiveError
from geoflow.walking import configuration


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """An archived walk of an experiment, a few steps long."""
    path = tmp_path_factory.mktemp("walked") / "iris.nc"
    options = ["--t-end", "1e-3", "--out", str(path), "--quiet"]
    assert cli.main(["run", "iris_ff", *options]) == terminal.DONE
    return path


def test_another_version_of_the_schema_is_named_with_those_that_are_read():
    said = r"in schema '0\.9', and this geoflow reads and writes 1\.0, 1\.1, 1\.2; .* \(0\.0\.1\)"
    with pytest.raises(ArchiveError, match=said):
        configuration.check(Path("a.nc"), {"geoflow_schema": "0.9", "geoflow_version": "0.0.1"})


@pytest.fixture
def doctored(walked, tmp_path):
    """Return a function that writes the walk with other settings, provenance or attributes."""

    def write(settings=None, provenance=None, attributes=None):
        path = tmp_path / "doctored.nc"
        content = walked.read_bytes()[: -seal.LENGTH]
        path.write_bytes(content)
        with netCDF4.Dataset(path, "a") as file:
            config = json.loads(file.getncattr("config"))
            config |= settings or {}
            if isinstance(config["provenance"], dict):
                config["provenance"] |= provenance or {}
            config = {k: v for k, v in config.items() if v != MISSING}
            file.setncattr("config", json.dumps(config))
            for name, value in (attributes or {}).items():
                file.setncattr(name, value)
        seal.append(path)
        return path

    return write


MISSING = "left out"

SETTINGS = [
    ({"threads": 1_000_000}, "config: threads is '1000000', not a number up to 1024"),
    ({"threads": 0}, "config: threads is '0'"),
    ({"threads": True}, "config: threads is 'True'"),
    ({"threads": "two"}, "config: threads is 'two'"),
    ({"threads": MISSING}, "its config has no 'threads'"),
    ({"solver": MISSING}, "config: solver is no JSON object with a name"),
    ({"solver": "exponential"}, "config: solver is no JSON object with a name"),
    ({"solver": {"name": 3}}, "config: solver is no JSON object with a name"),
    ({"solver": {"name": "dopri5"}}, "config: solver is another than the attribute"),
    ({"solver": {"name": "rk4", "step": "x"}}, "config: solver={'name': 'rk4', 'step': 'x'}"),
    ({"stop": {"name": "Stationary", "degrees": "far"}}, "config: stop={'name': 'Stationary'"),
    ({"stop": {"name": "Stationary", "degrees": 10**400}}, "config: stop="),
    ({"stop": [175]}, "config: stop is no JSON object with a name"),
    ({"rtol": float("nan")}, "config: rtol=nan"),
    ({"rtol": 0.5}, "config: rtol is another than the attribute"),
    ({"rtol": "1e-3"}, "config: rtol='1e-3'; use a number"),
    ({"atol": -1}, "config: atol=-1"),
    ({"t_end": -1}, "config: t_end=-1"),
    ({"t_end": float("nan")}, "config: t_end=nan"),
    ({"max_evaluations": 1.5}, "config: max_evaluations=1.5"),
    ({"max_evaluations": 10**400}, "config: max_evaluations="),
    ({"max_snapshots": 0}, "config: max_snapshots=0"),
    ({"max_snapshots": [1]}, "config: max_snapshots=[1]"),
    ({"snapshot_every": 0.0}, "config: snapshot_every=0"),
    ({"snapshot_times": "soon"}, "config: snapshot_times='soon'"),
    ({"theta_dtype": "int8"}, "config: theta_dtype='int8'"),
    ({"theta_dtype": "float32"}, "theta is float64, not float32 as its config has it"),
    ({"observables": "test_loss"}, "config: observables are not a list of names"),
    ({"observables": ["test_loss"] * 2}, "config: observables are not in order, each once"),
    ({"observables": ["norm"]}, "the observables are not those that its config names"),
    ({"provenance": [1]}, "config: provenance is no JSON object"),
    ({"events": [5]}, "config: events are '[5]', not a list of JSON objects"),
    ({"events": {"a": 1}}, "config: events are \"{'a': 1}\", not a list of JSON objects"),
    ({"events": [{"name": "low"}]}, "config: events has \"{'name': 'low'}\", which is not what"),
    ({"events": [{"function": "angle", "direction": 7}]}, "config: direction=7; use 1"),
    ({"events": [{"function": "angle"}] * 2}, "config: events: two are called 'angle'"),
    ({"events": [{"function": "angle"}]}, "config: events are not those of the attribute"),
    ({"processes": "x"}, "config: processes is 'x', not a positive whole number"),
    ({"processes": 0}, "config: processes is '0'"),
]

PROVENANCE = [
    ({"seed": "zero"}, "config: provenance has seed = 'zero', of another type"),
    ({"seed": 7}, "config: provenance has another seed than the attribute"),
    ({"seed": False}, "config: provenance has seed = 'False', of another type"),
    ({"experiment": ["iris_ff"]}, "config: provenance has experiment"),
    ({"experiment": "mpg_ff"}, "config: provenance has another experiment than the attribute"),
    ({"data": 3}, "config: provenance has data = '3', of another type"),
    ({"training": []}, "config: provenance has training"),
    ({"training": {"epochs": -1}}, "config: provenance has '-1' epochs of training"),
]

ATTRIBUTES = [
    ({"device": "nowhere"}, "attribute device is 'nowhere', which torch does not know"),
    ({"dtype": "int8"}, "attribute dtype is neither float32 nor float64"),
    ({"level_rtol": -1.0}, "attribute level_rtol is negative"),
    ({"level_rtol": 0.5}, "attribute level_rtol is 0.5, above 0.25"),
    ({"level_rtol": 1e3}, "attribute level_rtol is 1000, above 0.25"),
    ({"level": 0.05}, "level_residual is not train_loss less the level"),
    ({"level": float("nan")}, "attribute level is not finite"),
    ({"seed": -7}, "attribute seed is negative"),
    ({"geoflow_schema": "0.3"}, "'0.3'"),
    ({"seed": 1.5}, "attribute seed is not of type int"),
    ({"solver": "dopri5"}, "config: solver is another than the attribute"),
]

CASES = [
    *(((change, None, None), message) for change, message in SETTINGS),
    *(((None, change, None), message) for change, message in PROVENANCE),
    *(((None, None, change), message) for change, message in ATTRIBUTES),
]


@pytest.mark.parametrize(("change", "message"), CASES, ids=range(len(CASES)))
def test_what_cannot_be_used_is_found_and_refused_in_one_line(
    doctored, change, message, tmp_path, capsys
):
    path = doctored(*change)
    before = path.read_bytes()
    assert any(message in defect for defect in gf.validate(path)), gf.validate(path)
    threads = torch.get_num_threads()
    again = ["run", "--like", str(path), "--out", str(tmp_path / "again.nc")]
    for arguments in (["resume", str(path), "--t-end", "2e-3"], again):
        if message.startswith("the observables") or "finer" in message or "as its" in message:
            # Seen only beside the variables; these settings can be used as they are.
            continue
        assert cli.main(arguments) == terminal.BAD_INPUT
        error = capsys.readouterr().err
        assert error.startswith("geoflow: error: ")
        assert error.count("\n") == 1
        # The first that is found is named.
        assert message in error or "attribute" in error or "its checkpoint" in error
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["doctored.nc"]
    assert torch.get_num_threads() == threads


def test_what_is_right_passes(walked, doctored):
    assert gf.validate(walked) == []
    # A solver and a criterion of the user's own, and a machine of many threads.
    own = {"solver": {"name": "mine", "order": 9}, "stop": {"name": "Mine"}, "threads": 384}
    assert gf.validate(doctored(own, attributes={"solver": "mine"})) == []
    assert gf.validate(doctored(attributes={"device": "cuda:1"})) == []


def test_a_device_that_is_not_here_is_said_to_be_so(doctored, capsys):
    path = doctored(attributes={"device": "cuda:9"})
    for arguments in (["resume", str(path), "--t-end", "2e-3"], ["run", "--like", str(path)]):
        assert cli.main(arguments) == terminal.BAD_INPUT
        assert "cuda:9" in capsys.readouterr().err


def test_another_level_than_that_of_the_records_is_refused_by_analyses_too(doctored, capsys):
    path = doctored(attributes={"level": 0.05})
    out = str(path.with_name("out.nc"))
    for command in ("spectrum", "slice", "predictions"):
        assert cli.main([command, str(path), "--out", out]) == terminal.BAD_INPUT
        assert "level_residual is not train_loss less the level" in capsys.readouterr().err


def spoil_checkpoint(path: Path, change) -> None:
    path.write_bytes(path.read_bytes()[: -seal.LENGTH])
    with netCDF4.Dataset(path, "a") as file:
        change(file["checkpoint"])
    seal.append(path)


def nan_in_theta(group):
    group["theta"][3] = float("nan")


def fewer_evaluations(group):
    state = json.loads(group.getncattr("state"))
    state["counts"]["gradient"] = 0
    group.setncattr("state", json.dumps(state))


def another_step(group):
    state = json.loads(group.getncattr("state"))
    group.setncattr("state", json.dumps(state | {"n_steps": 10**12}))


def not_a_device(group):
    state = json.loads(group.getncattr("state"))
    group.setncattr("state", json.dumps(state | {"devices": {"step": "../.."}}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_in_theta, "theta of its checkpoint is not finite"),
        (fewer_evaluations, "counts fewer evaluations than n_gradient"),
        (another_step, "its checkpoint is that of another walk"),
        (not_a_device, "its checkpoint cannot be used"),
    ],
)
def test_a_checkpoint_is_held_against_the_walk(doctored, change, message, tmp_path, capsys):
    path = doctored()
    spoil_checkpoint(path, change)
    assert any(message in defect for defect in gf.validate(path)), gf.validate(path)
    before = path.read_bytes()
    assert cli.main(["resume", str(path), "--t-end", "2e-3"]) == terminal.BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["doctored.nc"]
