"""Count the directions that a walk uses.

    OMP_NUM_THREADS=1 python studies/directions.py

Walks iris_ff, mpg_ff (seeds 0 to 2) and mnist_ff (seed 0) to 175° with default settings, and again
for 101 points at even distances in arc length. Counts the principal components that these points,
their unit steps and their unit velocities take, beside Brownian paths of the same step lengths, as
they are and standardised (3 paths, seeds 0 to 2). Writes the table of docs/analysis.md, and
docs/_static/directions.png.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

import geoflow as gf
from geoflow.analysis.components.brownian import brownian_path
from geoflow.analysis.components.principal import fit
from geoflow.plots.styles import COLOURS, LINES, SLIDE_INCHES, new_figure, style

Floats = NDArray[np.float64]

WALKS = {"iris_ff": range(3), "mpg_ff": range(3), "mnist_ff": range(1)}
POINTS = 101
PATHS = 3
SHARES = (0.9, 0.99, 0.999)

ROOT = Path(__file__).parents[1]
PAGE, FIGURE = ROOT / "docs" / "analysis.md", ROOT / "docs" / "_static" / "directions.png"
BEGIN, END = "<!-- table: studies/directions.py -->", "<!-- end of directions -->"
HEAD = [
    "experiment",
    "seed",
    "points",
    "standardised",
    "Brownian",
    "Brownian, standardised",
    "unit steps",
    "unit velocities",
    "turned by",
]


def walk(experiment: str, seed: int) -> tuple[xr.Dataset, gf.RegularizingFlow]:
    """Walk twice, the second time with points at even distances."""
    prepared = gf.experiments.get(experiment).prepare(seed)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    first = gf.walk(flow)
    arc = first["arc_length"].values
    times = np.interp(np.linspace(0, arc[-1], POINTS), arc, first["time"].values)
    settings = {"snapshot_times": times, "t_end": float(times[-1])}
    return gf.walk(flow, stop=None, **settings), flow


def variances(points: Floats, standardise: bool = False) -> Floats:
    """Variance along every principal component, falling."""
    scores = fit([points], 1, standardise, False)[1]
    found: Floats = (scores**2).sum(axis=0)
    return found


def moments(vectors: Floats) -> Floats:
    """Mean square along every principal direction of unit vectors, not centred, falling."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = np.linalg.eigvalsh(unit @ unit.T)[::-1]
    return np.maximum(found, 0)


def velocities(ds: xr.Dataset, flow: gf.RegularizingFlow) -> Floats:
    """−Π∇R at every point."""
    rows = []
    for theta in torch.from_numpy(ds["theta"].values):
        loss, gradient = flow.problem.value_and_gradient(theta)
        rows.append(flow.state(theta, loss, gradient).velocity.numpy())
    return np.stack(rows)


def brownian(points: Floats, standardise: bool) -> Floats:
    """Mean over Brownian paths in as many dimensions, with steps as long as the walk's."""
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    paths = (brownian_path(*points.shape, step_lengths=lengths, seed=seed) for seed in range(PATHS))
    spectra = [variances(path, standardise) for path in paths]
    return np.mean([s / s.sum() for s in spectra], axis=0)


def cell(spectrum: Floats) -> str:
    """Components for each share, and the participation ratio."""
    part = np.cumsum(spectrum) / spectrum.sum()
    needed = " / ".join(str(int(np.searchsorted(part, s)) + 1) for s in SHARES)
    return f"{needed} ({spectrum.sum() ** 2 / (spectrum**2).sum():.2f})"


def draw(kept: dict[str, dict[str, Floats]]) -> None:
    """Draw what is left of variance beyond so many components, positions beside unit steps."""
    panels = {
        "points": "variance of the points left",
        "unit steps": "mean square of unit steps left",
    }
    with style():
        figure = new_figure(SLIDE_INCHES, 0.45 * SLIDE_INCHES)
        axes = figure.subplots(1, 2)
        for ax, (name, label) in zip(axes, panels.items(), strict=True):
            for number, (experiment, spectra) in enumerate(kept.items()):
                look = {"color": COLOURS[number], "linestyle": LINES[number], "label": experiment}
                ax.plot(np.arange(1, 31), left(spectra[name]), **look)
            null = left(next(iter(kept.values()))[f"Brownian {name}"])
            ax.plot(np.arange(1, 31), null, color="#888888", linestyle=":", label="Brownian path")
            ax.set_yscale("log")
            ax.set_ylim(1e-6, 1.3)
            ax.set_xlabel("components")
            ax.set_ylabel(label)
        axes[0].legend()
        figure.savefig(FIGURE, dpi=200)


def left(spectrum: Floats) -> Floats:
    """Part beyond the first 1, 2, … 30; what is below rounding is not there."""
    part = 1 - np.cumsum(spectrum)[:30] / spectrum.sum()
    return np.where(part > 1e-12, part, np.nan)


def main() -> None:
    """Fill the table, and draw the first seed of each experiment."""
    torch.set_num_threads(1)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    kept: dict[str, dict[str, Floats]] = {}
    for experiment, seeds in WALKS.items():
        for seed in seeds:
            ds, flow = walk(experiment, seed)
            points = ds["theta"].values
            steps = np.diff(points, axis=0)
            spectra = {
                "points": variances(points),
                "standardised": variances(points, standardise=True),
                "Brownian points": brownian(points, standardise=False),
                "Brownian, standardised": brownian(points, standardise=True),
                "unit steps": moments(steps),
                "unit velocities": moments(velocities(ds, flow)),
            }
            first, last = steps[0], steps[-1]
            cosine = first @ last / np.linalg.norm(first) / np.linalg.norm(last)
            cells = [experiment, str(seed), *(cell(s) for s in spectra.values())]
            cells.append(f"{np.degrees(np.arccos(cosine)):.0f}°")
            lines.append("| " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
            # Steps of a Brownian path in high dimension are orthogonal.
            kept.setdefault(experiment, spectra | {"Brownian unit steps": np.ones(len(steps))})
    draw(kept)
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
