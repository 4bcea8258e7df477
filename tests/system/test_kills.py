"""Killed at any instant: no finished file is lost, and the same command then finishes the work."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import xarray as xr

import crashes
import geoflow as gf
import invariants
from geoflow import cli
from geoflow.archive.parts import is_resumable
from geoflow.cli.terminal import BAD_INPUT, DONE, ENDED_EARLY

pytestmark = pytest.mark.slow

N_INSTANTS = 25

FILE = """
import torch
from torch import nn
import geoflow as gf

def small(seed):
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    inputs = torch.randn(20, 3, dtype=torch.float64)
    targets = (inputs.sum(1) > 0).long()
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, inputs, targets)
    test_loss = lambda theta: float(problem.loss(theta))
    return gf.experiments.PreparedExperiment(problem, observables={"test_loss": test_loss})

def trained(seed):
    problem = small(seed).problem
    theta = problem.theta0.clone()
    for _ in range(100):
        theta -= 0.3 * problem.value_and_gradient(theta)[1]
    return gf.Problem.from_function(problem.loss, theta)
"""

OWN = ["--problem", "own.py:small"]
WALKED = ["--stop", "none", "--quiet"]
OUT = "out.nc"

# What is there before, and the command.
COMMANDS = {
    "run": [*["run", *OWN, "--rtol", "1e-5"], *WALKED, *["--t-end", "1", "--out", OUT]],
    "resume": ["resume", OUT, *OWN, "--t-end", "1", "--quiet"],
    "sweep": ["sweep", *OWN, *WALKED, "--seeds", "0:3", "--t-end", "0.5", "--out", "swept"],
    "spectrum": ["spectrum", "walk.nc", *OWN, "--eigenvalues", "3", "--quiet", "--out", OUT],
    "slice": ["slice", "walk.nc", *OWN, "--points", "21", "--quiet", "--out", OUT],
    "path": [
        *["path", "--problem", "own.py:trained", "--levels-to", "0.3", "--points", "4"],
        *["--degrees", "170", "--quiet", "--out", OUT],
    ],
    "baseline": [
        *["baseline", "iris_ff", "--penalties", "0,0.1", "--runs", "2", "--epochs", "3"],
        *["--quiet", "--out", OUT],
    ],
    "report": ["report", "walk.nc", "--out", "out.html"],
    "animate": ["animate", "slice.nc", "--frames", "4", "--quiet", "--out", "out.gif"],
}


def command(connection, arguments, folder):
    """Run the command line in this process, and send its exit status."""
    os.chdir(folder)
    connection.send("started")
    connection.send(cli.main(arguments))


class Forked:
    """A command in a process that has imported geoflow: it starts at once."""

    def __init__(self, arguments, folder):
        self.process, self.receive = crashes.start(command, arguments, folder)
        assert self.receive.recv() == "started"

    def status(self):
        found = self.receive.recv()
        self.process.join()
        return found

    def kill(self):
        self.process.kill()
        self.process.join()


class Spawned:
    """A command as from a terminal, that may start processes of its own and is killed with them."""

    def __init__(self, arguments, folder):
        program = [sys.executable, "-m", "geoflow", *arguments]
        self.process = subprocess.Popen(program, cwd=folder, start_new_session=True)

    def status(self):
        return self.process.wait()

    def kill(self):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def start(arguments, folder):
    return (Spawned if arguments[0] == "sweep" else Forked)(arguments, folder)


def finish(name, folder):
    """Do what a user does who finds a command killed, the same again or resume; tell how long."""
    arguments = COMMANDS[name]
    if name == "run" and is_resumable(folder / OUT):
        arguments = ["resume", OUT, *OWN, "--quiet"]
    process = start(arguments, folder)
    clock = time.monotonic()
    status = process.status()
    return status, time.monotonic() - clock


def output(name, folder):
    path = folder / {"report": "out.html", "animate": "out.gif", "sweep": "swept"}.get(name, OUT)
    return path if path.exists() else None


def undated(page):
    """A page without the minute at which it was written."""
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page.read_text(encoding="utf-8"))


def same(name, path, expected):
    """Equal in all but clocks."""
    if name == "report":
        return undated(path) == undated(expected)
    if name == "animate":
        return path.read_bytes() == expected.read_bytes()
    if name == "sweep":
        ours, theirs = (sorted(p.glob("*.nc")) for p in (path, expected))
        assert [p.name for p in ours] == [p.name for p in theirs]
        pairs = zip(ours, theirs, strict=True)
        return all(same("run", a, b) for a, b in pairs)
    if name in ("run", "resume"):
        assert gf.validate(path) == []
        with gf.open_trajectory(path) as a, gf.open_trajectory(expected) as b:
            return invariants.same(a, b)
    with xr.open_dataset(path) as a, xr.open_dataset(expected) as b:
        clocks = [n for n in a.variables if "wall_time" in str(n)]
        return a.drop_vars(clocks).equals(b.drop_vars(clocks))


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with what the commands read, and the seconds and results of each, undisturbed."""
    base = tmp_path_factory.mktemp("before")
    (base / "own.py").write_text(FILE)
    there = Path.cwd()
    os.chdir(base)
    try:
        run = ["run", *OWN, *WALKED, "--t-end", "0.5"]
        assert cli.main([*run, "--out", "walk.nc"]) == DONE
        assert cli.main([*COMMANDS["slice"][:-1], "slice.nc"]) == DONE
    finally:
        os.chdir(there)
    return base


def prepared(name, before, folder):
    shutil.copytree(before, folder)
    if name == "resume":
        shutil.copy(folder / "walk.nc", folder / OUT)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_instant_is_finished_by_the_same_command(name, before, tmp_path):
    whole = prepared(name, before, tmp_path / "whole")
    status, seconds = finish(name, whole)
    assert status in (DONE, ENDED_EARLY)
    expected = output(name, whole)
    rng = random.Random(name)
    for instant in range(N_INSTANTS):
        folder = prepared(name, before, tmp_path / f"{instant}")
        process = start(COMMANDS[name], folder)
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        path = output(name, folder)
        if name == "resume":
            # The shorter walk, whole, until the longer one is there.
            assert gf.validate(path) == []
        elif path and name != "sweep":
            assert same(name, path, expected)
        status, _ = finish(name, folder)
        if status == BAD_INPUT:
            # It had finished, and says so.
            assert path
        assert same(name, output(name, folder), expected), instant
        left = {p.name for p in folder.iterdir()} - {p.name for p in whole.iterdir()}
        # Unfinished files under names of their own are all that a kill may leave.
        assert all(p.startswith(".") for p in left), left
        shutil.rmtree(folder)
