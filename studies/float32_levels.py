"""How well a float32 loss is known at low levels: a small network on 60 examples, seed 0.

OMP_NUM_THREADS=1 python studies/float32_levels.py

Trained by Adam to a loss of about c, then walked down ‖θ‖² by bdf in float32. "Measured" is what a
level set knows of its loss's own rounding, "recorded" the largest |L − c| of the walk, "walked" the
largest change of the float64 loss along it; all relative to c. Prints a table of docs/accuracy.md.
"""

import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import geoflow as gf

LOSSES = {
    "cross-entropy": (functional.cross_entropy, 3),
    "squared error": (functional.mse_loss, 1),
    "Huber": (functional.huber_loss, 1),
}
LEVELS, EXAMPLES, INPUTS, WIDTH, BUDGET = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5), 60, 6, 24, 400


def row(loss: str, level: float) -> str:
    """Train, walk and compare."""
    function, n_outputs = LOSSES[loss]
    torch.manual_seed(0)
    x = torch.randn(EXAMPLES, INPUTS)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long() if n_outputs > 1 else x.sum(1, True).sin()
    module = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.Tanh(), nn.Linear(WIDTH, n_outputs))
    optimizer = torch.optim.Adam(module.parameters(), 0.03)
    for _ in range(20_000):
        optimizer.zero_grad()
        value = function(module(x), y)
        if value.item() < level:
            break
        value.backward()
        optimizer.step()
    problem = gf.Problem.from_module(module, function, x, y, dtype=torch.float32)
    exact = gf.Problem.from_module(module, function, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level_set = gf.LevelSet(problem)
    flow = gf.RegularizingFlow(level_set, gf.regularizers.squared_norm)
    ds = gf.walk(flow, max_evaluations=BUDGET, stop=None)
    c = level_set.level
    losses = np.array([float(exact.loss(torch.tensor(t).double())) for t in ds["theta"].values])
    measured = float(level_set.rounding[0]) / c
    recorded = float(abs(ds["level_residual"]).max()) / c
    walked = abs(losses / losses[0] - 1).max()
    shown = f"{measured:.1e}" if measured else "that of θ"
    return f"| {loss} | {c:.1e} | {shown} | {recorded:.1e} | {walked:.1e} |"


def main() -> None:
    """Print a row for each loss and level."""
    torch.set_num_threads(1)
    print("| loss | c | measured | recorded | walked |\n" + "|---" * 5 + "|")
    for loss in LOSSES:
        for level in LEVELS:
            print(row(loss, level), flush=True)


if __name__ == "__main__":
    main()
