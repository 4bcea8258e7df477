"""Memory and time of trajectory PCA on a file larger than what it may take: 5.5 GB.

    OMP_NUM_THREADS=1 python studies/pca_memory.py [FOLDER]

Writes a trajectory of 1,000 snapshots of P = 685,450 parameters in float64, eight planted
components of falling size and noise (seed 0), into FOLDER (default: a temporary one), and analyses
it in fresh processes: six components, the same standardised, and the null models' pass. Then six
components of 40 points in P = 10⁷, a Dask array that is never whole. Peak resident memory is what
the kernel says, less what the process had after its imports. Prints the table of docs/analysis.md
and removes the file.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dask.array as da
import netCDF4
import numpy as np
import torch
import xarray as xr
from dask.delayed import delayed

import geoflow as gf
from geoflow.analysis import fit_pca
from geoflow.analysis.components import null_models, pca
from geoflow.solvers import TorchDiffEq

SEED, SNAPSHOTS, PARAMETERS, COMPONENTS = 0, 1_000, 685_450, 6
SIZES = np.geomspace(100, 0.1, 8)
NOISE = 1e-3
ROWS = 20
WIDE = (40, 10_000_000)


def main() -> None:
    """Print a row for each analysis."""
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "walk.nc"
        write(path)
        cache = netCDF4.get_chunk_cache()[0]
        size = path.stat().st_size
        print(f"{size / 1e9:.2f} GB; the netCDF library's chunk cache {cache / 2**20:.0f} MiB")
        print("| analysis | memory above the imports / MiB | s |")
        print("|---|---|---|")
        for name in ANALYSES:
            peak, seconds = in_a_fresh_process(name, path)
            print(f"| {name} | {peak:,.0f} | {seconds:.0f} |", flush=True)


def write(path: Path) -> None:
    """Write the trajectory, a few snapshots at a time."""
    problem = gf.Problem.from_function(
        lambda t: 0.5 * torch.dot(t, t), torch.ones(PARAMETERS, dtype=torch.float64)
    )
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: t[0])
    step = gf.walk(flow, TorchDiffEq("euler", step_size=1e-3), stop=None, t_end=1e-3)
    ds = step.drop_vars("theta").isel(step=[0] * SNAPSHOTS, snapshot=[0] * SNAPSHOTS)
    counted = np.arange(SNAPSHOTS)
    for name in ("time", "arc_length", "snapshot_time", "snapshot_step"):
        ds = ds.assign_coords({name: ds[name].copy(data=counted.astype(ds[name].dtype))})
    directions = np.random.default_rng(SEED).standard_normal((len(SIZES), PARAMETERS))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    blocks = [
        da.from_delayed(
            delayed(rows)(first, delayed(directions, traverse=False)), (ROWS, PARAMETERS), float
        )
        for first in range(0, SNAPSHOTS, ROWS)
    ]
    theta = da.concatenate(blocks)
    ds["theta"] = (("snapshot", "parameter"), theta, step["theta"].attrs)
    gf.save_trajectory(ds, path)


def rows(first: int, directions: Any) -> Any:
    """Snapshots from one on: cosines along the planted directions, and noise."""
    rng = np.random.default_rng([SEED, first])
    noise = NOISE * rng.standard_normal((ROWS, PARAMETERS))
    at = np.pi * (first + np.arange(ROWS) + 0.5) / SNAPSHOTS
    return noise + (SIZES * np.cos(np.outer(at, 1 + np.arange(len(SIZES))))) @ directions


def in_a_fresh_process(name: str, path: Path) -> tuple[float, float]:
    """Peak memory above the imports, in MiB, and seconds."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(send, name, path))
    process.start()
    send.close()
    found: tuple[float, float] = receive.recv()
    process.join()
    return found


def measure(connection: Any, name: str, path: Path) -> None:
    """Analyse, and send what it took."""
    before, start = memory("VmRSS"), time.perf_counter()
    ANALYSES[name](path)
    connection.send((memory("VmHWM") - before, time.perf_counter() - start))


def memory(entry: str) -> float:
    """Resident memory of this process, now or at its peak, in MiB."""
    text = Path("/proc/self/status").read_text()
    return float(text.split(f"{entry}:")[1].split()[0]) / 2**10


def components(path: Path, standardise: bool = False) -> xr.Dataset:
    """Analyse the file; the planted variances must come out."""
    found = pca.along(path, COMPONENTS, standardise=standardise)
    planted = SIZES[:COMPONENTS] ** 2 * SNAPSHOTS / 2 / (SNAPSHOTS - 1)
    noise = NOISE**2 * PARAMETERS / SNAPSHOTS
    if not standardise:
        assert np.allclose(found["explained_variance"], planted + noise, rtol=0.05)
    gram = found["components"].values @ found["components"].values.T
    assert np.allclose(gram, np.eye(COMPONENTS), atol=1e-8)
    return found


def null_pass(path: Path) -> xr.Dataset:
    """Set null models beside the file, with few simulations: each takes N³ operations."""
    with gf.open_trajectory(path) as ds:
        return null_models.compare(ds["theta"], n_components=COMPONENTS, n_simulations=9)


def wide(path: Path) -> Any:
    """Analyse points with many parameters."""
    points = da.random.default_rng(SEED).standard_normal(WIDE, chunks=(WIDE[0], 65_536))
    return fit_pca([points], COMPONENTS)


ANALYSES = {
    "six components": components,
    "six components, standardised": lambda path: components(path, standardise=True),
    "null models, 9 simulations": null_pass,
    "six components of 40 points in P = 10⁷": wide,
}


if __name__ == "__main__":
    main()
