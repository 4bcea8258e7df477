"""The multistep solver where its equations keep failing: steps by the exponential one."""

import numpy as np
import pytest

import geoflow as gf
from geoflow.solvers import bdf
from geoflow.solvers.multistep import corrector

# Of a ridge: the most negative eigenvalue that equations are taken to have.
RIDGE = 2_000.0


@pytest.fixture
def ridge(monkeypatch):
    """Equations longer than a ridge allows are refused after an evaluation, as real ones are."""

    def refused(flow, formula, pairs, allowed, closely):
        if formula.c * RIDGE > 1:
            flow.evaluate(formula.predicted)
            raise corrector.IndefiniteError(1 - formula.c * RIDGE, iterations=1, residual=0.0)
        return corrector.correct(flow, formula, pairs, allowed, closely)

    monkeypatch.setattr(bdf, "correct", refused)
    # It asks for little: networks on real ridges are refused more often than this one.
    monkeypatch.setattr(bdf, "MANY_IN_VAIN", 2.0)


def walk(network, **options):
    return gf.walk(network, "bdf", t_end=0.3, stop=None, **options)


def test_along_a_ridge_it_takes_the_steps_of_the_exponential_method(network, ridge, monkeypatch):
    aside = walk(network)
    monkeypatch.setattr(bdf, "MANY_IN_VAIN", np.inf)
    alone = walk(network)
    assert alone["step_size"].max() < 3 / RIDGE
    assert aside["step_size"].max() > 10 / RIDGE
    assert int(aside["n_gradient"][-1]) < 0.5 * int(alone["n_gradient"][-1])
    exact = gf.walk(network, "bdf", rtol=1e-7, atol=0.0, t_end=0.3, stop=None)["theta"][-1]
    for ds in (aside, alone):
        assert np.linalg.norm(ds["theta"][-1] - exact) < 1e-2 * np.linalg.norm(exact)
        assert abs(ds["level_residual"]).max() <= 1e-6 * ds.attrs["level"]


def test_each_time_it_is_aside_for_longer(network, ridge):
    flow, solver, tolerance = network, bdf.BDF(), gf.solvers.Tolerance(1e-3, 1e-6)
    state, _ = flow.start(flow.problem.theta0)
    carry, aside = solver.init(flow, state, tolerance), []
    for _ in range(100):
        result = solver.step(flow, state, carry, tolerance, 1.0)
        before, state, carry = carry, result.state, result.carry
        if carry.get("n_aside", 0) and not before.get("n_aside", 0):
            aside.append(carry["n_aside"] + 1)
    assert aside == [bdf.ASIDE * 2**i for i in range(len(aside))]
    assert len(aside) > 1


@pytest.mark.parametrize("steps", [3, 6, 13])
def test_it_resumes_aside_and_after_it_to_the_same_bits(network, ridge, steps, tmp_path):
    whole = walk(network)
    file, spent = tmp_path / "walk.nc", int(whole["n_gradient"][steps])
    gf.walk(network, "bdf", stop=None, max_evaluations=spent, archive=file).close()
    resumed = gf.resume(file, network, t_end=0.3, max_evaluations=100_000)
    with resumed:
        assert np.array_equal(resumed["theta"][-1], whole["theta"][-1])
        for name in ("time", "angle", "n_gradient", "n_rejected"):
            assert np.array_equal(resumed[name], whole[name]), name


def test_on_networks_at_a_minimum_it_never_is(network, monkeypatch):
    def never(*args):
        raise AssertionError("aside")

    monkeypatch.setattr(bdf, "_aside", never)
    ds = gf.walk(network, "bdf", stop=gf.Stationary(170.0))
    assert ds.attrs["status"] == "stationary"
