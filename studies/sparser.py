"""How much of a network can be taken out at the same training loss of every class.

    OMP_NUM_THREADS=1 python studies/sparser.py                       mnist_ff, 3 seeds
    OMP_NUM_THREADS=1 python studies/sparser.py mnist_conv --seeds 1

Walks down `l1` of the weights, and down `group_lasso` of the neurons' incoming weights, at the loss
of each of the ten classes. Beside it the network as it is, the same after magnitude pruning and
training of what is left, and fine-tuning with R as a penalty, with as many gradients each. The
weights of least size, or the neurons of least incoming times outgoing norm, are then set to zero; a
network counts as cut where Newton's iteration over what is left gives every class its loss again,
to 1e-6 of it. Everything is in runs/sparser, and what is there is not done again. Fills
docs/objectives.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from objectives import PICTURES, RUNS, Network, fill, fine_tuned, kept, noted, walked
from torch import Tensor

import geoflow as gf
from geoflow.analysis.networks.layers import layers_of
from geoflow.plots.styles import COLOURS, LINES, SLIDE_INCHES, new_figure, style
from geoflow.report.page import mean_std

EVALUATIONS = {"mnist_ff": 600, "mnist_conv": 300}
WHAT, PENALTIES = ("weights", "neurons"), (1e-6, 1e-5, 1e-4)
# A cut alone may raise the loss of no class by more than this.
ALONE = 1.1
# Of the search for the largest cut, in parts of all weights; neurons are searched one by one.
PARTS = 200
# Searched for magnitude pruning, each with a training of its own.
PRUNED = (0.8, 0.85, 0.9, 0.95)
SHOWN = np.linspace(0, 1, 41)
TRIED = tuple(f"penalty {w:g}" for w in PENALTIES)
METHODS = ("as trained", "pruned, then trained", *TRIED, "walk")
HEAD = [
    "experiment",
    "taken out",
    "how",
    "seeds",
    "gradients",
    "no class above 1.1 of its loss / %",
    "every class at its loss / %",
    "test accuracy before / %",
    "after / %",
    "test loss before",
    "after",
]


class Cutting:
    """What can be taken out of a network, in which order."""

    def __init__(self, net: Network, what: str) -> None:
        self.net, self.what = net, what
        self.layers = layers_of(net.prepared.module)
        if what == "weights":
            self.regularizer = gf.regularizers.l1(tensors="*.weight")
            pieces = [t for t in net.problem.tensors if len(t.shape) > 1]
            at = [np.arange(t.offset, t.offset + int(np.prod(t.shape))) for t in pieces]
            self.entries = torch.from_numpy(np.concatenate(at))
            self.total, self.unit = PARTS, len(self.entries) / PARTS
        else:
            names = [t.name for t in net.problem.tensors if len(t.shape) > 1][:-1]
            self.regularizer = gf.regularizers.group_lasso(tensors=names)
            # The bias, its last column, stays: such a neuron is a number added to the next layer.
            self.rows = [torch.from_numpy(row) for h in self.layers.hidden for row in h.incoming]
            self.columns = [torch.from_numpy(row) for h in self.layers.hidden for row in h.outgoing]
            self.total, self.unit = len(self.rows), 1

    def mask(self, theta: Tensor, n: int) -> Tensor:
        """Zeros at the n smallest units."""
        mask = torch.ones_like(theta)
        if self.what == "weights":
            order = theta[self.entries].abs().argsort()
            mask[self.entries[order[: round(n * self.unit)]]] = 0
            return mask
        pairs = zip(self.rows, self.columns, strict=True)
        sizes = torch.stack([theta[r[:-1]].norm() * theta[c].norm() for r, c in pairs])
        for i in sizes.argsort()[:n].tolist():
            mask[self.rows[i][:-1]] = 0
        return mask

    def alone(self, theta: Tensor, n: int) -> float:
        """The loss of the worst class over its level after a cut, nothing else done."""
        return self.net.measured(theta * self.mask(theta, n))["worst_class"]

    def restored(self, theta: Tensor, n: int) -> Tensor | None:
        """The cut network with every class at its loss, or None."""
        mask = self.mask(theta, n)
        return self.net.restored(theta * mask, mask)

    def judged(self, theta: Tensor) -> dict[str, object]:
        """How much can be taken out of a network, and what that does to the test set."""
        n_alone = largest(lambda n: self.alone(theta, n) <= ALONE, self.total)
        n = largest(lambda n: self.restored(theta, n) is not None, self.total)
        end = self.restored(theta, n)
        before, after = self.net.measured(theta), self.net.measured(theta if end is None else end)
        shown = [self.alone(theta, round(s * self.total)) for s in SHOWN]
        return {
            "alone": n_alone / self.total,
            "cut": n / self.total,
            "before": before,
            "after": after,
            "shown": shown,
        }


def largest(works: Callable[[int], bool], total: int) -> int:
    """The largest number that works, by halving: as if all below one that works did."""
    low, high = 0, total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if works(middle) else (low, middle)
    return low


def pruned(cutting: Cutting, evaluations: int) -> dict[str, object]:
    """Magnitude pruning of the trained network, then Adam on what is left; the largest cut."""
    net, theta = cutting.net, cutting.net.theta0
    measured = net.measured(theta)
    best: dict[str, object] = {"alone": 0.0, "cut": 0.0, "before": measured, "after": measured}
    for share in PRUNED:
        n = round(share * cutting.total)
        mask = cutting.mask(theta, n)
        trained = fine_tuned(net.problem, theta * mask, evaluations, mask=mask)
        end = net.restored(trained, mask)
        if end is None:
            break
        alone = net.measured(trained)["worst_class"] <= ALONE
        best = {
            "alone": share if alone else best["alone"],
            "cut": share,
            "before": net.measured(trained),
            "after": net.measured(end),
        }
    return best


def run(name: str, seed: int, what: str) -> dict[str, dict[str, object]]:
    """Do what is missing of one seed: what can be taken out after each method."""
    evaluations = EVALUATIONS[name]
    folder = RUNS / "sparser" / name / f"seed-{seed}" / what
    files = {m: folder / f"{m}.json" for m in METHODS}
    if all(file.exists() for file in files.values()):
        return {m: noted(file, dict) for m, file in files.items()}
    net = Network(name, seed)
    cutting = Cutting(net, what)

    def after_walk() -> Tensor:
        flow = gf.RegularizingFlow(gf.LevelSet(net.classes), cutting.regularizer)
        return walked(folder / "walk.nc", flow, max_evaluations=evaluations, stop=None)

    def after_penalty(weight: float) -> Tensor:
        options = {"penalty": cutting.regularizer, "weight": weight}
        return fine_tuned(net.problem, net.theta0, evaluations, **options)

    ends: dict[str, Callable[[], Tensor]] = {"as trained": lambda: net.theta0, "walk": after_walk}
    for method, weight in zip(TRIED, PENALTIES, strict=True):
        ends[method] = lambda w=weight, m=method: kept(
            folder / f"{m}.npy", lambda: after_penalty(w)
        )
    found = {}
    for method, file in files.items():
        if method == "pruned, then trained":
            found[method] = noted(file, lambda: pruned(cutting, evaluations))
        else:
            found[method] = noted(file, lambda m=method: cutting.judged(ends[m]()))
        print(name, seed, what, method, found[method]["alone"], found[method]["cut"], flush=True)
    return found


def rows(name: str, what: str, seeds: list[dict[str, dict[str, object]]]) -> list[list[str]]:
    """A row for each method."""
    found = []
    for method in METHODS:
        results = [s[method] for s in seeds]
        cells = [name, what, method, str(len(seeds))]
        n = EVALUATIONS[name]
        spent = {"as trained": "0", "pruned, then trained": f"{n} a cut"}
        cells.append(spent.get(method, str(n)))
        for key in ("alone", "cut"):
            cells.append(mean_std([100 * r[key] for r in results]))
        for key, scale in (("test_accuracy", 100), ("test_loss", 1)):
            for when in ("before", "after"):
                cells.append(mean_std([scale * r[when][key] for r in results]))
        found.append(cells)
    return found


def draw(done: dict[str, list[dict[str, dict[str, object]]]]) -> None:
    """Draw the worst class's loss against what is taken out, of mnist_ff, each seed a line."""
    with style():
        figure = new_figure(SLIDE_INCHES, 0.42 * SLIDE_INCHES)
        axes = figure.subplots(1, len(done), sharey=True, squeeze=False)[0]
        for ax, (what, seeds) in zip(axes, done.items(), strict=True):
            # Of the pruned there is one network a cut, and no curve.
            for number, method in enumerate(m for m in METHODS if m != "pruned, then trained"):
                look = {"color": COLOURS[number], "linestyle": LINES[number]}
                for seed, result in enumerate(seeds):
                    label = {} if seed else {"label": method}
                    ax.plot(100 * SHOWN, result[method]["shown"], **look, **label)
            ax.axhline(ALONE, color="#888888", linewidth=0.7)
            ax.set_yscale("log")
            ax.set_xlabel(f"{what} set to zero / %")
        axes[0].set_ylabel("loss of the worst class\nover what is to be kept")
        axes[0].legend()
        figure.savefig(PICTURES / "sparser.png", dpi=200)


def main() -> None:
    """Do every experiment asked for; write the table of all that is there."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: mnist_ff")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    args = parser.parse_args()
    names = args.experiments or ["mnist_ff"]
    if unknown := set(names) - set(EVALUATIONS):
        parser.error(f"{', '.join(unknown)}: use some of {', '.join(EVALUATIONS)}")
    for name in names:
        for seed in range(args.seeds):
            for what in WHAT:
                run(name, seed, what)
    lines: list[list[str]] = []
    for name in EVALUATIONS:
        done = {}
        for what in WHAT:
            folders = sorted((RUNS / "sparser" / name).glob(f"seed-*/{what}/walk.json"))
            seeds = [int(f.parts[-3].removeprefix("seed-")) for f in folders]
            if seeds:
                done[what] = [run(name, seed, what) for seed in seeds]
                lines += rows(name, what, done[what])
        if name == "mnist_ff" and done:
            draw(done)
    fill("sparser", HEAD, lines)


if __name__ == "__main__":
    main()
