"""Follow the regularisation path and train at the paper's penalties; write both into docs/paper.md.

For each experiment and seed, the last fifth of the training set is held out, as in `geoflow
baseline --validation 0.2`, and neither side trains on it. One side is a single run: training, a
walk to 175°, and the path from its end over at most ten levels, a factor of two apart. The other is
14 trainings with weight decay. R is the sum of squares of the kernels on both. Each side chooses by
the loss on what was held out. All of it goes to runs/regularization_path; what is there is not done
again.

    python studies/regularization_path.py                   iris_ff, two minutes a seed on one core
    python studies/regularization_path.py mnist_ff --seeds 1
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from scipy.optimize import minimize
from torch import Tensor

import geoflow as gf
from geoflow import baselines
from geoflow.experiments import Data, Experiment, PreparedExperiment, registry
from geoflow.report.page import mean_std

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper.md"
PICTURE, PICTURED = ROOT / "docs" / "_static" / "regularization_path.png", "mnist_ff"
BEGIN = "<!-- tables: studies/regularization_path.py -->"
END = "<!-- end of the tables of the path -->"
EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff", "mnist_conv")

VALIDATION = 0.2
FACTOR, LEVELS, DOWN = 2.0, 10, 3
# Of the loss of the best constant, where a network has nothing left that R could take.
HIGHEST = 0.7
KERNELS = gf.regularizers.squared_norm(tensors="*.weight")
# Of the descent from the path's nearest point to a penalty of the paper's.
ITERATIONS = 300


def held_out(experiment: Experiment) -> Experiment:
    """The experiment on its training set less the part that is held out."""

    def split(rng, data):
        whole = experiment.split(rng, data)
        n = len(whole.train_targets) - round(VALIDATION * len(whole.train_targets))
        inputs, targets = whole.train_inputs[:n], whole.train_targets[:n]
        return whole._replace(train_inputs=inputs, train_targets=targets)

    return replace(experiment, split=split)


class Side:
    """An experiment of one seed, and losses on its three sets at any θ."""

    def __init__(self, name: str, seed: int) -> None:
        self.experiment, self.seed = held_out(registry.of_paper(name)), seed
        whole = registry.of_paper(name).start(seed).train
        n = len(self.experiment.start(seed).train.targets)
        self.validation = Data(whole.inputs[n:], whole.targets[n:])

    def prepared(self, *, trained: bool) -> PreparedExperiment:
        """Its problem, at the trained weights or at the first."""
        if trained:
            return self.experiment.prepare(self.seed)
        blank = {"data": None}
        return self.experiment.again(self.seed, blank, dtype=torch.float64, device="cpu")

    def outputs(self, prepared: PreparedExperiment, theta: Tensor, data: Data) -> Tensor:
        """Of the network at θ, shape (N, outputs)."""
        with torch.no_grad():
            return torch.func.functional_call(
                prepared.module, prepared.problem.unflatten(theta), (data.inputs,)
            )

    def loss(self, prepared: PreparedExperiment, theta: Tensor, data: Data) -> float:
        """Mean loss at θ on data."""
        return float(self.experiment.loss_fn(self.outputs(prepared, theta, data), data.targets))


def levels(start: float, targets: Tensor, *, classification: bool) -> list[float]:
    """Up from the walk's level by factors, and where that comes to an end, down from it."""
    if classification:
        share = torch.bincount(targets).double() / len(targets)
        constant = float(torch.special.entr(share).sum())
    else:
        constant = float(targets.var(correction=0))
    n_up = min(int(math.log(HIGHEST * constant / start, FACTOR)), LEVELS - 1)
    n_down = min(LEVELS - 1 - n_up, DOWN)
    return [start * FACTOR**k for k in (*range(1, n_up + 1), *range(-1, -n_down - 1, -1))]


def follow(side: Side, path: Path) -> None:
    """Train, walk, and follow the path."""
    prepared = side.prepared(trained=True)
    problem = prepared.problem
    start = float(problem.loss(problem.theta0))
    asked = levels(start, prepared.train.targets, classification=prepared.classification)

    def validation_loss(theta: Tensor) -> float:
        return side.loss(prepared, theta, side.validation)

    gf.regularization_path(
        gf.RegularizingFlow(gf.LevelSet(problem), KERNELS),
        asked,
        observables=dict(prepared.observables) | {"validation_loss": validation_loss},
        provenance=prepared.provenance,
        archive=path,
    ).close()


def train(side: Side, penalty: float, path: Path) -> None:
    """Train with weight decay at one penalty."""
    ds = baselines.weight_decay(
        side.experiment, penalties=[penalty], seeds=[side.seed], validation=0.0
    )
    baselines.save_weight_decay(ds, path)


def compare(side: Side, path: xr.Dataset, decay: xr.Dataset) -> dict[str, object]:
    """Say what either side chose, what it cost, and how they differ at one penalty."""
    prepared = side.prepared(trained=False)
    thetas = torch.from_numpy(decay["theta"].isel(run=0).values)
    validation = [side.loss(prepared, theta, side.validation) for theta in thetas]
    chosen = int(np.argmin(validation))
    tests = decay["test_loss"].isel(run=0, epoch=-1).values
    best = int(path["validation_loss"].values.argmin())
    evaluations = (path["n_gradient"] + 2 * path["n_hvp"]).values
    epochs = json.loads(path.attrs["config"])["provenance"]["training"]["epochs"]
    inside = [
        compare_at(side, prepared, path, float(penalty), theta)
        for penalty, theta in zip(decay["penalty"].values, thetas, strict=True)
        if path["penalty"].min() <= penalty <= path["penalty"].max()
    ]
    return {
        "status": path.attrs["status"],
        "n_levels": path.sizes["level"],
        "walk": epochs + int(evaluations[0]),
        "levels": int(evaluations[-1] - evaluations[0]),
        "decay": decay.sizes["penalty"] * int(decay.attrs["epochs"]),
        "path_penalty": float(path["penalty"][best]),
        "path_level": float(path["level"][best] / path["level"][0]),
        "path_test": float(path["test_loss"][best]),
        "path_least": float(path["test_loss"].min()),
        "first_test": float(path["test_loss"][0]),
        "decay_penalty": float(decay["penalty"][chosen]),
        "decay_test": float(tests[chosen]),
        "decay_least": float(np.nanmin(tests)),
        "equal": inside,
    }


def compare_at(
    side: Side, prepared: PreparedExperiment, path: xr.Dataset, penalty: float, trained: Tensor
) -> dict[str, float]:
    """Set the end of a training beside the path's point at the same penalty.

    That point is come to by L-BFGS on L + penalty·R from the point of the path whose penalty is
    nearest.
    """
    problem = prepared.problem
    regularizer = KERNELS.bind(problem)
    away = abs(np.log(path["penalty"].values / penalty))
    start = path["theta"][int(np.argmin(away))].values

    def parts(theta: Tensor) -> tuple[float, float, Tensor, Tensor]:
        loss, gradient = problem.value_and_gradient(theta)
        r, of_r = regularizer.value_and_gradient(theta)
        return float(loss), float(r), gradient, of_r

    def objective(values):
        loss, r, gradient, of_r = parts(torch.from_numpy(values.copy()))
        return loss + penalty * r, (gradient + penalty * of_r).numpy()

    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    row: dict[str, float] = {"penalty": penalty, "away": float(away.min())}
    ends = {"path": torch.from_numpy(found.x.copy()), "decay": trained}
    for name, theta in ends.items():
        loss, r, gradient, of_r = parts(theta)
        row |= {f"{name}_loss": loss, f"{name}_r": r, f"{name}_objective": loss + penalty * r}
        force = penalty * torch.linalg.vector_norm(of_r)
        row[f"{name}_kkt"] = float(torch.linalg.vector_norm(gradient + penalty * of_r) / force)
        row[f"{name}_test"] = side.loss(prepared, theta, prepared.test)
    a, b = (side.outputs(prepared, theta, prepared.test) for theta in ends.values())
    row["distance"] = float(torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a))
    return row


def run(name: str, seed: int, folder: Path) -> dict[str, object]:
    """Do what is missing of one seed of an experiment."""
    folder = folder / name / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    result = folder / "compared.json"
    if result.exists():
        return json.loads(result.read_text())
    side = Side(name, seed)
    path = folder / "path.nc"
    if not path.exists():
        follow(side, path)
    trainings = [folder / f"penalty-{penalty!r}.nc" for penalty in baselines.PENALTIES]
    for penalty, file in zip(baselines.PENALTIES, trainings, strict=True):
        if not file.exists():
            train(side, penalty, file)
    with gf.open_path(path) as followed, baselines.open_weight_decay(trainings) as decay:
        compared = compare(side, followed.load(), decay.load())
    result.write_text(json.dumps(compared, indent=2) + "\n")
    return compared


def row(cells: list[str]) -> str:
    """Write a row in Markdown."""
    return "| " + " | ".join(cells) + " |"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Write a table in Markdown."""
    return [row(head), "|" + "---|" * len(head), *map(row, rows), ""]


def summary(name: str, seeds: list[dict[str, object]]) -> list[str]:
    """One experiment: what either side cost, and chose."""

    def values(key: str) -> list[float]:
        return [float(s[key]) for s in seeds]

    difference = [s["path_test"] - s["decay_test"] for s in seeds]
    complete = sum(s["status"] == "complete" for s in seeds)
    return [
        name,
        f"{complete} of {len(seeds)}",
        mean_std(values("n_levels")),
        f"{np.mean(values('walk')):.0f} + {np.mean(values('levels')):.0f}",
        f"{np.mean(values('decay')):,.0f}",
        ", ".join(f"{v:.1e}" for v in values("path_penalty")),
        ", ".join(f"{v:g}" for v in values("decay_penalty")),
        mean_std(values("first_test")),
        mean_std(values("path_test")),
        mean_std(values("decay_test")),
        mean_std(difference),
        f"{sum(d < 0 for d in difference)} of {len(seeds)}",
        mean_std(values("path_least")),
        mean_std(values("decay_least")),
    ]


def at_equal_penalty(name: str, seeds: list[dict[str, object]]) -> list[list[str]]:
    """One experiment: a row for each penalty that lies on the path of a seed."""
    rows = []
    for penalty in baselines.PENALTIES:
        found = [e for s in seeds for e in s["equal"] if e["penalty"] == penalty]
        if not found:
            continue
        cells = [name, f"{penalty:g}", str(len(found))]
        for key in ("path_loss", "decay_loss", "path_r", "decay_r"):
            cells.append(mean_std([e[key] for e in found]))
        excess = [e["decay_objective"] / e["path_objective"] - 1 for e in found]
        cells.append(mean_std([100 * v for v in excess]))
        for key in ("path_kkt", "decay_kkt"):
            cells.append(f"{np.median([e[key] for e in found]):.1g}")
        for key in ("distance", "path_test", "decay_test"):
            cells.append(mean_std([e[key] for e in found]))
        rows.append(cells)
    return rows


def page(done: dict[str, list[dict[str, object]]]) -> str:
    """Both tables."""
    head = [
        "experiment",
        "paths complete",
        "points",
        "gradients: training and walk + path",
        "14 trainings",
        "penalty chosen on the path",
        "of the 14",
        "test loss: first walk",
        "chosen on the path",
        "chosen of the 14",
        "path − 14",
        "path lower in",
        "least on the path",
        "least of the 14",
    ]
    lines = table(head, [summary(name, seeds) for name, seeds in done.items()])
    head = [
        "experiment",
        "penalty",
        "seeds",
        "training loss: from the path",
        "training",
        "R: from the path",
        "training",
        "L + penalty·R: by how much the training's is higher / %",
        "KKT residual: from the path",
        "training",
        "distance of test outputs",
        "test loss: from the path",
        "training",
    ]
    rows = [r for name, seeds in done.items() for r in at_equal_penalty(name, seeds)]
    return "\n".join([*lines, *table(head, rows)])


def picture(folder: Path) -> None:
    """Draw the path and the trainings of one seed."""
    trainings = [folder / f"penalty-{penalty!r}.nc" for penalty in baselines.PENALTIES]
    if not (folder / "compared.json").exists():
        return
    with gf.open_path(folder / "path.nc") as ds, baselines.open_weight_decay(trainings) as decay:
        gf.plots.regularization_path(ds, decay).savefig(PICTURE, dpi=110)


def main() -> None:
    """Do every experiment asked for, and write the tables of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: iris_ff")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    args = parser.parse_args()
    names = args.experiments or ["iris_ff"]
    unknown = set(names) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"{', '.join(unknown)}: use some of {', '.join(EXPERIMENTS)}")
    folder = ROOT / "runs" / "regularization_path"
    for name in names:
        for seed in range(args.seeds):
            run(name, seed, folder)
    done = {}
    for name in EXPERIMENTS:
        files = sorted((folder / name).glob("seed-*/compared.json"))
        if files:
            done[name] = [json.loads(file.read_text()) for file in files]
    picture(folder / PICTURED / "seed-0")
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{page(done)}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
