import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
from geoflow import cli
from geoflow.archive import parts
from geoflow.cli.analysis_commands import _symmetry_lines
from geoflow.cli.terminal import BAD_INPUT, DONE, ENDED_EARLY, INTERRUPTED
from geoflow.errors import ClusterError, StorageError
from geoflow.sweeps.tasks import Outcome


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "iris.nc"
    status = cli.main(["run", "iris_ff", "--out", str(path), "--t-end", "0.02", "--snapshots", "5"])
    assert status == DONE
    return path


def test_experiments_lists_all_five(capsys):
    assert cli.main(["experiments"]) == DONE
    output = capsys.readouterr().out
    assert all(name in output for name in gf.experiments.names())
    assert "685,450" in output


def test_run_writes_a_trajectory_of_the_experiment(walked):
    with gf.open_trajectory(walked) as ds:
        assert ds.attrs["experiment"] == "iris_ff"
        assert ds.attrs["status"] == "t_end"
        assert ds.sizes["parameter"] == 31_103
        assert 2 <= ds.sizes["snapshot"] <= 5
        assert float(ds["time"][-1]) == 0.02
        assert {"test_loss", "test_accuracy"} <= set(ds.data_vars)
        assert np.abs(ds["level_residual"]).max() <= 1e-6 * ds.attrs["level"]
        config = json.loads(ds.attrs["config"])
        assert config["provenance"]["training"]["epochs"] == 100


def test_the_same_seed_gives_the_same_file(walked, tmp_path):
    path = tmp_path / "again.nc"
    arguments = ["run", "iris_ff", "--t-end", "0.02", "--snapshots", "5", "--quiet", "--out"]
    assert cli.main([*arguments, str(path)]) == DONE
    with xr.open_dataset(walked) as a, xr.open_dataset(path) as b:
        assert a.drop_vars("wall_time").equals(b.drop_vars("wall_time"))
        drop = "created"
        assert {k: v for k, v in a.attrs.items() if k != drop} == {
            k: v for k, v in b.attrs.items() if k != drop
        }


def test_info_is_a_table_or_one_json_object(walked, capsys):
    assert cli.main(["info", str(walked)]) == DONE
    table = capsys.readouterr().out
    assert "iris_ff, seed 0" in table
    assert "angle" in table
    assert cli.main(["info", str(walked), "--json"]) == DONE
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert captured.err == ""
    assert content["attributes"]["status"] == "t_end"
    assert content["scalars"]["time"] == {"units": "1", "first": 0.0, "last": 0.02}
    assert content["scalars"]["error_estimate"]["first"] is None


@pytest.mark.slow
def test_plot_writes_figures_that_are_the_same_each_time(walked, tmp_path, capsys):
    for folder in ("a", "b"):
        assert cli.main(["plot", str(walked), "--out", str(tmp_path / folder)]) == DONE
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == [
        "iris-overview.pdf",
        "iris-overview.png",
        "iris-stack.pdf",
        "iris-stack.png",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.slow
def test_spectrum_makes_the_problem_again_from_the_file(walked, tmp_path, capsys):
    path = tmp_path / "spectra.nc"
    quick = ["--eigenvalues", "2", "--probes", "2", "--steps", "8", "--max-products", "60"]
    arguments = ["spectrum", str(walked), "--snapshots", "0,-1", *quick, "--tensors", "1.weight"]
    assert cli.main([*arguments, "--out", str(path)]) == DONE
    table = capsys.readouterr().out
    assert table.count("hessian") == table.count("tangent") == 2
    with xr.open_dataset(path) as found, gf.open_trajectory(walked) as ds:
        assert found["dimension"].values.tolist() == [400, 399]
        assert found.attrs["tensors"] == "1.weight"
        assert found.attrs["experiment"] == "iris_ff"
        multiplier = ds["multiplier"][[0, -1]]
        assert np.allclose(found["multiplier"], multiplier, rtol=1e-9)
        largest = found["largest_eigenvalue"].sel(operator="hessian")[0, 0]
        assert f"{float(largest):.5g}" in table
    before = path.read_bytes()
    assert cli.main([*arguments, "--out", str(path)]) == BAD_INPUT
    assert path.read_bytes() == before
    assert "exists" in capsys.readouterr().err
    assert cli.main(["spectrum", str(walked), "--snapshots", "7"]) == BAD_INPUT
    assert "7 is not there" in capsys.readouterr().err
    assert cli.main(["spectrum", str(walked), "--tensors", "x"]) == BAD_INPUT
    assert "has no 'x'; choose from 1.weight" in capsys.readouterr().err
    newton = ["--operators", "gauss_newton", "--figures", str(tmp_path / "figures")]
    assert cli.main([*arguments, *newton]) == DONE
    assert capsys.readouterr().out.count("gauss_newton") == 2
    names = sorted(p.name for p in (tmp_path / "figures").glob("*.png"))
    assert names == [f"{walked.stem}-extremes.png", f"{walked.stem}-waterfall.png"]


def test_predictions_are_compared_from_the_file(walked, tmp_path, capsys):
    path, figures = tmp_path / "predictions.nc", tmp_path / "figures"
    arguments = ["predictions", str(walked), "--snapshots", "0,-1", "--out", str(path)]
    assert cli.main([*arguments, "--figures", str(figures)]) == DONE
    table = capsys.readouterr().out
    assert "part of the squared displacement along rescalings of units: 0, exactly" in table
    assert "0 of 1 pairs (distance to the nearest copy: upper bound)" in table
    with xr.open_dataset(path) as found, gf.open_trajectory(walked) as ds:
        assert found.attrs["kind"] == "predictions"
        assert found["set"].values.tolist() == ["train", "test"]
        theta = ds["theta"].values
        moved = np.linalg.norm(theta[-1] - theta[0])
        assert float(found["parameter_distance"][0, 1]) == pytest.approx(moved)
        assert f"{moved:.4g}" in table
        assert float(found["output_distance"].sel(set="test")[0, 1]) > 0
        assert all({"long_name", "units"} <= set(v.attrs) for v in found.variables.values())
    names = sorted(p.name for p in figures.glob("*.png"))
    assert names == ["predictions-distances.png", "predictions-function-space.png"]
    assert cli.main(arguments) == BAD_INPUT
    assert "exists" in capsys.readouterr().err
    assert cli.main([*arguments[:3], "9"]) == BAD_INPUT
    assert "9 is not there" in capsys.readouterr().err


def test_a_spent_budget_is_an_early_end_with_its_trajectory(tmp_path, capsys):
    path = tmp_path / "short.nc"
    arguments = ["run", "iris_ff", "--max-evaluations", "40", "--out", str(path)]
    assert cli.main([*arguments, "--figures", str(tmp_path / "figures")]) == ENDED_EARLY
    assert "max_evaluations: the budget of 40" in capsys.readouterr().err
    with gf.open_trajectory(path) as ds:
        assert ds.attrs["status"] == "max_evaluations"
    assert len(list((tmp_path / "figures").iterdir())) == 4


BAD = [
    (["run", "nope"], "experiment 'nope' is not known"),
    (["run", "iris_ff", "--solver", "newton"], "solver='newton'"),
    (["run", "iris_ff", "--rtol", "0"], "rtol=0.0"),
    (["run", "iris_ff", "--dtype", "float32", "--rtol", "1e-9"], "float32"),
    (["run", "iris_ff", "--angle", "200"], "degrees=200.0"),
    (["run", "iris_ff", "--snapshots", "1"], "--snapshots 1"),
    (["run", "iris_ff", "--seed", "-4"], "seed=-4"),
    (["run", "iris_ff", "--data", "x"], "carries its own data"),
    (["run", "iris_ff", "--device", "nowhere"], "device='nowhere'"),
    (["run", "iris_ff", "--out", "no/folder/x.nc"], "does not exist; create it"),
    (["run", "iris_ff", "--theta-dtype", "float64", "--dtype", "float32"], "theta_dtype='float64'"),
    (["run"], "name either an EXPERIMENT or a file"),
    (["run", "iris_ff", "--like", "x.nc"], "name either an EXPERIMENT or a file"),
    (["run", "--like", "no-such-file.nc"], "is not a file"),
    (["resume", "no-such-file.nc"], "no such file, and no walk is streamed beside it"),
    (["validate", "no-such-file.nc"], "is not a file"),
    (["diff", "no-such-file.nc", "x.nc"], "is not a file"),
    (["info", "no-such-file.nc"], "is not a file"),
    (["info", __file__], "not a readable netCDF-4 file"),
    (["spectrum", __file__], "not a readable netCDF-4 file"),
    (["predictions", __file__], "not a readable netCDF-4 file"),
    (["spectrum", "x.nc", "--out", "no/folder/x.nc"], "no/folder does not exist; create it"),
    (["spectrum", ""], "'' names no file"),
    (["pca", ""], "'' names no file"),
    (["plot", "", "--out", "x"], "'' names no file"),
    (["report", "", "--out", "x.html"], "'' names no file"),
    (["plot", __file__, "--out", "x"], "not a readable netCDF-4 file"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[f"{a[0]}: {m}" for a, m in BAD])
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(arguments) == BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("geoflow: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_an_existing_file_is_left_as_it_is(walked, capsys):
    before = walked.read_bytes()
    assert cli.main(["run", "iris_ff", "--out", str(walked)]) == BAD_INPUT
    assert "--force" in capsys.readouterr().err
    assert walked.read_bytes() == before


def test_a_netcdf_file_that_is_no_trajectory_is_said_to_be_none(tmp_path, capsys):
    path = tmp_path / "other.nc"
    xr.Dataset({"x": ("n", [1.0, 2.0])}).to_netcdf(path)
    assert cli.main(["info", str(path)]) == BAD_INPUT
    assert "is not a trajectory: attribute geoflow_schema" in capsys.readouterr().err


def test_ctrl_c_ends_with_130_and_the_trajectory(tmp_path, monkeypatch):
    calls = []

    def press_ctrl_c(theta):
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGINT)
        return 0.0

    experiment = type(gf.experiments.get("iris_ff"))
    monkeypatch.setattr(experiment, "observables", lambda *args: {"pressed": press_ctrl_c})
    path = tmp_path / "cut.nc"
    assert cli.main(["run", "iris_ff", "--quiet", "--out", str(path)]) == INTERRUPTED
    with gf.open_trajectory(path) as ds:
        assert ds.attrs["status"] == "interrupted"
        assert ds.sizes["step"] > 1


def test_a_file_alone_is_enough_to_run_it_again(walked, tmp_path, capsys):
    path = tmp_path / "again.nc"
    assert cli.main(["run", "--like", str(walked), "--out", str(path), "--quiet"]) == DONE
    assert cli.main(["diff", str(walked), str(path)]) == DONE
    assert capsys.readouterr().out.count("identical") > 20


def test_options_beside_like_change_what_they_name(walked, tmp_path):
    path = tmp_path / "changed.nc"
    arguments = ["run", "--like", str(walked), "--rtol", "1e-2", "--theta-dtype", "float32"]
    assert cli.main([*arguments, "--out", str(path), "--quiet"]) == DONE
    with gf.open_trajectory(walked) as ds:
        before = json.loads(ds.attrs["config"])
    with gf.open_trajectory(path) as ds:
        after = json.loads(ds.attrs["config"])
        assert ds["theta"].attrs["comment"] == "computed in float64, rounded to float32"
    assert after.pop("rtol") == 1e-2
    assert after.pop("theta_dtype") == "float32"
    assert after == {k: v for k, v in before.items() if k not in ("rtol", "theta_dtype")}


@pytest.mark.slow
def test_the_same_data_are_walked_again_in_another_dtype(walked, tmp_path):
    path, back = tmp_path / "single.nc", tmp_path / "double.nc"
    arguments = ["--quiet", "--rtol", "1e-2", "--t-end", "0.01"]
    to = ["run", "--like", str(walked), "--dtype", "float32", "--out", str(path)]
    assert cli.main([*to, *arguments]) == DONE
    of = ["run", "--like", str(path), "--dtype", "float64", "--out", str(back)]
    assert cli.main([*of, *arguments]) == DONE
    with gf.open_trajectory(walked) as a, gf.open_trajectory(path) as b:
        assert b.attrs["dtype"] == "float32"
        assert a.attrs["data_sha256"] == b.attrs["data_sha256"]
        assert gf.experiments.rebuild(b.attrs).flow.problem.dtype == torch.float32


def test_like_refuses_other_data(walked, tmp_path, capsys):
    path = tmp_path / "other.nc"
    with gf.open_trajectory(walked) as ds:
        gf.save_trajectory(ds.load().assign_attrs(data_sha256="0" * 64), path)
    assert cli.main(["run", "--like", str(path)]) == BAD_INPUT
    assert "the data of iris_ff are not those of the archive" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_walk_is_extended_and_a_killed_one_goes_on(tmp_path, capsys):
    long, short, killed = (tmp_path / name for name in ("long.nc", "short.nc", "killed.nc"))
    start = ["run", "iris_ff", "--quiet", "--out"]
    assert cli.main([*start, str(long), "--angle", "130"]) == DONE
    assert cli.main([*start, str(short), "--angle", "115"]) == DONE
    assert cli.main(["resume", str(short), "--angle", "130"]) == DONE
    assert f"wrote {short}" in capsys.readouterr().err
    assert cli.main(["diff", str(long), str(short)]) == DONE

    folder = parts.folder_beside(killed)
    program = [sys.executable, "-m", "geoflow", *start, str(killed), "--angle", "130"]
    with subprocess.Popen(program) as process:
        while process.poll() is None and not parts.is_resumable(killed):
            time.sleep(0.01)
        process.kill()
    assert folder.exists()
    assert cli.main(["info", str(killed)]) == BAD_INPUT
    assert f"`geoflow resume {killed}` goes on with it" in capsys.readouterr().err
    assert cli.main(["resume", str(killed), "--quiet"]) == DONE
    assert cli.main(["diff", str(long), str(killed)]) == DONE
    assert cli.main(["resume", str(killed)]) == BAD_INPUT
    assert "has ended, stationary" in capsys.readouterr().err


def test_a_full_disk_is_an_early_end_with_its_trajectory(tmp_path, monkeypatch, capsys):
    path = tmp_path / "walk.nc"

    def full(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("geoflow.archive.seal.append", full)
        arguments = ["run", "iris_ff", "--t-end", "0.02", "--quiet", "--out", str(path)]
        assert cli.main(arguments) == ENDED_EARLY
    assert f"`geoflow resume {path}`" in capsys.readouterr().err
    assert not path.exists()
    assert cli.main(["resume", str(path), "--quiet"]) == DONE
    assert cli.main(["validate", str(path)]) == DONE


def test_ctrl_c_twice_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "walk.nc"

    def press_ctrl_c(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("geoflow.archive.seal.append", press_ctrl_c)
        arguments = ["run", "iris_ff", "--t-end", "0.02", "--quiet", "--out", str(path)]
        assert cli.main(arguments) == INTERRUPTED
    assert f"interrupted; the walk is kept up to its last checkpoint: geoflow resume {path}" in (
        capsys.readouterr().err
    )
    assert cli.main(["resume", str(path), "--quiet"]) == DONE


def test_the_options_of_run_are_in_the_file_and_go_on_from_there(tmp_path):
    path, again = tmp_path / "walk.nc", tmp_path / "again.nc"
    name = "1.0*squared_norm:tensors=*.bias + 0.5*pseudo_huber_norm:delta=0.1"
    options = ["--regularizer", name, "--stop", "none", "--t-end", "0.02"]
    options += ["--snapshot-every", "0.01", "--theta-dtype", "float32"]
    assert cli.main(["run", "iris_ff", "--quiet", "--out", str(path), *options]) == DONE
    assert cli.main(["run", "--like", str(path), "--out", str(again), "--quiet"]) == DONE
    assert cli.main(["diff", str(path), str(again)]) == DONE
    assert cli.main(["resume", str(again), "--t-end", "0.03", "--quiet"]) == DONE
    with gf.open_trajectory(again) as ds:
        config = json.loads(ds.attrs["config"])
        assert ds.attrs["regularizer_name"] == name
        assert (config["stop"], config["snapshot_every"]) == (None, 0.01)
        assert ds["theta"].dtype == "float32"
        assert np.allclose(ds["snapshot_time"], [0, 0.01, 0.02, 0.03])


def test_the_options_of_sweep_reach_the_sweep(monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(gf, "sweep", lambda *args, **options: given.update(options) or [])
    options = ["--regularizer", "quartic_norm", "--stop", "Plateau:window=1,rtol=1e-3"]
    options += ["--snapshot-times", "0.1,0.2", "--theta-dtype", "float32", "--reproject-every", "2"]
    options += ["--constraints", "by_class"]
    command = ["sweep", "iris_ff", "--seeds", "0", "--out", str(tmp_path), "--solver", "rk4"]
    assert cli.main([*command, *options, "--quiet"]) == DONE
    assert given["regularizer"] == "quartic_norm"
    assert given["constraints"] == "by_class"
    assert given["stop"] == "Plateau:window=1,rtol=1e-3"
    assert given["snapshot_times"] == [0.1, 0.2]
    assert (given["theta_dtype"], given["reproject_every"], given["solver"]) == (
        "float32",
        2.0,
        "rk4",
    )


@pytest.mark.parametrize(
    ("statuses", "status", "said"),
    [
        (["stationary", "t_end"], DONE, ""),
        (["stationary", "max_evaluations"], ENDED_EARLY, ""),
        (["stationary", "failed"], ENDED_EARLY, "geoflow: seed-0001 failed: why\n"),
    ],
)
def test_the_status_of_a_sweep_is_that_of_all_its_runs(
    statuses, status, said, monkeypatch, tmp_path, capsys
):
    outcomes = [
        Outcome(f"seed-{i:04d}", tmp_path / "x.nc", s, "why", new=i == 0)
        for i, s in enumerate(statuses)
    ]
    monkeypatch.setattr(gf, "sweep", lambda *args, **options: outcomes)
    command = ["sweep", "iris_ff", "--seeds", "0:2", "--out", str(tmp_path)]
    assert cli.main(command) == status
    assert capsys.readouterr().err == f"2 runs, 1 of them new, in {tmp_path}\n{said}"


@pytest.mark.parametrize("error", [ClusterError("gone"), StorageError("full")])
def test_what_can_be_gone_on_with_is_an_early_end(error, monkeypatch, tmp_path, capsys):
    def failing(*args, **options):
        raise error

    monkeypatch.setattr(gf, "sweep", failing)
    command = ["sweep", "iris_ff", "--seeds", "0", "--out", str(tmp_path)]
    assert cli.main(command) == ENDED_EARLY
    assert capsys.readouterr().err == f"geoflow: error: {error}\n"


def test_ctrl_c_before_a_command_has_begun_ends_with_130(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("geoflow.cli.parser.starting.started", interrupted)
    assert cli.main(["experiments"]) == INTERRUPTED
    assert capsys.readouterr() == ("", "geoflow: interrupted\n")


def test_pairs_that_are_nearer_to_a_copy_are_counted_once():
    """Of three snapshots, two pairs of which are nearer to a copy; each is there twice."""
    direct = np.array([[0.0, 2.0, 3.0], [2.0, 0.0, 1.0], [3.0, 1.0, 0.0]])
    nearest = np.array([[0.0, 1.0, 2.5], [1.0, 0.0, 1.0], [2.5, 1.0, 0.0]])
    dims = ("snapshot", "snapshot_other")
    variables = {
        "parameter_distance": (dims, direct),
        "symmetric_distance": (dims, nearest, {"bound": "exact"}),
        # Of the last there is no displacement to the next.
        "shift_fraction": ("snapshot", np.array([0.25, 0.5, np.nan])),
    }
    pairs, shifts = _symmetry_lines(xr.Dataset(variables))
    assert ": 2 of 3 pairs (distance to the nearest copy: exact)" in pairs
    assert shifts.endswith("along shifts of all logits: 0.25 to 0.5")
