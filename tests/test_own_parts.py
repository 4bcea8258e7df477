"""A solver, an R and an experiment of one's own, without a line changed in the package."""

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError
from geoflow.experiments import registry
from own_solver import Heun


def circle(seed=0):
    angle = torch.tensor(2.0 + seed, dtype=torch.float64)
    start = 2 * torch.stack([angle.cos(), angle.sin()])
    return gf.Problem.from_function(lambda theta: theta.square().sum(), start)


def to_the_right(theta):
    return -theta[0]


def exact(t, angle=2.0):
    """On a circle of radius 2 down −θ₁ the angle φ obeys dφ/dt = −sin(φ)/2."""
    return 2 * np.arctan(np.tan(angle / 2) * np.exp(-np.asarray(t) / 2))


def test_a_solver_of_one_file_is_of_its_order():
    flow = gf.RegularizingFlow(gf.LevelSet(circle(), level_rtol=1e-12), to_the_right)
    errors = []
    for rtol in (1e-3, 1e-5):
        ds = gf.walk(flow, solver=Heun(), rtol=rtol, atol=0.0, t_end=1.0, stop=None)
        assert ds.attrs["solver"] == "heun"
        x, y = ds["theta"][-1].values
        errors.append(abs(np.arctan2(y, x) - exact(1.0)))
    # Its step goes as the square root of rtol, its error as the step's square.
    assert 30 < errors[0] / errors[1] < 300
    assert errors[1] < 1e-5


def test_its_walk_is_kept_and_goes_on_where_the_solver_is_given_again(tmp_path):
    flow = gf.RegularizingFlow(gf.LevelSet(circle()), to_the_right)
    file = tmp_path / "walk.nc"
    gf.walk(flow, solver=Heun(), t_end=0.5, stop=None, archive=file).close()
    assert gf.validate(file) == []
    with pytest.raises(InputError, match="heun"):
        gf.resume(file, flow, t_end=1.0)
    further = gf.resume(file, flow, t_end=1.0, solver=Heun())
    x, y = further["theta"][-1].values
    assert np.arctan2(y, x) == pytest.approx(exact(1.0), abs=1e-2)
    further.close()


def test_an_r_of_one_function_is_named_in_the_archive():
    flow = gf.RegularizingFlow(gf.LevelSet(circle()), to_the_right)
    ds = gf.walk(flow, stop=gf.Stationary(179.9))
    assert ds.attrs["regularizer_name"] == "to_the_right"
    assert ds["theta"][-1].values == pytest.approx([2.0, 0.0], abs=1e-2)


def test_an_experiment_of_one_function_has_a_name(monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    gf.experiments.register("circle", circle)
    assert gf.experiments.get("circle").prepare(seed=1).problem.n_parameters == 2
