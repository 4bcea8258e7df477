"""Walks down every regularisation function: archived, resumed, and run again from their files."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
import references
from geoflow.errors import ArchiveError, InputError
from geoflow.experiments.registry import registered
from geoflow.walking.rerunning import like

R = gf.regularizers

NAMES = [
    "l1:epsilon=0.1",
    "group_lasso:epsilon=0.1,axis=1",
    "squared_norm:tensors=*.weight",
    "path_norm",
    "jacobian_norm",
    "jacobian_norm:probes=2",
    "gradient_norm",
    "sharpness",
    "hessian_trace:probes=2",
    "margin:sign=-1",
    "quantization_error",
    "1.0*squared_norm + 0.1*margin",
]
SOLVERS = ["exponential", "bdf", "rkc"]
# The default one each time, and the others where all tests are run.
MAINLY_BDF = ["bdf", *(pytest.param(s, marks=pytest.mark.slow) for s in ("exponential", "rkc"))]


def small(seed):
    return gf.experiments.PreparedExperiment(references.small_network().problem)


@pytest.fixture
def experiment():
    own = gf.experiments.OwnExperiment("small", small)
    with registered(own):
        yield own


def counted(ds):
    return {n: ds[n].values for n in ("n_gradient", "n_hvp", "n_regularizer_gradient") if n in ds}


@pytest.mark.parametrize("solver", MAINLY_BDF)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, n in enumerate(NAMES)]
)
def test_a_walk_goes_down_r_and_is_resumed_and_run_again(tmp_path, experiment, name, solver):
    prepared = experiment.prepare(0)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), R.get(name))
    speed = flow.evaluate(prepared.problem.theta0).tangent_norm
    t_end = 0.1 / speed
    whole, part, again = (tmp_path / f"{n}.nc" for n in ("whole", "part", "again"))
    options = {"rtol": 1e-4, "atol": 0.0, "stop": None, "provenance": prepared.provenance}
    ds = gf.walk(flow, solver, t_end=t_end, archive=whole, **options)
    assert ds.attrs["status"] == "t_end"
    assert ds["regularizer"][-1] < ds["regularizer"][0]
    assert (abs(ds["level_residual"]) <= 1e-6 * flow.level_set.level).all()
    assert gf.validate(whole) == []

    gf.walk(flow, solver, t_end=t_end / 2, archive=part, **options).close()
    resumed = gf.resume(part, t_end=t_end)
    assert resumed.attrs["status"] == "t_end"
    assert np.allclose(resumed["theta"][-1], ds["theta"][-1], rtol=0, atol=2e-3)

    run = like(whole)
    run_again = run.prepare()
    same = gf.walk(
        run.flow(run_again), **vars(run.walk), provenance=run_again.provenance, archive=again
    )
    assert same.attrs["regularizer_name"] == name
    for variable, values in {**counted(ds), "theta": ds["theta"].values}.items():
        assert np.array_equal(same[variable].values, values)


@pytest.fixture
def held_out():
    module = references.small_module()
    data = references.small_data(n=16, seed=8)
    return gf.Problem.from_module(module, nn.functional.cross_entropy, *data)


@pytest.mark.parametrize("solver", [*SOLVERS, "dopri5"])
def test_a_problem_is_an_r_and_its_evaluations_are_counted_apart(tmp_path, held_out, solver):
    flow = gf.RegularizingFlow(references.small_network().level_set, held_out)
    at = flow.problem.counts, held_out.counts
    path = tmp_path / "walk.nc"
    ds = gf.walk(flow, solver, t_end=0.2, stop=None, archive=path, max_snapshots=50)
    assert gf.validate(path) == []
    assert ds.attrs["geoflow_schema"] == "1.2"
    assert (ds.attrs["regularizer_name"], ds.attrs["status"]) == ("loss", "t_end")
    assert ds.attrs["regularizer_data_sha256"] == held_out.data_sha256
    spent = [
        p.counts["gradient"] - a["gradient"]
        for p, a in zip((flow.problem, held_out), at, strict=True)
    ]
    assert spent == [int(ds["n_gradient"][-1]), int(ds["n_regularizer_gradient"][-1])]
    assert spent[1] > 0
    assert (ds["regularizer"].values[1:] < ds["regularizer"].values[:-1]).all()
    for theta, step in zip(ds["theta"].values, ds["snapshot_step"].values, strict=True):
        expected = float(held_out.loss(torch.from_numpy(theta)))
        assert float(ds["regularizer"][step]) == pytest.approx(expected, rel=1e-12)


def test_up_the_loss_on_what_is_to_be_forgotten_until_a_bound(held_out):
    flow = gf.RegularizingFlow(references.small_network().level_set, R.loss(held_out, sign=-1))
    start = -flow.evaluate(flow.problem.theta0).regularizer
    ds = gf.walk(flow, stop=gf.Event("regularizer", value=-1.02 * start), t_end=50.0)
    assert ds.attrs["status"] == "event"
    assert float(held_out.loss(torch.from_numpy(ds["theta"].values[-1]))) == pytest.approx(
        1.02 * start, rel=1e-4
    )
    assert (abs(ds["level_residual"]) <= 1e-6 * flow.level_set.level).all()


def test_products_with_its_hessian_are_differences_that_cost_one_gradient_each(held_out):
    flow = gf.RegularizingFlow(references.small_network().level_set, held_out)
    state = flow.evaluate(flow.problem.theta0)
    v = torch.linspace(-1, 1, 50, dtype=torch.float64)
    exact = held_out.hvp(state.theta, v)
    before = held_out.counts
    product = flow.regularizer_hessian(state.theta, state.regularizer_gradient)
    assert torch.allclose(product(v), exact, rtol=0, atol=1e-5 * float(exact.norm()))
    assert held_out.counts == {**before, "gradient": before["gradient"] + 1}


def test_each_has_the_budget_and_keeps_to_it(tmp_path, held_out):
    flow = gf.RegularizingFlow(references.small_network().level_set, held_out)
    before = flow.problem.evaluations, held_out.evaluations
    path = tmp_path / "walk.nc"
    ds = gf.walk(flow, max_evaluations=40, archive=path)
    assert ds.attrs["status"] == "max_evaluations"
    spent = flow.problem.evaluations - before[0], held_out.evaluations - before[1]
    assert max(spent) == 40
    assert min(spent) > 0
    with pytest.raises(InputError, match="the walk has spent"):
        gf.resume(path, flow, max_evaluations=int(ds["n_regularizer_gradient"][-1]) - 1)
    ds = gf.resume(path, flow, max_evaluations=80)
    assert max(int(ds["n_gradient"][-1]), int(ds["n_regularizer_gradient"][-1])) > 40
    one = gf.walk(
        gf.RegularizingFlow(references.small_network().level_set, held_out), max_evaluations=80
    )
    assert np.array_equal(ds["theta"][-1], one["theta"][-1])
    for name in ("n_gradient", "n_regularizer_gradient"):
        assert np.array_equal(ds[name], one[name])


class Twice:
    """A function of one's own that evaluates its problem twice."""

    def __init__(self, problem):
        self.problems = (problem,)

    def value_and_gradient(self, theta):
        self.problems[0].value_and_gradient(theta)
        return self.problems[0].value_and_gradient(theta)

    def hessian(self, theta, gradient=None):
        return lambda v: self.problems[0].hvp(theta, v)


def test_the_budget_of_r_ends_a_walk_too(held_out):
    flow = gf.RegularizingFlow(references.small_network().level_set, Twice(held_out))
    before = flow.problem.evaluations, held_out.evaluations
    ds = gf.walk(flow, max_evaluations=60)
    assert (ds.attrs["regularizer_name"], ds.attrs["status"]) == ("Twice", "max_evaluations")
    spent = flow.problem.evaluations - before[0], held_out.evaluations - before[1]
    assert 58 < spent[1] <= 60
    assert spent[0] < spent[1]


def test_a_walk_that_was_cut_off_goes_on_bit_for_bit(tmp_path, held_out, monkeypatch):
    flow = gf.RegularizingFlow(references.small_network().level_set, held_out)
    whole = gf.walk(flow, t_end=0.3, stop=None, archive=tmp_path / "whole.nc")
    path, calls = tmp_path / "walk.nc", []

    def cut(self, theta):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return value_and_gradient(self, theta)

    value_and_gradient = gf.Problem.value_and_gradient
    with monkeypatch.context() as patch:
        patch.setattr(gf.Problem, "value_and_gradient", cut)
        ds = gf.walk(flow, t_end=0.3, stop=None, archive=path)
        assert ds.attrs["status"] == "interrupted"
        ds.close()
    resumed = gf.resume(path, flow)
    assert [d for d in gf.diff(whole, resumed) if not d.agrees] == []


def test_another_problem_does_not_go_on_with_it(tmp_path, held_out):
    level_set, path = references.small_network().level_set, tmp_path / "walk.nc"
    gf.walk(gf.RegularizingFlow(level_set, held_out), t_end=0.05, stop=None, archive=path).close()
    data = references.small_data(n=16, seed=9)
    other = gf.Problem.from_module(references.small_module(), nn.functional.cross_entropy, *data)
    with pytest.raises(ArchiveError, match="regularizer's data"):
        gf.resume(path, gf.RegularizingFlow(level_set, other), t_end=0.1)
    with pytest.raises(ArchiveError, match=r"its regularizer .*'squared_norm'"):
        gf.resume(path, gf.RegularizingFlow(level_set, R.squared_norm), t_end=0.1)
    with pytest.raises(InputError, match="not of one of geoflow's experiments"):
        gf.resume(path, t_end=0.1)


def test_what_has_other_parameters_or_no_counts_is_refused(held_out):
    level_set = references.small_network().level_set
    other = gf.Problem.from_function(references.half_square, torch.ones(3, dtype=torch.float64))
    with pytest.raises(InputError, match="its theta0 has shape"):
        gf.RegularizingFlow(level_set, other)
    single = references.small_network(dtype=torch.float32).problem
    with pytest.raises(InputError, match="its theta0 has dtype"):
        gf.RegularizingFlow(level_set, single)

    class NoCounts:
        def value_and_gradient(self, theta):
            return held_out.value_and_gradient(theta)

    with pytest.raises(InputError, match="without theta0"):
        gf.RegularizingFlow(level_set, NoCounts())
    both = gf.LevelSet([held_out, references.small_network().problem]).problem
    with pytest.raises(InputError, match="it is several problems"):
        gf.RegularizingFlow(level_set, both)


def test_a_problem_of_the_level_set_is_not_counted_twice(held_out):
    level_set = gf.LevelSet([references.small_network().problem, held_out])
    assert gf.RegularizingFlow(level_set, held_out).regularizer_problems == ()


def test_walks_without_such_an_r_are_written_as_before(tmp_path):
    path = tmp_path / "walk.nc"
    ds = gf.walk(references.small_network(), t_end=0.01, stop=None, archive=path)
    assert ds.attrs["geoflow_schema"] == "1.0"
    assert "n_regularizer_gradient" not in ds
    assert "regularizer_data_sha256" not in ds.attrs
    assert json.loads(ds.attrs["config"])["rtol"] == 1e-3
    assert math.isfinite(float(ds["angle"][-1]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_walk_towards_a_point_is_resumed_with_its_flow_and_not_without(
    tmp_path, experiment, solver
):
    def flow(seed=5):
        level_set = references.small_network().level_set
        away = references._normal(level_set.problem.n_parameters, seed)
        return gf.RegularizingFlow(level_set, R.distance_to(level_set.problem.theta0 + 0.3 * away))

    whole, part = (tmp_path / f"{n}.nc" for n in ("whole", "part"))
    provenance = experiment.prepare(0).provenance
    options = {"rtol": 1e-4, "atol": 0.0, "stop": None, "provenance": provenance}
    ds = gf.walk(flow(), solver, t_end=0.1, archive=whole, **options)
    assert ds["regularizer"][-1] < ds["regularizer"][0]
    assert gf.validate(whole) == []
    gf.walk(flow(), solver, t_end=0.05, archive=part, **options).close()
    with pytest.raises(ArchiveError, match="regulari"):
        gf.resume(part, flow(seed=6), t_end=0.1)
    with pytest.raises(InputError, match="which an archive does not hold"):
        like(part)
    resumed = gf.resume(part, flow(), t_end=0.1)
    assert resumed.attrs["status"] == "t_end"
    assert np.allclose(resumed["theta"][-1], ds["theta"][-1], rtol=0, atol=2e-3)
