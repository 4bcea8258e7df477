"""θ in the byte order of another machine, as other programs may write it: the same results."""

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

import geoflow as gf
from geoflow.analysis import landscape, predictions, relaxation, spectra


@pytest.fixture(scope="module")
def walked():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, x, x.sum(1, keepdim=True))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    return gf.walk(flow, max_evaluations=120), flow, module, x


def test_in_the_other_byte_order_results_are_the_same(walked):
    ds, flow, module, x = walked
    given = ds.assign(theta=ds["theta"].astype(ds["theta"].dtype.newbyteorder()))
    calls = (
        lambda ds: spectra.along(ds, flow, snapshots=[0, -1], k=2),
        lambda ds: relaxation.along(ds, scalars=["arc_length"], curvature=flow),
        lambda ds: predictions.along(ds, module, {"x": x}, classification=False),
        lambda ds: landscape.on_plane(ds, flow, points=3),
    )
    for call in calls:
        found, expected = call(given), call(ds)
        for variable in expected.data_vars:
            if variable != "wall_time":
                xr.testing.assert_equal(found[variable], expected[variable])
    networks = [nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(2)]
    for network, one in zip(networks, (given, ds), strict=True):
        gf.load_into(network, one)
    assert torch.equal(networks[0](x.float()), networks[1](x.float()))
    with pytest.raises(gf.InputError, match="theta is of dtype float16; give it in float64 or"):
        spectra.along(ds.assign(theta=ds["theta"].astype(np.float16)), flow, k=1)
