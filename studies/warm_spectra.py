"""Do eigenvalues along a walk cost less from the last snapshot's eigenvectors? iris_ff, seed 0.

    OMP_NUM_THREADS=1 python studies/warm_spectra.py

The five largest and the five smallest eigenvalues of ∇²L and of A at SNAPSHOTS snapshots of a walk
to 175°, by ARPACK from a random vector as `geoflow.analysis.extreme_eigenvalues` takes it, and from
the sum of the eigenvectors found at the snapshot before, with a little of the random one.
Prints products, as docs/analysis.md has them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import geoflow as gf
from geoflow.analysis.curvature import matrix_free
from geoflow.analysis.curvature.operators import loss_hessian, tangent_hessian
from geoflow.analysis.walked import state_at

EXPERIMENT, SNAPSHOTS, K, RANDOM = "iris_ff", 6, 5, 1e-3
FROM_RANDOM = matrix_free.arpack


def started_at(vectors: np.ndarray) -> Any:
    """ARPACK from the sum of eigenvectors; the look at one end beforehand stays as it is."""

    def arpack(operator, shift, sign, k, tol, n_vectors, start, seed, most):
        if k == K:
            start = np.nansum(vectors, axis=1) + RANDOM * start / np.linalg.norm(start)
        return FROM_RANDOM(operator, shift, sign, k, tol, n_vectors, start, seed, most)

    return arpack


def main() -> None:
    """Print a row for each end, operator and snapshot but the first."""
    problem = gf.experiments.get(EXPERIMENT).prepare(0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow, "exponential", stop=gf.Stationary(175.0), max_snapshots=SNAPSHOTS)
    print(
        "| end | operator | snapshot | products from random | from the last |\n" + "|---" * 5 + "|"
    )
    for which in ("largest", "smallest"):
        for name in ("hessian", "tangent"):
            last = vectors = np.empty(0)
            for i in range(ds.sizes["snapshot"]):
                state = state_at(ds, flow, i)
                if name == "hessian":
                    operator = loss_hessian(problem, state.theta)
                else:
                    operator = tangent_hessian(flow, state)
                counts = []
                for arpack in [FROM_RANDOM, *([started_at(last)] if last.size else [])]:
                    matrix_free.arpack = arpack
                    before = problem.counts["hvp"]
                    found = matrix_free.extreme_eigenvalues(
                        operator, K, which=which, tol=1e-6, max_products=1000
                    )
                    counts.append(problem.counts["hvp"] - before)
                    vectors = found.vectors if arpack is FROM_RANDOM else vectors
                if last.size:
                    print(f"| {which} | {name} | {i} | {counts[0]} | {counts[1]} |", flush=True)
                last = vectors


if __name__ == "__main__":
    main()
