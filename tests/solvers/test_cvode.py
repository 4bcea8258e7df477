"""CVODE through scikit-sundae: tolerance, counts, level, resuming; and the error without it."""

import builtins
import math

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.errors import InputError
from geoflow.solvers import Tolerance
from geoflow.solvers.cvode import _Running, _stabilised


def test_without_its_package_the_error_names_the_remedy(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("sksundae"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    for make in (
        lambda: gf.solvers.get("cvode"),
        lambda: gf.solvers.from_config({"name": "cvode", "internal_steps": 1}),
    ):
        with pytest.raises(InputError, match=r"not installed: pip install 'geoflow\[sundials\]'"):
            make()


@pytest.mark.parametrize(
    "make", [lambda: references.oja().flow, lambda: references.linear_on_a_circle().flow]
)
def test_what_is_off_the_level_decays_at_the_rate_that_is_said_and_along_normals_alone(make):
    flow, kappa = make(), 30.0
    generator = torch.Generator().manual_seed(0)
    start = flow.problem.theta0
    beside = torch.randn(start.shape, generator=generator, dtype=torch.float64)
    theta = start + 0.1 * beside
    state = flow.evaluate(theta)
    rate = _stabilised(flow, theta, kappa)
    # What L and each constraint changes by, and the flow's own velocity beside it.
    normals = torch.atleast_2d(state.gradients)
    off = torch.as_tensor(np.atleast_1d(flow.level_set.residuals(state.values)))
    assert off.abs().min() > 1e-3
    torch.testing.assert_close(normals @ rate, -kappa * off, rtol=1e-9, atol=1e-12)
    along = rate - state.velocity
    least = torch.linalg.lstsq(normals.T, along[:, None]).solution
    torch.testing.assert_close((normals.T @ least)[:, 0], along, rtol=1e-9, atol=1e-12)


@pytest.fixture
def installed():
    return pytest.importorskip("sksundae")


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8])
def test_the_tolerance_is_met_and_snapshots_are_on_the_level_set(rtol, installed):
    reference = references.oja()
    ds = gf.walk(
        reference.flow,
        "cvode",
        rtol=rtol,
        atol=0.0,
        t_end=1.0,
        stop=None,
        snapshot_times=[0.3, 1.0],
    )
    assert ds.attrs["status"] == "t_end"
    size = float(reference.flow.problem.theta0.norm())
    for theta, t in zip(ds["theta"].values, [0.3, 1.0], strict=True):
        assert float((torch.from_numpy(theta) - reference.exact(t)).norm()) <= 100 * rtol * size
    on_level = reference.flow.level_set.tolerance
    assert np.abs(ds["level_residual"].values[ds["snapshot_step"].values]).max() <= on_level


@pytest.mark.parametrize("t_end", [5e-324, 1e-300, 1e-151, 1e-149, 1e-12])
def test_a_walk_of_hardly_any_time_ends_there_in_silence(t_end, capfd, installed):
    flow = references.oja().flow
    ds = gf.walk(flow, "cvode", t_end=t_end, stop=None)
    assert ds.attrs["status"] == "t_end"
    assert float(ds["time"][-1]) == t_end
    expected = references.oja().exact(t_end).numpy()
    np.testing.assert_allclose(ds["theta"][-1].values, expected, rtol=1e-9)
    assert capfd.readouterr().err == ""


def test_each_evaluation_is_counted_those_of_products_too(network, installed):
    calls = 0
    evaluate = network.problem.value_and_gradient

    def counting(theta):
        nonlocal calls
        calls += 1
        return evaluate(theta)

    network.problem.value_and_gradient = counting
    ds = gf.walk(network, "cvode", rtol=1e-5, t_end=0.05, stop=None)
    assert int(ds["n_gradient"][-1]) == calls
    # More than the one a step that is for its record, and Newton's own.
    assert calls > 2 * ds.sizes["step"]


def test_recorded_less_often_it_is_the_same_walk_for_fewer_evaluations(network, installed):
    settings = {"rtol": 1e-5, "t_end": 0.05, "stop": None}
    each = gf.walk(network, "cvode", **settings)
    tenth = gf.walk(references.small_network(), gf.solvers.CVODE(internal_steps=10**6), **settings)
    assert np.array_equal(each["theta"].values[-1], tenth["theta"].values[-1])
    assert tenth.sizes["step"] == 2
    fewer = int(each["n_gradient"][-1]) - int(tenth["n_gradient"][-1])
    assert fewer == each.sizes["step"] - tenth.sizes["step"]


def test_what_is_read_within_its_steps_changes_none_of_them(network, installed):
    settings = {"rtol": 1e-5, "t_end": 0.05, "stop": None}
    alone = gf.walk(network, "cvode", **settings, max_snapshots=2)
    times = [0.0, 0.013, 0.021, 0.0211, 0.04, 0.05]
    read = gf.walk(references.small_network(), "cvode", **settings, snapshot_times=times)
    assert np.array_equal(alone["theta"].values[-1], read["theta"].values[-1])
    steps = np.isin(read["time"], alone["time"])
    assert steps.sum() == alone.sizes["step"]


@pytest.mark.parametrize("budget", [1, 2, 20, 61])
def test_the_budget_is_never_passed(network, budget, installed):
    ds = gf.walk(network, "cvode", rtol=1e-6, stop=None, max_evaluations=budget)
    assert ds.attrs["status"] == "max_evaluations"
    assert int(ds["n_gradient"][-1]) <= budget


def test_resumed_it_starts_afresh_and_meets_its_tolerance(tmp_path, installed):
    def walk(path, t_end):
        flow = references.small_network()
        return gf.walk(flow, "cvode", rtol=1e-7, t_end=t_end, stop=None, archive=path)

    walk(tmp_path / "cut.nc", 0.05).close()
    with (
        walk(tmp_path / "whole.nc", 0.1) as whole,
        gf.resume(tmp_path / "cut.nc", references.small_network(), t_end=0.1) as resumed,
    ):
        assert float(resumed["time"][-1]) == 0.1
        end = whole["theta"].values[-1]
        off = np.linalg.norm(resumed["theta"].values[-1] - end) / np.linalg.norm(end)
        assert 0 < off <= 1e-5


def test_from_beside_the_level_it_comes_back_at_thirty_times_the_flows_own_rate(installed):
    """L = y on y = 1, R = ‖θ‖²: x falls as exp(−2t), and y − 1 as exp(−30t)."""
    problem = gf.Problem.from_function(lambda t: t[1], torch.ones(2, dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    state = flow.evaluate(torch.tensor([1.0, 1.1], dtype=torch.float64))
    assert state.time_scale == pytest.approx(1.0)
    running = _Running.start(1, flow, state, Tolerance(1e-8, 0.0))
    end = 0.05
    while running.time < end:
        theta = running.advance(end)
    assert running.time == end
    exact = [math.exp(-2 * end), 1 + 0.1 * math.exp(-30 * end)]
    np.testing.assert_allclose(theta, exact, rtol=0, atol=1e-6)


def test_used_again_it_starts_afresh(network, installed):
    settings = {"rtol": 1e-5, "t_end": 0.02, "stop": None}
    solver = gf.solvers.CVODE()
    first, second = (gf.walk(network, solver, **settings) for _ in range(2))
    assert np.array_equal(first["theta"], second["theta"])
    # Nor does it go on from elsewhere than the carry that it is given.
    tolerance, start = Tolerance(1e-5, 0.0), network.evaluate(network.problem.theta0)
    carry = solver.init(network, start, tolerance)
    one = solver.step(network, start, carry, tolerance, 1.0)
    two = solver.step(network, one.state, one.carry, tolerance, 1.0)
    again = solver.step(network, one.state, one.carry, tolerance, 1.0)
    assert two.carry["serial"] == one.carry["serial"]
    assert again.carry["serial"] == two.carry["serial"] + 1
    assert again.carry["n_steps"] == 1


def test_it_works_in_float64_only(installed):
    with pytest.raises(InputError, match="solver='cvode' works in float64"):
        gf.walk(references.small_network(dtype=torch.float32), "cvode", rtol=1e-3)


@pytest.mark.parametrize("internal_steps", [0, 1.5, True])
def test_its_setting_is_a_positive_whole_number(internal_steps, installed):
    with pytest.raises(InputError, match="internal_steps="):
        gf.solvers.CVODE(internal_steps=internal_steps)


@pytest.mark.parametrize("make", [references.linear_on_a_circle, references.oja_on_a_circle])
def test_it_keeps_to_several_constraints(make, installed):
    reference, times = make(), [0.3, 1.0]
    errors = []
    for rtol in (1e-4, 1e-7):
        ds = gf.walk(reference.flow, "cvode", rtol=rtol, t_end=1.0, stop=None, snapshot_times=times)
        assert ds.attrs["status"] == "t_end"
        thetas = torch.from_numpy(ds["theta"].values)
        exact = torch.stack([reference.exact(t) for t in times])
        errors.append(float((thetas - exact).norm(dim=1).max()))
        at = ds["snapshot_step"].values
        residuals = np.abs(ds["constraint_residual"].values[at])
        assert (residuals <= reference.flow.level_set.tolerances).all()
    assert errors[0] < 1e-2
    assert errors[1] < 1e-5
