"""Ask how walks end, and whether they oscillate on the way.

Walks of three seeds of iris_ff to 179.9°, default settings otherwise; simulations of seed 0. For
each, the relaxation rates of its later half beside the smallest eigenvalue of A at its end, and the
p-values of the highest peak of its periodograms. Writes both tables of docs/analysis.md.

    OMP_NUM_THREADS=1 python studies/relaxation.py
"""

import sys
from pathlib import Path

import torch
import xarray as xr

import geoflow as gf
from geoflow.analysis.series import periodogram, relaxation

WALKS = [("iris_ff", 0, 179.9), ("iris_ff", 1, 179.9), ("iris_ff", 2, 179.9)]
SCALARS = ["angle", "tangent_norm", "regularizer", "pc1", "pc2", "pc3"]
PAGE = Path(__file__).parents[1] / "docs" / "analysis.md"
BEGIN, END = "<!-- tables: studies/relaxation.py -->", "<!-- end of relaxation -->"


def interval(one: xr.Dataset) -> str:
    """Rate and interval, or why there is none."""
    if one["status"].item() != "fitted":
        return one["status"].item().split(":")[0]
    low, high = one["rate_low"].item(), one["rate_high"].item()
    return f"{one['rate'].item():.3g} ({low:.3g} to {high:.3g})"


def late(one: xr.Dataset) -> str:
    """Rate of the later half of the window."""
    rate = one["late_rate"].item()
    return "–" if rate != rate else f"{rate:.3g}"


def main() -> None:
    """Walk and measure, one walk after the other."""
    torch.set_num_threads(1)
    heads = ["‖Π∇R‖", "later half", "R", "later half", "arc length", "later half"]
    head = ["experiment", "seed", "from t", "to t", "samples", *heads]
    head += ["smallest eigenvalue of A", "vᵀAv/vᵀv"]
    rates = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    head = ["experiment", "seed", "samples", *SCALARS]
    peaks = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for experiment, seed, angle in WALKS:
        prepared = gf.experiments.get(experiment).prepare(seed)
        flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
        ds = gf.walk(flow, stop=gf.Stationary(degrees=angle))
        found = relaxation.along(ds, curvature=flow)
        times = found["time"].values
        cells = [experiment, str(seed), f"{times[0]:.3g}", f"{times[-1]:.3g}", str(len(times))]
        for name in relaxation.SCALARS:
            one = found.sel(scalar=name, term=1)
            cells += [interval(one), late(one)]
        cells += [
            f"{found['smallest_eigenvalue'].values[0]:.3g}",
            f"{found['velocity_rate'].item():.3g}",
        ]
        rates.append("| " + " | ".join(cells) + " |")
        print(rates[-1], file=sys.stderr, flush=True)
        spectra = periodogram.along(ds, SCALARS)
        cells = [experiment, str(seed), str(spectra.sizes["sample"])]
        cells += [f"{p:.3f}" for p in spectra["p_value"].values]
        peaks.append("| " + " | ".join(cells) + " |")
        print(peaks[-1], file=sys.stderr, flush=True)
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n".join(rates) + "\n\n" + "\n".join(peaks)
    PAGE.write_text(before + BEGIN + "\n" + tables + "\n" + END + after)


if __name__ == "__main__":
    main()
