"""Underflow, as in the tail of a Gaussian, is no error, though NumPy may be told to raise one."""

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.analysis.series import exponentials


@pytest.fixture
def strict():
    with np.errstate(all="raise"):
        yield


@pytest.fixture(scope="module")
def walked():
    axes = torch.linspace(1, 30, 5, dtype=torch.float64)
    start = torch.ones(5, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: axes @ t**2, start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    return gf.walk(flow, t_end=0.05, stop=None, snapshot_every=1e-3, max_snapshots=60), flow


def test_of_a_walk_and_of_its_spectra_and_components(walked, strict):
    ds, flow = walked
    again = gf.walk(flow, t_end=0.05, stop=None)
    assert again.attrs["status"] == "t_end"
    spectra = gf.analysis.spectra.along(ds, flow, snapshots=[0, -1], k=2)
    assert spectra["largest_eigenvalue"].notnull().any()
    assert gf.analysis.pca.along(ds).sizes["component"]


def test_of_densities_far_from_any_eigenvalue(walked, strict):
    _, flow = walked
    operator = gf.analysis.loss_hessian(flow.problem, flow.problem.theta0)
    density, _ = gf.analysis.spectral_density(operator).on(np.array([-1e6, 1e6]), width=1e-3)
    assert (density == 0).all()


def test_of_rates_and_frequencies_of_series(walked, strict):
    ds, _ = walked
    t = np.linspace(0, 1, 200)
    with np.errstate(under="ignore"):
        curve = 1 + np.exp(-900 * t) + 1e-9 * np.sin(9e4 * t)
    fit = exponentials.fit(t, curve)
    assert fit.status
    assert gf.analysis.relaxation.along(ds).sizes
    noise = np.random.default_rng(0).standard_normal(200)
    assert gf.analysis.lomb_scargle(900 * t, noise, n_simulations=20, seed=0)
