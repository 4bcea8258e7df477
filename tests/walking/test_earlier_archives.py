"""Walks that earlier versions of geoflow left, cut off or finished, and what they made of them.

``data/resuming`` holds, of walks of ``crashes`` by commit c7b16e6, what was streamed of one that
was killed, the archive of one that had ended at t = 0.5, and the values both came to there when
they were resumed.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

import crashes

DATA = Path(__file__).parents[1] / "data" / "resuming"
# Sums of four products: another processor may round their last bits in another order.
ROUNDING = {"rtol": 1e-9, "atol": 1e-13}


def check_same(ds, expected):
    with np.load(DATA / expected) as values:
        for name in values.files:
            if name == "error_estimate":
                # A difference of nearly equal numbers.
                assert np.allclose(ds[name], values[name], rtol=1e-4, equal_nan=True), name
            else:
                assert np.allclose(ds[name], values[name], **ROUNDING), name


def check_agrees(ds, expected):
    """Of the exponential method, which is another since: what was walked stays, the rest agrees."""
    with np.load(DATA / expected) as values:
        kept = 6
        for name in ("time", "angle", "regularizer", "train_loss", "step_size"):
            assert np.array_equal(ds[name][:kept], values[name][:kept]), name
        # The former method's error was some times the tolerance of 2e-5.
        assert np.allclose(ds["theta"][-1], values["theta"][-1], rtol=0, atol=5e-4)
        assert float(ds["time"][-1]) == values["time"][-1]


@pytest.mark.parametrize("solver", ["dopri5", "rk4"])
def test_a_walk_that_was_killed_then_goes_on_now(tmp_path, solver):
    path = tmp_path / "walk.nc"
    shutil.copytree(DATA / f"{solver}.parts", tmp_path / ".walk.nc.parts")
    with crashes.resume(path) as ds:
        assert ds.attrs["status"] == "t_end"
        check_same(ds, f"{solver}.cut.npz")


def test_a_walk_that_had_ended_then_goes_further_now(tmp_path):
    path = tmp_path / "walk.nc"
    shutil.copyfile(DATA / "rk4.nc", path)
    with crashes.resume(path, t_end=1.0) as ds:
        check_same(ds, "rk4.whole.npz")


def test_walks_of_the_former_exponential_method_go_on_by_the_present_one(tmp_path):
    ended, killed = tmp_path / "ended.nc", tmp_path / "killed.nc"
    shutil.copyfile(DATA / "exponential.nc", ended)
    shutil.copytree(DATA / "exponential.parts", tmp_path / ".killed.nc.parts")
    with crashes.resume(ended, t_end=1.0) as ds:
        check_agrees(ds, "exponential.whole.npz")
    with crashes.resume(killed) as ds:
        check_agrees(ds, "exponential.cut.npz")
