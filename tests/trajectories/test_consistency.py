"""What a trajectory says of itself is held against its own numbers."""

import numpy as np
import xarray as xr

from geoflow.trajectories import consistency, schema


def test_theta_that_is_not_finite_is_named_in_whichever_block_it_is_read(monkeypatch):
    monkeypatch.setattr(consistency, "BLOCK_BYTES", 2 * 3 * 8)
    theta = np.zeros((9, 3))
    theta[7, 1] = np.nan
    ds = xr.Dataset({"theta": (("snapshot", "parameter"), theta)})
    assert consistency.theta_inconsistencies(ds) == ["theta is not finite at snapshot 7"]


def test_levels_of_several_constraints_round_as_the_largest_of_them():
    attributes = {schema.LEVELS: "[1000002.0, -1000000.0]", "level": 1.0}
    records = {"train_loss": [1.5], "constraint_residual": [[1.0 + 1e-8, 0.0]]}
    assert consistency.level_defects(attributes, records) == []
    records["constraint_residual"] = [[1.0 + 1e-5, 0.0]]
    assert consistency.level_defects(attributes | {"level": 1.1}, records) == [
        "constraint_residual is not the losses less constraint_levels",
        "attribute level is not the mean of constraint_levels",
    ]
