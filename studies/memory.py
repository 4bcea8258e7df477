"""Peak memory of a walk by solver, of spectra, and with activations, beside what is estimated.

    OMP_NUM_THREADS=1 python studies/memory.py [CASE …]

Each walk is one of a linear network, 1,000 inputs to 1,000 outputs (P = 10⁶ in float64), on 48
examples of evenly spread singular values (seed 0); that of the exponential solver starts with a
step so long that it fills its Krylov space. Two snapshots are kept, in memory. `spectra` are those
of the loss's Hessian at one of them, `conv` a walk of cifar10_conv's network on 100 random images,
at once and in chunks of 25, by rkc. Everything has a process of its own: what counts is the
kernel's peak less what the process held before, something small of the same kind having imported
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
from geoflow.analysis.curvature import spectra
from geoflow.experiments.networks import convolutional
from geoflow.walking.memory import walk_bytes
from geoflow.walking.snapshots import Thinned

SEED, EXAMPLES, SNAPSHOTS = 0, 48, 2
WIDTH, IMAGES = 1_000, 100
# As many as fill the Krylov spaces, and the pairs of bdf.
EVALUATIONS = {"exponential": 60, "bdf": 150, "cvode": 600}
COST = {"k": 5, "n_probes": 2, "n_steps": 64, "n_trace": 12, "max_products": 20}
# What is measured beside a walk by each solver, and the solver that it is walked by.
OTHERS = {
    "exponential:max_vectors=12": "exponential:max_vectors=12",
    "exponential:basis=float32": "exponential:basis=float32",
    "spectra": "euler",
    "conv": "rkc",
    "conv in chunks": "rkc",
}


def main() -> None:
    """Print a row for each case."""
    print("| | estimated | measured | with glibc's defaults |\n|---|---|---|---|")
    for name in sys.argv[1:] or [*solvers.names(), *OTHERS]:
        lean, usual = (in_a_fresh_process(name, kept) for kept in ("65536", None))
        # In vectors like θ, but where activations are most of it.
        unit, what = (2**20, " MiB") if "conv" in name else (8 * WIDTH**2, "")
        cells = [f"{n / unit:.1f}{what}" for n in (estimate(name), lean, usual)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def in_a_fresh_process(name: str, threshold: str | None) -> int:
    """Bytes that a case takes at its peak; glibc hands blocks above a threshold back at once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if threshold:
        environment["MALLOC_MMAP_THRESHOLD_"] = threshold
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def flow_of(name: str, *, small: bool = False) -> gf.RegularizingFlow:
    """What is walked in a case, or something small of the kind."""
    if "conv" in name:
        return conv(4 if small else IMAGES, 25 if "chunks" in name and not small else None)
    return flow(20 if small else WIDTH)


def measure(name: str) -> int:
    """Do it, and return the peak less what there was before."""
    for small in (True, False):
        made = flow_of(name, small=small)
        ds = walk(made, name, budget=8) if name == "spectra" else None
        before = memory("VmRSS")
        if ds is None:
            walk(made, name)
        else:
            # The kernel's peak from here on.
            Path("/proc/self/clear_refs").write_text("5")
            spectra.along(ds, made, snapshots=[-1], operators=["hessian"], **COST)
    return memory("VmHWM") - before


def estimate(name: str) -> int:
    """Bytes that a case is estimated to take."""
    made = flow_of(name)
    if name == "spectra":
        return spectra.spectrum_bytes(made, COST)
    solver = solvers.from_text(OTHERS.get(name, name))
    return walk_bytes(made, solver, Thinned(SNAPSHOTS), torch.float64)


def walk(flow: gf.RegularizingFlow, name: str, budget: int | None = None) -> Any:
    """Walk with few snapshots."""
    solver: Any = OTHERS.get(name, name)
    if solver.startswith("exponential"):
        solver = LongSteps(**solvers.from_text(solver).options)
    budget = budget or EVALUATIONS.get(name.partition(":")[0], 30)
    return gf.walk(
        flow, solver, rtol=1e-2, stop=None, max_evaluations=budget, max_snapshots=SNAPSHOTS
    )


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


def conv(images: int, batch_size: int | None) -> gf.RegularizingFlow:
    """Down ‖θ‖² on a level set of cifar10_conv's network, untrained, on random images."""
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    x = torch.rand((images, 3, 32, 32), generator=generator, dtype=torch.float64)
    y = torch.arange(images) % 10
    module = convolutional(3, 60, 32, 300).double()
    problem = gf.Problem.from_module(module, nn.functional.cross_entropy, x, y, batch_size)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


if __name__ == "__main__":
    if "--measure" in sys.argv:
        print(measure(sys.argv[-1]))
    else:
        main()
