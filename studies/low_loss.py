"""Networks trained to a low loss, walked to 150° by each solver at the default tolerance.

python studies/low_loss.py [SOLVER…]

Prints a table of docs/performance.md: the least radius of curvature of the level set at the start,
gradient evaluations and the flow time they came to, of small networks that L-BFGS has trained on
thirty examples (tests/references.py, seeds 0 and 1 of each), ``cvode`` where scikit-sundae is
installed.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import geoflow as gf

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import references

SOLVERS = ("bdf", "exponential", "cvode")
SEEDS = (0, 1)
MAX_EVALUATIONS = 4_000
# Layers, activation, iterations of L-BFGS.
NETWORKS: tuple[tuple[tuple[int, ...], nn.Module, int], ...] = (
    ((4, 12, 1), nn.Tanh(), 300),
    ((2, 8, 8, 1), nn.Tanh(), 200),
    ((3, 10, 10, 1), nn.Tanh(), 300),
    ((2, 16, 16, 1), nn.Tanh(), 100),
    ((3, 8, 8, 8, 1), nn.Tanh(), 200),
    ((4, 10, 10, 2), nn.SiLU(), 150),
    ((3, 20, 1), nn.Softplus(), 300),
    ((3, 12, 12, 1), nn.ReLU(), 100),
)


def cell(flow: gf.RegularizingFlow, solver: str) -> str:
    """Evaluations and flow time to 150°, or how far it came; how far off the level, if it was."""
    stop = gf.Stationary(degrees=150.0)
    ds = gf.walk(flow, solver, stop=stop, max_evaluations=MAX_EVALUATIONS, max_snapshots=2)
    n, t = int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]), float(ds["time"][-1])
    off = float(abs(ds["level_residual"]).max()) / ds.attrs["level"]
    note = f"t = {t:.3g}" + (f", L − c to {off:.2g} c" if off > 1e-3 else "")
    if ds.attrs["status"] == "stationary":
        return f"{n:,} ({note})"
    return f"{ds.attrs['status']} at {float(ds['angle'][-1]):.0f}° ({note})"


def radius(flow: gf.RegularizingFlow) -> float:
    """Least radius of curvature of the level set at the start, ‖∇L‖ over ∇²L's largest, by ‖θ‖."""
    theta = flow.level_set.project(flow.problem.theta0).theta
    hessian = torch.stack([flow.problem.hvp(theta, row) for row in torch.eye(len(theta)).to(theta)])
    largest = torch.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
    return float(flow.evaluate(theta).gradient_norm / largest / theta.norm())


def main() -> None:
    """Walk each and print the rows."""
    torch.set_num_threads(1)
    solvers = sys.argv[1:] or SOLVERS
    print("| network | c | radius / ‖θ‖ | " + " | ".join(solvers) + " |")
    print("|" + "---|" * (3 + len(solvers)))
    for layers, activation, iterations in NETWORKS:
        for seed in SEEDS:
            flow = references.trained(layers, activation, seed, iterations)
            name = "-".join(map(str, layers)) + f" {type(activation).__name__}, seed {seed}"
            cells = [cell(flow, solver) for solver in solvers]
            level = f"{flow.level_set.level:.1e} | {radius(flow):.0e}"
            print(f"| {name} | {level} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
