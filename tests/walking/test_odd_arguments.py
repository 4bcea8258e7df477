"""Arguments as torch and others give them, and places where nothing has a derivative."""

import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError


def square(theta):
    return torch.dot(theta, theta)


@pytest.fixture
def flow():
    axes = torch.linspace(1, 30, 5, dtype=torch.float64)
    start = torch.ones(5, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: axes @ t**2, start)
    return gf.RegularizingFlow(gf.LevelSet(problem), square)


@pytest.mark.parametrize("kind", [torch.tensor, np.array, np.int16])
def test_a_whole_number_may_be_a_tensor_without_dimensions(flow, kind):
    ds = gf.walk(flow, max_evaluations=kind(20), max_snapshots=kind(3), stop=None)
    assert ds.attrs["status"] == "max_evaluations"
    assert int(ds["n_gradient"][-1]) <= 20
    assert ds["theta"].sizes["snapshot"] <= 4


@pytest.mark.parametrize("value", [torch.tensor([1, 2]), torch.tensor(1.5), torch.tensor(1 + 1j)])
def test_what_is_no_whole_number_is_refused(flow, value):
    with pytest.raises(InputError, match=r"^max_evaluations=.*give a whole number"):
        gf.walk(flow, max_evaluations=value)


def test_no_events_are_none(flow):
    assert gf.walk(flow, t_end=0.01, stop=None, events=None).attrs["status"] == "t_end"
    for events in ("", {}, 3):
        with pytest.raises(InputError, match=r"is no list"):
            gf.walk(flow, t_end=0.01, stop=None, events=events)


def test_a_projection_is_of_no_graph(flow):
    theta = (1.01 * flow.problem.theta0).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        projection = flow.level_set.project(theta)
    assert not projection.theta.requires_grad
    assert torch.equal(projection.theta, flow.level_set.project(theta.detach()).theta)


def test_of_a_walk_in_inference_mode_it_is_not_the_loss_that_is_wrong(flow):
    with torch.inference_mode(), pytest.raises(InputError, match="inside torch"):
        gf.walk(flow, t_end=0.01, stop=None)
    bound = gf.regularizers.squared_norm.bind(flow.problem)
    theta = flow.problem.theta0
    with torch.inference_mode(), pytest.raises(InputError, match="inside torch"):
        bound.value_and_gradient(theta)


@pytest.mark.slow
def test_a_name_that_the_locale_does_not_have_is_said_to_be_that(flow, tmp_path):
    gf.walk(flow, t_end=0.01, stop=None, archive=tmp_path / "walk.nc").close()
    named = tmp_path / "ü日本.nc"
    shutil.copy(tmp_path / "walk.nc", named)
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "geoflow", "info", named],
        env=os.environ | ascii_only,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"the locale's encoding" in done.stderr
    assert b"PYTHONUTF8=1" in done.stderr
