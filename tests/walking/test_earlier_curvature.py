"""Walks down R of second differences, as commit 93474f0 had them, go on down the exact one.

``data/resuming/hessian-trace.nc`` and ``sharpness.nc`` are its walks of ``references``' small
network by rkc at rtol 1e-4 to t = 0.02, with sharpness and the trace observed.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import ArchiveError
from geoflow.walking.fitting import is_earlier

R = gf.regularizers
DATA = Path(__file__).parents[1] / "data" / "resuming"
NAMES = {
    "hessian-trace": "hessian_trace:probes=2",
    "sharpness": "1.0*squared_norm + 0.5*sharpness",
}
OBSERVED = {"sharpness": R.sharpness, "trace": R.hessian_trace(probes=3)}


def flow(name):
    return gf.RegularizingFlow(references.small_network().level_set, R.get(name))


@pytest.mark.parametrize("file", NAMES)
@pytest.mark.filterwarnings("ignore:.*other last digits:UserWarning")
def test_it_goes_on(tmp_path, file):
    path = tmp_path / "walk.nc"
    shutil.copyfile(DATA / f"{file}.nc", path)
    with gf.open_trajectory(path) as ds:
        before = ds["regularizer"].values
    of = flow(NAMES[file])
    if file == "sharpness":
        # Of its gradient alone, by less than another machine may make.
        ds = gf.resume(path, of, t_end=0.04, observables=OBSERVED)
    else:
        with pytest.warns(UserWarning, match="was recorded by an earlier version, from"):
            ds = gf.resume(path, of, t_end=0.04, observables=OBSERVED)
    with ds:
        after = ds["regularizer"].values
        assert ds.attrs["status"] == "t_end"
        assert np.array_equal(after[: len(before)], before)
        assert (np.diff(after) < 0).all()
    assert gf.validate(path) == []


def test_another_r_is_refused_all_the_same(tmp_path):
    path = tmp_path / "walk.nc"
    shutil.copyfile(DATA / "hessian-trace.nc", path)
    level_set = references.small_network().level_set
    made = R.hessian_trace(probes=2, seed=1).bind(level_set.problem)
    vars(made)["__name__"] = NAMES["hessian-trace"]
    of = gf.RegularizingFlow(level_set, made)
    with pytest.raises(ArchiveError, match=r"the regularisation function is .* was recorded; go"):
        gf.resume(path, of, t_end=0.04, observables=OBSERVED)
    observed = {**OBSERVED, "trace": R.hessian_trace(probes=2, seed=5)}
    with pytest.raises(ArchiveError, match=r"observables\['trace'\] is .* was recorded; go"):
        gf.resume(path, flow(NAMES["hessian-trace"]), t_end=0.04, observables=observed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_was_computed_otherwise_is_r_and_not_the_loss(dtype):
    unit = torch.finfo(dtype).eps ** 0.5
    now = {"train_loss": 0.5, "gradient_norm": 0.1, "regularizer": 3.0}
    now |= {"tangent_norm": 0.4, "multiplier": 2.0}
    assert is_earlier(now, {**now, "regularizer": 3.0 * (1 + 20 * unit)}, dtype)
    assert is_earlier(now, {**now, "tangent_norm": 0.4 * (1 + 20 * unit)}, dtype)
    assert not is_earlier(now, {**now, "regularizer": 3.0 * (1 + 200 * unit)}, dtype)
    assert not is_earlier(now, {**now, "train_loss": 0.5 * (1 + 2 * unit)}, dtype)
    assert not is_earlier(now, {**now, "gradient_norm": 0.1 * (1 + 2 * unit)}, dtype)


@pytest.mark.filterwarnings("ignore:.*other last digits:UserWarning")
def test_between_its_snapshots_it_is_had_to_the_tolerance_that_its_r_was_known_to():
    of = flow(NAMES["hessian-trace"])
    with gf.open_trajectory(DATA / "hessian-trace.nc") as ds:
        at = float(ds["snapshot_time"][1]) * 0.5
        assert gf.interpolate(ds, [at], of).shape == (1, of.problem.n_parameters)
        with pytest.raises(gf.InputError, match=r"the regularisation function is .* was recorded"):
            gf.interpolate(ds.assign_attrs(rtol=1e-10), [at], of)
