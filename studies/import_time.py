"""What `import geoflow` adds to importing torch and xarray, in fresh processes; no seed.

    python studies/import_time.py

Prints the median of several processes, by `-X importtime`: of torch and xarray, of geoflow, and of
the slowest modules that only geoflow brings.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

PROCESSES = 5
SHOWN = 8


def measure() -> dict[str, float]:
    """Cumulative seconds of each module, imported after torch and xarray."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch, xarray, geoflow"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    seconds = {}
    for line in lines:
        if line.startswith("import time:") and "cumulative" not in line:
            _, cumulative, name = line.split("|")
            seconds[name.strip()] = int(cumulative) / 1e6
    return seconds


def measure_help() -> float:
    """Cumulative seconds of all imports of ``geoflow --help``."""
    command = [sys.executable, "-X", "importtime", "-m", "geoflow", "--help"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [line.split("|")[0].removeprefix("import time:") for line in lines]
    return sum(int(own) for own in rows if own.strip().isdigit()) / 1e6


def main() -> None:
    """Print the table."""
    measure()  # Into the page cache.
    runs = [measure() for _ in range(PROCESSES)]
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    names = list(runs[0])
    # A module stands after all that it imports: geoflow's own come after xarray.
    own = names[names.index("xarray") + 1 : names.index("geoflow")]
    slowest = sorted(own, key=median.__getitem__, reverse=True)[:SHOWN]
    print("| import | s |\n|---|---|")
    for name in ("torch", "xarray", "geoflow", *slowest):
        print(f"| {name} | {median[name]:.2f} |")
    print(f"| all of geoflow --help | {statistics.median(measure_help() for _ in range(5)):.2f} |")


if __name__ == "__main__":
    main()
