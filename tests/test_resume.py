"""Resuming: whatever ended a walk, it becomes what it would have been, bit for bit."""

import errno
import json
import random
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import crashes
import geoflow as gf
import references
from geoflow import parts, stream
from geoflow.errors import ArchiveError, InputError, StorageError
from geoflow.parts import is_resumable
from geoflow.saved import saved
from geoflow.solvers import TorchDiffEq


def same(a, b):
    """Equal in every bit but those of the clocks."""
    a, b = a.load(), b.load()
    assert {**a.attrs, "created": ""} == {**b.attrs, "created": ""}
    assert a.drop_vars("wall_time").equals(b.drop_vars("wall_time"))
    return all(a[name].attrs == b[name].attrs for name in a.variables)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Walks that nothing has interrupted, by solver."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: crashes.walk(name, folder / f"{name}.nc").load() for name in crashes.SETTINGS}


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
        assert same(resumed, uninterrupted)
    assert [p.name for p in tmp_path.iterdir()] == ["walk.nc"]


def count_operations(monkeypatch, path):
    with monkeypatch.context() as patch:
        count = crashes.fail_at(0, None, patch.setattr)
        crashes.walk("rk4", path, checkpoint_seconds=0, t_end=0.1)
        return count()


@pytest.mark.slow
def test_killed_before_any_change_of_the_disk_a_walk_resumes(tmp_path, monkeypatch):
    whole = crashes.walk("rk4", tmp_path / "whole.nc", t_end=0.1)
    n = count_operations(monkeypatch, tmp_path / "counted.nc")
    assert n > 30
    for k in range(1, n + 1):
        folder = tmp_path / f"{k}"
        folder.mkdir()
        path = folder / "walk.nc"
        process, _ = crashes.start(crashes.die_at, k, "rk4", path, 0.1)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        if not is_resumable(path) and not path.exists():
            # Nothing had been walked; the name is free.
            crashes.walk("rk4", path, t_end=0.1)
        with crashes.resume(path) if is_resumable(path) else gf.open_trajectory(path) as resumed:
            assert same(resumed, whole)
        # Killed while it cleans up, it leaves parts that nobody takes for a walk.
        assert not is_resumable(path)


@pytest.mark.slow
def test_a_disk_that_fails_at_any_write_loses_nothing_saved(tmp_path, monkeypatch):
    whole = crashes.walk("rk4", tmp_path / "whole.nc", t_end=0.1)
    n = count_operations(monkeypatch, tmp_path / "counted.nc")

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    kept = 0
    for k in range(1, n + 1):
        path = tmp_path / f"{k}.nc"
        with monkeypatch.context() as patch:
            crashes.fail_at(k, full, patch.setattr)
            try:
                crashes.walk("rk4", path, checkpoint_seconds=0, t_end=0.1).close()
                failed = None
            except (ArchiveError, InputError) as error:
                failed = error
        assert failed is None or "No space left" in str(failed)
        if isinstance(failed, StorageError):
            kept += 1
            assert f"geoflow resume {path}" in str(failed)
            assert is_resumable(path)
        elif failed:
            # Before the walk began.
            assert not path.exists()
            continue
        with crashes.resume(path) if is_resumable(path) else gf.open_trajectory(path) as resumed:
            assert same(resumed, whole)
    assert kept > n / 2


@pytest.mark.parametrize("limit", [3_000, 8_000, 20_000, 40_000])
def test_a_disk_that_is_full_ends_the_walk_with_an_error_and_the_walk_kept(limit, tmp_path):
    """The kernel refuses: no file may grow past the limit."""
    path = tmp_path / "walk.nc"
    process, receive = crashes.start(crashes.walk_on_a_small_disk, limit, path)
    error = receive.recv()
    process.join()
    assert "File too large" in error or "HDF error" in error
    assert not path.exists()
    if not is_resumable(path):
        assert limit == 3_000
        return
    assert "StorageError" in error
    with crashes.resume(path) as resumed:
        assert same(resumed, crashes.walk("exponential", tmp_path / "whole.nc"))


def test_only_one_process_writes_to_an_archive(tmp_path):
    path = tmp_path / "walk.nc"
    process, receive = crashes.start(crashes.report_steps, "exponential", path, 0.0)
    receive.recv()
    for attempt in (
        lambda: crashes.resume(path),
        lambda: crashes.walk("exponential", path, overwrite=True),
    ):
        with pytest.raises(ArchiveError, match="in use by another process"):
            attempt()
    process.kill()
    process.join()
    with crashes.resume(path) as resumed:
        assert resumed.attrs["status"] == "t_end"


def test_a_folder_that_cannot_be_written_is_said_to_be_so():
    # Not in tmp_path, whose parents only their owner may enter.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "walk.nc"
        crashes.walk("rk4", path, t_end=0.1).close()
        before = path.read_bytes()
        process, receive = crashes.start(crashes.try_read_only, path)
        errors = receive.recv()
        process.join()
        assert [name for name, _ in errors] == ["InputError", "ArchiveError"]
        assert all("cannot be written (Permission denied)" in text for _, text in errors)
        assert path.read_bytes() == before


def press(times):
    """An observable that presses Ctrl-C at its n-th calls."""
    calls = []

    def pressed(theta):
        calls.append(1)
        if len(calls) in times:
            signal.raise_signal(signal.SIGINT)
        return float(theta.norm())

    return {"norm": pressed}


def test_ctrl_c_once_leaves_a_file_that_can_be_resumed(whole, tmp_path):
    path = tmp_path / "walk.nc"
    settings = {"stop": None, "max_snapshots": 30, **crashes.SETTINGS["exponential"]}
    with gf.walk(
        references.ellipsoid(), "exponential", observables=press([7]), archive=path, **settings
    ) as ds:
        assert ds.attrs["status"] == "interrupted"
    with crashes.resume(path) as resumed:
        assert same(resumed, whole["exponential"])


def test_ctrl_c_twice_loses_nothing_that_was_saved(whole, tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    settings = {"stop": None, "max_snapshots": 30, **crashes.SETTINGS["exponential"]}
    write = stream.archive.write

    def press_again(*args):
        signal.raise_signal(signal.SIGINT)
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stream.archive, "write", press_again)
        with pytest.raises(KeyboardInterrupt):
            gf.walk(
                references.ellipsoid(),
                "exponential",
                observables=press([7]),
                archive=path,
                **settings,
            )
    assert not path.exists()
    with crashes.resume(path) as resumed:
        assert same(resumed, whole["exponential"])


def test_ctrl_c_within_a_save_waits_for_its_end(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    write, written = parts.write, []

    def press_once(part, arrays):
        written.append(part.name)
        if len(written) == 8:
            signal.raise_signal(signal.SIGINT)
        write(part, arrays)

    monkeypatch.setattr(parts, "write", press_once)
    with crashes.walk("rk4", path, checkpoint_seconds=0) as ds:
        assert ds.attrs["status"] == "interrupted"
        assert 1 < ds.sizes["step"] < 5


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

    walk("short.nc", 115.0).close()
    long = walk("long.nc", 150.0)
    resumed = gf.resume(
        tmp_path / "short.nc", references.small_network(), stop=gf.Stationary(150.0)
    )
    assert same(resumed, long)
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
    with crashes.resume(path, t_end=0.4) as ds:
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


def other_level():
    flow = references.small_network()
    return gf.RegularizingFlow(gf.LevelSet(flow.problem, 0.1), gf.regularizers.squared_norm)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (other_data, "its data"),
        (other_network, "its network's tensors"),
        (other_loss, "the loss is .* was recorded"),
        (other_regularizer, "its regularizer .*'quartic_norm'"),
        (other_level, "its level "),
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


def test_another_version_of_the_schema_is_not_gone_on_with(tmp_path, monkeypatch):
    path = tmp_path / "walk.nc"
    with monkeypatch.context() as patch:
        patch.setattr("geoflow.schema.SCHEMA_VERSION", "0.9")
        crashes.walk("rk4", path, t_end=0.05).close()
    with pytest.raises(ArchiveError, match=r"0\.9.*1\.0"):
        crashes.resume(path, t_end=0.1)


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
    with pytest.raises(InputError, match="solver: the walk's is"):
        crashes.resume(path, t_end=0.2, solver=TorchDiffEq("euler"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveError, match="SHA-256"):
        crashes.resume(path, t_end=0.2)


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
    monkeypatch.setattr(stream, "SNAPSHOTS_PER_PART", 3)
    with crashes.walk("exponential", tmp_path / "short.nc", t_end=0.5, max_snapshots=12):
        pass
    with crashes.resume(tmp_path / "short.nc", t_end=1.0) as ds:
        parted = ds.load()
    monkeypatch.undo()
    with crashes.walk("exponential", tmp_path / "whole.nc", t_end=0.5, max_snapshots=12):
        pass
    with crashes.resume(tmp_path / "whole.nc", t_end=1.0) as ds:
        assert same(parted, ds)
        assert ds.sizes["step"] > 64


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
