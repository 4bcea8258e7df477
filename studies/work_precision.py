"""Which solver for which accuracy: errors at flow times up to 1, and what they cost; seed 0.

python studies/work_precision.py [EXPERIMENT…]

Beside CVODE (the extra `sundials`). Writes the tables of docs/accuracy.md and, into runs/, each
comparison with its diagram.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from geoflow.archive.netcdf import save_dataset
from geoflow.comparisons.work_precision import compare_experiment
from geoflow.plots import save_figures

RTOLS = {
    "iris_ff": {
        "exponential": [1e-2, 1e-3, 1e-4, 1e-5],
        "exponential:float32": [1e-2, 1e-3, 1e-4, 1e-5],
        "rkc": [1e-2, 1e-3, 1e-4, 1e-5],
        "dopri5": [1e-2, 1e-4],
        "bosh3": [1e-4],
    },
    "mnist_ff": {
        "exponential": [1e-2, 1e-3, 1e-4],
        "rkc": [1e-3, 1e-4],
        "dopri5": [1e-4],
    },
}
# A method that none of those compared is. dopri5, which compare takes where SUNDIALS is not
# installed, would take some 60,000 evaluations on iris_ff for its two walks.
REFERENCE = ("cvode", 1e-8)
TIMES = (0.1, 0.3, 1.0)
MAX_EVALUATIONS = 8_000

ROOT = Path(__file__).parents[1]
PAGE, RUNS = ROOT / "docs" / "accuracy.md", ROOT / "runs"
BEGIN, END = "<!-- table: studies/work_precision.py -->", "<!-- end of table -->"


def number(x: float) -> str:
    """Write an error, or that there is none."""
    return "–" if np.isnan(x) else f"{x:.1e}"


def section(name: str, ds: xr.Dataset) -> list[str]:
    """Write one experiment's table, and what its reference is worth."""
    own = ", ".join(number(x) for x in ds["reference_theta_error"].values)
    times = ", ".join(f"{t:g}" for t in ds["snapshot_time"].values)
    cost = ds["reference_evaluations"].values[-1]
    lines = [
        f"### {name}",
        "",
        f"Reference: {ds.attrs['reference_solver']}, rtol {ds.attrs['reference_rtol']:g}, "
        f"{cost:,.0f} evaluations; its own relative error in θ by a walk at rtol "
        f"{ds.attrs['reference_check_rtol']:g}: {own} at t = {times}.",
        "",
        "| solver | rtol | θ, t = 0.1 | θ, t = 0.3 | θ, t = 1 | R | test loss | angle / ° "
        "| \\|L − c\\|/c | evaluations | s |",
        "|" + "---|" * 11,
    ]
    for solver in ds["solver"].values:
        for rtol in ds["rtol"].values:
            cell = ds.sel(solver=solver, rtol=rtol)
            status = str(cell["status"].values)
            if status == "not_run":
                continue
            last = cell.isel(snapshot=-1)
            errors = [number(x) for x in cell["theta_error"].values]
            names = ("regularizer_error", "test_loss_error", "angle_error", "level_error")
            errors += [number(float(last[n])) for n in names]
            if status == "t_end":
                cost = f"{float(last['evaluations']):,.0f} | {float(last['wall_time']):.1f}"
            else:
                cost = f"{int(cell['evaluations_spent']):,} ({status}) | –"
            lines.append(f"| {solver} | {rtol:g} | " + " | ".join(errors) + f" | {cost} |")
    return [*lines, ""]


def summary(ds: xr.Dataset) -> list[str]:
    """Say whether the default's error is below 10 rtol, and what each solver needs for 10⁻³."""
    exponential = ds.sel(solver="exponential")
    ratio = (exponential["theta_error"].max("snapshot") / ds["rtol"]).dropna("rtol")
    text = ", ".join(f"{float(r):.2g} at {float(r['rtol']):g}" for r in ratio)
    lines = [f"Exponential, largest relative error in θ over rtol: {text}.", ""]
    last = ds.isel(snapshot=-1)
    good = last["evaluations"].where(last["theta_error"] <= 1e-3).min("rtol")
    counts = [
        f"{solver} {float(n):,.0f}" if np.isfinite(n) else f"{solver} none"
        for solver, n in zip(ds["solver"].values, good.values, strict=True)
    ]
    lines.append(
        f"Fewest evaluations to t = 1 with a relative error in θ of at most 10⁻³: "
        f"{', '.join(counts)}."
    )
    return [*lines, ""]


def main() -> None:
    """Compare on each experiment and write its section, the others left as they are."""
    torch.set_num_threads(1)
    RUNS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or list(RTOLS):
        rtols = RTOLS[name]
        reference, reference_rtol = REFERENCE
        ds = compare_experiment(
            name,
            list(rtols),
            rtols,
            TIMES,
            MAX_EVALUATIONS,
            reference=reference,
            reference_rtol=reference_rtol,
            note=lambda text, name=name: print(f"{name}: {text}", file=sys.stderr, flush=True),
        )
        save_dataset(ds, RUNS / f"work_precision-{name}.nc", overwrite=True)
        save_figures(ds, RUNS, f"work_precision-{name}")
        # After each experiment, so that what has been measured is kept.
        before, rest = PAGE.read_text().split(BEGIN)
        old, after = rest.split(END)
        # The other experiment's section stays.
        sections = {s.split("\n")[0]: s for s in old.split("### ")[1:]}
        sections[name] = "\n".join(section(name, ds) + summary(ds))[4:]
        ordered = "".join("### " + sections[n].rstrip() + "\n\n" for n in RTOLS if n in sections)
        PAGE.write_text(before + BEGIN + "\n\n" + ordered + END + after)


if __name__ == "__main__":
    main()
