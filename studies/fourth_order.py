"""Would a fourth-order stabilised method pay at tight tolerances? iris_ff, seed 0, to t = 0.5.

python studies/fourth_order.py

Fixed steps of RKC, and of the fourth-order extrapolation of the damped first-order Chebyshev
method (the construction of ESERK4: J. Martín-Vaquero & A. Kleefeld, J. Comput. Phys. 326, 2016),
both re-projected at each step; beside them the exponential solver at a few tolerances. ROCK4
(Abdulle, SIAM J. Sci. Comput. 23, 2002) is stable to 0.35 s² and needs about sqrt(h ρ/0.35)
evaluations a step: the last column counts that many for the extrapolation's steps.
"""

import functools
import math

import torch

import geoflow as gf
from geoflow.solvers.rkc import advance, stages_for

T_END = 0.5
REFERENCE_RTOL = 1e-7
WEIGHTS = {1: -1 / 6, 2: 4.0, 3: -27 / 2, 4: 32 / 3}
# |P| ≤ 0.31 in the interior, so that the weighted powers add up to less than one.
DAMPING = 1.67


@functools.cache
def first_order(stages):
    """w0, w1 and T_j(w0) of the damped first-order method."""
    w0 = 1 + DAMPING / stages**2
    t, dt = [1.0, w0], [0.0, 1.0]
    for _ in range(2, stages + 1):
        dt.append(2 * t[-1] + 2 * w0 * dt[-1] - dt[-2])
        t.append(2 * w0 * t[-1] - t[-2])
    return w0, t[stages] / dt[stages], t


def chebyshev(field, theta, velocity, step, stages):
    """One step of the first-order method."""
    w0, w1, t = first_order(stages)
    before, now = theta, theta + step * w1 / w0 * velocity
    for j in range(2, stages + 1):
        slope = field(now)
        following = (
            2 * w0 * t[j - 1] / t[j] * now
            - t[j - 2] / t[j] * before
            + 2 * w1 * t[j - 1] / t[j] * step * slope
        )
        before, now = now, following
    return now


def stages_first_order(step_times_radius):
    """Fewest stages whose stability interval, (1 + w0)/w1, holds h·ρ."""
    stages = 1 + math.isqrt(int(step_times_radius / 1.3))
    while (1 + first_order(stages)[0]) / first_order(stages)[1] < step_times_radius:
        stages += 1
    return max(stages, 2)


def extrapolated(field, theta, velocity, step, radius):
    """Fourth order: 1, 2, 3 and 4 equal steps, combined."""
    end = torch.zeros_like(theta)
    for n, weight in WEIGHTS.items():
        stages = stages_first_order(step / n * radius)
        now, slope = theta, velocity
        for _ in range(n):
            now = chebyshev(field, now, slope, step / n, stages)
            slope = field(now)
        end += weight * now
    return end


def walk(flow, n_steps, radius, order):
    """Fixed steps; returns θ and the evaluations."""
    problem, state = flow.problem, flow.evaluate(flow.problem.theta0)
    before = problem.evaluations

    def field(theta):
        return flow.evaluate(theta).velocity

    step = T_END / n_steps
    for _ in range(n_steps):
        if order == 2:
            stages = stages_for(step * radius)
            theta = advance(field, state.theta, state.velocity, step, stages)
        else:
            theta = extrapolated(field, state.theta, state.velocity, step, radius)
        state, _ = flow.project(theta)
    return state.theta, problem.evaluations - before


def main() -> None:
    """Print the table of docs/performance.md."""
    problem = gf.experiments.get("iris_ff").prepare(0).problem
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level_rtol=1e-10), gf.regularizers.squared_norm)

    def adaptive(rtol):
        settings = {"t_end": T_END, "stop": None, "snapshot_times": [T_END]}
        ds = gf.walk(flow, "exponential", rtol=rtol, atol=1e-12, **settings)
        return torch.from_numpy(ds["theta"].values[0]), int(ds["n_gradient"][-1])

    exact, _ = adaptive(REFERENCE_RTOL)

    def error(theta):
        return float((theta - exact).norm() / exact.norm())

    # The largest that the power method of RKC meets on the way, with its safety, is 2.4e4.
    radius = 2.5e4
    print("| method | steps or rtol | relative error | evaluations | counted as ROCK4's |")
    print("|---|---|---|---|---|")
    for order, counts in ((2, (25, 50, 100, 200, 400)), (4, (25, 50, 100, 200))):
        name = {2: "RKC", 4: "extrapolated, fourth order"}[order]
        for n in counts:
            try:
                theta, evaluations = walk(flow, n, radius, order)
                found = f"{error(theta):.1e} | {evaluations:,}"
            except gf.GeoflowError as failure:
                found = f"{type(failure).__name__} | "
            rock = n * (1 + math.sqrt(T_END / n * radius / 0.35))
            print(
                f"| {name} | {n} | {found} | {f'{rock:,.0f}' if order == 4 else ''} |", flush=True
            )
    for rtol in (1e-3, 1e-4, 1e-5, 1e-6):
        theta, evaluations = adaptive(rtol)
        print(f"| exponential | {rtol:.0e} | {error(theta):.1e} | {evaluations:,} | |", flush=True)


if __name__ == "__main__":
    main()
