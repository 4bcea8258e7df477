"""Products with ∇²L by reverse mode twice and by a difference of gradients: error and time.

python studies/hessian_products.py

Seed 0, float64 and float32, along the flow's velocity. The error of the difference is taken
against the former, relative to the product's norm.
"""

import time

import torch

import geoflow as gf
from geoflow.manifold.linearization import difference_of

REPEATS = 20


def main() -> None:
    """Measure both ways on iris_ff and mnist_ff."""
    print("| experiment | dtype | difference, relative error | ms: gradient | exact product |")
    print("|---|---|---|---|---|")
    for experiment in ("iris_ff", "mnist_ff"):
        for dtype in (torch.float64, torch.float32):
            problem = gf.experiments.get(experiment).prepare(0, dtype=dtype).problem
            flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
            state = flow.evaluate(problem.theta0)
            unit = state.velocity / state.tangent_norm
            exact = problem.hvp(state.theta, unit)
            step = difference_of(dtype) * float(torch.linalg.vector_norm(state.theta))
            _, ahead = problem.value_and_gradient(state.theta + step * unit)
            by_difference = (ahead - state.gradient) / step
            error = torch.linalg.vector_norm(by_difference - exact) / torch.linalg.vector_norm(
                exact
            )
            gradient = best(lambda p=problem, s=state: p.value_and_gradient(s.theta))
            product = best(lambda p=problem, s=state, u=unit: p.hvp(s.theta, u))
            print(
                f"| {experiment} | {str(dtype).removeprefix('torch.')} | {float(error):.1e} "
                f"| {1e3 * gradient:.1f} | {1e3 * product:.1f} |",
                flush=True,
            )


def best(function) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    main()
