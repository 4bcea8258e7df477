"""A flow that ends in finite time: the walk ends there, and its file can be written and resumed."""

import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.archive import parts
from geoflow.archive.saved import saved
from geoflow.errors import ArchiveError, StepSizeError, StorageError
from geoflow.walking import advancing, steps

# R = −θ₀⁴ on the line θ₁ = 1: dθ₀/dt = 4·θ₀³, so that θ₀ = (1 − 8·t)^(−1/2), which ends at t = 1/8.
ENDS = 0.125


def flow():
    theta0 = torch.tensor([1.0, 1.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta[1] + 0 * theta[0], theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), fourth_power)


def fourth_power(theta):
    return -(theta[0] ** 4)


@pytest.mark.parametrize(
    "solver", ["bdf", *(pytest.param(s, marks=pytest.mark.slow) for s in ("exponential", "dopri5"))]
)
def test_a_walk_ends_where_time_no_longer_advances(solver, tmp_path):
    path = tmp_path / "walk.nc"
    settings = {"rtol": 1e-5, "atol": 0.0, "stop": None, "t_end": 1.0, "max_evaluations": 20_000}
    with gf.walk(flow(), solver, archive=path, **settings) as ds:
        ended = ds.load()
    assert ended.attrs["status"] == "step_size_underflow"
    assert "flow time no longer advances at 0.12" in ended.attrs["status_message"]
    assert math.isclose(ended["time"][-1], ENDS, rel_tol=1e-2)
    assert (np.diff(ended["time"]) > 0).all()
    assert (np.diff(ended["snapshot_time"]) > 0).all()
    assert gf.validate(path) == []
    # There is nothing beyond: with a larger budget it ends at the same point again.
    with gf.resume(path, flow(), max_evaluations=30_000) as resumed:
        assert resumed.attrs["status"] == "step_size_underflow"
        assert np.array_equal(resumed["time"], ended["time"])


@pytest.mark.parametrize(
    "rule", [{"max_snapshots": 7}, pytest.param({"snapshot_every": 1e-2}, marks=pytest.mark.slow)]
)
def test_what_was_streamed_while_time_stood_is_gone_on_with(rule, tmp_path, monkeypatch):
    """As it was streamed before such walks were ended: every further step was taken."""
    path = tmp_path / "walk.nc"

    def standing(now, taken, target, start=0.0):
        return target if taken >= target - now else now + taken

    settings = {"stop": None, "t_end": 1.0, "max_evaluations": 2_000, **rule}
    with monkeypatch.context() as patch:
        patch.setattr(steps, "after_step", standing)
        with pytest.raises(StorageError, match="time does not increase"):
            gf.walk(flow(), "exponential", archive=path, **settings)
    streamed = parts.read(parts.folder_beside(path) / "steps-000000.npz")["time"]
    standing_still = int((np.diff(streamed) == 0).sum())
    assert standing_still > 10
    n_steps = saved(path).checkpoint.n_steps
    for budget in (None, 3_000):
        with gf.resume(path, flow(), max_evaluations=budget) as ds:
            assert ds.sizes["step"] >= n_steps
            # All it was, but for rounding of the time.
            assert np.allclose(ds["time"][:n_steps], streamed, rtol=1e-12, atol=0)
            assert ds["time"][0] == 0
        assert gf.validate(path) == []
    with gf.open_trajectory(path) as ds:
        assert ds.attrs["status"] == "step_size_underflow"
    with pytest.raises(ArchiveError, match="no such file"):
        gf.resume(tmp_path / "another.nc", flow())


def test_times_that_stand_are_moved_on_by_rounding_alone():
    rising = np.array([0.0, 0.5, 1.0])
    assert advancing.increasing(rising, -math.inf) is rising
    found = advancing.increasing(np.array([1.0, 1.0, 1.0, 1.5, 1.5]), 1.0)
    assert found.tolist() == [1 + 2**-52, 1 + 2**-51, 1 + 3 * 2**-52, 1.5, 1.5 + 2**-52]


def test_a_step_ends_at_its_goal_whatever_the_sum_rounds_to():
    # 0.1 + 0.2 is above 0.3, and what is left of 0.3 after 0.1 below 0.2.
    assert advancing.after_step(0.1, 0.3 - 0.1, 0.3) == 0.3
    assert advancing.after_step(0.0, 5e-324, math.inf) == 5e-324
    with pytest.raises(StepSizeError, match=r"advances at 3: a step of 1.0e-16 is below"):
        advancing.after_step(1.0, 1e-16, math.inf, 2.0)


def test_between_snapshots_time_that_stands_ends_the_integration():
    ds = gf.walk(flow(), "dopri5", stop=None, t_end=0.1, snapshot_times=[0.0, 0.1])
    beyond = ds.assign_coords(time=ds["time"].where(ds["time"] < 0.1, 0.2))
    beyond = beyond.isel(snapshot=[0])
    with pytest.raises(StepSizeError, match=r"advances at 0.12"):
        gf.interpolate(beyond, [0.2], flow())
