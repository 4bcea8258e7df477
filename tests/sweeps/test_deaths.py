"""A sweep whose walks, workers, scheduler or own process are killed, and who can reach it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask.config

# Were it imported while one of its settings is changed, all of them would go with that one.
import distributed  # noqa: F401
import pytest
import torch

import geoflow as gf
from geoflow.archive import parts
from geoflow.cli.terminal import DONE
from geoflow.errors import ClusterError, InputError
from geoflow.sweeps.runs import _walk
from geoflow.sweeps.tasks import Task, run_tasks
from geoflow.walking.settings import WalkSettings
from geoflow.walking.stream import Stream

SETTINGS = {
    "experiment": "iris_ff",
    "regularizer": "squared_norm",
    "epochs": 3,
    "dtype": "float64",
    "device": "cpu",
    "data": None,
    "threads": 1,
    "seed": 1,
    **WalkSettings(t_end=0.01, max_snapshots=3).resolved(torch.float64).config,
}


class Killed(BaseException):
    """Ends a walk as a kill does: nothing is tidied up."""


def cut_off(path, monkeypatch, step, **changes):
    """Walk with a checkpoint at each step, and die after some of them."""
    accepted = Stream.accepted

    def dying(self, checkpoint):
        self.interval = 0
        accepted(self, checkpoint)
        if self.n_steps == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "accepted", dying)
        with pytest.raises(Killed):
            _walk(str(path), **(SETTINGS | changes))


def steps_of(path, monkeypatch, **changes):
    """Walk, and return the numbers of the steps that were taken."""
    taken, accepted = [], Stream.accepted

    def counting(self, checkpoint):
        accepted(self, checkpoint)
        taken.append(self.n_steps)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "accepted", counting)
        assert _walk(str(path), **(SETTINGS | changes))[0] == "t_end"
    return taken


def same(a, b):
    with gf.open_trajectory(a) as x, gf.open_trajectory(b) as y:
        return x.drop_vars("wall_time").equals(y.drop_vars("wall_time"))


def test_a_walk_that_was_cut_off_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.nc", tmp_path / "cut.nc"
    steps = steps_of(whole, monkeypatch)
    assert len(steps) >= 4
    cut_off(cut, monkeypatch, steps[-3])
    assert not cut.exists()
    assert steps_of(cut, monkeypatch) == steps[-2:]
    assert same(whole, cut)


def test_what_was_cut_off_with_other_settings_is_refused_and_stays(tmp_path, monkeypatch):
    for other, said in (
        ({"rtol": 1e-4}, "its rtol is 0.0001, not 0.001"),
        ({"seed": 2}, "its seed is 2, not 1"),
        ({"max_snapshots": 2}, "its max_snapshots is 2, not 3"),
    ):
        path = tmp_path / f"{next(iter(other))}.nc"
        cut_off(path, monkeypatch, 2, **other)
        kept = [p.read_bytes() for p in sorted(parts.folder_beside(path).glob("*.npz"))]
        with pytest.raises(InputError, match=rf"\.nc\.parts: .* {said}; move it elsewhere"):
            _walk(str(path), **SETTINGS)
        assert [p.read_bytes() for p in sorted(parts.folder_beside(path).glob("*.npz"))] == kept


def test_what_was_cut_off_and_is_damaged_starts_anew(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole.nc", tmp_path / "cut.nc"
    steps = steps_of(whole, monkeypatch)
    cut_off(cut, monkeypatch, 2)
    (parts.folder_beside(cut) / parts.CHECKPOINT).write_bytes(b"damaged")
    assert steps_of(cut, monkeypatch) == steps
    assert same(whole, cut)


def listening(path, **arguments):
    """Addresses at which this process and the one that started it listen, written to a file."""
    sockets = set()
    for process in (os.getpid(), os.getppid()):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                addresses.append(fields[1].split(":")[0])
    Path(path).write_text("\n".join(addresses))
    return "t_end", "done"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_sweep_listens_to_this_machine_only(tmp_path):
    (outcome,) = run_tasks([Task("a", tmp_path / "a", listening, {})], {}, None, 1, 1, False)
    assert outcome.status == "t_end"
    addresses = outcome.path.read_text().splitlines()
    # The scheduler, its dashboard, a worker.
    assert len(addresses) >= 3
    assert set(addresses) == {"0100007F"}


def write(path, **arguments):
    Path(path).write_text("done")
    return "t_end", "done"


def wait(path, **arguments):
    Path(path).with_suffix(".started").touch()
    time.sleep(120)
    return write(path)


CLUSTER = """
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1",
                      dashboard_address="127.0.0.1:0") as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


@pytest.mark.slow
def test_the_death_of_the_scheduler_is_one_error_and_what_is_done_is_kept(tmp_path):
    tasks = [Task(n, tmp_path / n, f, {}) for n, f in (("a", write), ("b", wait), ("c", write))]
    (tmp_path / "cluster.py").write_text(CLUSTER)
    command = [sys.executable, str(tmp_path / "cluster.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "2s"}),
        subprocess.Popen(command, env=here(), **pipes) as process,
    ):
        address = process.stdout.readline().strip()

        def kill_in_the_second():
            while not (tmp_path / "b.started").exists():
                time.sleep(0.05)
            process.kill()

        killer = threading.Thread(target=kill_in_the_second)
        killer.start()
        with pytest.raises(ClusterError, match="the scheduler has gone, with 2 runs to do"):
            run_tasks(tasks, {}, address, None, 1, False)
        killer.join()
    assert (tmp_path / "a").read_text() == "done"
    with pytest.raises(InputError, match="cannot be reached"):
        run_tasks(tasks[2:], {}, "tcp://127.0.0.1:1", None, 1, False)


def here():
    """The environment of processes that import this file."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_after_its_own_death_the_same_command_finishes(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = ["--seeds", "0:3", "--workers", "1", "--epochs", "3", "--t-end", "0.02", "--quiet"]
    program = [sys.executable, "-m", "geoflow", "sweep", "iris_ff", *options, "--out"]
    with subprocess.Popen([*program, str(cut)]) as process:
        while process.poll() is None and not (cut / "seed-0000.nc").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = (cut / "seed-0000.nc").stat().st_mtime_ns
    assert not (cut / "seed-0002.nc").exists()
    assert subprocess.run([*program, str(cut)], timeout=300, check=False).returncode == DONE
    assert (cut / "seed-0000.nc").stat().st_mtime_ns == before
    assert subprocess.run([*program, str(whole)], timeout=300, check=False).returncode == DONE
    for seed in range(3):
        assert same(whole / f"seed-{seed:04d}.nc", cut / f"seed-{seed:04d}.nc")
