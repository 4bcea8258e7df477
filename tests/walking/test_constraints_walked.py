"""Walks on several constraints: beside exact solutions, archived, resumed and run again."""

import json
import math

import netCDF4
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import minimize
from torch import nn

import geoflow as gf
import references
from geoflow import cli
from geoflow.archive import seal
from geoflow.errors import ArchiveError, InputError
from geoflow.experiments.registry import registered
from geoflow.walking.rerunning import like

R = gf.regularizers
SOLVERS = ["exponential", "bdf", "rkc", "dopri5"]
EXACT = {
    "linear on a circle": references.linear_on_a_circle,
    "Oja on a circle": references.oja_on_a_circle,
    "squared norm on an ellipsoid": references.squared_norm_on_an_ellipsoid,
}


def at_times(flow, solver, rtol, times):
    problems = getattr(flow.problem, "problems", flow.problem)
    tight = gf.RegularizingFlow(gf.LevelSet(problems, level_rtol=1e-13), flow.regularizer)
    return gf.walk(
        tight, solver, rtol=rtol, atol=0.0, t_end=times[-1], stop=None, snapshot_times=times
    )


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", EXACT)
def test_a_walk_follows_the_exact_solution(name, solver):
    reference = EXACT[name]()
    times = [0.1, 0.25, 0.7]
    errors = []
    for rtol in (1e-4, 1e-6):
        ds = at_times(reference.flow, solver, rtol, times)
        thetas = torch.from_numpy(ds["theta"].values)
        expected = torch.stack([reference.exact(t) for t in times])
        errors.append(float((thetas - expected).norm(dim=1).max()))
    assert errors[0] < 1e-2
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize(("solver", "order"), [("exponential", 3), ("rkc", 2)])
def test_the_order_of_a_solver_is_what_it_is_for_one_constraint(solver, order):
    """Of the steps made, by the errors: over the circle with a stiff and a slow part of R."""
    reference = references.oja_on_a_circle()
    steps, errors = [], []
    for rtol in (1e-4, 1e-5, 1e-6, 1e-7):
        ds = at_times(reference.flow, solver, rtol, [0.5])
        steps.append(0.5 / (ds.sizes["step"] - 1))
        errors.append(
            float((torch.from_numpy(ds["theta"].values[-1]) - reference.exact(0.5)).norm())
        )
    assert references.order_of_convergence(steps, errors) > order - 0.5


def ellipsoids():
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    axes = torch.linspace(1, 3, 6, dtype=torch.float64)
    losses = [
        lambda t: 0.5 * torch.dot(t, axes * t),
        lambda t: 0.5 * torch.dot(t - 0.3, axes.flip(0) * (t - 0.3)),
    ]
    return [gf.Problem.from_function(loss, start) for loss in losses]


# The default one each time, and the others where all tests are run.
MAINLY_BDF = ["bdf", *(pytest.param(s, marks=pytest.mark.slow) for s in ("exponential", "rkc"))]

KKT = {
    "l1, one": (lambda: ellipsoids()[:1], R.l1(epsilon=0.1)),
    "squared norm, two": (ellipsoids, R.squared_norm),
    "l1, two": (ellipsoids, R.l1(epsilon=0.1)),
}


@pytest.mark.parametrize("solver", MAINLY_BDF)
@pytest.mark.parametrize("name", KKT)
def test_a_walk_ends_at_the_kkt_point_that_slsqp_finds(name, solver):
    problems, regularizer = KKT[name]
    problems = problems()
    flow = gf.RegularizingFlow(gf.LevelSet(problems, level_rtol=1e-14), regularizer)
    # R is least with negative multipliers here, where a stop by the angle says so and ends.
    # The slowest rate of the three flows at rest is a tenth: θ is as far off as ten times this.
    stop = gf.Event("tangent_norm", -1, value=5e-10)
    ds = gf.walk(flow, solver, rtol=1e-7, atol=0.0, stop=stop, t_end=1000.0)
    assert ds.attrs["status"] == "event"
    theta = ds["theta"].values[-1]

    def constraint(problem, level):
        return {
            "type": "eq",
            "fun": lambda x: float(problem.loss(torch.from_numpy(x))) - level,
            "jac": lambda x: problem.value_and_gradient(torch.from_numpy(x))[1].numpy(),
        }

    found = minimize(
        lambda x: float(regularizer(torch.from_numpy(x))),
        theta + 1e-3,
        jac=lambda x: torch.func.grad(regularizer)(torch.from_numpy(x)).numpy(),
        constraints=[
            constraint(*pair) for pair in zip(problems, flow.level_set.levels, strict=True)
        ],
        method="SLSQP",
        options={"ftol": 1e-20, "maxiter": 500},
    )
    # SLSQP's point is not exact either.
    left = flow.evaluate(torch.from_numpy(found.x)).tangent_norm
    assert left < 1e-8
    assert np.abs(theta - found.x).max() < 10 * (5e-10 + left)
    assert abs(float(ds["regularizer"][-1]) - found.fun) < 1e-8
    if len(problems) > 1:
        multipliers = ds["constraint_multiplier"].values[-1]
        gradients = np.stack([c.value_and_gradient(torch.from_numpy(theta))[1] for c in problems])
        slope = torch.func.grad(regularizer)(torch.from_numpy(theta)).numpy()
        assert np.abs(slope + multipliers @ gradients).max() < 1e-6


def test_the_least_norm_on_an_ellipsoid_is_on_its_shortest_axis():
    flow = gf.RegularizingFlow(gf.LevelSet(ellipsoids()[0], level_rtol=1e-14), R.squared_norm)
    stop = gf.Event("tangent_norm", -1, value=1e-9)
    ds = gf.walk(flow, rtol=1e-6, atol=0.0, stop=stop, t_end=200.0)
    expected = np.zeros(6)
    expected[5] = math.copysign(
        math.sqrt(2 * flow.level_set.level / 3), float(flow.problem.theta0[5])
    )
    assert np.abs(ds["theta"].values[-1] - expected).max() < 1e-8


def test_l1_on_an_ellipsoid_is_that_of_its_formula():
    problem, epsilon = ellipsoids()[0], 0.1
    axes, start = np.linspace(1, 3, 6), problem.theta0.numpy()

    def velocity(t, x):
        r, g = x / np.sqrt(x**2 + epsilon**2), axes * x
        return -(r - g * (g @ r) / (g @ g))

    times = [0.2, 1.0, 3.0]
    expected = solve_ivp(velocity, (0, 3.0), start, "Radau", times, rtol=1e-11, atol=1e-12).y.T
    flow = gf.RegularizingFlow(gf.LevelSet(problem), R.l1(epsilon=epsilon))
    for solver in SOLVERS:
        ds = at_times(flow, solver, 1e-7, times)
        assert np.abs(ds["theta"].values - expected).max() < 1e-4


def small(seed):
    return gf.experiments.PreparedExperiment(references.small_network().problem)


@pytest.fixture
def experiment():
    own = gf.experiments.OwnExperiment("small", small)
    with registered(own):
        yield own


@pytest.mark.parametrize(
    "solver", ["bdf", *(pytest.param(s, marks=pytest.mark.slow) for s in ("exponential", "rkc"))]
)
@pytest.mark.parametrize("divided", [gf.by_class, gf.each_example])
def test_each_constraint_is_kept_archived_resumed_and_run_again(
    tmp_path, experiment, divided, solver
):
    prepared = experiment.prepare(0)
    problem = divided(prepared.problem)
    level_set = gf.LevelSet(problem)
    flow = gf.RegularizingFlow(level_set, R.squared_norm)
    whole, cut, again = (tmp_path / f"{name}.nc" for name in ("whole", "cut", "again"))
    options = {"rtol": 1e-4, "stop": None, "provenance": prepared.provenance}
    ds = gf.walk(flow, solver, t_end=0.05, archive=whole, **options)
    assert (ds.attrs["status"], ds.attrs["geoflow_schema"]) == ("t_end", "1.2")
    assert gf.validate(whole) == []
    assert ds["regularizer"][-1] < ds["regularizer"][0]
    n = level_set.n_constraints
    assert ds["constraint_residual"].dims == ("step", "constraint")
    assert ds["constraint_multiplier"].shape == (ds.sizes["step"], n)
    assert np.array_equal(ds["constraint_level"], level_set.levels)
    assert "constraint_level" in ds.coords
    # Those of each example, from the network itself.
    for i, step in enumerate(ds["snapshot_step"].values):
        theta = torch.from_numpy(ds["theta"].values[i])
        residuals = problem.loss(theta).numpy() - level_set.levels
        assert np.allclose(ds["constraint_residual"][step], residuals, rtol=0, atol=1e-15)
        state = flow.evaluate(theta)
        assert np.allclose(ds["constraint_multiplier"][step], state.multipliers, rtol=1e-6)
    assert (abs(ds["constraint_residual"].values) <= 1e-6 * level_set.levels).all()
    assert json.loads(ds.attrs["config"])["constraints"] == divided.__name__

    flow = gf.RegularizingFlow(gf.LevelSet(divided(experiment.prepare(0).problem)), R.squared_norm)
    part = gf.walk(flow, solver, max_evaluations=20, archive=cut, t_end=0.05, **options)
    assert part.attrs["status"] == "max_evaluations"
    part.close()
    resumed = gf.resume(cut, max_evaluations=100_000)
    for name in ("theta", "constraint_residual", "constraint_multiplier", "n_gradient"):
        assert np.array_equal(resumed[name], ds[name])

    run = like(whole)
    run_again = run.prepare()
    same = gf.walk(
        run.flow(run_again), **vars(run.walk), provenance=run_again.provenance, archive=again
    )
    assert [d for d in gf.diff(ds, same) if not d.agrees] == []


@pytest.mark.parametrize("solver", MAINLY_BDF)
@pytest.mark.parametrize(
    "name",
    [
        "margin:sign=-1",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("jacobian_norm", "path_norm", "gradient_norm", "hessian_trace")
        ),
    ],
)
def test_r_of_the_network_or_its_loss_is_that_of_the_whole_problem(
    tmp_path, experiment, name, solver
):
    prepared = experiment.prepare(0)
    flow = gf.RegularizingFlow(gf.LevelSet(gf.by_class(prepared.problem)), R.get(name))
    of_whole = gf.RegularizingFlow(gf.LevelSet(experiment.prepare(0).problem), R.get(name))
    theta = prepared.problem.theta0
    assert flow.evaluate(theta).regularizer == of_whole.evaluate(theta).regularizer
    path, again = tmp_path / "walk.nc", tmp_path / "again.nc"
    options = {"stop": None, "provenance": prepared.provenance, "max_evaluations": 400}
    ds = gf.walk(flow, solver, rtol=1e-4, archive=path, **options)
    assert ds.attrs["regularizer_name"] == name
    assert ds["regularizer"][-1] < ds["regularizer"][0]
    assert (abs(ds["constraint_residual"]) <= 1e-6 * ds["constraint_level"]).all()
    assert gf.validate(path) == []
    with gf.resume(path, max_evaluations=440) as longer:
        assert longer["regularizer"][-1] <= ds["regularizer"][-1]
    ds.close()
    run = like(path)
    run_again = run.prepare()
    same = gf.walk(
        run.flow(run_again), **vars(run.walk), provenance=run_again.provenance, archive=again
    )
    with gf.open_trajectory(path) as longer:
        assert [d for d in gf.diff(longer, same) if not d.agrees] == []


def test_constraints_on_the_command_line(tmp_path):
    path, again = tmp_path / "walk.nc", tmp_path / "again.nc"
    options = ["--constraints", "by_class", "--stop", "none", "--t-end", "0.01", "--quiet"]
    assert cli.main(["run", "iris_ff", "--out", str(path), *options]) == 0
    assert cli.main(["run", "--like", str(path), "--out", str(again), "--quiet"]) == 0
    assert cli.main(["diff", str(path), str(again)]) == 0
    assert cli.main(["validate", str(path)]) == 0
    with gf.open_trajectory(again) as ds:
        assert ds.sizes["constraint"] == 3


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("constraint_levels", "[1.0, 2.0]", "constraint_level is not what the attribute"),
        ("constraint_levels", "[1.0]", "attribute constraint_levels cannot be used"),
        ("constraint_levels", '["a", "b"]', "attribute constraint_levels cannot be used"),
        ("constraints", "by_sign", "config: constraints are 'by_sign'"),
        ("level_atol", -1.0, "config: level_atol is '-1.0'"),
    ],
)
def test_a_file_that_was_tampered_with_is_seen(tmp_path, attribute, value, message):
    flow = gf.RegularizingFlow(
        gf.LevelSet(gf.by_class(references.small_network().problem)), R.squared_norm
    )
    path = tmp_path / "walk.nc"
    gf.walk(flow, "dopri5", t_end=0.01, stop=None, archive=path).close()
    with netCDF4.Dataset(path, "a") as file:
        if attribute == "constraint_levels":
            file.setncattr(attribute, value)
        else:
            file.config = json.dumps({**json.loads(file.config), attribute: value})
    assert any(message in defect for defect in gf.validate(path))


def test_several_problems_of_ones_own_are_resumed_with_their_flow_and_not_without(tmp_path):
    def flow(level=None):
        first, second = (references.small_data(n=12, seed=seed) for seed in (1, 8))
        problems = [
            gf.Problem.from_module(references.small_module(), nn.functional.cross_entropy, *data)
            for data in (first, second)
        ]
        return gf.RegularizingFlow(gf.LevelSet(problems, level), R.squared_norm)

    paths = [tmp_path / f"{name}.nc" for name in ("long", "short")]
    for path, t_end in zip(paths, (0.1, 0.05), strict=True):
        gf.walk(flow(), t_end=t_end, stop=None, archive=path).close()
    resumed = gf.resume(paths[1], flow(), t_end=0.1)
    with gf.open_trajectory(paths[0]) as ds:
        assert float(abs(ds["theta"][-1] - resumed["theta"][-1]).max()) < 1e-2
        at = gf.interpolate(ds, [0.02], flow())
        assert (
            gf.LevelSet(flow().problem, ds["constraint_level"].values).distance(
                *flow().problem.value_and_gradient(torch.from_numpy(at.values[0]))
            )
            < 1e-5
        )
    with pytest.raises(ArchiveError, match="its level is not that of the walk"):
        gf.resume(paths[1], flow([None, 0.5]), t_end=0.2)
    with pytest.raises(InputError, match="not of one of geoflow's experiments"):
        gf.resume(paths[1], t_end=0.2)
    # Levels that were changed since, in all places that have them.
    other = flow()
    changed = other.level_set.levels * [1.0, 1.1]
    path = tmp_path / "changed.nc"
    path.write_bytes(paths[1].read_bytes()[: -seal.LENGTH])
    with netCDF4.Dataset(path, "a") as file:
        file["constraint_level"][:] = changed
        file.setncattr("constraint_levels", json.dumps(changed.tolist()))
        file.setncattr("level", changed.mean())
    seal.append(path)
    before = path.read_bytes()
    said = "constraint_residual is not the losses less constraint_levels"
    assert said in gf.validate(path)
    with pytest.raises(ArchiveError, match=said):
        gf.resume(path, flow(list(changed)), t_end=0.2)
    assert path.read_bytes() == before


def test_the_angle_tells_a_kkt_point_whatever_the_signs_of_the_multipliers():
    flow = references.linear_on_a_circle().flow
    ds = gf.walk(flow, "dopri5", stop=gf.Stationary(179.0), t_end=30.0)
    assert ds.attrs["status"] == "stationary"
    assert math.isclose(float(ds["angle"][-1]), 179.0, abs_tol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc"])
def test_the_losses_of_all_examples_of_iris_are_kept_to_1e_8(solver):
    problem = gf.experiments.get("iris_ff").prepare(0).problem
    single = gf.RegularizingFlow(gf.LevelSet(problem), R.squared_norm)
    options = {"t_end": 0.05, "stop": None, "max_evaluations": 1000}
    mean = gf.walk(single, solver, **options)
    level_set = gf.LevelSet(gf.each_example(problem), level_rtol=1e-10, level_atol=5e-9)
    # One of the 120 is there twice.
    assert level_set.n_constraints == 119
    ds = gf.walk(gf.RegularizingFlow(level_set, R.squared_norm), solver, **options)
    assert ds.attrs["status"] == "t_end"
    assert float(abs(ds["constraint_residual"]).max()) <= 1e-8
    assert ds["regularizer"][-1] < ds["regularizer"][0]
    each, all_ = (int(d["n_gradient"][-1]) / (d.sizes["step"] - 1) for d in (ds, mean))
    assert each <= 3 * all_
