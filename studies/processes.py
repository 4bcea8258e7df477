"""mnist_ff walked by one process and by two, killed, and gone on with by one and by two; seed 0.

    OMP_NUM_THREADS=1 python studies/processes.py [--t-end T]

bdf at RTOL and ATOL, so that little of the difference is tolerance: θ at SNAPSHOTS parts of T is
compared with that of one process. Then the second of two processes is killed DELAY seconds into the
walk, a single one goes on to T, and two go on to 1.5 T. Prints the table of docs/processes.md.
Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

import geoflow as gf
from geoflow.archive.parts import is_resumable

RTOL, ATOL, SNAPSHOTS, SECONDS, DELAY = 1e-9, 1e-12, (0.1, 0.25, 0.5, 0.75, 1.0), 900, 15.0
EXPERIMENT, ENVIRONMENT = "mnist_ff", {**os.environ, "OMP_NUM_THREADS": "1"}


def command(processes: int, *arguments: str) -> list[str]:
    """Give the command line of geoflow, in one process or under torchrun."""
    ours = ["-m", "geoflow", *arguments]
    if processes == 1:
        return [sys.executable, *ours]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*torchrun, "--nproc-per-node", str(processes), *ours]


def run(processes: int, *arguments: str) -> None:
    """Run it to its end."""
    done = subprocess.run(
        command(processes, *arguments),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode:
        raise SystemExit(done.stderr)


def kill_second(path: Path, *arguments: str) -> None:
    """Start two processes, and kill the second some steps after the walk is being streamed."""
    started = subprocess.Popen(command(2, *arguments), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + SECONDS
    while not is_resumable(path):
        if time.monotonic() > end or started.poll() is not None:
            raise SystemExit(f"{path.name}: nothing was streamed")
        time.sleep(0.1)
    time.sleep(DELAY)
    workers = psutil.Process(started.pid).children()
    if not workers:
        raise SystemExit(f"{path.name}: it was done within {DELAY} s; walk further (--t-end)")
    last = max(workers, key=lambda p: int(p.environ()["RANK"]))
    last.send_signal(signal.SIGKILL)
    started.wait(SECONDS)


def theta(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Times and θ of a walk's snapshots."""
    if problems := gf.validate(path):
        raise SystemExit(f"{path.name}: {problems}")
    with gf.open_trajectory(path) as ds:
        return ds["snapshot_time"].values, ds["theta"].values


def differences(path: Path, other: Path, times: list[float]) -> list[float]:
    """‖θ − θ'‖/‖θ'‖ at each of the times."""
    (t, a), (s, b) = theta(path), theta(other)
    pairs = [(a[np.argmin(abs(t - at))], b[np.argmin(abs(s - at))]) for at in times]
    return [float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in pairs]


def main() -> None:
    """Walk, kill, go on, and print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--t-end", type=float, default=0.2)
    t_end = parser.parse_args().t_end
    times = [part * t_end for part in SNAPSHOTS] + [1.5 * t_end]
    kept = ["--snapshot-times", ",".join(map(str, times)), "--stop", "none"]
    goal = ["--solver", "bdf", "--rtol", str(RTOL), "--atol", str(ATOL), *kept]

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two, killed = (folder / f"{n}.nc" for n in ("one", "two", "killed"))
        last = ["--t-end", str(times[-1])]
        run(1, "run", EXPERIMENT, "--out", str(one), *last, *goal)
        run(2, "run", EXPERIMENT, "--out", str(two), *last, *goal)
        files = sorted(p.name for p in folder.iterdir())
        print(f"Files of both walks: {', '.join(files)}")
        kill_second(killed, "run", EXPERIMENT, "--out", str(killed), *last, *goal)
        run(1, "resume", str(killed), "--t-end", str(t_end))
        run(2, "resume", str(killed), *last)
        print("| flow time | two processes | killed, one, two |\n|---|---|---|")
        rows = zip(
            times, differences(two, one, times), differences(killed, one, times), strict=True
        )
        for at, a, b in rows:
            print(f"| {at:g} | {a:.1e} | {b:.1e} |")


if __name__ == "__main__":
    main()
