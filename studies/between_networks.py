"""Walk from one trained network towards another at constant loss, and see where it gets stuck.

    OMP_NUM_THREADS=1 python studies/between_networks.py               iris_ff and mnist_ff, 3 pairs
    OMP_NUM_THREADS=1 python studies/between_networks.py sine_4 --pairs 5

Both networks of a pair are trained on the same data from different first weights (seeds 0 and 1, 2,
3 of the weights and of the shuffling); sine_4 is a network with hardly a unit to spare. B is
aligned to A, and taken to A's level along the normal. Beside the walk down ‖θ − θ_B‖²: the barrier
of the straight line, and of a Bézier curve trained through its middle point. What is there in
runs/between_networks is not done again. Fills docs/objectives.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from objectives import PICTURES, RUNS, fill, noted
from torch import Tensor, nn

import geoflow as gf
from geoflow.analysis import between
from geoflow.experiments import PreparedExperiment, registry
from geoflow.plots.styles import COLOURS, LINES, SLIDE_INCHES, new_figure, style
from geoflow.report.page import mean_std

EVALUATIONS = {"iris_ff": 2000, "mnist_ff": 1000, "sine_4": 4000}
# B's units as they are, and aligned to A.
ORDERS = ("as trained", "aligned")
DEGREES = 179.0
# Part of the distance that is left at most of a walk that has arrived.
ARRIVED = 1e-2
# Flow time t by which ‖θ − θ_B‖ falls to e⁻²ᵗ of itself, were nothing in the way.
T_END = {"iris_ff": 4.0, "mnist_ff": 4.0, "sine_4": 8.0}
HEAD = [
    "experiment",
    "units of B",
    "pairs",
    "distance",
    "barrier of the line, over the loss kept",
    "of the Bézier curve",
    "gradients of the curve",
    "walks that arrived",
    "ends of the others",
    "distance left / %",
    "arc length over distance",
    "gradients of the walk",
    "test loss at A",
    "most on the way",
    "where it ended",
    "at B",
]


def trained(name: str, seed: int) -> PreparedExperiment:
    """The experiment of seed 0's data, its first weights and its shuffling of another seed."""
    if name == "sine_4":
        return sine_of_four_units(seed)
    experiment = registry.of_paper(name)
    split = experiment.split

    def of_seed_0(rng: np.random.Generator, data: str | None) -> object:
        splitting = np.random.SeedSequence(0).spawn(3)[0]
        return split(np.random.default_rng(splitting), data)

    return replace(experiment, split=of_seed_0).prepare(seed)


def sine_of_four_units(seed: int) -> PreparedExperiment:
    """The sine of 6x at 60 points by hardly more tanh units than it takes, to a loss of 0.01."""
    x = torch.linspace(-1, 1, 119, dtype=torch.float64)[:, None]
    y = torch.sin(6 * x)
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    adam = torch.optim.Adam(module.parameters(), 0.01)
    while (loss := nn.functional.mse_loss(module(x[::2]), y[::2])).item() >= 0.01:
        adam.zero_grad()
        loss.backward()
        adam.step()
    problem, test = (
        gf.Problem.from_module(module, nn.functional.mse_loss, x[i::2], y[i::2]) for i in (0, 1)
    )
    return PreparedExperiment(
        problem=problem,
        module=module,
        observables={"test_loss": lambda theta: float(test.loss(theta))},
    )


def pair(name: str, number: int, order: str, folder: Path) -> dict[str, object]:
    """Everything of one pair, with B's units in one order."""
    first, second = trained(name, 0), trained(name, number)
    problem, test_loss = first.problem, first.observables["test_loss"]
    level_set = gf.LevelSet(problem)

    def on_level(theta: Tensor) -> Tensor:
        return level_set.project(theta, max_iterations=200).theta

    a = on_level(problem.theta0)
    b = second.problem.theta0
    if order == "aligned":
        b = between.align(first.module, b, problem.theta0)
    b = on_level(b)
    distance = float((b - a).norm())
    line = between.barrier(problem, between.straight(a, b))
    curve = between.bezier(problem, a, b, evaluations=EVALUATIONS[name])
    around = between.barrier(problem, curve)
    archive = folder / "walk.nc"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        gf.walk(
            gf.RegularizingFlow(level_set, gf.regularizers.distance_to(b)),
            "exponential",
            stop=gf.Stationary(DEGREES),
            t_end=T_END[name],
            max_evaluations=EVALUATIONS[name],
            observables={"test_loss": test_loss},
            archive=archive,
            overwrite=True,
        ).close()
    with gf.open_trajectory(archive) as ds:
        return {
            "distance": distance,
            "level": float(problem.loss(a)),
            "line": line.losses.tolist(),
            "line_height": line.height,
            "curve": around.losses.tolist(),
            "curve_height": around.height,
            "test_a": float(test_loss(a)),
            "test_b": float(test_loss(b)),
        } | of_walk(ds)


def of_walk(ds: xr.Dataset) -> dict[str, object]:
    """Where a walk towards B ended, and how it came there."""
    left = np.sqrt(ds["regularizer"].values)
    return {
        "status": ds.attrs["status"],
        "left": float(left[-1]),
        "angle": float(ds["angle"][-1]),
        "arc": float(ds["arc_length"][-1]),
        "evaluations": int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]),
        "test_end": float(ds["test_loss"][-1]),
        "along": {"arc": ds["arc_length"].values.tolist(), "left": left.tolist()},
    }


def run(name: str, number: int, order: str) -> dict[str, object]:
    """Do one pair where it is missing."""
    folder = RUNS / "between_networks" / name / f"0-{number}" / order
    done = (folder / "pair.json").exists()
    found = noted(folder / "pair.json", lambda: pair(name, number, order, folder))
    if not done:
        keys = ("distance", "level", "line_height", "curve_height", "status", "left", "angle")
        print(name, number, order, *(f"{k} {found[k]}" for k in keys), flush=True)
    with gf.open_trajectory(folder / "walk.nc") as ds:
        return found | {"test_most": float(ds["test_loss"].max())}


def row(name: str, order: str, pairs: list[dict[str, object]]) -> list[str]:
    """A row for one order of units."""
    cells = [name, order, str(len(pairs)), mean_std([p["distance"] for p in pairs])]
    for key in ("line_height", "curve_height"):
        cells.append(mean_std([p[key] / p["level"] for p in pairs]))
    cells.append(str(EVALUATIONS[name]))
    others = [p["status"] for p in pairs if p["left"] > ARRIVED * p["distance"]]
    cells.append(f"{len(pairs) - len(others)} of {len(pairs)}")
    cells.append(", ".join(others) or "–")
    cells.append(mean_std([100 * p["left"] / p["distance"] for p in pairs]))
    cells.append(mean_std([p["arc"] / p["distance"] for p in pairs]))
    cells.append(f"{np.mean([p['evaluations'] for p in pairs]):.0f}")
    cells += [mean_std([p[f"test_{at}"] for p in pairs]) for at in ("a", "most", "end", "b")]
    return cells


def draw(done: dict[tuple[str, str], list[dict[str, object]]]) -> None:
    """Draw the loss along lines and curves, and the distance left along walks."""
    with style():
        figure = new_figure(SLIDE_INCHES, 0.75 * SLIDE_INCHES)
        axes = figure.subplots(2, len(EVALUATIONS))
        for column, name in zip(axes.T, EVALUATIONS, strict=True):
            for number, order in enumerate(ORDERS):
                for i, p in enumerate(done.get((name, order), [])):
                    t = np.linspace(0, 1, len(p["line"]))
                    for shift, what in enumerate(("line", "curve")):
                        look = {"color": COLOURS[number], "linestyle": LINES[2 * shift]}
                        label = {} if i else {"label": f"{what}, B {order}"}
                        column[0].plot(t, p[what], **look, **label)
                    x, left = (np.array(p["along"][k]) / p["distance"] for k in ("arc", "left"))
                    look = {"color": COLOURS[number], "linestyle": LINES[number]}
                    label = {} if i else {"label": f"B {order}"}
                    column[1].plot(x, left, **look, **label)
            column[0].set_yscale("log")
            column[0].set_title(name)
            column[0].set_xlabel("$t$ from A to B")
        middle = axes[1, len(EVALUATIONS) // 2]
        middle.set_xlabel("arc length of the walk / distance of A and B")
        axes[0, 0].set_ylabel("training loss")
        axes[1, 0].set_ylabel("distance left / that at the start")
        # Room for the legend below the curves.
        axes[0, 0].set_ylim(bottom=1e-7)
        axes[0, 0].legend(loc="lower center")
        axes[1, 0].legend()
        figure.savefig(PICTURES / "between_networks.png", dpi=200)


def main() -> None:
    """Do every pair asked for; write the table and the picture of all that is there."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "experiments", nargs="*", metavar="EXPERIMENT", help="default: iris_ff, mnist_ff"
    )
    parser.add_argument("--pairs", type=int, default=3, help="how many")
    args = parser.parse_args()
    names = args.experiments or ["iris_ff", "mnist_ff"]
    if unknown := set(names) - set(EVALUATIONS):
        parser.error(f"{', '.join(unknown)}: use some of {', '.join(EVALUATIONS)}")
    for number in range(1, args.pairs + 1):
        for name in names:
            for order in ORDERS:
                run(name, number, order)
    done = {}
    for name in EVALUATIONS:
        for order in ORDERS:
            files = sorted((RUNS / "between_networks" / name).glob(f"*/{order}/pair.json"))
            numbers = [int(f.parts[-3].removeprefix("0-")) for f in files]
            if numbers:
                done[name, order] = [run(name, number, order) for number in numbers]
    draw(done)
    fill("between_networks", HEAD, [row(*key, pairs) for key, pairs in done.items()])


if __name__ == "__main__":
    main()
