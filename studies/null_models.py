"""Ask whether PCA can distinguish a walk from a random walk.

For a few walks: explained variance and cosine content of the first components, beside those of
random walks whose steps have the same lengths, and the p-value of the test against them, in R^P and
in fewer dimensions. Prints the table of docs/analysis.md, and draws one walk.

    OMP_NUM_THREADS=1 python studies/null_models.py
"""

from pathlib import Path

import torch

import geoflow as gf
from geoflow.analysis.components.brownian import brownian_test
from geoflow.analysis.components.null_models import compare
from geoflow.plots import null_models

WALKS = {"iris_ff": range(3), "mpg_ff": range(3)}
DIMENSIONS = (10, 3)
DRAWN = ("mpg_ff", 0)
FIGURE = Path(__file__).parents[1] / "docs" / "_static" / "null_models.png"


def walk(experiment: str, seed: int) -> list[str]:
    """Cells of one walk's row."""
    prepared = gf.experiments.get(experiment).prepare(seed)
    flow = gf.RegularizingFlow(gf.LevelSet(prepared.problem), gf.regularizers.squared_norm)
    ds = gf.walk(flow)
    points = ds["theta"].values
    found = compare(points, ds["snapshot_time"].values, n_components=6)
    if (experiment, seed) == DRAWN:
        found.attrs["title"] += f": {experiment}, seed {seed}"
        null_models(found).savefig(FIGURE, dpi=200)
    cells = [experiment, str(seed), str(len(points))]
    for model in ("walk", "brownian"):
        here = found.sel(model=model)
        cells += [f"{100 * float(v):.1f}%" for v in here["explained_variance_ratio"][:2]]
        cells += [f"{float(here['cosine_content'][0]):.2f}"]
        cells += [f"{float(here['participation_ratio']):.2f}"]
    tests = [brownian_test(points, dimension=d).p_value for d in DIMENSIONS]
    return cells + [f"{p:.3f}" for p in [float(found["p_value"]), *tests]]


def main() -> None:
    """Print a row for each walk."""
    torch.set_num_threads(1)
    head = ["experiment", "seed", "points"]
    for model in ("walk", "random"):
        head += [f"{model}: PC1", "PC2", "cosine", "part. ratio"]
    head += ["p in R^P", *(f"p in R^{d}" for d in DIMENSIONS)]
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for experiment, seeds in WALKS.items():
        for seed in seeds:
            print("| " + " | ".join(walk(experiment, seed)) + " |", flush=True)


if __name__ == "__main__":
    main()
