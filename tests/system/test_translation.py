"""Errors of libraries become geoflow's own, saying what was said."""

import errno
import math
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

import geoflow as gf
import references
from geoflow.archive import netcdf
from geoflow.errors import ArchiveError, InputError, NumericalError
from geoflow.experiments.problem_file import Source
from geoflow.system import translation
from geoflow.walking import ending


@pytest.mark.parametrize(
    ("error", "said", "advised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", "free space"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied", "choose another"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error", "MiB are free there"),
        (RuntimeError("NetCDF: HDF error"), "NetCDF: HDF error", "MiB are free there"),
        (TypeError("Invalid value for attr"), "Invalid value for attr", "leave out"),
        (MemoryError(), "MemoryError", "free memory"),
    ],
)
def test_a_failed_write_says_what_the_system_said(error, said, advised, tmp_path):
    with pytest.raises(ArchiveError) as caught, translation.writing(tmp_path / "a.nc"):
        raise error
    assert said in str(caught.value)
    assert advised in str(caught.value)
    assert ("free space" in str(caught.value)) == (advised == "free space")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (OSError(errno.EFBIG, "File too large"), r"; no file may have more than 5,000 bytes"),
        (RuntimeError("NetCDF: HDF error"), r"MiB are free there and no file may have more than 5"),
    ],
)
def test_a_limit_of_the_size_of_files_is_named(error, advised, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5_000, resource.RLIM_INFINITY))
    with (
        pytest.raises(ArchiveError, match=rf"{advised}.*\(ulimit -f\); raise that"),
        translation.writing(tmp_path / "a.nc"),
    ):
        raise error


@pytest.mark.parametrize("border", [translation.reading, translation.writing])
def test_geoflows_own_errors_and_those_of_programming_pass(border, tmp_path):
    for error in (InputError("mine"), AssertionError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, border(tmp_path):
            raise error
        assert caught.value is error


FAILURES = {
    "torch": lambda: torch.linalg.cholesky(-torch.eye(2)),
    "numpy": lambda: np.linalg.inv(np.zeros((2, 2))),
    "scipy": lambda: scipy.linalg.eigh(np.full((2, 2), np.nan)),
    "division": lambda: 1.0 / 0.0,
    "overflow": lambda: math.exp(1e4),
    "whole": lambda: int(math.nan),
    "domain": lambda: math.sqrt(-1.0),
}


@pytest.mark.parametrize("name", FAILURES)
def test_numbers_that_cannot_be_worked_with_are_told_from_errors_of_programming(name):
    with pytest.raises(NumericalError), translation.numerics():
        FAILURES[name]()


@pytest.mark.parametrize("error", [ValueError("a wrong shape"), RuntimeError("out of memory")])
def test_errors_of_programming_are_not_called_numerical(error):
    with pytest.raises(type(error)) as caught, translation.numerics():
        raise error
    assert caught.value is error


class Failing(gf.solvers.TorchDiffEq):
    """Fails at its fourth step."""

    def __init__(self, failure):
        super().__init__("euler", step_size=0.01)
        self.failure, self.n = failure, 0

    def step(self, *args):
        self.n += 1
        if self.n == 4:
            self.failure()
        return super().step(*args)


@pytest.mark.parametrize("name", FAILURES)
def test_a_step_that_fails_ends_the_walk_with_what_was_walked(name, tmp_path):
    path = tmp_path / "walk.nc"
    flow = references.ellipsoid()
    with gf.walk(flow, Failing(FAILURES[name]), stop=None, t_end=1.0, archive=path) as ds:
        assert ds.attrs["status"] == "numerical_failure"
        assert ds.sizes["step"] == 4
    assert gf.validate(path) == []
    in_memory = gf.walk(flow, Failing(FAILURES[name]), stop=None, t_end=1.0)
    assert in_memory.sizes["step"] == in_memory.sizes["snapshot"] == 4
    assert "in the step from flow time 0.03 (" in in_memory.attrs["status_message"]


def test_a_bug_in_a_solver_is_not_called_a_numerical_failure():
    def bug():
        raise ValueError("a wrong shape")

    ds = gf.walk(references.ellipsoid(), Failing(bug), stop=None, t_end=1.0)
    assert ds.attrs["status"] == "evaluation_failed"
    assert ds.attrs["status_message"] == "an evaluation raised ValueError: a wrong shape"


THREADS = """
import sys, threading, torch
import crashes, geoflow as gf, invariants
torch.set_num_threads(1)
folder = sys.argv[1]
def many(name):
    for i in range(4 if name in "ab" else 1):
        crashes.walk("rk4", f"{folder}/{name}-{i}.nc", checkpoint_seconds=0, t_end=0.05).close()
        assert gf.validate(f"{folder}/{name}-{i}.nc") == []
threads = [threading.Thread(target=many, args=(name,)) for name in "ab"]
for t in threads: t.start()
for t in threads: t.join()
many("sequence")
with gf.open_trajectory(f"{folder}/sequence-0.nc") as whole:
    for name in "ab":
        for i in range(4):
            with gf.open_trajectory(f"{folder}/{name}-{i}.nc") as ds:
                assert invariants.same(ds, whole), (name, i)
print("same")
"""


@pytest.mark.slow
def test_walks_archived_in_several_threads_are_those_archived_in_sequence(tmp_path):
    """In a process of its own, which crashed without the lock around netCDF."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(references.__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


def test_a_dataset_that_holds_the_lock_goes_to_other_processes():
    again = pickle.loads(pickle.dumps(netcdf.LOCK))
    assert again._lock is netcdf.LOCK._lock
    # In one thread it can be taken twice.
    with netcdf.LOCK, again:
        pass


@pytest.mark.parametrize(
    ("error", "reason", "kind_and_reason"),
    [
        (ValueError("one\ntwo"), "one", "ValueError: one"),
        (ValueError("\n  the cause  \nmore"), "the cause", "ValueError: the cause"),
        (ValueError(""), "ValueError", "ValueError"),
        (ValueError(" \n\n"), "ValueError", "ValueError"),
        (RuntimeError("x" * 1000), "x" * 200, "RuntimeError: " + "x" * 200),
        # The remedy of geoflow's own is at the end.
        (InputError("x" * 300 + "; use y"), "x" * 300 + "; use y", None),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.txt"),
            "No such file or directory",
            "FileNotFoundError: [Errno 2] No such file or directory: 'a.txt'",
        ),
        (OSError("of a library"), "of a library", "OSError: of a library"),
        (KeyError("solver"), "there is no 'solver'", "KeyError: 'solver'"),
        (KeyError("no such thing"), "'no such thing'", "KeyError: 'no such thing'"),
    ],
)
def test_an_error_is_told_in_one_line_that_is_not_empty(error, reason, kind_and_reason):
    assert translation.reason(error) == reason
    wanted = f"InputError: {reason}" if kind_and_reason is None else kind_and_reason
    assert translation.kind_and_reason(error) == wanted


def test_a_library_that_begins_with_an_empty_line_is_heard_wherever_it_is_asked(tmp_path):
    """An observable at the start, one along the walk, the loss, a file of a problem."""

    def raises(n, value=1.0):
        left = [n]

        def function(theta):
            left[0] -= 1
            if left[0] < 0:
                raise ValueError("\nthe cause")
            return value

        return function

    def walk(**more):
        x = torch.tensor([3.0, 4.0], dtype=torch.float64)
        circle = gf.Problem.from_function(lambda t: t @ t, x)
        flow = gf.RegularizingFlow(gf.LevelSet(circle), lambda t: t[0])
        return gf.walk(flow, "dopri5", t_end=0.5, stop=None, **more)

    with pytest.raises(InputError, match=r"at theta0 raised ValueError: the cause; give"):
        walk(observables={"o": raises(0)})
    ds = walk(observables={"o": raises(3)})
    assert ds.attrs["status_message"] == "observables['o'] raised ValueError: the cause"
    ended = ending.of_error(ValueError("\nthe cause"), 1)
    assert ended == ("evaluation_failed", "an evaluation raised ValueError: the cause")
    file = tmp_path / "mine.py"
    file.write_text("raise ValueError('\\nthe cause')\n")
    with pytest.raises(InputError, match=r"line 1: ValueError: the cause$"):
        Source.load(f"{file}:prepare")
