import json
import math

import numpy as np
import pytest
import torch

import geoflow as gf
import invariants
import references
from geoflow.errors import ArchiveError, ConvergenceError, CriticalPointError, InputError
from geoflow.solvers import TorchDiffEq


def test_a_walk_ends_at_the_angle_asked(network):
    ds = gf.walk(network, stop=gf.Stationary(150.0))
    assert ds.attrs["status"] == "stationary"
    assert ds["angle"].values[-1] >= 150
    assert (ds["angle"].values[:-1] < 150).all()
    invariants.check_walk(ds, network)


def test_a_walk_ends_at_the_constrained_minimum():
    flow = references.ellipsoid()
    ds = gf.walk(flow, rtol=1e-6, stop=None, t_end=12.0)
    # The least ‖θ‖² with ½θᵀDθ = c lies on the axis of the largest D: θ = √(2c/5) e₄.
    end = ds["theta"].values[-1]
    assert np.allclose(np.abs(end), [0, 0, 0, math.sqrt(2 * flow.level_set.level / 5)], atol=1e-3)
    assert math.isclose(float(ds["multiplier"][-1]), -2 / 5, rel_tol=1e-5)
    # L grows along with R there: parallel gradients, the other kind of KKT point.
    assert ds["angle"][-1] < 0.1


def test_time_ends_a_walk_exactly(sphere):
    ds = gf.walk(sphere.flow, t_end=0.3, stop=None)
    assert ds.attrs["status"] == "t_end"
    assert float(ds["time"][-1]) == 0.3


@pytest.mark.parametrize("budget", [1, 5, 10, 37])
def test_the_budget_is_never_passed_and_the_walk_so_far_kept(network, budget):
    ds = gf.walk(network, "dopri5", stop=None, max_evaluations=budget)
    assert ds.attrs["status"] == "max_evaluations"
    assert 0 < int(ds["n_gradient"][-1]) <= budget
    invariants.check_walk(ds, network)


def test_plateau(network):
    ds = gf.walk(network, stop=gf.Plateau(window=0.5, rtol=0.3))
    assert ds.attrs["status"] == "plateau"


def test_snapshots_at_exact_times(network):
    times = [0.0, 0.01, 1 / 30, 0.2]
    ds = gf.walk(network, t_end=0.3, stop=None, snapshot_times=times)
    assert ds["snapshot_time"].values.tolist() == times
    invariants.check_walk(ds, network)


def test_snapshots_at_an_interval(network):
    ds = gf.walk(network, t_end=0.35, stop=None, snapshot_every=0.1)
    assert np.allclose(ds["snapshot_time"], [0, 0.1, 0.2, 0.3], rtol=1e-14)


def test_thinned_snapshots_keep_first_and_last(network):
    solver = TorchDiffEq("euler", step_size=1e-3)
    ds = gf.walk(network, solver, t_end=0.1, stop=None, max_snapshots=10)
    steps = ds["snapshot_step"].values
    assert (steps[0], steps[-1]) == (0, ds.sizes["step"] - 1)
    assert 4 <= len(steps) <= 10


def test_observables_are_evaluated_at_the_snapshots(network):
    norm = {"norm": lambda theta: theta.norm().item()}
    ds = gf.walk(network, t_end=0.1, stop=None, observables=norm)
    assert np.allclose(ds["norm"], np.linalg.norm(ds["theta"], axis=1), rtol=1e-14)
    assert np.allclose(ds["norm"] ** 2, ds["regularizer"][ds["snapshot_step"]], rtol=1e-12)


def test_arc_length_is_that_of_the_polygon(network):
    ds = gf.walk(network, t_end=0.1, stop=None)
    assert ds.sizes["snapshot"] == ds.sizes["step"]
    steps = np.linalg.norm(np.diff(ds["theta"].values, axis=0), axis=1)
    assert np.allclose(np.diff(ds["arc_length"]), steps, rtol=1e-10)


def test_ctrl_c_keeps_what_there_is(network):
    calls = []

    def observable(theta):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return 0.0

    ds = gf.walk(network, stop=None, observables={"o": observable})
    assert ds.attrs["status"] == "interrupted"
    # A step is recorded with its snapshot or not at all.
    assert ds.sizes["step"] == 3
    invariants.check_walk(ds, network)


def test_the_same_problem_gives_the_same_numbers():
    a, b = (gf.walk(references.small_network(), t_end=0.2, stop=None) for _ in range(2))
    drop = ["wall_time"]
    assert a.drop_vars(drop).equals(b.drop_vars(drop))
    assert a.attrs["config"] == b.attrs["config"]


def test_float32_walks(network):
    flow = references.small_network(dtype=torch.float32)
    ds = gf.walk(flow, rtol=1e-3, t_end=0.2, stop=None, snapshot_times=[0.2])
    exact = gf.walk(network, rtol=1e-8, t_end=0.2, stop=None, snapshot_times=[0.2])
    assert ds["theta"].dtype == np.float32
    assert np.abs(ds["level_residual"]).max() <= 2e-6 * flow.level_set.level
    error = np.linalg.norm(ds["theta"] - exact["theta"]) / np.linalg.norm(exact["theta"])
    assert error < 1e-2


def test_a_level_other_than_the_start_is_walked_to_first(network):
    flow = gf.RegularizingFlow(
        gf.LevelSet(network.problem, 0.8 * network.level_set.level), network.regularizer
    )
    ds = gf.walk(flow, t_end=0.1, stop=None)
    assert int(ds["n_reprojection"][0]) > 0
    invariants.check_walk(ds, flow)


def test_a_level_that_cannot_be_reached_is_an_error():
    problem = gf.Problem.from_function(
        lambda t: 1 + references.half_square(t), torch.ones(2, dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 0.5), lambda t: t[0])
    # There are no steps yet that could be smaller.
    remedy = r"\); train further, or choose a level .* reach, nearer to the L = 2 of the start$"
    with pytest.raises(ConvergenceError, match=remedy):
        gf.walk(flow)


def test_a_start_at_a_critical_point_is_an_error():
    problem = gf.Problem.from_function(
        lambda t: 1 + references.half_square(t), torch.zeros(2, dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem, 1.5), lambda t: t[0])
    with pytest.raises(CriticalPointError):
        gf.walk(flow)


def cliff(theta):
    """Smooth up to θ₀ = 1, not defined beyond it."""
    return 0.5 * torch.dot(theta, theta) + torch.where(theta[0] < 0.5, 0.0, torch.nan)


def test_a_wall_of_nan_ends_the_walk_with_a_status_and_keeps_it():
    problem = gf.Problem.from_function(cliff, torch.tensor([-0.5, 1.0], dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: -theta[0])
    ds = gf.walk(flow, "dopri5", stop=None, t_end=10.0)
    assert ds.attrs["status"] == "step_size_underflow"
    assert "step size underflow" in ds.attrs["status_message"]
    assert 0.4 < ds["theta"].values[-1, 0] < 0.5


def test_a_fixed_step_too_long_ends_the_walk_with_a_status():
    problem = gf.Problem.from_function(cliff, torch.tensor([-0.5, 1.0], dtype=torch.float64))
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: -theta[0])
    ds = gf.walk(flow, TorchDiffEq("rk4", step_size=2.0), stop=None, t_end=10.0)
    assert ds.attrs["status"] == "step_size_underflow"
    assert "smaller step_size" in ds.attrs["status_message"]


def test_failed_projection_ends_the_walk_with_a_status():
    problem = gf.Problem.from_function(
        lambda t: torch.exp(0.5 * torch.dot(t, t)), torch.tensor([1.0, 0.0], dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: -theta[1])
    ds = gf.walk(flow, TorchDiffEq("euler", step_size=9.0), stop=None, t_end=100.0)
    assert ds.attrs["status"] == "projection_failed"
    assert ds.sizes["step"] == 1


def test_config_is_enough_to_make_the_walk_again(network):
    ds = gf.walk(
        network, "bosh3", rtol=1e-4, t_end=0.1, provenance={"title": "T", "experiment": "e"}
    )
    config = json.loads(ds.attrs["config"])
    assert config["solver"]["name"] == "bosh3"
    assert config["rtol"] == 1e-4
    assert config["t_end"] == 0.1
    assert config["stop"] == {"name": "Stationary", "degrees": 175.0}
    assert (ds.attrs["title"], ds.attrs["experiment"], ds.attrs["seed"]) == ("T", "e", -1)


BAD = [
    ({"solver": "newton"}, "solver='newton'"),
    ({"rtol": 0.0}, "rtol=0.0"),
    ({"rtol": -1e-3}, "rtol=-0.001"),
    ({"rtol": math.nan}, "rtol=nan"),
    ({"rtol": 1e-16}, "below what torch.float64 resolves"),
    ({"atol": -1.0}, "atol=-1.0"),
    ({"t_end": 0.0}, "t_end=0.0"),
    ({"max_evaluations": 0}, "max_evaluations=0"),
    ({"snapshot_times": [1.0], "snapshot_every": 1.0}, "choose one"),
    ({"max_snapshots": 1}, "max_snapshots=1"),
    ({"max_snapshots": 10**12}, r"keep fewer \(max_snapshots\)"),
    ({"observables": {"angle": lambda t: 0.0}}, "'angle' is taken"),
    ({"observables": {"o": lambda t: None}}, r"observables\['o'\] gave no number"),
    ({"solver": TorchDiffEq("rk4"), "reproject_every": 0.1}, "reproject_every=0.1"),
    ({"archive": "no/such/folder/x.nc"}, "does not exist; create it"),
    ({"archive": "/proc/x.nc"}, "cannot be written"),
    ({"archive": "."}, "is a folder"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input_names_the_argument_and_the_remedy(network, kwargs, message):
    with pytest.raises(InputError, match=message):
        gf.walk(network, **kwargs)


def test_rtol_below_float32s_resolution_is_refused():
    flow = references.small_network(dtype=torch.float32)
    with pytest.raises(InputError, match=r"below what torch\.float32 resolves"):
        gf.walk(flow, rtol=1e-8)


def test_an_archive_is_written_and_not_overwritten(network, tmp_path):
    path = tmp_path / "walk.nc"
    ds = gf.walk(network, t_end=0.1, archive=path)
    with gf.open_trajectory(path) as reopened:
        assert reopened.load().identical(ds)
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists; choose another name"):
        gf.walk(network, t_end=0.2, archive=path)
    assert path.read_bytes() == before
    gf.walk(network, t_end=0.2, archive=path, overwrite=True)
    assert path.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(network, tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    ds = gf.walk(network, t_end=0.1, archive=path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArchiveError, match="No space left on device"):
        gf.save_trajectory(ds, path, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_a_dataset_that_is_no_trajectory_is_not_written(network, tmp_path):
    ds = gf.walk(network, t_end=0.1).drop_vars("angle")
    with pytest.raises(ArchiveError, match="variable angle is missing"):
        gf.save_trajectory(ds, tmp_path / "walk.nc")
    assert list(tmp_path.iterdir()) == []
