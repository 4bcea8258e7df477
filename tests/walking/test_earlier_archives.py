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


def check_same(ds, expected, names):
    with np.load(DATA / expected) as values:
        for name in names or values.files:
            if name == "error_estimate":
                # A difference of nearly equal numbers.
                assert np.allclose(ds[name], values[name], rtol=1e-4, equal_nan=True), name
            else:
                assert np.allclose(ds[name], values[name], **ROUNDING), name


@pytest.mark.parametrize("solver", ["dopri5", "rk4", "exponential"])
def test_a_walk_that_was_killed_then_goes_on_now(tmp_path, solver):
    path = tmp_path / "walk.nc"
    shutil.copytree(DATA / f"{solver}.parts", tmp_path / ".walk.nc.parts")
    with crashes.resume(path) as ds:
        assert ds.attrs["status"] == "t_end"
        check_same(ds, f"{solver}.cut.npz", None)


@pytest.mark.parametrize("solver", ["rk4", "exponential"])
def test_a_walk_that_had_ended_then_goes_further_now(tmp_path, solver):
    path = tmp_path / "walk.nc"
    shutil.copyfile(DATA / f"{solver}.nc", path)
    with crashes.resume(path, t_end=1.0) as ds:
        check_same(ds, f"{solver}.whole.npz", None)
