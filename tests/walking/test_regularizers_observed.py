"""Regularisation functions as observables: made for the problem of the walk, at no cost of its."""

from functools import partial

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.analysis import landscape
from geoflow.errors import InputError
from geoflow.manifold.regularizers.named import bound

R = gf.regularizers
NAMES = [
    "squared_norm",
    "squared_norm:sign=-1",
    "l1:epsilon=0.1,tensors=*.weight",
    "group_lasso",
    "margin:sign=-1",
    "jacobian_norm:probes=2",
    "sharpness",
    "gradient_norm",
    "hessian_trace:probes=2",
    "0.5*squared_norm + 2.0*gradient_norm",
]


def values(name, problem, thetas):
    made = bound(R.get(name), problem)
    return [float(made.value_and_gradient(torch.from_numpy(theta))[0]) for theta in thetas]


@pytest.mark.parametrize("name", NAMES)
def test_a_named_one_is_made_for_the_problem_of_the_walk(name):
    flow = references.small_network()
    alone = gf.walk(flow, max_evaluations=40, max_snapshots=4)
    before = flow.problem.counts
    given = {"named": R.get(name), "made": R.get(name).bind(flow.problem)}
    ds = gf.walk(flow, max_evaluations=40, max_snapshots=4, observables=given)
    spent = {n: k - before[n] for n, k in flow.problem.counts.items()}
    assert spent["gradient"] == int(ds["n_gradient"][-1])
    assert spent["hvp"] == int(ds["n_hvp"][-1])
    expected = values(name, flow.problem, ds["theta"].values)
    np.testing.assert_array_equal(ds["named"], expected)
    np.testing.assert_array_equal(ds["made"], expected)
    np.testing.assert_array_equal(ds["theta"], alone["theta"])
    assert int(ds["n_gradient"][-1]) == int(alone["n_gradient"][-1])


def test_one_of_another_problem_stays_that_of_the_other():
    flow, other = references.small_network(), references.small_network().problem
    inputs, targets = references.small_data(seed=4)
    other = gf.Problem.from_module(
        references.small_module(), torch.nn.functional.cross_entropy, inputs, targets
    )
    given = {"here": R.margin, "there": R.margin.bind(other)}
    ds = gf.walk(flow, max_evaluations=20, observables=given)
    np.testing.assert_array_equal(ds["there"], values("margin", other, ds["theta"].values))
    assert not np.isclose(ds["here"], ds["there"]).any()


def test_of_classes_it_is_of_all_examples_and_of_several_it_has_to_be_said():
    problem = references.small_network().problem
    flow = gf.RegularizingFlow(gf.LevelSet(gf.by_class(problem)), R.squared_norm)
    ds = gf.walk(flow, max_evaluations=20, observables={"margin": R.margin, "sharp": R.sharpness})
    np.testing.assert_array_equal(ds["margin"], values("margin", problem, ds["theta"].values))
    other = references.small_network(batch_size=7).problem
    several = gf.RegularizingFlow(gf.LevelSet([problem, other]), R.squared_norm)
    with pytest.raises(InputError, match=r"observables\['sharp'\]: .* \.bind\(problem\)"):
        gf.walk(several, observables={"sharp": R.sharpness})


def test_one_that_does_not_fit_is_refused_by_name():
    theta0 = torch.ones(3, dtype=torch.float64)
    problem = gf.Problem.from_function(references.half_square, theta0)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[0])
    with pytest.raises(InputError, match=r"observables\['m'\]: .* needs a network's outputs"):
        gf.walk(flow, observables={"m": R.margin()})


@pytest.mark.slow
def test_resumed_walks_paths_and_slices_take_them(tmp_path):
    flow, given = references.small_network(), {"sharp": R.sharpness, "made": None}
    given["made"] = R.margin.bind(flow.problem)
    whole = gf.walk(flow, max_evaluations=60, observables=given)
    path = tmp_path / "walk.nc"
    gf.walk(flow, max_evaluations=30, observables=given, archive=path)
    ds = gf.resume(path, flow, max_evaluations=60, observables=given)
    np.testing.assert_array_equal(ds["sharp"][-1], whole["sharp"][-1])
    sliced = landscape.on_plane(whole, flow, points=2, observables=given)
    np.testing.assert_allclose(sliced["walk_sharp"], whole["sharp"], rtol=1e-6)
    np.testing.assert_allclose(sliced["walk_made"], whole["made"], rtol=1e-12)
    along = gf.regularization_path(flow, [0.02], observables=given, max_evaluations=3000)
    expected = values("margin", flow.problem, along["theta"].values)
    np.testing.assert_array_equal(along["made"], expected)


NEEDING = [R.margin, R.sharpness, R.l1(tensors="*.weight"), R.margin(sign=-1)]


def named(added, theta):
    return theta @ theta + added(theta)


def test_in_a_function_of_ones_own_a_sum_is_named():
    flow = references.small_network()
    made = R.sharpness.bind(flow.problem)
    for wrong, said in (
        (lambda theta: theta @ theta + made(theta), r"not callable.*weighted_sum\(\(1\.0, R\)"),
        *((partial(named, added), "RegularizingFlow, to weighted_sum") for added in NEEDING),
    ):
        with pytest.raises(InputError, match=said) as failure:
            gf.RegularizingFlow(flow.level_set, wrong)
        assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("name", "gradients", "products"),
    [("gradient_norm", 1, 0), ("hessian_trace:probes=3", 0, 3), ("sharpness", 0, None)],
)
def test_no_gradient_of_r_is_evaluated_for_its_value(name, gradients, products, monkeypatch):
    problem = references.small_network().problem
    made = bound(R.get(name), problem)
    expected, _ = made.value_and_gradient(problem.theta0)
    before = problem.counts
    assert float(made.value_alone(problem.theta0)) == pytest.approx(float(expected), rel=1e-13)
    spent = {kind: n - before[kind] for kind, n in problem.counts.items()}
    assert spent["gradient"] == gradients
    assert products is None or spent["hvp"] == products
