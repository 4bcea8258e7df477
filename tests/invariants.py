"""What holds of every walk that is re-projected at every step."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

import geoflow as gf
from geoflow.trajectories import schema


def check_walk(ds: xr.Dataset, flow: gf.RegularizingFlow) -> None:
    """Assert that a walk keeps to the level set, falls in R, and obeys the schema."""
    assert schema.defects(ds) == []
    level = flow.level_set.level
    assert np.abs(ds["level_residual"]).max() <= flow.level_set.level_rtol * abs(level)
    r = ds["regularizer"].values
    tolerance = ds.attrs["rtol"] * np.abs(r).max()
    assert (np.diff(r) <= tolerance).all()
    assert np.isclose(ds["train_loss"][0] - level, ds["level_residual"][0])
    for i in range(ds.sizes["snapshot"]):
        theta = torch.from_numpy(ds["theta"].values[i])
        state = flow.evaluate(theta)
        step = int(ds["snapshot_step"][i])
        # To rounding: sums depend on how memory is aligned.
        assert np.isclose(state.loss, ds["train_loss"][step], rtol=1e-13, atol=0)
        assert np.isclose(state.angle, ds["angle"][step], rtol=1e-8)
        cosine = torch.dot(state.velocity, state.gradient) / state.gradient_norm
        assert abs(float(cosine)) <= 1e-10 * float(state.regularizer_gradient.norm())


def same(a: xr.Dataset, b: xr.Dataset) -> bool:
    """Equal in every bit but those of the clocks."""
    a, b = a.load(), b.load()
    assert {**a.attrs, "created": ""} == {**b.attrs, "created": ""}
    assert a.drop_vars("wall_time").equals(b.drop_vars("wall_time"))
    # An array among them has no one truth value.
    assert all(repr(a[name].attrs) == repr(b[name].attrs) for name in a.variables)
    return True


def spoil(name, index, value):
    """Return a function that changes one value of a variable of a dataset."""

    def spoiled(ds):
        values = ds[name].values.copy()
        values[index] = value
        return ds.assign({name: (ds[name].dims, values, ds[name].attrs)})

    return spoiled
