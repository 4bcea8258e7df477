"""Repeat the comparison of Tahir & Katz (2021) and write it into docs/paper.md.

For each experiment: walks from several seeds to 175°, trainings with weight decay at every
penalty, and a page with the paper's figures and table; for iris_ff also the paper's own loop, whose
time is set beside that of the sweep. All of it goes to runs/paper; what is there already is not
done again, so that the command can be interrupted and repeated.

    python studies/paper.py                  the paper's scale: hours on two cores
    python studies/paper.py --quick iris_ff  minutes; writes its own page, not docs/paper.md
"""

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xarray as xr

import geoflow as gf
from geoflow import baselines
from geoflow.report.page import mean_std, report

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper.md"
BEGIN, END = "<!-- tables: studies/paper.py -->", "<!-- end of tables -->"
# Without cifar10_conv, which needs data that no package carries.
EXPERIMENTS = ("iris_ff", "mpg_ff", "mnist_ff", "mnist_conv")


@dataclass(frozen=True)
class Scale:
    """How much is done for one experiment."""

    seeds: int = 5
    runs: int = 15
    penalties: tuple[float, ...] = baselines.PENALTIES
    epochs: int | None = None


# The paper has 15 runs at each penalty. Those on MNIST are cut to what two cores do in an hour.
FULL = {name: Scale() for name in EXPERIMENTS} | {
    "mnist_ff": Scale(runs=5),
    "mnist_conv": Scale(runs=2),
}
QUICK = Scale(seeds=2, runs=3, penalties=(0.0, 1e-4, 1e-2, 1.0), epochs=40)


def run(name: str, scale: Scale, folder: Path) -> None:
    """Do what is missing of one experiment."""
    walks, decay = folder / name / "walks", folder / name / "decay"
    start = time.perf_counter()
    outcomes = gf.sweep(name, range(scale.seeds), walks, solver="exponential", progress=True)
    if all(o.new for o in outcomes):
        cores = len(os.sched_getaffinity(0))
        seconds = time.perf_counter() - start
        note(folder, name, sweep_s=seconds, sweep_runs=scale.seeds, cores=cores)
    outcomes += gf.sweep_weight_decay(
        name,
        range(scale.runs),
        decay,
        penalties=scale.penalties,
        epochs=scale.epochs,
        progress=True,
    )
    failed = [f"{o.name}: {o.message}" for o in outcomes if o.status == "failed"]
    if failed:
        raise SystemExit("\n".join(failed))
    report([walks, decay], folder / f"{name}.html", overwrite=True)


def run_loop(name: str, folder: Path, steps: int | None) -> None:
    """Time the paper's loop over its predictor steps, from seed 0 and its training on."""
    if (folder / name / "loop.nc").exists():
        return
    torch.set_num_threads(1)
    start = time.perf_counter()
    experiment = gf.experiments.get(name)
    prepared = experiment.prepare(0)
    ds = baselines.predictor_corrector(
        gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm),
        steps=steps or experiment.paper_steps,
        predictor_min=experiment.predictor_min,
        corrector_min=experiment.corrector_min,
        max_evaluations=10_000_000,
    )
    note(
        folder, name, loop_s=time.perf_counter() - start, loop_steps=steps or experiment.paper_steps
    )
    gf.save_trajectory(ds, folder / name / "loop.nc")


def note(folder: Path, name: str, **values: float) -> None:
    """Keep what was timed beside the files of an experiment."""
    path = folder / name / "times.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | values, indent=2) + "\n")


def summary(name: str, folder: Path) -> tuple[str, str, str]:
    """Rows of the three tables of the page."""
    files = sorted((folder / name / "walks").glob("*.nc"))
    walks = [gf.open_trajectory(path).load() for path in files]
    decay = baselines.open_weight_decay(sorted((folder / name / "decay").glob("*.nc")))
    start, end = (np.array([float(ds["test_loss"][i]) for ds in walks]) for i in (0, -1))
    lower = int((end < start).sum())
    cells = [name, str(len(walks)), mean_std([float(ds["angle"][-1]) for ds in walks])]
    residual = max(np.abs(ds["level_residual"]).max() / ds.attrs["level"] for ds in walks)
    cells.append(f"{float(residual):.1e}")
    cells += [mean_std([float(ds["regularizer"][i]) for ds in walks]) for i in (0, -1)]
    cells += [mean_std(start), mean_std(end), mean_std(end - start), f"{lower} of {len(walks)}"]
    first = row(cells)

    accuracies = [name]
    for i in (0, -1):
        has = "test_accuracy" in walks[0]
        values = [float(ds["test_accuracy"][i]) for ds in walks] if has else []
        accuracies.append(mean_std(values, "test_accuracy"))
    second = [name, str(decay.sizes["run"]), str(decay.attrs["epochs"])]
    seeds = [ds.attrs["seed"] for ds in walks]
    paired = [s for s in seeds if s in decay["run"].values]
    of_walk = xr.DataArray(end, {"run": seeds}, "run").sel(run=paired)
    for by in ("test_loss", "validation_loss"):
        penalty = baselines.best_penalty(decay, by)
        chosen = decay.sel(penalty=penalty).isel(epoch=-1)
        difference = (of_walk - chosen["test_loss"].sel(run=paired)).values
        wins = int((difference < 0).sum())
        second += [f"{penalty:g}", mean_std(chosen["test_loss"].values)]
        second += [mean_std(difference), f"{wins} of {len(paired)}"]
        if "test_accuracy" in decay:
            accuracies.append(mean_std(chosen["test_accuracy"].values, "test_accuracy"))
        else:
            accuracies.append("–")
    decay.close()
    return first, row(second), row(accuracies)


def row(cells: list[str]) -> str:
    """Write a row in Markdown."""
    return "| " + " | ".join(cells) + " |"


def timing(folder: Path) -> str:
    """Say what the sweep and the paper's loop took on iris_ff."""
    path = folder / "iris_ff" / "times.json"
    times = json.loads(path.read_text()) if path.exists() else {}
    if not {"sweep_s", "loop_s"} <= set(times):
        return ""
    with gf.open_trajectory(folder / "iris_ff" / "loop.nc") as ds:
        angle, r = float(ds["angle"][-1]), float(ds["regularizer"][-1])
    return (
        f"On `iris_ff`, {times['sweep_runs']} seeds from training to 175° took "
        f"{times['sweep_s']:.0f} s on {times['cores']} cores with `geoflow sweep`, the start of "
        f"its worker processes included; one seed took the paper's loop {times['loop_s']:.0f} s "
        f"from training to its {times['loop_steps']:,} predictor steps, after which it was at "
        f"{angle:.1f}° and ‖θ‖² = {r:.1f}.\n"
    )


def page(names: list[str], folder: Path) -> str:
    """Write the tables of all experiments that are done."""
    rows = [summary(name, folder) for name in names]
    heads = (
        [
            "experiment",
            "walks",
            "last angle / °",
            "greatest \\|L − c\\|/c",
            "‖θ‖² before",
            "after",
            "test loss before",
            "after",
            "after − before",
            "lower in",
        ],
        [
            "experiment",
            "runs",
            "epochs",
            "best penalty on the test set",
            "its test loss",
            "walk − it",
            "walk lower in",
            "best on validation",
            "its test loss",
            "walk − it",
            "walk lower in",
        ],
        [
            "experiment",
            "walk: before",
            "after",
            "weight decay, chosen on the test set",
            "chosen on validation",
        ],
    )
    titles = (
        "### Test loss along the walk",
        "### Beside weight decay",
        "### Test accuracy",
    )
    lines = []
    for title, head, number in zip(titles, heads, range(3), strict=True):
        lines += [title, "", row(head), "|" + "---|" * len(head)]
        lines += [r[number] for r in rows]
        lines.append("")
    return "\n".join([*lines, timing(folder)])


def main() -> None:
    """Run every experiment asked for, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="default: all four")
    parser.add_argument("--quick", action="store_true", help="few seeds, penalties and epochs")
    parser.add_argument("--out", type=Path, help="default: runs/paper, or runs/paper-quick")
    args = parser.parse_args()
    names = args.experiments or list(EXPERIMENTS)
    unknown = set(names) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"{', '.join(unknown)}: use some of {', '.join(EXPERIMENTS)}")
    folder = args.out or ROOT / "runs" / ("paper-quick" if args.quick else "paper")
    done: list[str] = []
    for name in names:
        run(name, QUICK if args.quick else FULL[name], folder)
        if name == "iris_ff":
            run_loop(name, folder, 500 if args.quick else None)
        done.append(name)
        tables = page(done, folder)
        if args.quick:
            (folder / "paper.md").write_text(tables)
        else:
            before, rest = PAGE.read_text().split(BEGIN)
            PAGE.write_text(f"{before}{BEGIN}\n{tables}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
