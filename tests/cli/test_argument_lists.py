"""Argument lists drawn at random: every one ends with a status that is documented, and one line."""

import argparse
import io
import json
import os
import random
import shutil
import signal
import sys
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import pytest
import torch

from geoflow import cli
from geoflow.cli import parser as parsing
from geoflow.cli.terminal import BAD_INPUT, DIFFERENT, DONE, ENDED_EARLY

SEED, LISTS = 0, 400
SECONDS = 100

PROBLEM = """
import torch
import geoflow as gf

def small(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 2, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > x[:, 1]).long()
    layers = torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)
    module = torch.nn.Sequential(*layers).double()
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy
    problem = gf.Problem.from_module(module, loss, x[:16], y[:16])
    test = gf.Problem.from_module(module, loss, x[16:], y[16:])
    return gf.experiments.PreparedExperiment(
        problem, observables={"test_loss": lambda theta: float(test.loss(theta))}, module=module,
        loss_fn=loss, train=(x[:16], y[:16]), test=(x[16:], y[16:]), classification=True)

def trained(seed):
    problem = small(seed).problem
    theta = problem.theta0.clone()
    for _ in range(100):
        theta -= 0.3 * problem.value_and_gradient(theta)[1]
    return gf.Problem.from_function(problem.loss, theta)
"""

# What each command is given where nothing is drawn in its place: quick, and right.
OWN = ["--problem", "mine.py:small"]
BASE = {
    "experiments": [],
    "completion": ["bash"],
    "run": [*OWN, "--max-evaluations", "40"],
    "resume": ["copy.nc", *OWN, "--max-evaluations", "200"],
    "validate": ["walk.nc"],
    "diff": ["walk.nc", "other.nc"],
    "info": ["walk.nc"],
    "plot": ["walk.nc", "--out", "figures", "--kind", "stack"],
    "bench": [*OWN, "--max-evaluations", "30"],
    "compare": [
        *(*OWN, "--solvers", "rk4", "--rtols", "1e-2", "--times", "0.01", "--reference-rtol"),
        *("1e-4", "--out", "compare.nc", "--max-evaluations", "60", "--runs", "1"),
    ],
    "path": [
        *("--problem", "mine.py:trained", "--levels-to", "0.3", "--points", "2", "--degrees"),
        *("150", "--out", "path.nc", "--max-evaluations", "900"),
    ],
    "baseline": [
        *("iris_ff", "--out", "decay.nc", "--epochs", "1", "--runs", "1", "--penalties", "0"),
        *("--validation", "0"),
    ],
    "sweep": [*OWN, "--seeds", "0:2", "--out", "sweep", "--scheduler", "tcp://127.0.0.1:1"],
    "spectrum": [
        *("walk.nc", *OWN, "--snapshots", "0", "--max-products", "40", "--probes", "2"),
        *("--steps", "4", "--eigenvalues", "1"),
    ],
    "predictions": ["walk.nc", *OWN],
    "pca": ["walk.nc", "--components", "2"],
    "slice": ["walk.nc", *OWN, "--out", "plane.nc", "--points", "4"],
    "animate": ["slice.nc", "--out", "film.gif", "--frames", "2"],
    "periodogram": ["walk.nc", "--scalar", "angle", "--simulations", "19"],
    "relaxation": ["walk.nc", *OWN, "--scalar", "angle"],
    "report": ["walk.nc", "--out", "page.html"],
}

NASTY = [
    *("", " ", ",", ",,", ":", "=", "-", "--", "nan", "inf", "-inf", "-1", "0", "1", "2", "1.5"),
    *("1e9", "-1e9", "1e-300", "1e300", "1e400", "1000000000", str(10**26), str(-(10**26))),
    *("9" * 5000, "x" * 300, "é" * 130, "x/" * 3000, "0,0", "0,-1", "1,", "nan,1", "1e9,1e9"),
    *("0:3", "3:0", "0:10000000000", ":", "a:b", "0:1:2", "true", "None", "null", "*", "*.nc"),
    *("\x1b[31mred", "a\nb", "tab\there", "\x9b2J", "\u202eabc", "e\u0301te\u0301", "\udcff"),
    *("[bold]x[/nope]", "{0}", "%s%n", "$HOME", "~", "~nobody", "'\"", "\\", "λ", "٣"),
    *(".", "..", "folder", "missing.nc", "no/such/folder/x.nc", "walk.nc", "slice.nc", "text.nc"),
    *("link.nc", "fifo", "/dev/null", "/dev/full", "/dev/zero", "walk.nc/x.nc", "mine.py", ".nc"),
    *("mine.py:", ":small", "mine.py:nothing", "text.nc:small", "folder:small", "mine.py:small"),
    *("float32", "cuda", "meta", "cpu:1", "iris_ff", "nope", "synthetic", "exponential", "rkc"),
    *("Plateau", "Plateau:window=nan", "Stationary:degrees=1e9", "none", "quartic_norm:delta=1"),
    *("pseudo_huber_norm:delta=inf", "tcp://", "tcp://127.0.0.1:1", "pc1", "pc99", "pc" + "9" * 99),
    *("angle,angle", "test_loss", "train_loss", "theta", "time", "hessian,hessian", "0.weight"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of good and bad files, made once."""
    folder = tmp_path_factory.mktemp("lists")
    with working_in(folder):
        (folder / "mine.py").write_text(PROBLEM)
        walk = ["run", *OWN, "--quiet", "--t-end", "0.2", "--rtol", "1e-7", "--snapshots", "12"]
        assert cli.main([*walk, "--out", "walk.nc"]) == DONE
        assert cli.main([*walk, "--out", "other.nc", "--seed", "1"]) == DONE
        assert cli.main(["slice", *BASE["slice"][:3], "--out", "slice.nc", "--points", "4"]) == DONE
        (folder / "text.nc").write_text("text")
        (folder / "folder").mkdir()
        (folder / "link.nc").symlink_to("walk.nc")
        os.mkfifo(folder / "fifo")
    return folder


@contextmanager
def working_in(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def limited():
    """Ends what takes longer than it may."""

    class Late(BaseException):
        """Nothing that evaluates a user's function takes this for an error of it."""

    def late(*args):
        raise Late(f"still running after {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def options_of(command):
    """The options of a command, with the number of values that each takes."""
    (children,) = (
        a for a in parsing._parser([command])._actions if isinstance(a, argparse._SubParsersAction)
    )
    actions = children.choices[command]._actions
    return [
        (a.option_strings[-1], a.nargs != 0)
        for a in actions
        if a.option_strings and "--help" not in a.option_strings
    ]


def drawn(rng, command):
    """A list of arguments: the right ones, with some replaced, left out, doubled or added."""
    arguments = list(BASE[command])
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.choice(("option", "option", "option", "value", "left out", "doubled", "more"))
        options = options_of(command)
        if kind == "option" and options:
            name, takes = rng.choice(options)
            value = rng.choice(NASTY)
            arguments += [f"{name}={value}"] if takes else [name]
        elif kind == "value" and arguments:
            arguments[rng.randrange(len(arguments))] = rng.choice(NASTY)
        elif kind == "left out" and arguments:
            del arguments[rng.randrange(len(arguments))]
        elif kind == "doubled" and arguments:
            arguments.append(rng.choice(arguments))
        else:
            arguments.append(rng.choice(NASTY))
    return [command, *arguments]


def outcome(arguments):
    """Exit status, standard output and standard error."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with redirect_stdout(out), redirect_stderr(err), limited():
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = end.code
    return status, *(stream.buffer.getvalue().decode() for stream in (out, err))


def check(arguments):
    """Assert what holds of every command line."""
    status, out, err = outcome(arguments)
    command = arguments[0]
    lines = err.splitlines()
    errors = [line for line in lines if line.startswith("geoflow: error: ")]
    allowed = {DONE, BAD_INPUT, ENDED_EARLY} | ({DIFFERENT} if command == "diff" else set())
    assert status in allowed, (status, err)
    assert "Traceback" not in out + err
    for line in [*lines, *out.splitlines()]:
        assert all(c.isprintable() for c in line), line
    defects = command == "validate" and out
    assert len(errors) == (status == BAD_INPUT and not defects), err
    if errors:
        assert lines[-1] == errors[0]
        assert len(errors[0]) < 20_000
    if "--json" in arguments and status in (DONE, DIFFERENT) and out.startswith("{"):
        json.loads(out, parse_constant=pytest.fail)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="needs an alarm and FIFOs")
@pytest.mark.parametrize("command", BASE)
def test_no_argument_list_ends_in_a_traceback(files, tmp_path, monkeypatch, command):
    monkeypatch.setattr("geoflow.sweeps.tasks.SECONDS_TO_CONNECT", 0.2)
    # Of the references of compare, which have no other limit.
    monkeypatch.setattr("geoflow.walking.stopping.DEFAULT_MAX_EVALUATIONS", 200)
    monkeypatch.setattr("geoflow.plots.animation.DPI", 20)
    assert set(BASE) == set(parsing.COMMANDS)
    rng = random.Random(f"{SEED} {command}")
    before = os.stat("/dev/null")
    threads = torch.get_num_threads()
    for number in range(-(-LISTS // len(BASE))):
        arguments = drawn(rng, command)
        folder = tmp_path / f"{number}" / "here"
        shutil.copytree(files, folder, symlinks=True, ignore=shutil.ignore_patterns("fifo"))
        os.mkfifo(folder / "fifo")
        shutil.copy(folder / "walk.nc", folder / "copy.nc")
        kept = (folder / "walk.nc").read_bytes()
        with working_in(folder):
            try:
                check(arguments)
            except BaseException:
                print("arguments:", arguments, file=sys.__stderr__)
                raise
        if command != "resume" and "--force" not in arguments:
            assert (folder / "walk.nc").read_bytes() == kept
        torch.set_num_threads(threads)
        shutil.rmtree(tmp_path / f"{number}")
    after = os.stat("/dev/null")
    assert (after.st_mode, after.st_rdev) == (before.st_mode, before.st_rdev)


@pytest.mark.slow
@pytest.mark.parametrize("command", BASE)
def test_what_the_lists_are_drawn_from_is_right(files, tmp_path, monkeypatch, command):
    shutil.copytree(files, tmp_path / "here", ignore=shutil.ignore_patterns("fifo"))
    shutil.copy(files / "walk.nc", tmp_path / "here" / "copy.nc")
    monkeypatch.setattr("geoflow.sweeps.tasks.SECONDS_TO_CONNECT", 0.2)
    with working_in(tmp_path / "here"):
        status, _, err = outcome([command, *BASE[command]])
    expected = {"sweep": BAD_INPUT, "diff": DIFFERENT, "run": ENDED_EARLY, "resume": ENDED_EARLY}
    assert status == expected.get(command, DONE), err
