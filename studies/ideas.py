"""Draw the pictures of docs/concepts.md, from walks on losses of two and three parameters.

python studies/ideas.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes

import geoflow as gf
from geoflow.plots.styles import COLOURS, SLIDE_INCHES, new_figure, style

PICTURES = Path(__file__).parents[1] / "docs" / "_static"
BLUE, RED, GREEN = COLOURS[:3]
# Of gradient descent on R alone, for the arrows, and of the one long step that is brought back.
ARROW, STEP = 0.16, 0.3
# R = ½(θ₁² + STIFF·θ₂²) on the unit sphere.
STIFF, T_END, RTOL = 300.0, 6.0, 1e-3


def himmelblau(theta):
    """Loss of four minima."""
    x, y = theta
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def plane() -> gf.RegularizingFlow:
    """Down the squared norm, on a level line of that loss."""
    start = torch.tensor([-4.05, -4.83], dtype=torch.float64)
    problem = gf.Problem.from_function(himmelblau, start)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def contours(ax: Axes, flow: gf.RegularizingFlow, x: tuple, y: tuple, values=None) -> None:
    """Draw the loss, or what is given, and the level line."""
    grid = np.meshgrid(np.linspace(*x, 301), np.linspace(*y, 301))
    loss = himmelblau(grid)
    shown = np.log10(loss + 1) if values is None else values(*grid)
    ax.contourf(*grid, shown, 24, cmap="Blues_r", alpha=0.6)
    ax.contour(*grid, loss, [flow.level_set.level], colors="black", linewidths=2)
    ax.set(aspect="equal", xlabel="θ₁", ylabel="θ₂", xlim=x, ylim=y)
    ax.grid(False)


def arrow(ax: Axes, start, move, text: str, colour: str, at: tuple[float, float]) -> None:
    """Draw a vector, and its name beside its tip."""
    tip = start + move
    ax.annotate("", tip, start, arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 2})
    ax.annotate(text, tip, at, textcoords="offset points", color=colour, ha="center", va="center")


def smooth(ds, flow: gf.RegularizingFlow) -> np.ndarray:
    """The walk between its steps, shape (2, N)."""
    return gf.interpolate(ds, np.linspace(0, float(ds.time[-1]), 400), flow).values.T


def flow_and_retraction() -> None:
    """−∇R and its tangent part; a long step along that, and Newton's way back."""
    flow = plane()
    ds = gf.walk(flow, stop=gf.Stationary(degrees=179.9))
    here = torch.from_numpy(gf.interpolate(ds, [0.12], flow).values[0])
    state = flow.evaluate(here)
    point, down = here.numpy(), -state.regularizer_gradient.numpy()
    with style():
        figure = new_figure(SLIDE_INCHES, 0.5 * SLIDE_INCHES)
        left, right = figure.subplots(1, 2)
        contours(left, flow, (-6, 1), (-6, 1))
        left.plot(*smooth(ds, flow), color=RED, linewidth=2.5)
        left.plot(*ds.theta.values[-1], "o", color=RED)
        arrow(left, point, ARROW * down, "−∇R", "black", (4, 12))
        arrow(left, point, ARROW * state.velocity.numpy(), "its tangent part", GREEN, (26, -14))
        left.plot(*point, "ko")
        left.set_title("the flow along L(θ) = c")

        points = [here + STEP * state.velocity]
        level = flow.level_set
        while len(points) < 4:
            loss, gradient = flow.problem.value_and_gradient(points[-1])
            points.append(points[-1] - (loss - level.level) / gradient.square().sum() * gradient)
        way = torch.stack(points).numpy()
        around = [(min(v) - 0.9, max(v) + 0.9) for v in zip(point, *way, strict=True)]
        middle, half = [sum(v) / 2 for v in around], max(b - a for a, b in around) / 2
        contours(right, flow, *[(m - half, m + half) for m in middle])
        arrow(right, point, way[0] - point, "a step along the tangent", GREEN, (0, -46))
        right.plot(*way.T, "--o", color=RED, markersize=4)
        right.annotate(
            "Newton's way back", way[1], (-14, 22), textcoords="offset points", color=RED
        )
        right.plot(*point, "ko")
        right.set_title("re-projection")
        figure.savefig(PICTURES / "ideas_flow.png", dpi=160)


def stiffness() -> None:
    """Steps of an explicit and of an implicit method where two motions differ in speed."""
    start = torch.tensor([0.75, 0.4, 0.0], dtype=torch.float64)
    start[2] = (1 - start.square().sum()).sqrt()
    problem = gf.Problem.from_function(lambda t: t.square().sum() / 2, start)
    weights = torch.tensor([1.0, STIFF, 0.0], dtype=torch.float64)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (weights * t.square()).sum() / 2)
    with style():
        figure = new_figure(SLIDE_INCHES, 0.42 * SLIDE_INCHES)
        left, right = figure.subplots(1, 2)
        for solver, colour in (("dopri5", BLUE), ("bdf", RED)):
            ds = gf.walk(flow, solver, rtol=RTOL, stop=None, t_end=T_END)
            steps, n = ds.sizes["step"] - 1, int(ds.n_gradient[-1])
            theta = gf.interpolate(ds, ds.time.values, flow).values
            label = f"{solver}: {steps} steps, {n} gradients"
            left.plot(theta[:, 0], theta[:, 1], ".-", color=colour, linewidth=1, label=label)
            right.plot(ds.time, ds.step_size, ".-", color=colour, linewidth=1, label=label)
        left.set(xlabel="θ₁, slow", ylabel="θ₂, fast")
        right.set(xlabel="flow time t", ylabel="step", yscale="log", ylim=(1e-4, 1.5))
        right.legend(loc="lower right")
        figure.savefig(PICTURES / "ideas_stiffness.png", dpi=160)


def kkt() -> None:
    """L + R/λ with the λ of a walk's end."""
    flow = plane()
    ds = gf.walk(flow, stop=gf.Stationary(degrees=179.99))
    end, multiplier = ds.theta.values[-1], float(ds.multiplier[-1])

    def decayed(x, y):
        total = himmelblau((x, y)) + (x**2 + y**2) / multiplier
        return np.log10(total + 1)

    with style():
        figure = new_figure(0.5 * SLIDE_INCHES, 0.5 * SLIDE_INCHES)
        ax = figure.subplots()
        contours(ax, flow, (-6, 1), (-6, 1), decayed)
        ax.plot(*smooth(ds, flow), color=RED, linewidth=2.5)
        ax.plot(*end, "o", color=RED)
        radius = float(ds.regularizer[-1]) ** 0.5
        turn = np.linspace(0, 2 * np.pi, 400)
        ax.plot(radius * np.cos(turn), radius * np.sin(turn), "k--", linewidth=1)
        ax.set_title(f"L + R/λ at the λ of the walk's end, {multiplier:.3g}")
        figure.savefig(PICTURES / "ideas_kkt.png", dpi=160)


if __name__ == "__main__":
    torch.set_num_threads(1)
    flow_and_retraction()
    stiffness()
    kkt()
