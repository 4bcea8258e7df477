"""How the cost of a walk grows with width and data: evaluations to an angle, seconds each; seed 0.

    OMP_NUM_THREADS=1 python studies/scaling.py [--widths W,…] [--examples N,…] [--device DEVICE]

Perceptrons of two hidden tanh layers, 64 inputs to 10 classes that a random perceptron of the same
form and width 32 gives, in float64. Each is trained by Adam (1e-3, batches of 32, at most EPOCHS
epochs) until the mean loss of an epoch is below TRAINED, and walked down ‖θ‖² to DEGREES by each of
SOLVERS, and by the paper's loop where parameters times examples are at most LOOP. Widths are
measured with EXAMPLES examples, numbers of examples at WIDTH. The seconds of an evaluation are
medians, taken by turns with those of a bare forward and backward pass in plain PyTorch. Writes the
table and the fit of docs/performance.md after each row, and draws them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import geoflow as gf
from geoflow.baselines import predictor_corrector

SEED, INPUTS, CLASSES, TEACHER = 0, 64, 10, 32
EXAMPLES, WIDTH = 1_000, 250
WIDTHS, NUMBERS = "10,32,100,250,800,2500,3130", "100,300,1000,3000,10000,60000"
EPOCHS, TRAINED, DEGREES, REPEATS = 300, 0.02, 150.0, 15
SOLVERS = ("bdf", "exponential")
LOOP, CAP = 1e9, 20_000
ROOT = Path(__file__).parents[1]
PAGE, FIGURE = ROOT / "docs" / "performance.md", ROOT / "runs" / "scaling.png"
BEGIN, END = "<!-- table: studies/scaling.py -->", "<!-- end of scaling -->"


@dataclass(frozen=True)
class Walked:
    """What a walk took, and what stopped it before the angle, if something did."""

    evaluations: int
    end: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.evaluations:,}{self.end}"


@dataclass(frozen=True)
class Row:
    """What one network and data set took; seconds are of one evaluation."""

    width: int
    n_examples: int
    n_parameters: int
    level: float
    walks: dict[str, Walked]
    loop: Walked | None
    bare: float
    ours: float

    def __str__(self) -> str:
        cells = [f"{self.width:,}", f"{self.n_parameters:,}", f"{self.n_examples:,}"]
        cells += [f"{self.level:.2g}", *map(str, self.walks.values()), str(self.loop or "–")]
        cells += [f"{1e3 * self.bare:.2f}", f"{self.ours / self.bare:.2f}"]
        cells += [f"{w.seconds / self.bare:.2f}" for w in self.walks.values()]
        return f"| {' | '.join(cells)} |"


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


def measure(width: int, n: int, device: torch.device) -> Row:
    """Train, time, and walk."""
    inputs, targets = (t.to(device) for t in examples(n))
    module = trained(width, inputs, targets)
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
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    stop = gf.Stationary(DEGREES)
    limits = {"max_evaluations": CAP, "max_snapshots": 2}
    walks = {name: walked(gf.walk(flow, name, stop=stop, **limits)) for name in SOLVERS}
    loop = None
    if problem.n_parameters * n <= LOOP:
        loop = walked(predictor_corrector(flow, stop=stop, max_evaluations=CAP))
    return Row(
        width,
        n,
        problem.n_parameters,
        flow.level_set.level,
        walks,
        loop,
        statistics.median(times["bare"]),
        statistics.median(times["ours"]),
    )


def walked(ds) -> Walked:
    """What a walk took."""
    evaluations = int(ds["n_gradient"][-1]) + 2 * int(ds["n_hvp"][-1])
    status, angle = str(ds.attrs["status"]), float(ds["angle"][-1])
    end = "" if status == "stationary" else f" ({status} at {angle:.0f}°)"
    return Walked(evaluations, end, float(ds["wall_time"][-1]) / evaluations)


def seconds(function: Callable[[], None], device: torch.device) -> float:
    """Time of a call, all of it."""
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def exponent(rows: list[Row], by: str, value: Callable[[Row], Walked | float | None]) -> str:
    """Slope of log value on log ``by`` by least squares, over the rows that have one."""
    found = [(getattr(row, by), value(row)) for row in rows]
    number = [
        (x, v.evaluations if isinstance(v, Walked) else v)
        for x, v in found
        if v is not None and not (isinstance(v, Walked) and v.end)
    ]
    if len(number) < 3:
        return "–"
    x, y = np.log(np.array(number, dtype=float).T)
    return f"{np.polyfit(x, y, 1)[0]:.2f}"


def exponents(rows: list[Row], by: str, name: str) -> str:
    """A row of the table of exponents."""
    cells = [exponent(rows, by, lambda row, s=s: row.walks[s]) for s in SOLVERS]
    cells.append(exponent(rows, by, lambda row: row.loop))
    cells.append(exponent(rows, by, lambda row: row.ours))
    return f"| {name} | {' | '.join(cells)} |"


def tables(widths: list[Row], numbers: list[Row]) -> str:
    """Everything measured, and the exponents of a fit."""
    walks = " | ".join(SOLVERS)
    lines = [
        f"| width | P | examples | level | {walks} | paper's loop | bare pass, ms "
        f"| evaluation / bare | {' | '.join(f'in {s} / bare' for s in SOLVERS)} |",
        "|" + "---|" * (7 + 2 * len(SOLVERS)),
        *map(str, [*widths, *numbers]),
        "",
        f"| exponent of | {walks} | paper's loop | seconds of an evaluation |",
        "|" + "---|" * (3 + len(SOLVERS)),
        exponents(widths, "n_parameters", f"P, {EXAMPLES:,} examples"),
        exponents(numbers, "n_examples", f"examples, width {WIDTH}"),
    ]
    return "\n".join(lines)


def draw(widths: list[Row], numbers: list[Row]) -> None:
    """Evaluations against parameters and examples."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    pairs = ((widths, "n_parameters", "parameters"), (numbers, "n_examples", "examples"))
    for axis, (rows, by, name) in zip(axes, pairs, strict=True):
        for method in (*SOLVERS, "paper's loop"):
            ends = [(getattr(r, by), r.walks.get(method, r.loop)) for r in rows]
            done = [(x, w.evaluations) for x, w in ends if w is not None and not w.end]
            axis.loglog(*zip(*done, strict=True) if done else ([], []), "o-", label=method)
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"evaluations to {DEGREES:g}°")
    axes[0].legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


def main() -> None:
    """Measure every width and every number of examples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default=WIDTHS)
    parser.add_argument("--examples", default=NUMBERS)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    widths: list[Row] = []
    numbers: list[Row] = []
    cases = [(widths, int(w), EXAMPLES) for w in given.widths.split(",") if w]
    cases += [(numbers, WIDTH, int(n)) for n in given.examples.split(",") if n]
    for rows, width, n in cases:
        rows.append(measure(width, n, device))
        print(rows[-1], flush=True)
        before, rest = PAGE.read_text().split(BEGIN)
        after = rest.split(END)[1]
        PAGE.write_text(f"{before}{BEGIN}\n{tables(widths, numbers)}\n{END}{after}")
    draw(widths, numbers)


if __name__ == "__main__":
    main()
