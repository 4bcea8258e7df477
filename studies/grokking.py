"""Does a walk down ‖θ‖² generalise where weight decay groks? Into docs/grokking.md.

A network of one hidden layer learns a + b modulo 23 from a part of the 529 pairs, from large first
weights, by Adam on all of them at once, until the training loss is 10⁻³: it knows the pairs it was
shown and no others. From these very weights either side goes on: the walk along that level set down
‖θ‖², to 179°, and the path from its end over three levels; or AdamW with weight decay. A gradient
of the walk and a step of AdamW are one gradient of the whole training set each.

    python studies/grokking.py              some minutes a seed on one core
    python studies/grokking.py --seeds 1
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import geoflow as gf

ROOT = Path(__file__).parents[1]
PAGE, PICTURE = ROOT / "docs" / "grokking.md", ROOT / "docs" / "_static" / "grokking.png"
BEGIN = "<!-- table: studies/grokking.py -->"
END = "<!-- end of grokking -->"

MODULUS, HIDDEN, LEVEL = 23, 96, 1e-3
# Activation, part of the pairs that is trained on, and by how much the first weights are larger
# than 1/√(inputs).
SETTINGS = {
    "quadratic, half": ("quadratic", 0.5, 2.0),
    "quadratic, 70%": ("quadratic", 0.7, 2.0),
    "ReLU, 70%": ("relu", 0.7, 3.0),
}
RATE, DECAYS, STEPS, EVERY = 1e-2, (0.1, 1.0), 10_000, 20
DEGREES, BUDGET = 179.0, 8_000
# Levels of the path, in units of that of the walk.
FACTORS = (4.0, 16.0, 64.0)
GENERALISED = (0.5, 0.95)

Curve = list[tuple[int, float]]


class Square(nn.Module):
    """x²."""

    def forward(self, x: Tensor) -> Tensor:
        """Of each component."""
        return x**2


class Task:
    """The pairs, and a network that has learned its part of them."""

    def __init__(self, activation: str, part: float, scale: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        first, second = torch.meshgrid(*[torch.arange(MODULUS)] * 2, indexing="ij")
        pairs = torch.stack([first.flatten(), second.flatten()])
        inputs = nn.functional.one_hot(pairs, MODULUS).permute(1, 0, 2).flatten(1).double()
        targets = pairs.sum(0) % MODULUS
        order = torch.randperm(MODULUS**2, generator=generator)
        n = int(part * MODULUS**2)
        self.train = inputs[order[:n]], targets[order[:n]]
        self.test = inputs[order[n:]], targets[order[n:]]
        middle = {"quadratic": Square, "relu": nn.ReLU}[activation]()
        self.module = nn.Sequential(
            nn.Linear(2 * MODULUS, HIDDEN, bias=False),
            middle,
            nn.Linear(HIDDEN, MODULUS, bias=False),
        ).double()
        with torch.no_grad():
            for w in self.module.parameters():
                drawn = torch.randn(w.shape, generator=generator, dtype=w.dtype)
                w.copy_(scale * drawn / w.shape[1] ** 0.5)
        self.epochs = self._train()
        self.problem = gf.Problem.from_module(self.module, nn.functional.cross_entropy, *self.train)

    def _loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.module(self.train[0]), self.train[1])

    def _train(self) -> int:
        optimizer, epochs = torch.optim.Adam(self.module.parameters(), lr=RATE), 0
        while True:
            optimizer.zero_grad()
            loss = self._loss()
            if float(loss.detach()) < LEVEL:
                return epochs
            loss.backward()
            optimizer.step()
            epochs += 1

    def accuracy(self, theta: Tensor) -> float:
        """On the pairs that were not shown."""
        with torch.no_grad():
            parameters = self.problem.unflatten(theta)
            outputs = torch.func.functional_call(self.module, parameters, (self.test[0],))
        return float((outputs.argmax(1) == self.test[1]).double().mean())

    def decayed(self, decay: float) -> Curve:
        """AdamW from here on: steps and test accuracy."""
        start = {name: w.clone() for name, w in self.module.state_dict().items()}
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=RATE, weight_decay=decay)
        curve: Curve = []
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                theta = torch.cat([w.detach().flatten() for w in self.module.parameters()])
                curve.append((step, self.accuracy(theta)))
            optimizer.zero_grad()
            self._loss().backward()
            optimizer.step()
        self.module.load_state_dict(start)
        return curve

    def walked(self) -> tuple[Curve, dict[str, float | str]]:
        """The walk: gradients and test accuracy, and its end."""
        flow = gf.RegularizingFlow(gf.LevelSet(self.problem), gf.regularizers.squared_norm)
        ds = gf.walk(
            flow,
            "exponential",
            stop=gf.Stationary(DEGREES),
            max_evaluations=BUDGET,
            observables={"test_accuracy": self.accuracy},
        )
        at = ds["n_gradient"].values[ds["snapshot_step"].values]
        curve = [(int(n), float(a)) for n, a in zip(at, ds["test_accuracy"].values, strict=True)]
        end = {"status": ds.attrs["status"], "angle": float(ds["angle"][-1])}
        norms = {"before": float(ds["regularizer"][0]), "after": float(ds["regularizer"][-1])}
        return curve, end | norms

    def followed(self) -> Curve:
        """The path from the walk's end: gradients and test accuracy."""
        flow = gf.RegularizingFlow(gf.LevelSet(self.problem), gf.regularizers.squared_norm)
        ds = gf.regularization_path(
            flow,
            [flow.level_set.level * factor for factor in FACTORS],
            observables={"test_accuracy": self.accuracy},
            max_evaluations=BUDGET,
        )
        counts = ds["n_gradient"].values + 2 * ds["n_hvp"].values
        return [(int(n), float(a)) for n, a in zip(counts, ds["test_accuracy"].values, strict=True)]


def run(name: str, seed: int, folder: Path) -> None:
    """Do one seed of a setting, where it has not been done."""
    activation, part, scale = SETTINGS[name]
    file = folder / f"{activation}-{part:g}-{seed}.json"
    if file.exists():
        return
    task = Task(activation, part, scale, seed)
    start = task.accuracy(task.problem.theta0)
    walk, end = task.walked()
    path = task.followed() if end["status"] == "stationary" else []
    decays = {f"{decay:g}": task.decayed(decay) for decay in DECAYS}
    done = {"epochs": task.epochs, "start": start, "end": end, "walk": walk, "path": path}
    file.write_text(json.dumps(done | {"decay": decays}) + "\n")


def first_above(curve: Curve, accuracy: float) -> str:
    """When it first is so accurate."""
    return next((f"{n:,}" for n, value in curve if value >= accuracy), "–")


def cells(curve: Curve) -> list[str]:
    """Accuracy at the end, and when it was first so accurate."""
    if not curve:
        return ["–"] * (1 + len(GENERALISED))
    last = f"{100 * curve[-1][1]:.0f}% at {curve[-1][0]:,}"
    return [last, *(first_above(curve, accuracy) for accuracy in GENERALISED)]


def table(done: dict[str, list[dict[str, object]]]) -> str:
    """A row for each seed and way."""
    head = ["network, part", "seed", "by", "test accuracy at its end", "above 50% at", "95% at"]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, seeds in done.items():
        for seed, s in enumerate(seeds):
            end = s["end"]
            walk = f"walk, ‖θ‖² {end['before']:.0f} → {end['after']:.0f}, {end['angle']:.1f}°"
            ways = {walk: s["walk"], "path from 175°": s["path"]}
            ways |= {f"AdamW, decay {decay}": curve for decay, curve in s["decay"].items()}
            for way, curve in ways.items():
                rows.append("| " + " | ".join([name, str(seed), way, *cells(curve)]) + " |")
    return "\n".join(rows) + "\n"


def picture(done: dict[str, list[dict[str, object]]]) -> None:
    """Test accuracy against gradients, a panel a setting."""
    figure, axes = plt.subplots(
        1, len(done), figsize=(10, 3.2), sharey=True, layout="constrained", squeeze=False
    )
    for ax, (name, seeds) in zip(axes.flat, done.items(), strict=True):
        for s in seeds:
            lines = {"walk at loss 10⁻³": (s["walk"], "C0", "-")}
            for (decay, curve), colour in zip(s["decay"].items(), ("C7", "C1"), strict=True):
                lines[f"AdamW, decay {decay}"] = curve, colour, "-"
            lines["path from its 175°"] = s["path"], "C2", "--"
            for label, (curve, colour, dashes) in lines.items():
                if curve:
                    n, accuracy = np.array(curve).T
                    ax.plot(np.maximum(n, 1), accuracy, dashes, color=colour, lw=1.2, label=label)
        ax.set_xscale("log")
        ax.set_xlim(10, STEPS)
        ax.set_ylim(-0.02, 1.02)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("gradients of the training set")
    axes.flat[0].set_ylabel("test accuracy")
    unique = dict(zip(*reversed(axes.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Do what is missing, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, default=3, help="how many, from 0 on; 0: the page alone"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = ROOT / "runs" / "grokking"
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETTINGS:
        for seed in range(args.seeds):
            run(name, seed, folder)
    done = {}
    for name, (activation, part, _) in SETTINGS.items():
        files = sorted(folder.glob(f"{activation}-{part:g}-*.json"))
        if files:
            done[name] = [json.loads(file.read_text()) for file in files]
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table(done)}{END}{rest.split(END)[1]}")
    picture(done)


if __name__ == "__main__":
    main()
