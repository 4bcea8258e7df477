"""``geoflow path``, and what reads its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.cli import path_commands
from geoflow.cli.path_commands import _spaced
from geoflow.cli.terminal import BAD_INPUT, DIFFERENT, DONE, ENDED_EARLY, INTERRUPTED
from geoflow.paths.continuation import Continuation

FILE = '''
import torch
import geoflow as gf

def quadratic(seed):
    """A loss with a minimum of 0.5, and 0.5 + 1.1 at the origin."""
    scales = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
    def loss(theta):
        return 0.5 + (scales * (theta - 1) ** 2).sum() / 2
    return gf.Problem.from_function(loss, torch.full((4,), 1.0 + 0.2 + seed, dtype=torch.float64))
'''
LEVELS = "0.6,0.7,0.9"


@pytest.fixture
def problem(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return "mine.py:quadratic"


def _path(problem, *more, out="path.nc"):
    return cli.main(["path", "--problem", problem, "--out", out, *more])


def test_a_path_is_written_shown_and_read(problem, capsys):
    assert _path(problem, "--levels", LEVELS) == DONE
    shown = capsys.readouterr()
    assert "penalty" in shown.out
    assert "complete: all 3 levels were reached" in shown.err
    assert "wrote path.nc" in shown.err
    with gf.open_path("path.nc") as ds:
        np.testing.assert_allclose(ds["level"][1:], [0.6, 0.7, 0.9])
        assert ds.attrs["seed"] == 0
    assert cli.main(["validate", "path.nc"]) == DONE
    assert cli.main(["info", "path.nc", "--json"]) == DONE
    content = json.loads(capsys.readouterr().out)
    assert content["attributes"]["status"] == "complete"
    assert content["scalars"]["level"]["last"] == 0.9
    assert cli.main(["diff", "path.nc", "path.nc"]) == DONE
    assert _path(problem, "--levels", "0.6,0.7", out="other.nc") == DONE
    assert cli.main(["diff", "path.nc", "other.nc"]) == DIFFERENT


def test_its_title_is_that_of_a_path(problem):
    assert _path(problem, "--levels", LEVELS, "--quiet") == DONE
    with gf.open_path("path.nc") as ds:
        assert ds.attrs["title"].endswith("quadratic, seed 0: regularisation path")


def test_a_file_that_is_not_there_is_no_walk(problem, capsys):
    assert cli.main(["resume", "nope.nc", "--levels", "0.8"]) == BAD_INPUT
    assert "nope.nc is not a file" in capsys.readouterr().err


def test_json_has_a_row_a_point(problem, capsys):
    more = ("--levels", LEVELS, "--eigenvalues", "--json", "--quiet", "--degrees", "179")
    assert _path(problem, *more) == DONE
    shown = capsys.readouterr()
    assert shown.err == ""
    content = json.loads(shown.out)
    assert content["status"] == "complete"
    assert [point["level"] for point in content["points"]][1:] == [0.6, 0.7, 0.9]
    assert all(point["angle"] >= 179 for point in content["points"])
    assert all(point["smallest_eigenvalue"] > 2 for point in content["points"])


def test_levels_are_spaced_evenly_in_their_logarithm(problem):
    assert _path(problem, "--levels-to", "1.2", "--points", "4", "--quiet") == DONE
    with gf.open_path("path.nc") as ds:
        level = ds["level"].values
    assert len(level) == 4
    assert level[-1] == 1.2
    np.testing.assert_allclose(np.diff(np.log(level)), np.log(1.2 / level[0]) / 3)


@pytest.mark.parametrize("n", [None, 2, 7])
def test_the_last_level_is_the_one_that_is_named(n):
    """To the last bit: 0.37 times (3.3/0.37) is not 3.3."""
    for to in (3.3, 12.3, 0.06, 1e-4):
        levels = _spaced(0.37, to, n)
        assert (levels[0], levels[-1], len(levels)) == (0.37, to, n or 10)


def test_its_options_reach_the_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE.replace("(seed)", "(seed, dtype=None, device=None)"))
    monkeypatch.chdir(tmp_path)
    given = {}

    def path(flow, levels, degrees, observables, archive, **options):
        given.update(options, flow=flow, levels=levels, degrees=degrees, archive=archive)
        raise KeyboardInterrupt

    monkeypatch.setattr(gf, "regularization_path", path)
    options = ["--levels", "0.6,0.7", "--seed", "2", "--dtype", "float64", "--device", "cpu"]
    options += ["--regularizer", "quartic_norm", "--degrees", "170", "--max-evaluations", "77"]
    assert _path("mine.py:quadratic", *options, "--eigenvalues", "--force") == INTERRUPTED
    assert given["flow"].regularizer_name == "quartic_norm"
    assert (given["levels"], given["degrees"], given["archive"]) == ([0.6, 0.7], 170.0, "path.nc")
    assert (given["max_evaluations"], given["smallest_eigenvalue"]) == (77, True)
    assert (given["overwrite"], given["progress"]) == (True, True)
    assert given["provenance"]["seed"] == 2
    assert given["provenance"]["options"] == {"dtype": "float64", "device": "cpu"}
    assert float(given["flow"].problem.theta0[0]) == pytest.approx(3.2)


def test_a_path_that_ends_early_says_so_and_is_kept(problem, capsys):
    assert _path(problem, "--levels", "0.6,0.7,5.0") == ENDED_EARLY
    assert "negative_multiplier" in capsys.readouterr().err
    with gf.open_path("path.nc") as ds:
        np.testing.assert_allclose(ds["level"][1:], [0.6, 0.7])


def test_a_file_is_replaced_only_when_that_is_asked_for(problem, capsys):
    assert _path(problem, "--levels", "0.6", "--quiet") == DONE
    assert _path(problem, "--levels", "0.7", "--quiet") == BAD_INPUT
    assert "path.nc exists" in capsys.readouterr().err
    assert _path(problem, "--levels", "0.7", "--quiet", "--force") == DONE
    with gf.open_path("path.nc") as ds:
        assert float(ds["level"][-1]) == 0.7


def test_ctrl_c_keeps_the_points_and_says_how_to_go_on(problem, capsys, monkeypatch):
    from geoflow.paths import recording

    reach = recording.Continuation.to

    def interrupted(self, level, *others):
        if level > 0.65:
            raise KeyboardInterrupt
        return reach(self, level, *others)

    with monkeypatch.context() as patch:
        patch.setattr(recording.Continuation, "to", interrupted)
        assert _path(problem, "--levels", LEVELS) == INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err
    assert _path(problem, "--levels", LEVELS, "--quiet") == DONE
    assert _path(problem, "--levels", LEVELS, "--quiet", out="whole.nc") == DONE
    assert cli.main(["diff", "path.nc", "whole.nc"]) == DONE


def test_before_the_training_degrees_and_the_file_are_looked_at(problem, monkeypatch, capsys):
    monkeypatch.setattr(path_commands.Run, "prepare", None)
    Path("there.nc").touch()
    for out, degrees, said in (("there.nc", "170", "there.nc exists"), ("x.nc", "190", "=190")):
        assert _path(problem, "--levels", "0.6", "--degrees", degrees, out=out) == BAD_INPUT
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "name either --levels"),
        (("--levels", "0.6", "--levels-to", "0.7"), "name either --levels"),
        (("--levels", "0.6", "--points", "3"), "--points 3 goes with --levels-to"),
        (("--levels-to", "-1"), "--levels-to -1.0"),
        (("--levels-to", "0.9", "--points", "1"), "--points 1"),
        (("--levels", "0.6,x"), "--levels"),
        (("--levels", "0.6,0.6"), "each once"),
        (("--levels", "0.6", "--degrees", "190"), "degrees=190"),
        (("--levels", "0.6", "--regularizer", "nothing"), "'nothing'"),
        (("--levels", "0.6", "--max-evaluations", "2"), "max_evaluations=2"),
    ],
)
def test_bad_input_is_one_line_with_status_2(problem, capsys, more, message):
    try:
        status = _path(problem, *more)
    except SystemExit as ended:
        status = ended.code
    assert status == BAD_INPUT
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1 + error.count("warning")


def test_a_finished_path_goes_on_to_further_levels(problem, capsys):
    assert _path(problem, "--levels", "0.6,0.7") == DONE
    more = ("resume", "path.nc", "--problem", problem)
    assert cli.main([*more, "--levels", "0.9,0.55", "--quiet"]) == DONE
    assert "penalty" in capsys.readouterr().out
    assert _path(problem, "--levels", "0.6,0.7,0.9,0.55", out="whole.nc") == DONE
    with gf.open_path("path.nc") as ds, gf.open_path("whole.nc") as whole:
        np.testing.assert_array_equal(ds["level"][1:], [0.6, 0.7, 0.9, 0.55])
        assert ds.attrs["status_message"] == "all 4 levels were reached"
        np.testing.assert_array_equal(ds["theta"][:3], whole["theta"][:3])
        np.testing.assert_array_equal(ds["n_gradient"][:3], whole["n_gradient"][:3])
        np.testing.assert_allclose(ds["theta"], whole["theta"], rtol=0.1)
        assert (np.diff(ds["n_gradient"]) > 0).all()
    assert cli.main(["validate", "path.nc"]) == DONE
    capsys.readouterr()
    assert cli.main(more) == BAD_INPUT
    assert "has ended (complete); name further levels" in capsys.readouterr().err
    assert cli.main([*more, "--levels", "0.9"]) == BAD_INPUT
    assert "0.9 was reached" in capsys.readouterr().err
    assert cli.main([*more, "--levels", "1.0", "--t-end", "1"]) == BAD_INPUT
    assert "--t-end" in capsys.readouterr().err


def test_a_damaged_file_is_called_that_and_no_walk(problem, capsys, tmp_path):
    assert _path(problem, "--levels", "0.6", "--quiet") == DONE
    file = tmp_path / "path.nc"
    file.write_bytes(file.read_bytes()[:2000])
    capsys.readouterr()
    assert cli.main(["resume", "path.nc", "--levels", "0.7"]) == BAD_INPUT
    assert "path.nc is not a readable netCDF-4 file" in capsys.readouterr().err


def test_a_path_out_of_budget_goes_on_with_a_larger_one(problem, capsys):
    assert _path(problem, "--levels", LEVELS, out="whole.nc") == DONE
    with gf.open_path("whole.nc") as whole:
        budget = str(int(whole["n_gradient"][2]))
    assert _path(problem, "--levels", LEVELS, "--max-evaluations", budget) == ENDED_EARLY
    more = ("resume", "path.nc", "--problem", problem, "--max-evaluations", "5000")
    assert cli.main(more) == DONE
    with gf.open_path("path.nc") as ds:
        np.testing.assert_allclose(ds["level"][1:], [0.6, 0.7, 0.9])
        assert json.loads(ds.attrs["config"])["levels"] == [0.6, 0.7, 0.9]


def test_resume_goes_on_with_an_interrupted_path(problem, monkeypatch, capsys):
    assert _path(problem, "--levels", LEVELS, out="whole.nc") == DONE
    onward, calls = Continuation.to, []

    def interrupted(self, level, *others):
        calls.append(level)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return onward(self, level, *others)

    monkeypatch.setattr(Continuation, "to", interrupted)
    assert _path(problem, "--levels", LEVELS) == INTERRUPTED
    assert cli.main(["resume", "path.nc", "--problem", problem, "--levels", "1.0"]) == BAD_INPUT
    assert "an unfinished path" in capsys.readouterr().err
    # Another process may have other threads; its command goes on with those of the path.
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert cli.main(["resume", "path.nc", "--problem", problem]) == DONE
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(threads)
    with gf.open_path("path.nc") as ds, gf.open_path("whole.nc") as whole:
        for name in ("level", "theta", "n_gradient", "penalty"):
            np.testing.assert_array_equal(ds[name], whole[name])


def test_plot_draws_a_path_and_refuses_what_is_no_baseline(problem, capsys):
    assert _path(problem, "--levels", LEVELS, "--regularizer", "squared_norm") == DONE
    capsys.readouterr()
    assert cli.main(["plot", "path.nc", "--out", "alone"]) == DONE
    assert "alone/path-regularization-path.png" in capsys.readouterr().out
    assert cli.main(["plot", "path.nc", "--out", "f", "--baseline", "path.nc"]) == BAD_INPUT
    assert "path.nc" in capsys.readouterr().err
