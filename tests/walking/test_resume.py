"""Resuming: whatever ended a walk, it becomes what it would have been, bit for bit."""

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import crashes
import geoflow as gf
import invariants
import references
from geoflow.archive import parts, trajectory_files
from geoflow.archive.parts import is_resumable
from geoflow.archive.saved import saved
from geoflow.errors import ArchiveError, InputError
from geoflow.solvers import TorchDiffEq
from geoflow.walking import stream, streamed_snapshots

# Each instant takes some seconds: a few in the quick tests, all 25 with the slow ones.
INSTANTS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 25))]


@pytest.mark.parametrize("seed", INSTANTS)
def test_killed_at_any_instant_a_walk_resumes_to_the_same_bits(whole, seed, tmp_path):
    solver = list(whole)[seed % len(whole)]
    uninterrupted = whole[solver]
    path, interval = tmp_path / "walk.nc", (0.0, 0.05)[seed % 2]
    rng = random.Random(seed)
    n_steps = uninterrupted.sizes["step"]
    seconds = float(uninterrupted["wall_time"][-1]) / n_steps
    process, receive = crashes.start(crashes.report_steps, solver, path, interval)
    reports = [receive.recv() for _ in range(rng.randint(1, n_steps))]
    time.sleep(rng.uniform(0, 5) * seconds)
    process.kill()
    process.join()
    while receive.poll():
        try:
            reports.append(receive.recv())
        except EOFError:
            break

    if is_resumable(path):
        n_saved = saved(path).checkpoint.n_steps
        due = reports[-1][1] - interval
        assert n_saved >= max([n for n, wall_time in reports if wall_time <= due], default=0)
        resumed = crashes.resume(path)
    else:
        resumed = crashes.gf.open_trajectory(path)
    with resumed:
        assert invariants.same(resumed, uninterrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


@pytest.mark.parametrize("solver", ["exponential", "dopri5"])
def test_extended_to_a_further_angle_a_walk_is_the_one_that_went_there_at_once(solver, tmp_path):
    def walk(name, degrees):
        return gf.walk(
            references.small_network(),
            solver,
            stop=gf.Stationary(degrees),
            max_snapshots=8,
            archive=tmp_path / name,
        )

    walk("short.nc", 140.0).close()
    long = walk("long.nc", 150.0)
    resumed = gf.resume(
        tmp_path / "short.nc", references.small_network(), stop=gf.Stationary(150.0)
    )
    assert invariants.same(resumed, long)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.nc", "short.nc"]


def test_extended_in_time_or_budget_a_walk_goes_on_where_it_ended(tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.1).close()
    with pytest.raises(InputError, match=r"has ended, t_end: .* name a further goal"):
        crashes.resume(path)
    with crashes.resume(path, t_end=0.2) as ds:
        assert float(ds["time"][-1]) == 0.2
        assert json.loads(ds.attrs["config"])["t_end"] == 0.2
        spent = int(ds["n_gradient"][-1])
    with crashes.resume(path, max_evaluations=spent + 20, t_end=9.0) as ds:
        assert ds.attrs["status"] == "max_evaluations"
        assert spent < int(ds["n_gradient"][-1]) <= spent + 20
    with crashes.resume(path, t_end=5.0) as ds:
        assert ds.attrs["status"] == "t_end"
        assert json.loads(ds.attrs["config"])["max_evaluations"] == 100_000


def test_times_asked_for_are_kept_across_a_resume(tmp_path):
    path, settings = tmp_path / "walk.nc", {"snapshot_times": [0.0, 0.05, 0.15], "max_snapshots": 5}
    crashes.walk("dopri5", path, t_end=0.1, **settings).close()
    with crashes.resume(path, t_end=0.2) as ds:
        assert ds["snapshot_time"].values.tolist() == settings["snapshot_times"]


def other_data():
    inputs, targets = references.small_data(seed=2)
    problem = gf.Problem.from_module(
        references.small_module(), torch.nn.functional.cross_entropy, inputs, targets
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def other_network():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 9), torch.nn.Tanh(), torch.nn.Linear(9, 2))
    problem = gf.Problem.from_module(
        module, torch.nn.functional.cross_entropy, *references.small_data()
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def other_loss():
    def loss(outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets, label_smoothing=0.1)

    flow = references.small_network()
    problem = gf.Problem.from_module(references.small_module(), loss, *references.small_data())
    return gf.RegularizingFlow(
        gf.LevelSet(problem, flow.level_set.level), gf.regularizers.squared_norm
    )


def other_regularizer():
    flow = references.small_network()
    return gf.RegularizingFlow(flow.level_set, gf.regularizers.quartic_norm)


def other_gradient_alone():
    """R of the same value where the walk stands, and another gradient (faults A8)."""
    flow = references.small_network()
    with gf.walk(flow, t_end=0.05, stop=None).load() as ds:
        end = torch.from_numpy(ds["theta"].values[-1])

    def squared_norm(theta):
        return theta @ theta + 0.1 * (theta - end).sum()

    return gf.RegularizingFlow(flow.level_set, squared_norm)


def other_level():
    flow = references.small_network()
    return gf.RegularizingFlow(gf.LevelSet(flow.problem, 0.1), gf.regularizers.squared_norm)


def other_tolerance():
    level_set = gf.LevelSet(references.small_network().problem, level_atol=1e-9)
    return gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (other_tolerance, "its level_atol"),
        (other_data, "its data"),
        (other_network, "its network's tensors"),
        (other_loss, "the loss is .* was recorded"),
        (other_regularizer, "its regularizer .*'quartic_norm'"),
        (other_level, "its level "),
        (other_gradient_alone, "the gradient of the regularisation function .* recorded"),
        (lambda: references.small_network(dtype=torch.float32), "its dtype"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_walk_goes_on_only_with_what_it_began_with(flow, message, tmp_path):
    path = tmp_path / "walk.nc"
    gf.walk(references.small_network(), t_end=0.05, stop=None, archive=path).close()
    before = path.read_bytes()
    with pytest.raises(ArchiveError, match=message):
        gf.resume(path, flow(), t_end=0.1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({"max_evaluations": 1}, r"max_evaluations=1: the walk has spent \d+ already"),
        ({"stop": gf.Stationary(135.0)}, "stop: the angle .* so it has ended already"),
        ({"t_end": 1e-9}, "t_end: the walk reached flow time 1e-09, so it has ended already"),
        # Along with one that is ahead, too.
        ({"t_end": 1e-9, "max_evaluations": 10**5}, "t_end: the walk reached"),
    ],
)
def test_a_goal_that_is_passed_is_refused_and_nothing_is_touched(goal, message, tmp_path):
    path = tmp_path / "walk.nc"
    flow = references.small_network()
    gf.walk(flow, stop=gf.Stationary(140.0), archive=path).close()
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        gf.resume(path, references.small_network(), **goal)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_a_budget_that_is_spent_to_the_last_evaluation_is_refused_as_that(tmp_path):
    path = tmp_path / "walk.nc"
    with gf.walk(references.small_network(), t_end=0.05, stop=None, archive=path) as ds:
        spent = int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1])
    for budget in (spent - 1, spent):
        with pytest.raises(InputError, match=f"the walk has spent {spent} already"):
            gf.resume(path, references.small_network(), t_end=0.1, max_evaluations=budget)


def test_a_walk_cut_off_at_its_goal_only_has_its_file_written(tmp_path, monkeypatch):
    """Goals that are passed are refused where they are given, not where they are the walk's."""
    path = tmp_path / "walk.nc"

    def full(*args):
        raise ArchiveError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("geoflow.archive.trajectory_files.write", full)
        with pytest.raises(ArchiveError, match="geoflow resume"):
            crashes.walk("rk4", path, t_end=0.1)
    reached = saved(path).checkpoint.n_steps
    with pytest.raises(InputError, match="max_evaluations=3"):
        crashes.resume(path, max_evaluations=3)
    assert saved(path).checkpoint.n_steps == reached
    # The same goal again is no new one.
    with crashes.resume(path, t_end=0.1) as ds:
        assert ds.attrs["status"] == "t_end"
        assert ds.sizes["step"] == reached


def test_what_is_streamed_of_another_level_is_not_gone_on_with(tmp_path):
    beside = tmp_path / ".walk.nc.parts"
    shutil.copytree(Path(__file__).parents[1] / "data/resuming/rk4.parts", beside)
    arrays = parts.read(beside / parts.CHECKPOINT)
    state = json.loads(arrays["state"].tobytes())
    state["attributes"]["level"] *= 0.9
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    parts.write(beside / parts.CHECKPOINT, arrays)
    flow = references.ellipsoid()
    flow = gf.RegularizingFlow(
        gf.LevelSet(flow.problem, state["attributes"]["level"]), flow.regularizer
    )
    with pytest.raises(ArchiveError, match="level_residual is not train_loss less the level"):
        gf.resume(tmp_path / "walk.nc", flow, observables=crashes.OBSERVABLES)
    assert parts.read(beside / parts.CHECKPOINT).keys() == arrays.keys()


def test_another_version_of_the_schema_is_not_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    with monkeypatch.context() as patch:
        patch.setattr("geoflow.trajectories.schema.SCHEMA_VERSION", "0.9")
        patch.setattr("geoflow.trajectories.schema.VERSIONS", ("0.9",))
        crashes.walk("rk4", path, t_end=0.05).close()
    with pytest.raises(ArchiveError, match=r"'0\.9', not one of 1\.0, 1\.1, 1\.2"):
        crashes.resume(path, t_end=0.1)


@pytest.mark.slow
def test_the_solver_of_a_walk_is_given_as_the_walk_took_it(tmp_path):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.1).close()
    every = {"reproject_every": crashes.SETTINGS["rk4"]["reproject_every"]}
    with gf.open_trajectory(path) as ds:
        whole = json.loads(ds.attrs["config"])["solver"]
    given = ["rk4", f"rk4:reproject_every={every['reproject_every']}", {"name": "rk4", **every}]
    for n, solver in enumerate([*given, whole, TorchDiffEq("rk4", **every)]):
        with crashes.resume(path, t_end=0.1 * (n + 2), solver=solver) as ds:
            assert json.loads(ds.attrs["config"])["solver"] == whole


def test_what_cannot_be_resumed_is_said_to_be_so(tmp_path):
    with pytest.raises(ArchiveError, match="no such file, and no walk is streamed beside it"):
        crashes.resume(tmp_path / "nothing.nc")
    path = tmp_path / "walk.nc"
    gf.save_trajectory(gf.walk(references.ellipsoid(), t_end=0.1, stop=None), path)
    with pytest.raises(ArchiveError, match="holds no checkpoint"):
        gf.resume(path, references.ellipsoid(), t_end=0.2)
    crashes.walk("rk4", path, t_end=0.1, overwrite=True).close()
    with pytest.raises(InputError, match="not of one of geoflow's experiments"):
        gf.resume(path, t_end=0.2)
    with pytest.raises(InputError, match=r"observables: the walk has \['norm'\]"):
        gf.resume(path, references.ellipsoid(), t_end=0.2)
    for other in (TorchDiffEq("euler"), "bdf", {"name": "rk4", "reproject_every": 0.3}):
        with pytest.raises(InputError, match=r"solver: the walk's is .*; give the same, or leave"):
            crashes.resume(path, t_end=0.2, solver=other)
    with pytest.raises(InputError, match=r"solver=3 is none; use one of"):
        crashes.resume(path, t_end=0.2, solver=3)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="SHA-256"):
        crashes.resume(path, t_end=0.2)


def test_a_walk_without_one_of_its_snapshots_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "walk.nc"
    with crashes.walk("rk4", path, t_end=0.5) as ds:
        checkpoint = trajectory_files.read_checkpoint(path, ds)
        without = ds.load().isel(snapshot=[0, -1])
    trajectory_files.write(without, path, checkpoint)
    assert gf.validate(path) == []
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(ArchiveError, match=r"the snapshot of step .* is missing"):
            crashes.resume(path, t_end=0.7)
        assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]
    assert path.read_bytes() == before


def test_an_unfinished_walk_is_not_walked_over(tmp_path):
    path = tmp_path / "walk.nc"
    process, _ = crashes.start(crashes.die_at, 30, "rk4", path, 0.2)
    process.join()
    assert is_resumable(path)
    with pytest.raises(InputError, match=f"geoflow resume {path}"):
        crashes.walk("rk4", path)
    with pytest.raises(ArchiveError, match=f"geoflow resume {path}"):
        gf.open_trajectory(path)
    crashes.walk("rk4", path, t_end=0.1, overwrite=True).close()
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def test_a_damaged_part_is_found(tmp_path):
    path = tmp_path / "walk.nc"
    process, _ = crashes.start(crashes.die_at, 60, "rk4", path, 0.3)
    process.join()
    for name in ("checkpoint", "steps-000000", "theta-000000000"):
        part = parts.folder_beside(path) / f"{name}.npz"
        content = bytearray(part.read_bytes())
        # Among the values of its first array.
        content[200] ^= 1
        part.write_bytes(content)
        with pytest.raises(ArchiveError, match=r"damaged|missing"):
            crashes.resume(path)
        content[200] ^= 1
        part.write_bytes(content)
    with crashes.resume(path) as ds:
        assert ds.attrs["status"] == "t_end"


def test_float32_snapshots_are_half_as_large_and_say_so(tmp_path):
    with crashes.walk("rk4", tmp_path / "walk.nc", theta_dtype="float32", t_end=0.2) as ds:
        assert ds["theta"].dtype == np.float32
        assert ds["theta"].attrs["comment"] == "computed in float64, rounded to float32"
        assert ds.attrs["dtype"] == "float64"
    # θ of the checkpoint is exact all the same: what follows is the same walk.
    with crashes.resume(tmp_path / "walk.nc", t_end=0.3) as ds:
        rounded = ds.load()
    with crashes.walk("rk4", tmp_path / "exact.nc", t_end=0.2):
        pass
    with crashes.resume(tmp_path / "exact.nc", t_end=0.3) as exact:
        assert rounded["train_loss"].equals(exact["train_loss"])
        assert (rounded["theta"].values == exact["theta"].values.astype(np.float32)).all()


def test_long_walks_are_streamed_in_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "STEPS_PER_PART", 16)
    monkeypatch.setattr(streamed_snapshots, "SNAPSHOTS_PER_PART", 3)
    fine = {"rtol": 1e-8, "t_end": 0.5, "max_snapshots": 12}
    with crashes.walk("exponential", tmp_path / "short.nc", **fine):
        pass
    with crashes.resume(tmp_path / "short.nc", t_end=1.0) as ds:
        parted = ds.load()
    monkeypatch.undo()
    with crashes.walk("exponential", tmp_path / "whole.nc", **fine):
        pass
    with crashes.resume(tmp_path / "whole.nc", t_end=1.0) as ds:
        assert invariants.same(parted, ds)
        assert ds.sizes["step"] > 2 * 16


def test_a_walk_that_would_not_fit_is_not_taken_up(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    crashes.walk("rk4", path, t_end=0.05).close()
    before = path.read_bytes()
    monkeypatch.setattr("geoflow.walking.memory.STATE", 10**12)
    with pytest.raises(InputError, match="vectors of a walk"):
        crashes.resume(path, t_end=0.1)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_snapshots_kept(tmp_path):
    # The buffers of a walk hold some dozens of snapshots: 300 fill them.
    n_parameters, few, many = 50_000, 300, 1_000
    peaks = []
    for n in (few, many):
        process, receive = crashes.start(crashes.weigh, n_parameters, n, tmp_path / f"{n}.nc")
        peaks.append(receive.recv())
        process.join()
    # 280 MB of θ more, and not a tenth of it in memory.
    assert peaks[1] - peaks[0] < 0.1 * 8 * n_parameters * (many - few)
