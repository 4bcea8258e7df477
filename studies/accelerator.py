"""Evaluations on a device: seconds beside plain PyTorch's, transfers, and a walk; seed 0.

    python studies/accelerator.py [--device cuda]

Of each network and dtype: the median seconds of a bare forward and backward pass, of
`Problem.value_and_gradient` and of an evaluation within a walk to DEGREES; on a GPU also how often
the walk waits for the device, counted by PyTorch's own debug mode. Prints the table of
docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from deep_networks import entropy, make, train
from torch import Tensor, nn

import geoflow as gf

SOLVER, DEGREES, REPEATS, MAX_EVALUATIONS = "exponential", 150.0, 20, 400


def networks() -> dict[str, tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """Trained networks and their data, on the CPU."""
    found = {}
    for name in ("mnist_ff", "mnist_conv"):
        prepared = gf.experiments.get(name).prepare(seed=0, dtype=torch.float32)
        found[name] = prepared.module, prepared.train
    return found


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Median time of a call."""
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def row(name: str, module: nn.Module, data: tuple[Tensor, Tensor], dtype, device) -> str:
    """Measure one network in one dtype."""
    module = module.to(device, dtype)
    inputs, targets = (t.to(device, dtype if t.is_floating_point() else torch.long) for t in data)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def bare() -> None:
        torch.autograd.grad(entropy(module(inputs), targets), parameters)

    problem = gf.Problem.from_module(module, entropy, inputs, targets, dtype=dtype, device=device)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    theta = problem.theta0
    # Plain PyTorch convolves float32 numbers in TensorFloat-32 on such devices.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        plain = seconds(bare, device)
    ours = seconds(lambda: problem.value_and_gradient(theta), device)
    gf.walk(flow, SOLVER, max_evaluations=30, max_snapshots=2)
    waits = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        ds = gf.walk(
            flow,
            SOLVER,
            stop=gf.Stationary(DEGREES),
            max_evaluations=MAX_EVALUATIONS,
            max_snapshots=2,
        )
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchroniz" in str(w.message) for w in caught)
    evaluations = int(ds["n_gradient"][-1]) + 2 * int(ds["n_hvp"][-1])
    total = float(ds["wall_time"][-1])
    return (
        f"| {name} | {str(dtype).removeprefix('torch.')} | {problem.n_parameters:,} | "
        f"{1e3 * plain:.2f} | {1e3 * ours:.2f} | {1e3 * total / evaluations:.2f} | "
        f"{evaluations} to {float(ds['angle'][-1]):.0f}° | {waits / evaluations:.1f} |"
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda":
        print(torch.cuda.get_device_name(device), "PyTorch", torch.__version__)
    print(
        "| network | dtype | P | bare pass, ms | evaluation, ms | evaluation in a walk, ms "
        "| evaluations | waits an evaluation |\n|---|---|---|---|---|---|---|---|"
    )
    found = networks()
    if device.type == "cuda":
        for name, n in (("resnet18", 512), ("gpt", 256)):
            module, data = make(name, n)
            module = module.to(device)
            train(module, *(t.to(device) for t in data))
            found[name] = module, data
    for name, (module, data) in found.items():
        for dtype in (torch.float64, torch.float32):
            print(row(name, module, data, dtype, device), flush=True)


if __name__ == "__main__":
    main()
