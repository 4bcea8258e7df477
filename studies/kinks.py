"""How well solvers keep their tolerance where a walk crosses a kink of R, or slides along one of L.

    OMP_NUM_THREADS=1 python studies/kinks.py

L = Σ aᵢ(θᵢ − 1)², R = Σ|θᵢ|: at t = 0.1449 one coordinate passes zero, and the velocity jumps. The
reference is SciPy's DOP853 on either side of it.

L = y − |x|, R = ½‖θ‖², c = 1: x reaches 0 at t = ln 2 and stays there, since the flow on either
side leads back to it. Throughout, z = z₀e⁻ᵗ.
"""

import numpy as np
import torch
from scipy.integrate import solve_ivp

import geoflow as gf

A = np.array([1.0, 2.0, 3.0, 5.0])
START = np.array([0.3, -0.2, 0.5, 0.7])
TIMES = (0.2, 0.35, 0.5)
RTOLS = (1e-3, 1e-4, 1e-5, 1e-6)
SOLVERS = ("bdf", "exponential", "rkc", "dopri5", "bosh3")


def velocity(signs: np.ndarray):
    """−Π∇R where θ has these signs."""

    def function(_, theta):
        g = 2 * A * (theta - 1)
        return -(signs - g * (g @ signs) / (g @ g))

    return function


def reference() -> np.ndarray:
    """θ at the times."""
    exactly = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
    zero = lambda _, theta: theta[1]  # noqa: E731
    zero.terminal = True
    before = solve_ivp(velocity(np.sign(START)), (0, 1), START, events=zero, **exactly)
    kink = before.t[-1]
    after = solve_ivp(velocity(np.ones(4)), (kink, 0.5), before.y[:, -1], t_eval=TIMES, **exactly)
    return after.y.T


def errors(solver: str, rtol: float, right: np.ndarray) -> float:
    """The largest error over rtol."""
    a = torch.from_numpy(A)
    problem = gf.Problem.from_function(lambda t: a @ (t - 1).square(), torch.from_numpy(START))
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-9), lambda t: t.abs().sum())
    ds = gf.walk(flow, solver, rtol, stop=None, t_end=0.5, snapshot_times=TIMES)
    theta = ds["theta"].values[np.isin(ds["snapshot_time"], TIMES)]
    return (np.linalg.norm(theta - right, axis=1) / np.linalg.norm(right, axis=1)).max() / rtol


def sliding(solver: str, rtol: float) -> str:
    """Error over rtol one unit of flow time after the kink, and the evaluations."""
    x, z, t_end = 0.5, 2.0, np.log(2) + 1
    start = torch.tensor([x, 1 + x, z], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: t[1] - t[0].abs(), start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-9), lambda t: t @ t / 2)
    given = {"rtol": rtol, "atol": 1e-3 * rtol, "stop": None, "t_end": t_end}
    ds = gf.walk(flow, solver, **given, max_evaluations=20_000)
    right = np.array([0, 1, z * np.exp(-t_end)])
    error = np.linalg.norm(ds["theta"].values[-1] - right) / np.linalg.norm(right)
    n = int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1])
    return f"{error / rtol:.1g} ({n:,})" if ds.attrs["status"] == "t_end" else ds.attrs["status"]


def main() -> None:
    """Print the largest errors over rtol."""
    right = reference()
    print("| solver |", *(f"{rtol:.0e} |" for rtol in RTOLS))
    print("|" + "---|" * (1 + len(RTOLS)))
    for solver in SOLVERS:
        print(f"| {solver} |", *(f"{errors(solver, rtol, right):.1f} |" for rtol in RTOLS))
    print("\nSliding: error over rtol (evaluations)\n")
    print("| solver |", *(f"{rtol:.0e} |" for rtol in RTOLS[:3]))
    print("|" + "---|" * 4)
    for solver in SOLVERS:
        print(f"| {solver} |", *(f"{sliding(solver, rtol)} |" for rtol in RTOLS[:3]), flush=True)


if __name__ == "__main__":
    main()
