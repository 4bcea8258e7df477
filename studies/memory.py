"""Peak memory of a walk by solver, and what is estimated before it: P = 10⁶ in float64.

    OMP_NUM_THREADS=1 python studies/memory.py [SOLVER …]

Each walk is one of a linear network, 1,000 inputs to 1,000 outputs, on 48 examples of evenly
spread singular values (seed 0); that of the exponential solver starts with a step so long that it
fills its Krylov space. Two snapshots are kept, in memory. Every walk has a process of its own: what
counts is the kernel's peak less what the process held before, a small walk having imported
everything. Once glibc hands every freed vector back (``MALLOC_MMAP_THRESHOLD_``), as it does from
32 MiB on, and once it is left as it is. Prints the table of docs/performance.md. Linux only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import geoflow as gf
from geoflow import solvers
from geoflow.walking.memory import walk_bytes
from geoflow.walking.snapshots import Thinned

SEED, EXAMPLES, SNAPSHOTS = 0, 48, 2
WIDTH = 1_000
# As many as fill the Krylov space, and the pairs of bdf.
EVALUATIONS = {"exponential": 60, "bdf": 300}


def main() -> None:
    """Print a row for each solver."""
    print(
        "| solver | vectors of the solver | estimated / P | measured / P | with glibc's defaults |"
    )
    print("|---|---|---|---|---|")
    for name in sys.argv[1:] or solvers.names():
        unit = 8 * WIDTH**2
        lean, usual = (in_a_fresh_process(name, kept) / unit for kept in ("65536", None))
        own = solvers.get(name).vectors
        estimated = estimate(name) / unit
        print(f"| {name} | {own} | {estimated:.0f} | {lean:.1f} | {usual:.1f} |", flush=True)


def in_a_fresh_process(name: str, threshold: str | None) -> int:
    """Bytes that a walk takes at its peak; glibc hands blocks above a threshold back at once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if threshold:
        environment["MALLOC_MMAP_THRESHOLD_"] = threshold
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure(name: str) -> int:
    """Walk, and return the peak less what there was before."""
    walk(flow(10), name)
    big = flow(WIDTH)
    before = memory("VmRSS")
    walk(big, name)
    return memory("VmHWM") - before


def estimate(name: str) -> int:
    """Bytes that a walk is estimated to take."""
    made = flow(WIDTH)
    return walk_bytes(made, solvers.get(name), Thinned(SNAPSHOTS), torch.float64)


def walk(flow: gf.RegularizingFlow, name: str) -> None:
    """Walk with few snapshots."""
    budget = EVALUATIONS.get(name, 30)
    solver = LongSteps() if name == "exponential" else name
    gf.walk(flow, solver, rtol=1e-2, stop=None, max_evaluations=budget, max_snapshots=SNAPSHOTS)


class LongSteps(solvers.Exponential):
    """Starts with a step so long that it fills the Krylov space."""

    def init(self, flow: Any, state: Any, tolerance: solvers.Tolerance) -> solvers.Carry:
        """Ask for a long step."""
        return {**super().init(flow, state, tolerance), "step_size": 1e3}


def memory(entry: str) -> int:
    """Resident memory of this process, now or at its peak, in bytes."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.split(f"{entry}:")[1].split()[0])


def flow(width: int) -> gf.RegularizingFlow:
    """Down ‖θ‖² on a level set of a linear network's squared error."""
    rng = np.random.default_rng(SEED)
    examples = min(EXAMPLES, width)
    basis = np.linalg.qr(rng.standard_normal((width, examples)))[0]
    inputs = torch.from_numpy((basis * np.linspace(1, 100, examples)).T.copy())
    targets = torch.from_numpy(rng.standard_normal((examples, width)))
    module = nn.Linear(width, width, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(rng.standard_normal((width, width)) / width**0.5))
    problem = gf.Problem.from_module(module, nn.MSELoss(), inputs, targets)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(measure(sys.argv[-1]))
    else:
        main()
