"""``--problem`` with a file of a walk or a path that is of no experiment."""

import pytest
import torch

import geoflow as gf
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT

PROBLEM = """
import torch
import geoflow as gf

def mine(seed):
    theta0 = torch.tensor([1.0, 0.5, 0.6], dtype=torch.float64)
    return gf.Problem.from_function(lambda t: (t - 1).square().sum(), theta0)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROBLEM)
    theta0 = torch.tensor([1.0, 0.5, 0.6], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: (t - 1).square().sum(), theta0)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    gf.walk(flow, stop=None, t_end=0.1, archive="walk.nc").close()
    gf.regularization_path(flow, [0.5], archive="path.nc").close()
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "more"), [("walk", ["--t-end", "0.2"]), ("path", ["--levels", "0.6"])]
)
def test_it_is_said_that_the_problem_is_not_used(folder, capsys, kind, more):
    command = ["resume", f"{kind}.nc", "--problem", "mine.py:mine", *more]
    assert cli.main(command) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"--problem mine.py:mine: the {kind} is of no experiment, but of a flow made in Python; "
        "go on there, with the same flow"
    )


def test_a_path_of_another_experiment_is_none_of_the_problem(folder, capsys):
    command = ["path", "--problem", "mine.py:mine", "--levels", "0.5", "--out", "own.nc"]
    assert cli.main([*command, "--quiet"]) == 0
    (folder / "mine.py").write_text(PROBLEM.replace("mine(", "other("))
    capsys.readouterr()
    resume = ["resume", "own.nc", "--problem", "mine.py:other", "--levels", "0.6"]
    assert cli.main(resume) == BAD_INPUT
    assert "the path is of 'mine', not of 'other'" in capsys.readouterr().err
