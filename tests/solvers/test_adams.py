"""explicit_adams between re-projections, where it has a history: its order, and that of before."""

import json

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow import solvers
from geoflow.errors import InputError
from geoflow.solvers import TorchDiffEq

AXES = torch.linspace(0.5, 3, 6, dtype=torch.float64)
START = torch.tensor([1.5, -0.3, -2.2, 0.6, -1.1, -1.4], dtype=torch.float64)


def down():
    problem = gf.Problem.from_function(lambda t: t.square().sum(), START)
    level_set = gf.LevelSet(problem, level_rtol=1e-13)
    return gf.RegularizingFlow(level_set, lambda t: (AXES * t * t).sum() + t.sum())


def end(solver, **settings):
    return gf.walk(down(), solver, t_end=1.0, stop=None, snapshot_times=[1.0], **settings)


@pytest.mark.parametrize("every", [0.25, 0.5, 1.0])
def test_it_is_of_the_order_it_says_however_many_steps_it_goes_without_re_projection(every):
    exact = end("dopri8", rtol=1e-12, atol=1e-13)
    steps = [0.025, 0.0125, 0.00625, 0.003125]
    errors = []
    for step in steps:
        ds = end(TorchDiffEq("explicit_adams", step_size=step, reproject_every=every))
        errors.append(float(np.linalg.norm(ds["theta"][-1] - exact["theta"][-1])))
        # A descending flow.
        assert float(ds["regularizer"][-1]) < float(ds["regularizer"][0])
    assert errors[-1] < 1e-8
    order = TorchDiffEq("explicit_adams", reproject_every=every).order
    assert abs(references.order_of_convergence(steps, errors) - order) <= 0.3


def test_a_walk_archived_before_there_was_a_choice_goes_on_by_torchdiffeqs_own_order(
    tmp_path, monkeypatch
):
    step = {"step_size": 0.05, "reproject_every": 0.5}
    now = {"name": "explicit_adams", **TorchDiffEq("explicit_adams", **step).options}
    assert now["max_order"] == 5
    assert solvers.from_config(now).max_order == 5
    then = {name: value for name, value in now.items() if name != "max_order"}
    assert solvers.from_config(then).max_order == 12
    # By its name it is what it is now.
    assert solvers.get("explicit_adams").max_order == 5
    assert solvers.from_text("explicit_adams:max_order=12").max_order == 12
    assert "max_order" not in TorchDiffEq("rk4").options

    former = TorchDiffEq("explicit_adams", max_order=12, **step)
    whole = end(former)
    path = tmp_path / "walk.nc"
    with monkeypatch.context() as patch:
        options = {n: v for n, v in former.options.items() if n != "max_order"}
        patch.setattr(TorchDiffEq, "options", options)
        gf.walk(down(), former, t_end=0.5, stop=None, archive=path).close()
    with gf.resume(path, down(), t_end=1.0) as ds:
        assert json.loads(ds.attrs["config"])["solver"]["max_order"] == 12
        assert np.array_equal(ds["theta"][-1], whole["theta"][-1])
    assert not np.array_equal(
        whole["theta"][-1], end(TorchDiffEq("explicit_adams", **step))["theta"][-1]
    )


@pytest.mark.parametrize(
    ("method", "order", "message"),
    [
        ("explicit_adams", 7, "max_order=7: explicit_adams takes 5 or 12"),
        ("explicit_adams", True, "max_order=True; give a whole number"),
        ("rk4", 5, "max_order=5: rk4 takes None"),
        ("dopri5", 5, "max_order=5: dopri5 takes None"),
    ],
)
def test_an_order_that_is_none_is_refused(method, order, message):
    with pytest.raises(InputError, match=message):
        TorchDiffEq(method, max_order=order)
    with pytest.raises(InputError, match="has no such options as 'max_order'; it takes step_size"):
        solvers.from_text("rk4:max_order=5")
