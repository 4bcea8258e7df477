"""Within ``torch.autocast`` walks, flows and analyses give the numbers they give outside of it."""

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
import references
from geoflow.analysis import between, landscape, predictions, relaxation, spectra

DTYPES = [torch.float64, torch.float32]
WITH_STEP = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams")


def problem(dtype):
    return gf.Problem.from_module(
        references.small_module(),
        torch.nn.functional.cross_entropy,
        *references.small_data(),
        dtype=dtype,
    )


def own(of):
    def squared_product(theta):
        weight = of.unflatten(theta)["0.weight"]
        return (weight @ weight.T).square().sum()

    return squared_product


def flow_on(of, regularizer=None):
    level_set = gf.LevelSet(of, level_rtol=1e-5)
    return gf.RegularizingFlow(level_set, own(of) if regularizer is None else regularizer)


def solver(name):
    return gf.solvers.from_text(f"{name}:step_size=1e-4" if name in WITH_STEP else name)


def within(compute):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compute()
        assert torch.is_autocast_enabled("cpu")
    return found


def assert_same(compute):
    expected, found = compute(), within(compute)
    if isinstance(expected, xr.Dataset):
        for name in {*expected.variables} - {"wall_time"}:
            np.testing.assert_array_equal(found[name].values, expected[name].values, err_msg=name)
        assert found.attrs.get("status") == expected.attrs.get("status")
        return
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", gf.solvers.names())
def test_every_solver_walks_as_outside(name, dtype):
    if name == "cvode":
        pytest.importorskip("sksundae")
        if dtype is torch.float32:
            pytest.skip("cvode works in float64")

    def walked():
        of = problem(dtype)
        return gf.walk(
            flow_on(of),
            solver(name),
            max_evaluations=40,
            t_end=0.02,
            stop=None,
            observables={"product": lambda theta: float(own(of)(theta))},
            events=[gf.Event(lambda theta: float(own(of)(theta)), value=0.0, name="zero")],
        )

    assert_same(walked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["path_norm", "sharpness", "jacobian_norm", "squared_norm"])
def test_regularisation_functions_are_those_outside(name, dtype):
    def numbers():
        of = problem(dtype)
        bound = getattr(gf.regularizers, name).bind(of)
        value, gradient = bound.value_and_gradient(of.theta0)
        return value, gradient, bound.hessian(of.theta0)(gradient)

    assert_same(numbers)


@pytest.mark.parametrize("several", [False, True])
def test_a_flow_and_its_level_set_are_those_outside(several):
    def numbers():
        of = problem(torch.float32)
        level_set = gf.LevelSet(gf.by_class(of) if several else of, level_rtol=1e-5)
        flow = gf.RegularizingFlow(level_set, own(of))
        state, projection = flow.start(of.theta0)
        again = level_set.project(1.01 * of.theta0)
        image = flow.linearization(state)(state.velocity / state.velocity.norm())
        tangent = level_set.tangent(of.theta0, state.gradients)
        return state.velocity, projection.theta, again.theta, *image, tangent

    assert_same(numbers)


@pytest.fixture(scope="module")
def walked():
    flow = flow_on(problem(torch.float32))
    return flow, gf.walk(flow, max_evaluations=60, t_end=0.05)


ANALYSES = {
    "spectra": lambda flow, ds: spectra.along(
        ds, flow, snapshots=[-1], k=1, n_probes=2, n_steps=8, n_trace=6
    ),
    "slice": lambda flow, ds: landscape.on_plane(
        ds,
        flow,
        points=3,
        observables={"product": lambda theta: float(own(flow.problem)(theta))},
    ),
    "relaxation": lambda flow, ds: relaxation.along(ds, curvature=flow),
    "predictions": lambda flow, ds: predictions.along(
        ds,
        references.small_module(),
        {"train": references.small_data()[0]},
        classification=True,
        snapshots=[0, -1],
    ),
    "curve": lambda flow, ds: (
        between.bezier(
            flow.problem,
            torch.from_numpy(ds.theta.values[0]),
            torch.from_numpy(ds.theta.values[-1]),
            evaluations=3,
        ).middle,
    ),
    "interpolated": lambda flow, ds: (gf.interpolate(ds, [0.01, 0.02], flow).values,),
    "path": lambda flow, ds: gf.regularization_path(
        flow_on(flow.problem, gf.regularizers.squared_norm), [0.9], max_evaluations=300
    ),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_analyses_are_those_outside(walked, name):
    assert_same(lambda: ANALYSES[name](*walked))


def test_a_walk_is_resumed_as_outside(tmp_path):
    flow = flow_on(problem(torch.float32))

    def resumed():
        gf.walk(flow, archive=tmp_path / "walk.nc", max_evaluations=30, overwrite=True)
        return gf.resume(tmp_path / "walk.nc", flow, max_evaluations=60)

    assert_same(resumed)


def test_an_experiment_trains_the_network_it_trains_outside():
    experiment = gf.experiments.get("iris_ff")
    assert_same(lambda: [experiment.prepare(epochs=2, dtype=torch.float32).problem.theta0])
