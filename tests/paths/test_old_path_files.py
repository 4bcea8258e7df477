"""A path's file of an earlier version is opened, checked and gone on with."""

import shutil
from pathlib import Path

import numpy as np
import torch

import geoflow as gf

# Written by version 1.0 of the form, from the flow below.
OLD = Path(__file__).parents[1] / "data" / "path-1.0.nc"


def flow_of_the_file():
    scales = torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64)
    lowest = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    problem = gf.Problem.from_function(
        lambda t: (scales * (t - lowest).square()).sum() / 2,
        torch.tensor([3.3, 1.1, 2.1], dtype=torch.float64),
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def test_a_file_of_the_first_form_opens_and_goes_on(tmp_path):
    file = tmp_path / "path.nc"
    shutil.copy(OLD, file)
    assert gf.validate(file) == []
    with gf.open_path(file) as ds:
        old = ds.load()
    assert old.attrs["geoflow_path"] == "1.0"
    flow = flow_of_the_file()
    level = 8 * flow.level_set.level
    longer = gf.resume_path(file, flow, [level])
    assert longer.attrs["status"] == "complete"
    assert np.array_equal(longer["theta"].values[:-1], old["theta"].values)
    assert longer["level"].values[-1] == level
    # The new point is the ridge solution of its penalty, as the old ones are of theirs.
    scales, lowest = np.array([1.0, 4.0, 9.0]), np.array([3.0, 1.0, 2.0])
    for penalty, theta in zip(longer["penalty"].values, longer["theta"].values, strict=True):
        exact = scales * lowest / (scales + 2 * penalty)
        assert np.abs(theta - exact).max() <= 5e-3
    assert gf.validate(file) == []
