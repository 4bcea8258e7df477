"""Which compression and chunks for θ: size, time of writing, and of reading along either axis.

    python studies/archive_compression.py [EVALUATIONS]

Walks mnist_ff (seed 0, dopri5, 1,500 evaluations unless told otherwise), keeps every step's θ,
and writes the same values anew in each way. Prints the table of docs/archive.md. One thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import netCDF4
import numpy as np
import torch

import geoflow as gf
from geoflow.archive import trajectory_files

REPEATS = 3
FILTERS: dict[str, dict[str, object]] = {
    "none": {},
    "zlib 1": {"compression": "zlib", "complevel": 1, "shuffle": True},
    "zlib 4": {"compression": "zlib", "complevel": 4, "shuffle": True},
    "zstd 1": {"compression": "zstd", "complevel": 1, "shuffle": True},
    "zstd 3": {"compression": "zstd", "complevel": 3, "shuffle": True},
}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    evaluations = int(sys.argv[1]) if len(sys.argv) > 1 else 1_500
    prepared = gf.experiments.get("mnist_ff").prepare(seed=0)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, "dopri5", stop=None, max_evaluations=evaluations, max_snapshots=1000)
    theta = ds["theta"].values
    n, p = theta.shape
    print(f"theta {n} x {p}, {theta.nbytes / 1e6:.0f} MB raw; times in ms, best of {REPEATS}\n")
    print(
        "| dtype | filter | chunk | size, % | write a snapshot | read a snapshot | read a series |"
    )
    print("|---|---|---|---|---|---|---|")
    # In pieces of one length, as geoflow stores θ, so that none is padded.
    piece = -(-p // -(-p // trajectory_files.THETA_CHUNK))
    chunks = [(1, p), (1, piece), (16, piece), (n, 4096)]
    for dtype, filters in ((np.float64, FILTERS), (np.float32, ("none", "zlib 1", "zstd 1"))):
        values = theta.astype(dtype)
        for name in filters:
            for chunk in chunks:
                size, write, row, column = measure(values, FILTERS[name], chunk)
                print(
                    f"| {values.dtype} | {name} | {chunk[0]} × {chunk[1]} "
                    f"| {100 * size / values.nbytes:.0f} | {1e3 * write / n:.2f} "
                    f"| {1e3 * row:.2f} | {1e3 * column:.1f} |"
                )


def measure(
    values: np.ndarray, options: dict[str, object], chunk: tuple[int, int]
) -> tuple[int, float, float, float]:
    """Size in bytes, and seconds to write all, read one snapshot, read one parameter's series."""
    n, p = values.shape
    writes, rows, columns = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "theta.nc"
        for _ in range(REPEATS):
            path.unlink(missing_ok=True)
            start = time.perf_counter()
            with netCDF4.Dataset(path, "w") as file:
                file.createDimension("snapshot", n)
                file.createDimension("parameter", p)
                variable = file.createVariable(
                    "theta",
                    values.dtype,
                    ("snapshot", "parameter"),
                    chunksizes=chunk,
                    fletcher32=True,
                    fill_value=False,
                    **options,
                )
                for i in range(0, n, chunk[0]):
                    variable[i : i + chunk[0]] = values[i : i + chunk[0]]
            writes.append(time.perf_counter() - start)
            rows.append(_read(path, (n // 2, slice(None))))
            columns.append(_read(path, (slice(None), p // 2)))
        return path.stat().st_size, min(writes), min(rows), min(columns)


def _read(path: Path, index: tuple[object, object]) -> float:
    with netCDF4.Dataset(path) as file:
        start = time.perf_counter()
        file["theta"][index]
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
