"""Round the weights of mnist_ff to 4 and 3 bits after a walk down `quantization_error`.

    OMP_NUM_THREADS=1 python studies/quantised.py               3 seeds

The walk keeps the loss of each of the ten classes. Beside it, with as many gradients each: rounding
to nearest of the network as it is, fine-tuning with R as a penalty, and training with a
straight-through estimator, which evaluates the rounded weights' gradient and moves the unrounded
ones. Every weight tensor has its own symmetric uniform grid; biases are not rounded. What is there
in runs/quantised is not done again. Fills docs/objectives.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from objectives import PICTURES, RUNS, Network, fill, fine_tuned, kept, noted, walked
from torch import Tensor

import geoflow as gf
from geoflow.plots.styles import COLOURS, MARKERS, SLIDE_INCHES, new_figure, style
from geoflow.report.page import mean_std

NAME, EVALUATIONS, BITS = "mnist_ff", 1000, (4, 3)
PENALTIES = (1e-4, 1e-3, 1e-2)
TRIED = tuple(f"penalty {w:g}" for w in PENALTIES)
METHODS = ("as trained", *TRIED, "straight-through", "walk")
HEAD = [
    "bits",
    "how",
    "gradients",
    "R",
    "training loss before rounding",
    "rounded",
    "worst class, over its loss",
    "test accuracy before / %",
    "rounded / %",
    "test loss before",
    "rounded",
]


def rounded(problem: gf.Problem, theta: Tensor, bits: int) -> Tensor:
    """Every weight tensor on its grid: multiples of the largest entry over 2^(bits−1) − 1."""
    theta, largest = theta.clone(), 2 ** (bits - 1) - 1
    for tensor in problem.tensors:
        if len(tensor.shape) > 1:
            piece = theta[tensor.offset : tensor.offset + int(np.prod(tensor.shape))]
            scale = piece.abs().max() / largest
            piece.copy_((piece / scale).round() * scale)
    return theta


def run(seed: int, bits: int) -> dict[str, dict[str, object]]:
    """Do what is missing of one seed and grid."""
    folder = RUNS / "quantised" / f"seed-{seed}" / f"{bits}-bits"
    files = {m: folder / f"{m}.json" for m in METHODS}
    if all(file.exists() for file in files.values()):
        return {m: noted(file, dict) for m, file in files.items()}
    net = Network(NAME, seed)
    regularizer = gf.regularizers.quantization_error(bits=bits, tensors="*.weight")
    flow = gf.RegularizingFlow(gf.LevelSet(net.classes), regularizer)

    def after_walk() -> Tensor:
        return walked(folder / "walk.nc", flow, max_evaluations=EVALUATIONS, stop=None)

    def straight_through() -> Tensor:
        def gradient(theta: Tensor) -> Tensor:
            return net.problem.value_and_gradient(rounded(net.problem, theta, bits))[1]

        return fine_tuned(net.problem, net.theta0, EVALUATIONS, gradient_at=gradient)

    def after_penalty(weight: float) -> Tensor:
        options = {"penalty": regularizer, "weight": weight}
        return fine_tuned(net.problem, net.theta0, EVALUATIONS, **options)

    ends: dict[str, Callable[[], Tensor]] = {
        "as trained": lambda: net.theta0,
        "straight-through": lambda: kept(folder / "straight-through.npy", straight_through),
        "walk": after_walk,
    }
    for method, weight in zip(TRIED, PENALTIES, strict=True):
        file = folder / f"{method}.npy"
        ends[method] = lambda w=weight, file=file: kept(file, lambda: after_penalty(w))

    def judged(theta: Tensor) -> dict[str, object]:
        return {
            "R": flow.evaluate(theta).regularizer,
            "before": net.measured(theta),
            "after": net.measured(rounded(net.problem, theta, bits)),
        }

    found = {}
    for method, file in files.items():
        found[method] = noted(file, lambda m=method: judged(ends[m]()))
        after = found[method]["after"]
        print(seed, bits, method, after["train_loss"], after["test_accuracy"], flush=True)
    return found


def rows(bits: int, seeds: list[dict[str, dict[str, object]]]) -> list[list[str]]:
    """A row for each method."""
    found = []
    for method in METHODS:
        results = [s[method] for s in seeds]
        cells = [str(bits), method, "0" if method == "as trained" else str(EVALUATIONS)]
        cells.append(mean_std([r["R"] for r in results]))
        for key, scale, when in (
            ("train_loss", 1, "before"),
            ("train_loss", 1, "after"),
            ("worst_class", 1, "after"),
            ("test_accuracy", 100, "before"),
            ("test_accuracy", 100, "after"),
            ("test_loss", 1, "before"),
            ("test_loss", 1, "after"),
        ):
            cells.append(mean_std([scale * r[when][key] for r in results]))
        found.append(cells)
    return found


def draw(done: dict[int, list[dict[str, dict[str, object]]]]) -> None:
    """Draw training loss and test loss after rounding, against the bits, each seed a point."""
    panels = {"train_loss": "training loss, rounded", "test_loss": "test loss, rounded"}
    with style():
        figure = new_figure(SLIDE_INCHES, 0.42 * SLIDE_INCHES)
        axes = figure.subplots(1, 2)
        for ax, (key, label) in zip(axes, panels.items(), strict=True):
            for number, method in enumerate(METHODS):
                at = 0.1 * (number - 2.5)
                x = [i + at for i, seeds in enumerate(done.values()) for _ in seeds]
                y = [s[method]["after"][key] for seeds in done.values() for s in seeds]
                look = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": ""}
                ax.plot(x, y, markersize=4, label=method, **look)
            ax.set_xticks(range(len(done)), [f"{bits} bits" for bits in done])
            ax.set_ylabel(label)
        axes[0].set_yscale("log")
        kept_loss = [s["walk"]["before"]["train_loss"] for seeds in done.values() for s in seeds]
        axes[0].axhline(float(np.mean(kept_loss)), color="#888888", linewidth=0.7)
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center")
        figure.savefig(PICTURES / "quantised.png", dpi=200)


def main() -> None:
    """Do every seed; write the table and the picture."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    args = parser.parse_args()
    done = {bits: [run(s, bits) for s in range(args.seeds)] for bits in BITS}
    draw(done)
    fill("quantised", HEAD, [row for bits, seeds in done.items() for row in rows(bits, seeds)])


if __name__ == "__main__":
    main()
