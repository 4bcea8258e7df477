"""The network of docs/start.md with other activations: evaluations to each angle, or how it ended.

python studies/activations.py

Prints the table of docs/own-network.md: walks down ‖θ‖² from three seeds, every setting at its
default, with at most 2,000 evaluations.
"""

import warnings

import torch
from sklearn.datasets import load_digits
from torch import nn

import geoflow as gf

ACTIVATIONS = (nn.Tanh, nn.SiLU, nn.GELU, nn.Softplus, nn.ReLU, nn.LeakyReLU)
SEEDS = (0, 1, 2)
ANGLES = (150.0, 160.0, 170.0)
MAX_EVALUATIONS = 2_000


def trained(activation: type[nn.Module], seed: int) -> gf.Problem:
    """Train as docs/start.md does, on the same 500 digits."""
    digits = load_digits()
    x, y = torch.tensor(digits.data[:500] / 16), torch.tensor(digits.target[:500])
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(64, 32), activation(), nn.Linear(32, 10)).double()
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return gf.Problem.from_module(module, nn.functional.cross_entropy, x, y)


def walked(problem: gf.Problem) -> tuple[list[int], str]:
    """Evaluations at the first step beyond each angle, or 0, and how it ended before the last."""
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    stop = gf.Stationary(degrees=ANGLES[-1])
    ds = gf.walk(flow, stop=stop, max_evaluations=MAX_EVALUATIONS, max_snapshots=2)
    passed = [(ds["angle"] >= angle).values for angle in ANGLES]
    counts = [int(ds["n_gradient"][p.argmax()]) if p.any() else 0 for p in passed]
    status, angle = ds.attrs["status"], float(ds["angle"][-1])
    return counts, "" if status == "stationary" else f"`{status}` at {angle:.0f}°"


def spread(counts: list[int]) -> str:
    """Fewest and most evaluations, and how many walks came so far where not all did."""
    if not counts:
        return "–"
    text = "–".join(f"{n:,}" for n in sorted({min(counts), max(counts)}))
    return text if len(counts) == len(SEEDS) else f"{text} ({len(counts)} of {len(SEEDS)})"


def main() -> None:
    """Walk each and print the rows."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print("| activation | " + " | ".join(f"{a:g}°" for a in ANGLES) + " | ended before |")
    print("|" + "---|" * (2 + len(ANGLES)))
    for activation in ACTIVATIONS:
        counts, ends = zip(*[walked(trained(activation, seed)) for seed in SEEDS], strict=True)
        cells = [spread([n for n in of_angle if n]) for of_angle in zip(*counts, strict=True)]
        cells.append("; ".join(filter(None, ends)) or "–")
        print(f"| {activation.__name__} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
