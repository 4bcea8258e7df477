"""How the cost of a walk grows with width and data: evaluations to an angle, seconds each; seed 0.

    OMP_NUM_THREADS=1 python studies/scaling.py [--widths W,…] [--examples N,…] [--device DEVICE]
                                                [--seconds-only]

Perceptrons of two hidden tanh layers, 64 inputs to 10 classes that a random perceptron of the same
form and width 32 gives, in float64. Each is trained by Adam (1e-3, batches of 32, at most EPOCHS
epochs) until the mean loss of an epoch is below TRAINED, and walked down ‖θ‖² to DEGREES by
`exponential`. Widths are measured with EXAMPLES examples, numbers of examples at WIDTH. The seconds
of an evaluation are medians, taken by turns with those of a bare forward and backward pass in plain
PyTorch; with ``--seconds-only`` nothing is trained or walked. Prints the tables of
docs/performance.md with the exponents of a fit, and draws them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geoflow as gf

SEED, INPUTS, CLASSES, TEACHER = 0, 64, 10, 32
EXAMPLES, WIDTH = 1_000, 250
EPOCHS, TRAINED, DEGREES, REPEATS = 300, 0.02, 150.0, 15
FIGURE = Path(__file__).parents[1] / "runs" / "scaling.png"


@dataclass(frozen=True)
class Row:
    """What one network and data set took."""

    width: int
    n_examples: int
    n_parameters: int
    level: float
    evaluations: int
    end: str
    bare: float
    ours: float
    in_a_walk: float

    def __str__(self) -> str:
        return (
            f"| {self.width:,} | {self.n_parameters:,} | {self.n_examples:,} | {self.level:.2g} | "
            f"{self.evaluations:,} {self.end} | {1e3 * self.bare:.2f} | "
            f"{self.ours / self.bare:.2f} | {self.in_a_walk / self.bare:.2f} |"
        )


def perceptron(width: int) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(INPUTS, width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.Tanh(),
        nn.Linear(width, CLASSES),
    ).double()


def examples(n: int) -> tuple[Tensor, Tensor]:
    """Normal inputs, and the class in which the teacher puts each."""
    torch.manual_seed(SEED)
    teacher = perceptron(TEACHER)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
        inputs = torch.randn(n, INPUTS, dtype=torch.float64)
        return inputs, teacher(inputs).argmax(1)


def trained(width: int, inputs: Tensor, targets: Tensor) -> nn.Sequential:
    """Adam until the loss is low, or for as many epochs as are allowed."""
    torch.manual_seed(SEED)
    module = perceptron(width).to(inputs.device)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    for _ in range(EPOCHS):
        total = 0.0
        for some in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            loss = F.cross_entropy(module(inputs[some]), targets[some])
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(some)
        if total / len(inputs) < TRAINED:
            break
    return module


def measure(width: int, n: int, device: torch.device, *, walks: bool = True) -> Row:
    """Train, time, and walk; or only time."""
    inputs, targets = (t.to(device) for t in examples(n))
    torch.manual_seed(SEED)
    module = trained(width, inputs, targets) if walks else perceptron(width).to(device)
    problem = gf.Problem.from_module(module, F.cross_entropy, inputs, targets, device=device)
    parameters = list(module.parameters())

    def bare() -> None:
        torch.autograd.grad(F.cross_entropy(module(inputs), targets), parameters)

    def ours() -> None:
        problem.value_and_gradient(problem.theta0)

    times: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(REPEATS):
        for name, function in (("bare", bare), ("ours", ours)):
            times[name].append(seconds(function, device))
    medians = statistics.median(times["bare"]), statistics.median(times["ours"])
    if not walks:
        level = float(problem.loss(problem.theta0))
        return Row(width, n, problem.n_parameters, level, 0, "(not walked)", *medians, math.nan)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    options = {"max_evaluations": 5_000, "max_snapshots": 2}
    ds = gf.walk(flow, "exponential", stop=gf.Stationary(DEGREES), **options)
    evaluations = int(ds["n_gradient"][-1]) + 2 * int(ds["n_hvp"][-1])
    status = str(ds.attrs["status"])
    end = "" if status == "stationary" else f"({status} at {float(ds['angle'][-1]):.0f}°)"
    return Row(
        width,
        n,
        problem.n_parameters,
        float(ds.attrs["level"]),
        evaluations,
        end,
        *medians,
        float(ds["wall_time"][-1]) / evaluations,
    )


def seconds(function, device: torch.device) -> float:
    """Time of a call, all of it."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y on log x by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if len(x) > 1 else float("nan")


def table(rows: list[Row], by: str, name: str) -> None:
    """Print rows and the exponents of what they say."""
    x = [float(getattr(row, by)) for row in rows]
    walked = [(a, row) for a, row in zip(x, rows, strict=True) if not row.end]
    counts = exponent([a for a, _ in walked], [row.evaluations for _, row in walked])
    print(
        f"\nEvaluations to {DEGREES:g}° go with {name} to the {counts:.2f}, seconds of an "
        f"evaluation to the {exponent(x, [row.ours for row in rows]):.2f}.\n",
        flush=True,
    )


def draw(widths: list[Row], numbers: list[Row]) -> None:
    """Evaluations against parameters and examples."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    pairs = ((widths, "n_parameters", "parameters"), (numbers, "n_examples", "examples"))
    for axis, (rows, by, name) in zip(axes, pairs, strict=True):
        done = [row for row in rows if not row.end]
        axis.loglog([getattr(r, by) for r in done], [r.evaluations for r in done], "o-")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"evaluations to {DEGREES:g}°")
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


def main() -> None:
    """Measure every width and every number of examples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="10,32,100,250,800,2500")
    parser.add_argument("--examples", default="100,300,1000,3000,10000,60000")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds-only", action="store_true")
    given = parser.parse_args()
    device = torch.device(given.device)
    print(
        f"| width | P | examples | level | evaluations to {DEGREES:g}° | bare pass, ms "
        "| evaluation / bare | in a walk / bare |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    found: dict[str, list[Row]] = {"widths": [], "examples": []}
    walks = not given.seconds_only
    for width in map(int, filter(None, given.widths.split(","))):
        found["widths"].append(measure(width, EXAMPLES, device, walks=walks))
        print(found["widths"][-1], flush=True)
    for n in map(int, filter(None, given.examples.split(","))):
        found["examples"].append(measure(WIDTH, n, device, walks=walks))
        print(found["examples"][-1], flush=True)
    table(found["widths"], "n_parameters", "P")
    table(found["examples"], "n_examples", "N")
    draw(found["widths"], found["examples"])


if __name__ == "__main__":
    main()
