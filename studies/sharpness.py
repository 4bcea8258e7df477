"""Whether the test loss of mnist_ff follows its sharpness, at exactly one training loss.

    OMP_NUM_THREADS=1 python studies/sharpness.py               3 seeds

Walks down and up R, the largest eigenvalue of the loss's Hessian (`sharpness`) or its trace
(`hessian_trace`). The training loss of every point is that of the trained network, to 1e-6 of it.
Beside them, as far away as the longest of them: down and up ‖θ‖², and along a random direction; and
sharpness-aware minimisation (Foret et al. 2021) with as many gradients, whose training loss is what
it comes to. What is there in runs/sharpness is not done again. Fills docs/objectives.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from matplotlib.ticker import NullLocator
from objectives import PICTURES, RUNS, Network, fill, fine_tuned, kept, noted
from torch import Tensor

import geoflow as gf
from geoflow.plots.styles import COLOURS, LINES, SLIDE_INCHES, new_figure, style
from geoflow.report.page import mean_std

NAME = "mnist_ff"
R = gf.regularizers
SHARPNESS, TRACE, FEW = {"rtol": 1e-3}, {"probes": 16}, {"probes": 4}
# R, and gradients that its walk may take.
WALKS = {
    "down sharpness": (R.sharpness(**SHARPNESS), 2000),
    "up sharpness": (R.sharpness(**SHARPNESS, sign=-1), 2000),
    "down the trace": (R.hessian_trace(**TRACE), 3000),
    "up the trace": (R.hessian_trace(**TRACE, sign=-1), 3000),
}
# An estimate by so few vectors can fall while the trace does not.
ESTIMATE = "down the trace by 4 probes"
CONTROLS = ("down the squared norm", "up the squared norm", "along a random direction")
# Of sharpness-aware minimisation: how far the gradient is taken from, in units of θ.
RADII, TRAINED = (0.05, 0.2), 2000
SNAPSHOTS, MEASURED_PROBES, MEASURED_SEED = 30, 16, 1
HEAD = [
    "from the trained network",
    "seeds",
    "gradients",
    "arc length",
    "training loss, over its level",
    "sharpness, over that at the start",
    "trace",
    "‖θ‖²",
    "test loss, over that at the start",
    "lower in",
    "test accuracy, change / points",
]


def measured(net: Network, theta: Tensor) -> dict[str, float]:
    """What is compared between two points."""
    return net.measured(theta) | {
        "sharpness": float(R.sharpness(rtol=1e-4).bind(net.problem).value_and_gradient(theta)[0]),
        "trace": float(
            R.hessian_trace(probes=MEASURED_PROBES, seed=MEASURED_SEED)
            .bind(net.problem)
            .value_and_gradient(theta)[0]
        ),
        "norm": float(theta @ theta),
    }


def walk(net: Network, regularizer: object, file: Path, **settings: object) -> xr.Dataset:
    """A walk that is in an archive, walked where it is not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        flow = gf.RegularizingFlow(gf.LevelSet(net.problem), regularizer)
        options = {"stop": None, "max_snapshots": SNAPSHOTS, "overwrite": True, **settings}
        options["solver"] = "exponential"
        gf.walk(flow, archive=file, observables=net.prepared.observables, **options).close()
    with gf.open_trajectory(file) as ds:
        return ds.load()


def result(net: Network, ds: xr.Dataset) -> dict[str, object]:
    """The end of a walk, and R and test loss along it."""
    at = ds["snapshot_step"].values
    return {
        "evaluations": int(ds["n_gradient"][-1] + 2 * ds["n_hvp"][-1]),
        "arc": float(ds["arc_length"][-1]),
        "status": ds.attrs["status"],
        "along": {
            "R": abs(ds["regularizer"].values[at]).tolist(),
            "arc": ds["arc_length"].values[at].tolist(),
            "test_loss": ds["test_loss"].values.tolist(),
        },
    } | measured(net, torch.from_numpy(ds["theta"].values[-1].copy()))


def control(net: Network, name: str, arc: float, file: Path) -> dict[str, object]:
    """A walk of a given arc length that is not of sharpness."""
    if "norm" in name:
        regularizer: object = R.squared_norm(sign=-1 if name.startswith("up") else 1)
    else:
        generator = torch.Generator().manual_seed(net.seed)
        u = torch.randn(net.theta0.shape, generator=generator, dtype=net.theta0.dtype)
        u = u / u.norm()

        def random_direction(theta: Tensor) -> Tensor:
            return torch.dot(u, theta)

        regularizer = random_direction
    theta0 = net.theta0

    def length(theta: Tensor) -> float:
        return float((theta - theta0).norm())

    # As far as the walk is long: none of these turns much over so short a way.
    stop = gf.Event(length, 1, value=arc)
    ds = walk(net, regularizer, file, stop=stop, max_evaluations=TRAINED)
    return result(net, ds)


def run(seed: int) -> dict[str, dict[str, object]]:
    """Do what is missing of one seed."""
    folder = RUNS / "sharpness" / f"seed-{seed}"
    aware = [f"sharpness-aware, radius {radius:g}" for radius in RADII]
    names = ["start", *WALKS, ESTIMATE, *CONTROLS, *aware]
    files = {n: folder / f"{n.replace(' ', '-').replace(',', '')}.json" for n in names}
    if all(file.exists() for file in files.values()):
        return {n: noted(file, dict) for n, file in files.items()}
    net = Network(NAME, seed)
    found = {"start": noted(files["start"], lambda: measured(net, net.theta0))}
    for name, (regularizer, n) in (WALKS | {ESTIMATE: (R.hessian_trace(**FEW), 2000)}).items():

        def make(
            regularizer: object = regularizer, n: int = n, file: Path = files[name]
        ) -> dict[str, object]:
            archive = file.with_suffix(".nc")
            return result(net, walk(net, regularizer, archive, max_evaluations=n))

        found[name] = noted(files[name], make)
        said(seed, name, found)
    arc = max(float(found[name]["arc"]) for name in WALKS)
    for name in CONTROLS:
        archive = files[name].with_suffix(".nc")
        found[name] = noted(files[name], lambda n=name, a=archive: control(net, n, arc, a))
        said(seed, name, found)
    for name, radius in zip(aware, RADII, strict=True):

        def gradient(theta: Tensor, radius: float = radius) -> Tensor:
            _, slope = net.problem.value_and_gradient(theta)
            return net.problem.value_and_gradient(theta + radius * slope / slope.norm())[1]

        def trained(file: Path = files[name], gradient: object = gradient) -> dict[str, object]:
            end = kept(
                file.with_suffix(".npy"),
                lambda: fine_tuned(net.problem, net.theta0, TRAINED, gradient_at=gradient),
            )
            arc = float((end - net.theta0).norm())
            return {"evaluations": TRAINED, "arc": arc} | measured(net, end)

        found[name] = noted(files[name], trained)
        said(seed, name, found)
    return found


def said(seed: int, name: str, found: dict[str, dict[str, object]]) -> None:
    """One line for each thing done."""
    keys = ("sharpness", "trace", "norm", "test_loss")
    ratios = [f"{k} {found[name][k] / found['start'][k]:.3f}" for k in keys]
    print(seed, name, f"arc {found[name]['arc']:.3f}", *ratios, flush=True)


def rows(seeds: list[dict[str, dict[str, object]]]) -> list[list[str]]:
    """A row for each walk and training."""
    found = []
    for name in seeds[0]:
        if name == "start":
            continue

        def ratios(key: str, name: str = name) -> list[float]:
            return [s[name][key] / s["start"][key] for s in seeds]

        cells = [name, str(len(seeds))]
        cells.append(f"{np.mean([s[name]['evaluations'] for s in seeds]):,.0f}")
        cells.append(mean_std([s[name]["arc"] for s in seeds]))
        cells += [mean_std(ratios(k)) for k in ("train_loss", "sharpness", "trace", "norm")]
        cells.append(mean_std(ratios("test_loss")))
        cells.append(f"{sum(r < 1 for r in ratios('test_loss'))} of {len(seeds)}")
        change = [100 * (s[name]["test_accuracy"] - s["start"]["test_accuracy"]) for s in seeds]
        cells.append(mean_std(change))
        found.append(cells)
    return found


def draw(seeds: list[dict[str, dict[str, object]]]) -> None:
    """Draw test loss against R along the walks, both over their values at the start."""
    with style():
        figure = new_figure(SLIDE_INCHES, 0.42 * SLIDE_INCHES)
        axes = figure.subplots(1, 2, sharey=True)
        pairs = zip(axes, (list(WALKS)[:2], list(WALKS)[2:]), ("sharpness", "trace"), strict=True)
        for ax, names, label in pairs:
            for number, name in enumerate(names):
                for i, seed in enumerate(seeds):
                    along = seed[name]["along"]
                    x = np.array(along["R"]) / along["R"][0]
                    y = np.array(along["test_loss"]) / along["test_loss"][0]
                    look = {"color": COLOURS[number], "linestyle": LINES[number]}
                    ax.plot(x, y, label="" if i else name, **look)
            ax.axhline(1, color="#888888", linewidth=0.7)
            ax.axvline(1, color="#888888", linewidth=0.7)
            ax.set_xscale("log")
            low, high = ax.get_xlim()
            ticks = [2.0**k for k in range(-6, 7) if low < 2.0**k < high]
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.xaxis.set_minor_locator(NullLocator())
            ax.set_xlabel(f"{label}, over that at the start")
            ax.legend()
        axes[0].set_ylabel("test loss, over that at the start")
        figure.savefig(PICTURES / "sharpness.png", dpi=200)


def main() -> None:
    """Do every seed; write the table and the picture."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    args = parser.parse_args()
    seeds = [run(seed) for seed in range(args.seeds)]
    draw(seeds)
    fill("sharpness", HEAD, rows(seeds))


if __name__ == "__main__":
    main()
