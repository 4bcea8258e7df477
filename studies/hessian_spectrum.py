"""How does the Hessian's spectrum change while training loss stays and test loss falls? mnist_ff.

    OMP_NUM_THREADS=1 python studies/hessian_spectrum.py

Walks mnist_ff, seed 0, to 175°, and computes the spectra of ∇²L, of its Gauss–Newton part G and of
the tangent-space Hessian A at five snapshots. Writes the table of docs/analysis.md and its figure,
and into runs/ the walk, the spectra and another figure. What is in runs/ is not computed again.
"""

from pathlib import Path

import numpy as np
import torch
import xarray as xr

import geoflow as gf
from geoflow import plots
from geoflow.analysis.curvature import spectra
from geoflow.archive.netcdf import open_analysis

SETTINGS = {
    "operators": spectra.OPERATORS,
    "k": 10,
    "n_probes": 4,
    "n_steps": 48,
    "n_trace": 60,
    "max_products": 150,
}

ROOT = Path(__file__).parents[1]
PAGE, RUNS = ROOT / "docs" / "analysis.md", ROOT / "runs"
FIGURE = ROOT / "docs" / "_static" / "hessian_spectrum.png"
BEGIN, END = "<!-- table: studies/hessian_spectrum.py -->", "<!-- end of table -->"


def walk() -> xr.Dataset:
    """The walk, from its file where it is there."""
    path = RUNS / "hessian_spectrum-walk.nc"
    if not path.exists():
        prepared = gf.experiments.get("mnist_ff").prepare(0)
        flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
        ds = gf.walk(
            flow,
            "exponential",
            stop=gf.Stationary(degrees=175.0),
            observables=prepared.observables,
            provenance=prepared.provenance,
            progress=True,
        )
        gf.save_trajectory(ds, path)
    return gf.open_trajectory(path)


def found(ds: xr.Dataset) -> xr.Dataset:
    """Spectra, from their file where it is there; cut off, the next call goes on."""
    path = RUNS / "hessian_spectrum.nc"
    if path.exists():
        return open_analysis(path, "spectra").load()
    flow = gf.experiments.rebuild(ds.attrs).flow
    return spectra.along(ds, flow, archive=path, progress=True, **SETTINGS)


def rows(ds: xr.Dataset, spectrum: xr.Dataset) -> list[str]:
    """The table: a row a quantity, a column a snapshot."""
    steps = spectrum["snapshot_step"].values
    at = ds.isel(step=steps)
    observed = ds.isel(snapshot=np.isin(ds["snapshot_step"], steps))
    hessian, tangent, newton = (spectrum.sel(operator=name) for name in spectra.OPERATORS)

    def top(part: xr.Dataset) -> np.ndarray:
        return part["largest_eigenvalue"].isel(rank=0).values

    def least(part: xr.Dataset) -> np.ndarray:
        # The smallest eigenvalues do not converge in so few products; this is not below the least.
        return part["node"].min(["probe", "lanczos"]).values

    def trace(part: xr.Dataset) -> list[str]:
        pairs = zip(part["trace"].values, part["trace_error"].values, strict=True)
        return [f"{value:.3g} ± {error:.1g}" for value, error in pairs]

    def formatted(values: np.ndarray, text: str = ".3g") -> list[str]:
        return [format(float(value), text) for value in values]

    table = {
        "flow time": formatted(spectrum["snapshot_time"].values),
        "angle / °": formatted(at["angle"].values, ".0f"),
        "training loss": formatted(at["train_loss"].values, ".4g"),
        "test loss": formatted(observed["test_loss"].values, ".4f"),
        "R = ‖θ‖²": formatted(at["regularizer"].values, ".1f"),
        "λ": formatted(at["multiplier"].values),
        "λ_max of ∇²L": formatted(top(hessian)),
        "λ_max of G": formatted(top(newton)),
        "λ_max of ∇²L times R": formatted(top(hessian) * at["regularizer"].values),
        "10th of ∇²L": formatted(hessian["largest_eigenvalue"].isel(rank=9).values),
        "10th of G": formatted(newton["largest_eigenvalue"].isel(rank=9).values),
        "trace of ∇²L": trace(hessian),
        "trace of G": trace(newton),
        "trace of G over ∇²L": formatted(newton["trace"].values / hessian["trace"].values),
        "least Ritz value of ∇²L": formatted(least(hessian), ".2g"),
        "λ_max of A": formatted(top(tangent)),
        "least Ritz value of A": formatted(least(tangent), ".2g"),
        "trace of A over P − 1": formatted(tangent["trace"].values / int(tangent["dimension"])),
        "velocity in the top 10 of ∇²L": formatted(hessian["velocity_overlap"].values),
        "velocity in the top 10 of A": formatted(tangent["velocity_overlap"].values),
        "normal curvature": formatted(spectrum["normal_curvature"].values),
    }
    head = "| | " + " | ".join(f"snapshot {int(s)}" for s in steps) + " |"
    lines = [head, "|---" * (spectrum.sizes["snapshot"] + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in table.items()]


def main() -> None:
    """Compute what is missing, and write the table and the figures."""
    torch.set_num_threads(1)
    RUNS.mkdir(exist_ok=True)
    with walk() as ds:
        spectrum = found(ds)
        lines = rows(ds, spectrum)
    plots.save_figures(spectrum, RUNS, "hessian_spectrum", ["extremes"])
    plots.waterfalls(spectrum).savefig(FIGURE, dpi=200)
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END, 1)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
