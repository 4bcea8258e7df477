"""What a walk of the paper's largest network takes: peak memory, evaluations, level kept.

    python studies/large_network.py

`geoflow run cifar10_conv --data synthetic`, seed 0, its training included, in a process of its own
with one thread, to EVALUATIONS gradient evaluations, θ kept at up to 100 points. The walk stays in
runs/. Prints what docs/performance.md says.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np

import geoflow as gf

EXPERIMENT, EVALUATIONS = "cifar10_conv", 250
FILE = Path(__file__).parents[1] / "runs" / f"{EXPERIMENT}-synthetic.nc"


def main() -> None:
    """Walk, and print."""
    FILE.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "geoflow", "run", EXPERIMENT, "--data", "synthetic"]
    command += ["--solver", "exponential"]
    command += ["--max-evaluations", str(EVALUATIONS), "--out", str(FILE), "--force"]
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    with gf.open_trajectory(FILE) as ds:
        residual = np.abs(ds["level_residual"].values).max() / ds.attrs["level"]
        first, last = (ds.isel(step=i) for i in (0, -1))
        print(
            f"{ds.sizes['parameter']:,} parameters, status {ds.attrs['status']}: "
            f"{int(last['n_gradient']) + 2 * int(last['n_hvp'])} evaluations in "
            f"{float(last['wall_time']):.0f} s, {ds.sizes['snapshot']} snapshots, "
            f"peak memory {peak:.2f} GiB"
        )
        print(
            f"angle {float(first['angle']):.1f}° → {float(last['angle']):.1f}°, "
            f"R {float(first['regularizer']):.4g} → {float(last['regularizer']):.4g}, "
            f"|L − c|/c at most {residual:.1e}"
        )


if __name__ == "__main__":
    main()
