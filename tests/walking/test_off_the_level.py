"""A walk that leaves the level between re-projections says by how much."""

import numpy as np
import torch

import geoflow as gf
from geoflow.walking import ending

SETTINGS = {"stop": None, "t_end": 0.3}


def flow():
    theta0 = torch.tensor([1.0, 0.5, 0.6], dtype=torch.float64)
    weights = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: (weights * (t - 1) ** 2).sum(), theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def test_what_is_re_projected_at_every_step_does_not():
    for solver in ("bdf", "exponential", "rkc", "dopri5"):
        message = gf.walk(flow(), solver, **SETTINGS).attrs["status_message"]
        assert message == "the walk reached flow time 0.3"


def test_what_is_not_does_in_the_message_also_where_it_is_resumed(tmp_path):
    settings = {**SETTINGS, "reproject_every": 10.0, "rtol": 1e-3}
    ds = gf.walk(flow(), "dopri5", **settings)
    furthest = float(np.abs(ds["level_residual"]).max()) / ds.attrs["level"]
    assert furthest > 1e-5
    said = f"; off the level by up to {furthest:.1e} c between re-projections, where level_rtol is"
    assert said in ds.attrs["status_message"]
    path = tmp_path / "walk.nc"
    # Cut where it is at its furthest, or after that.
    at = int(np.abs(ds["level_residual"].values).argmax())
    spent = int(ds["n_gradient"][min(at + 1, ds.sizes["step"] - 2)])
    gf.walk(flow(), "dopri5", archive=path, max_evaluations=spent, **settings).close()
    with gf.resume(path, flow(), max_evaluations=10_000) as resumed:
        assert resumed.attrs["status_message"] == ds.attrs["status_message"]


def test_it_does_from_the_tolerance_on():
    settings = {**SETTINGS, "rtol": 1e-3, "atol": 1e-6}
    for every, off in ((0.02, False), (0.05, True)):
        ds = gf.walk(flow(), "adaptive_heun", reproject_every=every, **settings)
        furthest = float(np.abs(ds["level_residual"]).max()) / ds.attrs["level"]
        # Of twice the tolerance there is no need.
        assert furthest < 1.9 * ds.attrs["level_rtol"]
        assert (furthest > 1.01 * ds.attrs["level_rtol"]) == off
        said = f"; off the level by up to {furthest:.1e} c between re-projections"
        assert (said in ds.attrs["status_message"]) == off


def test_what_is_allowed_is_that_of_the_level_set():
    problem = flow().problem
    wide = gf.LevelSet(problem, 2.0, level_rtol=1e-2, level_atol=1e-2)
    assert ending.off_the_level(wide, np.array([0.03])) == ""
    assert "up to 1.6e-02 c" in ending.off_the_level(wide, np.array([0.032]))
    below = gf.LevelSet(problem, -2.0, level_rtol=1e-2)
    assert "up to 1.6e-02 c" in ending.off_the_level(below, np.array([0.032]))
    # Another evaluation may differ by some roundings of the loss.
    narrow = gf.LevelSet(problem, 2.0, level_rtol=1e-15)
    assert ending.off_the_level(narrow, np.array([3e-15])) == ""
    assert ending.off_the_level(narrow, np.array([5e-15]))


def test_of_several_constraints_each_is_held_to_its_own_level(tmp_path):
    """One of a level of a millionth of the other's: beside that one's all it is off is nothing."""
    theta0 = torch.linspace(0.3, 1.6, 6, dtype=torch.float64)
    weights = torch.linspace(1, 5, 6, dtype=torch.float64)
    small = gf.Problem.from_function(lambda t: 1e-6 * (weights * (t - 1) ** 2).sum(), theta0)
    large = gf.Problem.from_function(lambda t: t @ t, theta0)
    several = gf.RegularizingFlow(gf.LevelSet([small, large]), gf.regularizers.quartic_norm)
    settings = {**SETTINGS, "reproject_every": 10.0, "rtol": 1e-3}
    ds = gf.walk(several, "dopri5", **settings)
    off = np.abs(ds["constraint_residual"].values / ds["constraint_level"].values).max(axis=0)
    assert off[0] > max(1e-4, 2 * off[1])
    said = f"; off the level of constraint 0 by up to {off[0]:.1e} c between re-projections, where"
    assert said in ds.attrs["status_message"]
    path = tmp_path / "walk.nc"
    spent = int(ds["n_gradient"][-2])
    gf.walk(several, "dopri5", archive=path, max_evaluations=spent, **settings).close()
    with gf.resume(path, several, max_evaluations=10_000) as resumed:
        assert resumed.attrs["status_message"] == ds.attrs["status_message"]
