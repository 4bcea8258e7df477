"""Commands that are ended once their file is written: what the next command makes of it."""

import os
import signal

import pytest

import geoflow as gf
from geoflow import cli
from geoflow.cli.terminal import BAD_INPUT, DONE, ENDED_EARLY, INTERRUPTED
from geoflow.system import locks

FILE = """
import torch
import geoflow as gf

def quadratic(seed):
    scales = torch.linspace(0.1, 1.0, 4, dtype=torch.float64)
    def loss(theta):
        return 0.5 + (scales * (theta - 1) ** 2).sum() / 2
    return gf.Problem.from_function(loss, torch.full((4,), 1.2, dtype=torch.float64))
"""
OWN = ["--problem", "mine.py:quadratic"]
PATH = ["path", *OWN, "--out", "path.nc", "--levels", "0.6,0.7"]


class Killed(BaseException):
    """In place of a signal that ends the process."""


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def killed(monkeypatch):
    """A path whose command was killed before its pieces were removed."""

    def kill(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(locks.Lock, "remove", kill)
        with pytest.raises(Killed):
            cli.main(PATH)
    assert sorted(os.listdir()) == [".path.nc.pieces", "mine.py", "path.nc"]


def test_ctrl_c_as_the_last_is_done_says_that_the_file_is_there(monkeypatch, capsys):
    remove = locks.Lock.remove

    def pressed(self):
        signal.raise_signal(signal.SIGINT)
        remove(self)

    monkeypatch.setattr(locks.Lock, "remove", pressed)
    assert cli.main(PATH) == INTERRUPTED
    assert capsys.readouterr().err.endswith("geoflow: interrupted; path.nc is there\n")
    assert sorted(os.listdir()) == ["mine.py", "path.nc"]


@pytest.mark.parametrize(
    ("following", "status"),
    [
        (PATH, DONE),
        ([*PATH, "--force"], DONE),
        (["resume", "path.nc", *OWN, "--levels", "0.9"], DONE),
        (["resume", "path.nc", *OWN], BAD_INPUT),
        (
            ["run", *OWN, "--out", "path.nc", "--force", "--max-evaluations", "20", "--quiet"],
            ENDED_EARLY,
        ),
    ],
)
def test_a_command_killed_once_its_file_is_there_is_done(killed, following, status, capsys):
    assert cli.main(following) == status
    if status == BAD_INPUT:
        assert "the path has ended (complete)" in capsys.readouterr().err
    assert sorted(os.listdir()) == ["mine.py", "path.nc"]
    assert gf.validate("path.nc") == []


def test_another_command_does_not_replace_what_is_there(killed, capsys):
    for other in ([*PATH[:-1], "0.6,0.8"], ["run", *OWN, "--out", "path.nc"]):
        assert cli.main(other) == BAD_INPUT
        assert "path.nc exists; choose another name" in capsys.readouterr().err
    with gf.open_path("path.nc") as ds:
        assert ds["level"].values[1:].tolist() == [0.6, 0.7]
