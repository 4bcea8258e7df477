"""What a trajectory says of itself is held against its own numbers."""

import numpy as np
import xarray as xr

from geoflow.trajectories import consistency


def test_theta_that_is_not_finite_is_named_in_whichever_block_it_is_read(monkeypatch):
    monkeypatch.setattr(consistency, "BLOCK_BYTES", 2 * 3 * 8)
    theta = np.zeros((9, 3))
    theta[7, 1] = np.nan
    ds = xr.Dataset({"theta": (("snapshot", "parameter"), theta)})
    assert consistency.theta_inconsistencies(ds) == ["theta is not finite at snapshot 7"]
