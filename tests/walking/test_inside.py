"""θ inside the steps: snapshots between them, and between snapshots."""

import functools

import numpy as np
import pytest
import torch
import xarray as xr

import geoflow as gf
import own_flow
import references
from geoflow.errors import InputError
from geoflow.solvers import Tolerance
from geoflow.walking import stream, streamed_snapshots

DENSE = ["exponential", "bdf", "rkc", "dopri5", "bosh3", "adaptive_heun"]


@functools.cache
def reference():
    return references.oja()


def walk(solver="exponential", flow=None, rtol=1e-5, t_end=1.0, **kwargs):
    flow = flow or reference().flow
    settings = {"rtol": rtol, "atol": 0.0, "stop": None, "t_end": t_end}
    return gf.walk(flow, solver, **settings | kwargs)


@pytest.mark.parametrize("solver", DENSE)
def test_a_thousand_snapshots_cost_some_gradients_a_step_and_change_none(solver):
    plain = walk(solver, max_snapshots=2)
    times = np.linspace(0.0, 1.0, 1001)
    ds = walk(solver, snapshot_times=times)
    assert np.array_equal(ds["snapshot_time"], times)
    # Where a few lie in a step they are records beside its end.
    steps = ds.isel(step=np.isin(ds["time"], plain["time"]))
    for name in ("time", "angle", "arc_length", "n_rejected", "error_estimate"):
        assert np.array_equal(steps[name], plain[name], equal_nan=True)
    assert np.array_equal(ds["theta"][-1], plain["theta"][-1])
    more = int(ds["n_gradient"][-1] - plain["n_gradient"][-1])
    assert 0 < more <= min(16 * (plain.sizes["step"] - 1), 1200)
    level_set = reference().flow.level_set
    losses = [references.half_square(torch.from_numpy(theta)) for theta in ds["theta"].values]
    assert max(abs(level_set.residual(loss)) for loss in losses) <= level_set.tolerance
    # Between the steps as near to the flow as at their ends.
    errors = [
        float((torch.from_numpy(theta) - reference().exact(t)).norm())
        for theta, t in zip(ds["theta"].values, times, strict=True)
    ]
    at_steps = [
        float((torch.from_numpy(theta) - reference().exact(float(t))).norm())
        for theta, t in zip(
            walk(solver, max_snapshots=10**4)["theta"].values, plain["time"].values, strict=True
        )
    ]
    size = float(reference().flow.problem.theta0.norm())
    assert max(errors) <= 1.5 * max(at_steps) + 0.5 * 1e-5 * size


@pytest.mark.parametrize("solver", ["exponential", "bdf", "rkc", "dopri5"])
@pytest.mark.parametrize("n", [100, 400])
def test_where_the_level_is_kept_closely_they_cost_no_more_than_one_by_one(solver, n):
    flow = reference().flow
    flow = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-11), flow.regularizer)
    # Of 400 by exponential the curve is right by chance at one, and three tolerances off beside.
    times = np.linspace(0.0, 1.0, n + 1)
    plain = walk(solver, flow, rtol=1e-4, max_snapshots=2)
    ds = walk(solver, flow, rtol=1e-4, snapshot_times=times)
    # One by one a snapshot takes a gradient or two; of dopri5's long steps the first ones three.
    assert int(ds["n_gradient"][-1] - plain["n_gradient"][-1]) <= 2.2 * n
    losses = [references.half_square(torch.from_numpy(theta)) for theta in ds["theta"].values]
    assert max(abs(flow.level_set.residual(x)) for x in losses) <= flow.level_set.tolerance
    assert np.array_equal(ds["theta"][-1], plain["theta"][-1])


@pytest.mark.parametrize("make", [references.narrow_valley, references.small_network])
def test_where_a_flow_is_stiff_they_lie_on_the_level_set_too(make):
    times = np.linspace(1e-4, 0.2, 400)
    flow = make()
    plain = walk(flow=make(), rtol=1e-3, t_end=0.2)
    ds = walk(flow=flow, rtol=1e-3, t_end=0.2, snapshot_times=times)
    assert np.array_equal(ds["theta"][-1], plain["theta"][-1])
    thetas = torch.from_numpy(ds["theta"].values)
    residuals = [flow.level_set.residual(flow.problem.loss(theta)) for theta in thetas]
    assert np.abs(residuals).max() <= flow.level_set.tolerance
    tight = references.tight(flow, list(times))
    off = np.linalg.norm(ds["theta"].values - tight, axis=1) / np.linalg.norm(tight, axis=1)
    assert off.max() <= 5e-3


@pytest.mark.parametrize(
    ("solver", "order", "longest"),
    # That of rkc is of third order, the step it is of of second.
    [("exponential", 3, 0.2), ("rkc", 2, 0.2), ("bosh3", 3, 0.2), ("dopri5", 4, 0.05)],
)
def test_an_interpolant_is_of_its_order(solver, order, longest):
    flow, tolerance = reference().flow, Tolerance(1.0, 0.0)
    tight = gf.RegularizingFlow(gf.LevelSet(flow.problem, level_rtol=1e-14), flow.regularizer)
    chosen = gf.solvers.get(solver)
    state, _ = tight.start(flow.problem.theta0)
    steps, errors = [longest / 2**k for k in range(4)], []
    for h in steps:
        carry = chosen.init(tight, state, tolerance) | {"step_size": h}
        result = chosen.step(tight, state, carry, tolerance, h)
        assert result.time == h
        middle, _ = tight.project(result.interpolant(0.4 * h))
        errors.append(float((middle.theta - reference().exact(0.4 * h)).norm()))
        ends = [result.interpolant(time) for time in (0.0, h)]
        for end, expected in zip(ends, (state.theta, result.state.theta), strict=True):
            assert torch.allclose(end, expected, rtol=1e-13, atol=1e-13)
    # Of one step, so one higher.
    assert abs(references.order_of_convergence(steps, errors) - (order + 1)) <= 0.3


def test_of_bdf_the_interpolant_goes_through_the_points_of_its_formula():
    flow, solver, tolerance = reference().flow, gf.solvers.BDF(), Tolerance(1e-8, 0.0)
    state, _ = flow.start(flow.problem.theta0)
    carry, time = solver.init(flow, state, tolerance), 0.0
    for _ in range(40):
        result = solver.step(flow, state, carry, tolerance, 1.0 - time)
        for part in (0.0, 0.3, 0.6, 1.0):
            theta = result.interpolant(part * result.time)
            exact = reference().exact(time + part * result.time)
            assert float((theta - exact).norm()) <= 3e-7
        state, carry, time = result.state, result.carry, time + result.time


def test_a_few_snapshots_are_records_of_their_own(network):
    times = [0.0, 0.01, 1 / 30, 0.2]
    ds = walk(flow=network, rtol=1e-3, t_end=0.3, snapshot_times=times)
    assert np.array_equal(ds["time"][ds["snapshot_step"]], times)
    assert np.isclose(ds["step_size"].sum(), 0.3, rtol=1e-12)


@pytest.mark.parametrize("solver", ["dopri8", "rk4"])
def test_without_an_interpolant_steps_end_at_the_snapshots(solver):
    times = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]
    ds = walk(solver, snapshot_times=times)
    assert np.array_equal(ds["time"][ds["snapshot_step"]], times)
    assert ds.attrs["geoflow_schema"] == "1.0"


def archived(path, **kwargs):
    return walk(
        archive=path, snapshot_times=np.linspace(0, 1, 301), observables={"first": first}, **kwargs
    )


def first(theta):
    return float(theta[0])


@pytest.mark.parametrize(
    "budget", [*(pytest.param(n, marks=pytest.mark.slow) for n in (15, 60, 110)), 160]
)
def test_streamed_and_resumed_they_are_the_same(tmp_path, monkeypatch, budget):
    monkeypatch.setattr(streamed_snapshots, "SNAPSHOTS_PER_PART", 7)
    monkeypatch.setattr(stream, "STEPS_PER_PART", 4)
    whole = archived(tmp_path / "whole.nc", max_evaluations=10_000).load()
    assert gf.validate(tmp_path / "whole.nc") == []
    assert whole.attrs["geoflow_schema"] == "1.1"
    assert np.array_equal(whole["first"], whole["theta"][:, 0])
    in_memory = walk(snapshot_times=np.linspace(0, 1, 301), observables={"first": first})
    assert in_memory.drop_vars("wall_time").equals(whole.drop_vars("wall_time"))
    archived(tmp_path / "cut.nc", max_evaluations=budget).close()
    with gf.resume(
        tmp_path / "cut.nc", reference().flow, max_evaluations=10_000, observables={"first": first}
    ) as resumed:
        drop = ["wall_time"]
        assert resumed.load().drop_vars(drop).equals(whole.drop_vars(drop))
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["cut.nc", "whole.nc"]


def test_of_a_flow_of_ones_own_they_are_had_too():
    flow, exact = own_flow.great_circle()
    times = np.linspace(0.01, 1.99, 200)
    ds = own_flow.walk(snapshot_times=times)
    plain = own_flow.walk()
    assert np.array_equal(ds["time"], plain["time"])
    for theta, t in zip(ds["theta"].values, times, strict=True):
        assert float((torch.from_numpy(theta) - exact(t)).norm()) <= 1e-6
    with pytest.raises(InputError, match="holds more than θ"):
        gf.interpolate(plain, [1.001], flow)


def test_a_scalar_is_interpolated_where_nothing_is_recorded():
    ds = walk(snapshot_times=np.linspace(0, 1, 101))
    found = gf.trajectories.dataset.at_snapshots(ds, "time")
    assert np.allclose(found, ds["snapshot_time"], rtol=1e-14)
    arc = gf.trajectories.dataset.at_snapshots(ds, "arc_length")
    assert (np.diff(arc) > 0).all()


@pytest.mark.parametrize("solver", ["exponential", "bdf", "dopri5", "dopri8", "rk4"])
def test_between_snapshots_theta_is_had_to_the_accuracy_of_the_walk(solver):
    ds = walk(solver, rtol=1e-6, snapshot_times=[0.0, 0.5, 1.0])
    times = [0.0, 1e-9, 0.2, 0.37, 0.5, 0.71, 0.99, 1.0]
    found = gf.interpolate(ds, times, reference().flow)
    assert isinstance(found, xr.DataArray)
    assert found.dims == ("time", "parameter")
    assert found["time"].values.tolist() == times
    assert found.attrs["units"] == found["time"].attrs["units"] == "1"
    for row, index in ((0, 0), (4, 1), (7, 2)):
        assert np.array_equal(found[row], ds["theta"][index])
    level_set = reference().flow.level_set
    for theta, t in zip(found.values, times, strict=True):
        theta = torch.from_numpy(theta)
        assert float((theta - reference().exact(t)).norm()) <= 1e-5
        assert abs(level_set.residual(references.half_square(theta))) <= level_set.tolerance


def test_at_a_snapshot_it_costs_nothing():
    ds = walk(snapshot_times=[0.0, 0.5])
    flow = reference().flow
    with flow.problem.budget(0):
        assert np.array_equal(gf.interpolate(ds, 0.5, flow)[0], ds["theta"][1])


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.05], "the walk has 0.1 to 1"),
        ([0.5, 1.1], "the walk has 0.1 to 1"),
        ([0.5, 0.5], "increasing"),
        ([], "increasing"),
        ([[0.5]], "increasing"),
        ([np.nan], r"times=\[nan\]; use increasing"),
    ],
)
def test_times_that_are_not_there_are_refused(times, message):
    ds = walk(snapshot_times=[0.1, 1.0])
    with pytest.raises(InputError, match=message):
        gf.interpolate(ds, times, reference().flow)


def test_another_flow_or_too_few_digits_are_refused(network):
    ds = walk(snapshot_times=[0.1, 1.0])
    with pytest.raises(InputError, match="flow: its data"):
        gf.interpolate(ds, [0.5], network)
    rounded = walk(rtol=1e-8, snapshot_times=[0.1, 1.0], theta_dtype="float32")
    with pytest.raises(InputError, match="walk again without theta_dtype"):
        gf.interpolate(rounded, [0.5], reference().flow)


def test_from_a_snapshot_between_two_records_the_level_is_compared_alone():
    ds = walk(snapshot_times=np.linspace(0, 1, 101))
    at = next(float(t) for t in ds["snapshot_time"].values if t not in ds["time"].values)
    at += 1e-4
    flow = reference().flow
    theta = torch.from_numpy(gf.interpolate(ds, [at], flow).values[0])
    assert float((theta - reference().exact(at)).norm()) <= 1e-4
    level_set = gf.LevelSet(flow.problem, flow.level_set.level * 1.001)
    with pytest.raises(InputError, match="flow: its data, parameters, dtype, level or R"):
        gf.interpolate(ds, [at], gf.RegularizingFlow(level_set, flow.regularizer))


def test_times_between_the_same_snapshots_share_their_steps():
    ds, problem = walk(snapshot_times=[0.0, 1.0]), reference().flow.problem

    def cost(times):
        before = problem.evaluations
        gf.interpolate(ds, times, reference().flow)
        return problem.evaluations - before

    # However many there are: some ten gradients a step.
    assert cost(np.linspace(0.01, 0.99, 990)) < cost([0.99]) + 300


def test_between_snapshots_another_r_of_the_same_name_is_seen():
    ds = walk(snapshot_times=[0.0, 0.5, 1.0])
    flow = reference().flow
    another = gf.RegularizingFlow(flow.level_set, lambda theta: 2 * flow.regularizer(theta))
    another.regularizer.__name__ = flow.regularizer_name
    with pytest.raises(InputError, match=r"flow: .* was recorded"):
        gf.interpolate(ds, [0.2], another)
    with pytest.raises(InputError, match="dtype"):
        gf.interpolate(ds.assign_attrs(dtype="float32"), [0.2], flow)
    with pytest.raises(InputError, match="solver='dopri5'"):
        gf.interpolate(ds, [0.2], flow, solver="dopri5")


def test_in_the_dtype_of_the_walk_snapshots_are_its_own_points_at_any_tolerance():
    def flow():
        theta0 = torch.tensor([1.0, 1.0], dtype=torch.float32)
        problem = gf.Problem.from_function(lambda theta: theta @ theta, theta0)
        level_set = gf.LevelSet(problem, level_rtol=1e-5)
        return gf.RegularizingFlow(level_set, lambda theta: theta[0])

    # To what float32 resolves of a walk, and 100 units of rounding do not.
    ds = gf.walk(flow(), "bdf", 1e-5, 1e-7, t_end=1.0, stop=None, snapshot_times=[0.0, 0.5, 1.0])
    found = gf.interpolate(ds, [0.25, 0.5, 0.75], flow())
    assert found.dtype == np.float32
    assert np.array_equal(found[1], ds["theta"][1])
    fine = gf.walk(flow(), "bdf", 1e-5, 1e-7, t_end=1.0, stop=None, snapshot_times=[0.25, 0.75])
    assert np.abs(found.values[[0, 2]] - fine["theta"].values).max() <= 2e-4
