import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import xarray as xr

import geoflow as gf
from geoflow import cli
from geoflow.cli import reading, terminal
from geoflow.errors import ArchiveError, InputError

# The package's name for the function hides the module.
from geoflow.sweeps import kept
from geoflow.sweeps.manifest import MANIFEST, claimed, current
from geoflow.sweeps.runs import _walk
from geoflow.sweeps.tasks import Task, _end, run_tasks

SHORT = {"epochs": 3, "t_end": 0.01, "max_snapshots": 3}


def same(a, b):
    """Equal but for the time it took."""
    with gf.open_trajectory(a) as x, gf.open_trajectory(b) as y:
        return x.drop_vars("wall_time").equals(y.drop_vars("wall_time"))


def settings(**changes):
    return {
        "experiment": "iris_ff",
        "solver": gf.solvers.DEFAULT,
        "rtol": 1e-3,
        "atol": 1e-6,
        "degrees": 175.0,
        "max_evaluations": None,
        "dtype": "float64",
        "device": "cpu",
        "data": None,
        "threads": 1,
    } | (SHORT | changes)


def die_at_first(path, **arguments):
    """Kill the worker at the first attempt, walk at the second."""
    marker = Path(path).with_suffix(".attempts")
    with marker.open("a") as file:
        file.write("x")
    if len(marker.read_text()) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return _walk(path, **arguments)


def always_die(path, **arguments):
    with Path(path).with_suffix(".attempts").open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)


UNGUARDED = """
import geoflow as gf
from geoflow.errors import InputError

try:
    gf.sweep("iris_ff", [0, 1], {out!r}, workers=1, epochs=3, t_end=0.01, max_snapshots=3)
except InputError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told_of_it_in_one_line(tmp_path):
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(UNGUARDED.format(out=str(out)))
    # Warnings are left out: from what workers are when they are stopped.
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    assert "the workers could not be started" in line
    assert 'put the call under `if __name__ == "__main__":`' in line
    assert not list(out.glob("*.nc"))
    # The same script with the guard.
    lines = UNGUARDED.format(out=str(out)).splitlines(keepends=True)
    guarded = "".join(lines[:4]) + 'if __name__ == "__main__":\n' + "    ".join(["", *lines[4:]])
    script.write_text(guarded)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout, done.stderr) == ("", "")
    assert len(list(out.glob("*.nc"))) == 2


def test_a_run_whose_worker_died_after_writing_it_is_not_done_again(tmp_path):
    path = tmp_path / "seed-0000.nc"
    first = _walk(str(path), **settings(seed=0))
    before = path.read_bytes()
    assert first[0] == "t_end"
    assert _walk(str(path), **settings(seed=0)) == first
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_killed_worker_costs_its_run_one_more_attempt(tmp_path):
    functions = [die_at_first, _walk, always_die, _walk]
    tasks = [
        Task(f"seed-{i:04d}", tmp_path / f"seed-{i:04d}.nc", f, settings(seed=i))
        for i, f in enumerate(functions)
    ]
    outcomes = run_tasks(tasks, {}, None, 2, 1, False)
    assert [o.status for o in outcomes] == ["t_end", "t_end", "failed", "t_end"]
    assert "its workers died" in outcomes[2].message
    assert "\n" not in outcomes[2].message
    assert (tmp_path / "seed-0002.attempts").read_text() == "xx"
    # The third: where another run took its worker's life before its answer was fetched.
    assert (tmp_path / "seed-0000.attempts").read_text() in ("xx", "xxx")
    assert sorted(p.name for p in tmp_path.glob("*.nc")) == [f"seed-{i:04d}.nc" for i in (0, 1, 3)]
    for i in (0, 1, 3):
        with gf.open_trajectory(tmp_path / f"seed-{i:04d}.nc") as ds:
            assert ds.attrs["seed"] == i


@pytest.mark.slow
def test_only_what_is_missing_is_done_and_the_numbers_are_the_same(tmp_path, capsys):
    from distributed import LocalCluster

    first, second = tmp_path / "a", tmp_path / "b"
    # A folder in the place of a file: that run cannot be written.
    (first / "seed-0001.nc").mkdir(parents=True)
    outcomes = gf.sweep("iris_ff", range(2), first, **SHORT)
    assert [o.status for o in outcomes] == ["t_end", "failed"]
    assert "is a folder" in outcomes[1].message
    before = (first / "seed-0000.nc").stat().st_mtime_ns

    (first / "seed-0001.nc").rmdir()
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        outcomes = gf.sweep("iris_ff", range(3), first, scheduler=address, **SHORT)
        assert [o.new for o in outcomes] == [False, True, True]
        gf.sweep("iris_ff", range(3), second, scheduler=address, **SHORT)
    assert (first / "seed-0000.nc").stat().st_mtime_ns == before
    # Seed 0: by a cluster of the sweep's own, and by one started by hand.
    for i in range(3):
        assert same(first / f"seed-{i:04d}.nc", second / f"seed-{i:04d}.nc")
    assert gf.open_sweep(first).sizes["run"] == 3


@pytest.mark.slow
def test_the_baseline_is_swept_by_penalty(tmp_path, capsys):
    outcomes = gf.sweep_weight_decay(
        "iris_ff", range(2), tmp_path, penalties=[0.0, 1e-3], epochs=2, progress=True
    )
    assert [o.status for o in outcomes] == ["trained", "trained"]
    assert "penalty-0.0: trained: 2 runs of 2 epochs" in capsys.readouterr().err
    expected = gf.baselines.weight_decay("iris_ff", seeds=range(2), penalties=[0.0, 1e-3], epochs=2)
    with gf.baselines.open_weight_decay(sorted(tmp_path.glob("*.nc"))) as ds:
        xr.testing.assert_allclose(ds, expected, rtol=1e-9)
    again = gf.sweep_weight_decay("iris_ff", range(2), tmp_path, penalties=[0.0], epochs=2)
    assert [o.new for o in again] == [False]


@pytest.fixture
def finished(tmp_path):
    """A sweep whose runs are all there: no cluster is needed to call it again."""
    folder = tmp_path / "sweep"
    folder.mkdir()
    manifest = {"geoflow_sweep": "1.0", "kind": "walks", **settings()}
    (folder / "sweep.json").write_text(json.dumps(manifest))
    for seed in range(2):
        _walk(str(folder / f"seed-{seed:04d}.nc"), **settings(seed=seed))
    return folder


def test_a_finished_sweep_needs_no_cluster(finished, capsys):
    outcomes = gf.sweep("iris_ff", range(2), finished, scheduler="tcp://nowhere:1", **SHORT)
    assert [(o.name, o.status, o.new) for o in outcomes] == [
        ("seed-0000", "t_end", False),
        ("seed-0001", "t_end", False),
    ]
    command = ["sweep", "iris_ff", "--seeds", "0:2", "--out", str(finished), "--epochs", "3"]
    assert cli.main([*command, "--t-end", "0.01", "--snapshots", "3"]) == terminal.DONE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 runs, 0 of them new" in captured.err


def test_a_folder_keeps_to_one_set_of_settings(finished):
    with pytest.raises(InputError, match=r"holds a sweep with rtol=0.001, not 0.01"):
        gf.sweep("iris_ff", range(2), finished, rtol=1e-2, **SHORT)
    with pytest.raises(InputError, match="kind='walks', not 'weight decay'"):
        gf.sweep_weight_decay("iris_ff", range(2), finished)


def test_the_loss_of_each_class_is_kept_where_that_is_asked_for(tmp_path):
    path = tmp_path / "seed-0000.nc"
    constrained = settings(seed=0, constraints="by_class")
    assert _walk(str(path), **constrained)[0] == "t_end"
    before = path.read_bytes()
    with gf.open_trajectory(path) as ds:
        assert ds.sizes["constraint"] == 3
    assert _walk(str(path), **constrained)[0] == "t_end"
    assert path.read_bytes() == before
    # What is there of one kind is not taken for the other, nor written over.
    with pytest.raises(InputError, match=r"its constraints is 'by_class', not ''; move it"):
        _walk(str(path), **settings(seed=0))
    assert path.read_bytes() == before


def test_a_folder_is_of_one_kind_of_constraints(finished):
    with pytest.raises(InputError, match="holds a sweep with constraints=None, not 'by_class'"):
        gf.sweep("iris_ff", range(2), finished, constraints="by_class", **SHORT)
    with pytest.raises(InputError, match="constraints='by_sign'; use each_example or by_class"):
        gf.sweep("iris_ff", range(2), finished, constraints="by_sign", **SHORT)


# What is changed in a file of the sweep, and what is said of it.
FOREIGN = {
    "experiment": ({"experiment": "mpg_ff"}, {}, "experiment is 'mpg_ff', not 'iris_ff'"),
    "seed": ({"seed": 7}, {}, "seed is 7, not 1"),
    "rtol": ({"rtol": 1e-2}, {"rtol": 1e-2}, "rtol is 0.01, not 0.001"),
    "solver": ({"solver": "rk4"}, {"solver": {"name": "rk4"}}, "solver is "),
    "regularizer": ({"regularizer_name": "l1"}, {}, "regularizer is 'l1', not 'squared_norm'"),
    "level_rtol": ({"level_rtol": 1e-3}, {}, "level_rtol is 0.001, not 1e-06"),
    "threads": ({}, {"threads": 3}, "threads is 3, not 1"),
    "snapshots": ({}, {"max_snapshots": 4}, "max_snapshots is 4, not 3"),
    "data": ({}, {"provenance": {"data": "elsewhere"}}, "data is 'elsewhere', not None"),
    "epochs": ({}, {"provenance": {"training": {"epochs": 9}}}, "epochs is 9, not 3"),
}


# Of so many the default run takes every second.
@pytest.mark.parametrize(
    ("attributes", "config", "said"),
    [pytest.param(*c, marks=[pytest.mark.slow] * (i % 2)) for i, c in enumerate(FOREIGN.values())],
    ids=FOREIGN,
)
def test_a_file_that_is_not_of_the_sweep_is_refused(finished, attributes, config, said):
    path = finished / "seed-0001.nc"
    with h5py.File(path, "r+") as file:
        there = json.loads(file.attrs["config"])
        provenance = there["provenance"] | config.get("provenance", {})
        named = {n: v for n, v in attributes.items() if n in ("experiment", "seed")}
        there |= config | {"provenance": provenance | named}
        for name, value in (attributes | {"config": json.dumps(there)}).items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
    before = path.read_bytes()
    with pytest.raises(InputError, match=rf"seed-0001.nc: .* not of this sweep: its {said}"):
        gf.sweep("iris_ff", range(2), finished, **SHORT)
    # Nor by a worker.
    with pytest.raises(InputError, match="not of this sweep"):
        _walk(str(path), **settings(seed=1))
    assert path.read_bytes() == before


def test_a_walk_of_another_flow_precision_or_way_is_not_of_the_sweep(tmp_path):
    path = tmp_path / "seed-0001.nc"
    _walk(str(path), **settings(seed=1))
    own, experiment = current(settings(constraints=None)), gf.experiments.get("iris_ff")
    assert kept.walk_of(path, own, 1, experiment)[0] == "t_end"
    with h5py.File(path, "r") as file:
        config = json.loads(file.attrs["config"])
    for attributes, changes, said in (
        ({"flow": "MyFlow"}, {}, "flow is 'MyFlow', not 'RegularizingFlow'"),
        ({"dtype": "float32"}, {}, "dtype is 'float32', not 'float64'"),
        ({"device": "cuda:1"}, {}, "device is 'cuda', not 'cpu'"),
        ({}, {"level_atol": 0.1}, "level_atol is 0.1, not 0.0"),
        ({}, {"processes": 2}, "processes is 2, not 1"),
    ):
        doctored = tmp_path / "doctored.nc"
        shutil.copy(path, doctored)
        with h5py.File(doctored, "r+") as file:
            for name, value in (attributes | {"config": json.dumps(config | changes)}).items():
                file.attrs[name] = np.bytes_(value)
        with pytest.raises(InputError, match=rf"doctored.nc: .* its {said}"):
            kept.walk_of(doctored, own, 1, experiment)


def test_a_walk_with_events_is_not_of_the_sweep(tmp_path):
    path, experiment = tmp_path / "walk.nc", gf.experiments.get("iris_ff")
    prepared = experiment.prepare(1, epochs=3)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    given = {"events": [gf.Event("angle", value=100)], "provenance": prepared.provenance}
    gf.walk(flow, t_end=0.01, max_snapshots=3, archive=path, **given)
    own = current(settings(constraints=None))
    with pytest.raises(InputError, match=r"walk.nc: .* its events is \[{.*'angle'.*, not \[\]"):
        kept.walk_of(path, own, 1, experiment)


def test_only_a_walk_that_was_cut_off_is_done_again(finished, monkeypatch):
    path = finished / "seed-0001.nc"
    with h5py.File(path, "r+") as file:
        file.attrs["status"] = np.bytes_("interrupted")
    found = {}
    monkeypatch.setattr(
        "geoflow.sweeps.runs.run_tasks", lambda tasks, done, *_: found.update(done) or []
    )
    gf.sweep("iris_ff", range(3), finished, **SHORT)
    assert found == {"seed-0000": ("t_end", found["seed-0000"][1])}


class _Ended:
    """What Dask gives of a run that has ended."""

    def __init__(self, answer):
        self.answer, self.status = answer, "finished" if isinstance(answer, tuple) else "error"

    def result(self):
        return self.answer

    def exception(self):
        return self.answer


def test_what_is_said_of_a_run_that_has_ended(tmp_path):
    task = Task("seed-0000", tmp_path / "seed-0000.nc", _walk, {})
    elsewhere = ("failed", "its worker does not write to this file system")
    assert _end(_Ended(("t_end", "as wanted")), task) == elsewhere
    task.path.touch()
    assert _end(_Ended(("t_end", "as wanted")), task) == ("t_end", "as wanted")
    assert _end(_Ended(InputError("rtol=0")), task) == ("failed", "rtol=0")
    assert _end(_Ended(KeyError("x")), task) == ("failed", "KeyError: 'x'")


def test_a_walk_that_was_cut_off_is_replaced_by_none_of_other_settings(finished):
    path = finished / "seed-0001.nc"
    with h5py.File(path, "r+") as file:
        file.attrs["status"] = np.bytes_("interrupted")
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"its t_end is 0.01, not 0.02; move it elsewhere"):
        _walk(str(path), **settings(seed=1, t_end=0.02))
    assert path.read_bytes() == before


def test_trainings_that_are_not_of_the_sweep_are_refused(tmp_path):
    baseline = gf.baselines.weight_decay("iris_ff", seeds=[0], penalties=[0.0], epochs=2)
    folder = tmp_path / "sweep"
    folder.mkdir()
    gf.baselines.save_weight_decay(baseline, folder / "penalty-0.0.nc")
    usual = {"seeds": [0], "out": folder, "penalties": [0.0], "epochs": 2}
    (outcome,) = gf.sweep_weight_decay("iris_ff", **usual)
    assert not outcome.new
    (folder / "penalty-0.0.nc").rename(folder / "penalty-1.0.nc")
    with pytest.raises(InputError, match=r"penalty-1.0.nc: .* its penalty is \[0.0\], not \[1.0\]"):
        gf.sweep_weight_decay("iris_ff", **(usual | {"penalties": [1.0]}))
    for changes, said in (
        ({"seeds": [1]}, r"seeds is \[0\], not \[1\]"),
        ({"epochs": 3}, "epochs is 2, not 3"),
        ({"validation": 0.0}, "validation is 0.2, not 0.0"),
        ({"dtype": "float32"}, "dtype is 'float64', not 'float32'"),
        # None: the paper's.
        ({"epochs": None}, "epochs is 2, not 500"),
        ({"data": "elsewhere"}, "data is '', not 'elsewhere'"),
        ({"experiment": "mpg_ff"}, "experiment is 'iris_ff', not 'mpg_ff'"),
    ):
        other = tmp_path / "-".join(f"{name} {value}" for name, value in changes.items())
        other.mkdir()
        gf.baselines.save_weight_decay(baseline, other / "penalty-0.0.nc")
        with pytest.raises(InputError, match=rf"penalty-0.0.nc: .* its {said}"):
            gf.sweep_weight_decay(**({"experiment": "iris_ff", **usual, "out": other} | changes))
    own = {"experiment": "iris_ff", "seeds": [0], "epochs": 2, "validation": 0.2, "data": None}
    there = other / "penalty-0.0.nc"
    assert kept.training_of(there, {**own, "dtype": "float64", "device": "cpu:0"}, 0.0)
    with pytest.raises(InputError, match="its device is 'cpu', not 'cuda'"):
        kept.training_of(there, {**own, "dtype": "float64", "device": "cuda:1"}, 0.0)


def test_a_damaged_file_is_named(finished):
    (finished / "seed-0001.nc").write_bytes(b"CDF")
    with pytest.raises(ArchiveError, match=r"seed-0001.nc is not a readable"):
        gf.sweep("iris_ff", range(2), finished, **SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": []}, "seeds="),
        ({"seeds": [0, 0]}, "seeds="),
        ({"seeds": [-1]}, "seed=-1"),
        ({"experiment": "nope"}, "experiment 'nope'"),
        ({"solver": "nope"}, "solver='nope'"),
        ({"rtol": 0.0}, "rtol=0.0"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"device": "nowhere"}, "device='nowhere'"),
        ({"workers": 0}, "workers=0"),
        ({"workers": 1.5}, "workers=1.5; give a whole number"),
        ({"threads": 10**6}, "threads=1000000; use 1 to 1024"),
        ({"threads": True}, "threads=True; give a whole number"),
        ({"scheduler": "nonsense://x"}, "scheduler='nonsense://x' cannot be reached"),
        ({"out": __file__}, "cannot be used"),
        ({"out": ""}, "out='' names no folder"),
        ({"out": " "}, "out=' ' names no folder"),
    ],
)
def test_bad_input(tmp_path, options, message):
    arguments = {"experiment": "iris_ff", "seeds": [0], "out": tmp_path} | options
    with pytest.raises(InputError, match=message):
        gf.sweep(**arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "rkc"},
        {"solver": "rkc", "dtype": []},
        {"solver": "rkc", "dtype": "float64", "rtol": "x"},
        {"solver": "rkc", "dtype": "float64", "stop": 3},
    ],
)
def test_a_damaged_manifest_of_the_first_format_is_refused(settings, tmp_path):
    manifest = tmp_path / "sweep.json"
    manifest.write_text(json.dumps({"geoflow_sweep": "1.0", **settings}))
    with pytest.raises(InputError, match=r"sweep.json: its settings are none of a sweep; choose"):
        gf.sweep("iris_ff", [0], tmp_path, **SHORT)


def test_a_manifest_that_is_a_link_is_read_and_nothing_is_written_where_one_leads(tmp_path):
    given, own = {"experiment": "iris_ff"}, tmp_path / "own"
    with claimed(own, given) as (_, outcomes):
        outcomes.append(SimpleNamespace(status="stationary"))
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / MANIFEST).symlink_to(own / MANIFEST)
    with claimed(linked, given):
        pass
    with pytest.raises(InputError, match="holds a sweep with experiment='iris_ff', not 'mnist_ff'"):
        claimed(linked, {"experiment": "mnist_ff"}).__enter__()
    assert (linked / MANIFEST).is_symlink()
    # Its name is not one that the user gave.
    astray = tmp_path / "astray"
    astray.mkdir()
    (astray / MANIFEST).symlink_to(tmp_path / "nowhere")
    with claimed(astray, given) as (folder, outcomes):
        outcomes.append(SimpleNamespace(status="stationary"))
    assert not (folder / MANIFEST).is_symlink()
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_is_not_utf8_is_refused_and_not_made(tmp_path):
    out = tmp_path / os.fsdecode(b"c\xff")
    with pytest.raises(InputError, match="is not UTF-8; choose another name or folder"):
        gf.sweep("iris_ff", [0], out, **SHORT)
    assert not out.exists()


def test_a_walks_option_is_refused_with_baseline(tmp_path, capsys):
    command = ["sweep", "iris_ff", "--seeds", "0", "--out", str(tmp_path), "--baseline"]
    assert cli.main([*command, "--rtol", "1e-5"]) == terminal.BAD_INPUT
    assert "--rtol is for walks" in capsys.readouterr().err


def test_seeds_are_a_range_or_a_list():
    assert reading.seeds("0:5") == [0, 1, 2, 3, 4]
    assert reading.seeds("7,2") == [7, 2]
    for text, said in (("3:3", "are no seeds"), ("0:100001", "a sweep has at most 100,000")):
        with pytest.raises(ArgumentTypeError, match=said):
            reading.seeds(text)
    with pytest.raises(SystemExit) as failure:
        cli.main(["sweep", "iris_ff", "--seeds", "a", "--out", "x"])
    assert failure.value.code == terminal.BAD_INPUT


@pytest.mark.parametrize(
    "other",
    [
        {"regularizer": "quartic_norm"},
        {"regularizer": "pseudo_huber_norm:delta=0.2"},
        {"snapshot_every": 0.1},
        {"snapshot_times": [0.1]},
        {"max_snapshots": 4},
        {"theta_dtype": "float32"},
        {"stop": None},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_folder_refuses_other_settings(tmp_path, monkeypatch, other):
    monkeypatch.setattr("geoflow.sweeps.runs.run_tasks", lambda *args: [])
    usual = {"regularizer": "pseudo_huber_norm:delta=0.1"}
    gf.sweep("iris_ff", [0], tmp_path, **usual)
    assert gf.sweep("iris_ff", [0, 1], tmp_path, **usual) == []
    with pytest.raises(InputError, match=f"holds a sweep with {next(iter(other))}="):
        gf.sweep("iris_ff", [0], tmp_path, **(usual | other))
