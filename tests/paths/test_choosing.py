"""The point of a path that is chosen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import geoflow as gf

# By the point, in the order reached.
LEVELS = (1.0, 2.0, 3.0, 0.5, 4.0)
LOSSES = (0.50, 0.40, 0.42, 0.41, 0.41)


def _path(values=LOSSES, **more):
    """A path of made-up values, as the chooser looks at it."""
    n = len(values)
    variables = {
        "validation_loss": ("level", np.array(values)),
        "penalty": ("level", 0.1 * np.array(LEVELS[:n])),
        **{name: ("level", np.array(column)) for name, column in more.items()},
    }
    return xr.Dataset(variables, {"level": list(LEVELS[:n])}, {"geoflow_path": "1.0"})


def test_the_least_loss_is_the_best_and_alone_without_an_error():
    best = gf.best_on_path(_path())
    assert (best.point, best.level, best.value) == (1, 2.0, 0.40)
    assert best.penalty == pytest.approx(0.2)
    assert math.isnan(best.standard_error)
    assert best.levels == (2.0, 2.0)
    assert best.simplest == 1


@pytest.mark.parametrize(
    ("error", "levels", "simplest"),
    [
        (0.0, (2.0, 2.0), 1),
        # 0.41 at 4.0 is within it too, but 0.42 at 3.0 lies in between.
        (0.015, (2.0, 2.0), 1),
        (0.025, (2.0, 4.0), 4),
        (0.2, (0.5, 4.0), 4),
    ],
)
def test_the_interval_has_no_gap(error, levels, simplest):
    best = gf.best_on_path(_path(), standard_error=error)
    assert best.levels == levels
    assert best.simplest == simplest


def test_without_an_error_points_that_equal_the_best_are_as_good():
    # By level: 0.41, 0.50, 0.40, 0.40, 0.41.
    best = gf.best_on_path(_path((0.50, 0.40, 0.40, 0.41, 0.41)))
    assert (best.point, best.levels, best.simplest) == (1, (2.0, 3.0), 2)


def test_the_error_can_be_an_observable_at_the_best_point():
    ds = _path(validation_loss_error=[9.0, 0.025, 9.0, 9.0, 9.0])
    best = gf.best_on_path(ds, standard_error="validation_loss_error")
    assert best.standard_error == 0.025
    assert best.levels == (2.0, 4.0)


def test_of_an_accuracy_the_greatest_counts():
    ds = _path(validation_accuracy=[0.5, 0.6, math.nan, 0.9, 0.8])
    best = gf.best_on_path(ds, "validation_accuracy", 0.35)
    assert best.point == 3
    assert best.levels == (0.5, 0.5)


@pytest.mark.parametrize(
    ("ds", "arguments", "message"),
    [
        (_path(), {"by": "test_loss"}, "'test_loss' is no observable of this path"),
        (_path(), {"by": "penalty"}, "'penalty' is no observable"),
        (_path(rate=[1.0] * 5), {"by": "rate"}, "ends in _loss or _accuracy"),
        (_path([math.nan] * 5), {}, "no finite value"),
        (_path([math.nan, *[math.inf] * 4]), {}, "no finite value"),
        (_path(), {"standard_error": -1.0}, "standard_error=-1.0"),
        (_path(), {"standard_error": math.nan}, "standard_error=nan"),
    ],
)
def test_bad_arguments_are_named(ds, arguments, message):
    with pytest.raises(gf.InputError, match=message):
        gf.best_on_path(ds, **arguments)


def test_a_walk_has_no_best_point():
    with pytest.raises(gf.InputError, match="no regularisation path"):
        gf.best_on_path(_path().drop_attrs(), "validation_loss")


def test_the_chosen_point_is_loaded_into_the_network():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs, held_out = torch.randn(20, 3).double(), torch.randn(10, 3).double()
    targets, held_targets = inputs.sum(1, keepdim=True), held_out.sum(1, keepdim=True)
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, inputs, targets)

    def validation_loss(theta):
        outputs = torch.func.functional_call(module, problem.unflatten(theta), (held_out,))
        return float(nn.functional.mse_loss(outputs, held_targets))

    flow = gf.RegularizingFlow(gf.LevelSet(problem, 0.3), gf.regularizers.squared_norm)
    ds = gf.regularization_path(flow, [0.4, 0.6], observables={"validation_loss": validation_loss})
    best = gf.best_on_path(ds)
    gf.load_into(module, ds, best.point)
    with torch.no_grad():
        loss = float(nn.functional.mse_loss(module(held_out), held_targets))
    assert loss == pytest.approx(best.value)
    assert best.value == min(ds["validation_loss"].values)
    for snapshot in (3, -4):
        with pytest.raises(gf.InputError, match=f"snapshot={snapshot}: there are 3"):
            gf.load_into(module, ds, snapshot)
    gf.load_into(module, ds, -3)
    assert np.array_equal(module[0].weight.detach().flatten(), ds["theta"][0, :12])
    for cut, said in (
        (ds.isel(tensor=slice(2)), "its tensors hold 16 parameters, theta 21"),
        (ds.expand_dims("run"), "theta is not along 'parameter'"),
    ):
        with pytest.raises(gf.InputError, match=said):
            gf.load_into(module, cut)
    module[0].bias = nn.Parameter(module[2].weight.detach()[0])
    with pytest.raises(gf.InputError, match="share memory without being one parameter"):
        gf.load_into(module, ds)
