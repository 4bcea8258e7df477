"""Values that begin with a dash are those of the option before them, as after an =."""

import pytest

import geoflow as gf
from geoflow import cli
from geoflow.cli import parser as parsing
from geoflow.cli.completion import _commands
from geoflow.cli.terminal import BAD_INPUT, DONE
from geoflow.errors import InputError

NUMBERS = ["-1", "-2.5", "-.5", "-1e-3", "-1e9", "-inf", "-Infinity", "-nan"]
VALUES = [*NUMBERS, "-2.5,-2,-1", "-2,1e3", "-.5,0", "-1:3", "-3,x"]


def command(name):
    """The parser of a command, none of whose arguments has to be given."""
    child = _commands(parsing.whole_parser())[name]
    for action in child._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "*"
    return child


def outcome(child, capsys, *arguments):
    try:
        found = repr(sorted(vars(child.parse_args(arguments)).items(), key=str))
    except (SystemExit, InputError) as end:
        found = str(end)
    return found, capsys.readouterr().err


@pytest.mark.parametrize("name", parsing.COMMANDS)
def test_a_negative_value_is_taken_as_after_an_equals_sign(name, capsys):
    child = command(name)
    options = [o for a in child._actions if a.nargs is None for o in a.option_strings]
    for option in options:
        for value in VALUES:
            joined = outcome(child, capsys, f"{option}={value}")
            assert outcome(child, capsys, option, value) == joined, (option, value)


def test_numbers_lists_and_the_start_of_an_option_are_read(capsys):
    path, run = command("path"), command("run")
    args = path.parse_args(["--levels", "-2.5,-2,-1", "--levels-t", "-1e-3", "--seed", "-4"])
    assert (args.levels, args.levels_to, args.seed) == ([-2.5, -2.0, -1.0], -1e-3, -4)
    args = run.parse_args(
        ["--regularizer", "-1.0*l1 + squared_norm", "--event", "-.5", "--t-end=1"]
    )
    assert (args.regularizer, args.event) == ("-1.0*l1 + squared_norm", ["-.5"])
    args = command("slice").parse_args(["--through", "-1,0,-3"])
    assert args.through == [-1, 0, -3]


def test_what_is_no_value_stays_what_it_was(capsys):
    assert command("info").parse_args(["--json", "-1"]).file == ["-1"]
    assert command("info").parse_args(["--", "--levels", "-2,1"]).file == ["--levels", "-2,1"]
    assert command("run").parse_args(["--out", "-"]).out == "-"
    files = ["b.nc", "-1"]
    assert command("plot").parse_args(["--baseline", *files]).baseline == files
    for arguments in (["--out", "--quiet"], ["--out", "-h"], ["--out"]):
        _, error = outcome(command("run"), capsys, *arguments)
        assert error.endswith("--out: expected one argument; see geoflow run --help\n")


def test_another_value_that_begins_with_a_dash_is_refused_with_the_form_that_takes_it(capsys):
    with pytest.raises(SystemExit):
        cli.main(["run", "iris_ff", "--out", "-x.nc"])
    assert capsys.readouterr().err == (
        "geoflow: error: argument --out: expected one argument; give one that starts with - as "
        "--out=-x.nc; see geoflow run --help\n"
    )
    assert command("run").parse_args(["--out=-x.nc"]).out == "-x.nc"


PROBLEM = """
import torch
import geoflow as gf

def below(seed):
    a = torch.tensor([2.0, 1.0], dtype=torch.float64)
    theta0 = torch.tensor([2.1, 1.1], dtype=torch.float64)
    return gf.Problem.from_function(lambda theta: (theta - a).square().sum() - 3, theta0)
"""


def test_a_path_on_negative_levels_is_followed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PROBLEM)
    arguments = ["path", "--problem", "mine.py:below", "--levels", "-2.5,-2", "--out", "p.nc"]
    assert cli.main(arguments) == DONE
    with gf.open_path("p.nc") as ds:
        assert ds["level"].values[1:].tolist() == [-2.5, -2.0]
        # On a sphere of radius √(c + 3) about a.
        distance = ((ds["theta"][1:].values - [2.0, 1.0]) ** 2).sum(axis=1)
        assert distance == pytest.approx([0.5, 1.0], rel=1e-4)
    arguments = ["path", "--problem", "mine.py:below", "--levels-to", "-inf", "--out", "q.nc"]
    assert cli.main(arguments) == BAD_INPUT
    assert "--levels-to -inf: the level of the trained network" in capsys.readouterr().err
