"""Paths along R as earlier versions computed it go on, and those of another loss do not."""

import pytest
import torch

import geoflow as gf
from geoflow.errors import ArchiveError
from geoflow.manifold.regularizers import curvature

EXACT = curvature._HessianTrace.value_and_gradient
WEIGHTS = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def was(self, theta):
    """R and ∇R, off by more than rounding."""
    return tuple(1.0001 * found for found in EXACT(self, theta))


def flow(times=1.0):
    def loss(theta):
        return times * (WEIGHTS * (theta - 1) ** 2).sum() + (theta**4).sum()

    start = torch.tensor([1.0, 0.8, 0.9], dtype=torch.float64)
    level_set = gf.LevelSet(gf.Problem.from_function(loss, start), 2.0)
    return gf.RegularizingFlow(level_set, gf.regularizers.hessian_trace(probes=2))


@pytest.fixture
def archive(tmp_path, monkeypatch):
    path = tmp_path / "path.nc"
    with monkeypatch.context() as patched:
        patched.setattr(curvature._HessianTrace, "value_and_gradient", was)
        with gf.regularization_path(flow(), [1.9], archive=path) as ds:
            assert ds.attrs["status"] == "complete"
    return path


def test_what_an_earlier_version_recorded_goes_on(archive, monkeypatch):
    # Rounded otherwise on another machine: by twenty times what other values may be off.
    def rounded(self, theta):
        return tuple((1 + 3e-7) * found for found in was(self, theta))

    monkeypatch.setattr(curvature._HessianTrace, "earlier", rounded)
    with gf.resume_path(archive, flow(), [1.8]) as ds:
        assert ds["level"].values.tolist() == [2.0, 1.9, 1.8]


def test_what_no_version_recorded_is_refused(archive):
    with pytest.raises(ArchiveError, match=r"the regularisation function is .* was recorded"):
        gf.resume_path(archive, flow(), [1.8])


def test_another_loss_is_refused_all_the_same(archive, monkeypatch):
    monkeypatch.setattr(curvature._HessianTrace, "earlier", was)
    with pytest.raises(ArchiveError, match=r"the loss is .* was recorded"):
        gf.resume_path(archive, flow(1 + 1e-6), [1.8])
