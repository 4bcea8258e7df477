"""How close to its level a float32 network can be kept, by how its batches are added up; seed 0.

    OMP_NUM_THREADS=1 python studies/float32_floor.py [--examples N]

A perceptron of two hidden layers of 100, trained as those of studies/scaling.py, its loss over all
examples as a sum over chunks: added up in float32, in float32 with Kahan's compensation, and in
float64 as geoflow does. From POINTS points near the trained one the level is projected to with a
tolerance that nothing meets. "Reached" is |L − c|/c where rounding stops it, by the sum itself;
"true" the same by a float64 network at the same θ. "Error" is the root mean square of the relative
error of L in a ball around the trained point, that of ∇L its relative norm. Prints the table of
docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable

import scaling
import torch
from torch import Tensor
from torch.nn import functional as F

import geoflow as gf
from geoflow.problems import mean

SEED, WIDTH, POINTS, DISTANCE = 0, 100, 40, 1e-4
CHUNKS = (1, 20, 200)
Contributions = Iterable[tuple[tuple[Tensor, ...], Tensor]]
AddUp = Callable[[Contributions], tuple[tuple[Tensor, ...], Tensor]]


def in_float32(contributions: Contributions) -> tuple[tuple[Tensor, ...], Tensor]:
    """One after the other, in the network's dtype."""
    sums: tuple[Tensor, ...] = ()
    total = torch.zeros(())
    for tensors, weight in contributions:
        sums = tuple(a + b for a, b in zip(sums, tensors, strict=True)) if sums else tensors
        total = total + weight
    return sums, total


def compensated(contributions: Contributions) -> tuple[tuple[Tensor, ...], Tensor]:
    """The same, with what each addition loses carried to the next (Kahan 1965)."""
    sums: list[Tensor] = []
    lost: list[Tensor] = []
    total = torch.zeros(())
    for tensors, weight in contributions:
        if not sums:
            sums, lost = list(tensors), [torch.zeros_like(t) for t in tensors]
        else:
            for i, tensor in enumerate(tensors):
                corrected = tensor - lost[i]
                new = sums[i] + corrected
                lost[i] = (new - sums[i]) - corrected
                sums[i] = new
        total = total + weight
    return tuple(sums), total


WAYS: dict[str, AddUp] = {
    "float32": in_float32,
    "float32, compensated": compensated,
    "float64": mean.add_up,
}


def floor(level_set: gf.LevelSet, theta: Tensor) -> tuple[Tensor, float]:
    """Where rounding stops the projection of a point, and the residual there."""
    problem, c = level_set.problem, level_set.level
    best, least = theta, float("inf")
    for _ in range(8):
        loss, gradient = problem.value_and_gradient(theta)
        residual = float(loss.double()) - c
        if abs(residual) >= least:
            break
        best, least = theta, abs(residual)
        theta = theta - (residual / float(torch.dot(gradient, gradient))) * gradient
    return best, least


def row(way: str, n_chunks: int, single: gf.Problem, double: gf.Problem) -> str:
    """Measure one way to add up."""
    mean.add_up = WAYS[way]
    generator = torch.Generator().manual_seed(SEED)
    level = float(double.loss(double.theta0))
    level_set = gf.LevelSet(single, level=level)
    errors, gradients, reached, true = [], [], [], []
    for _ in range(POINTS):
        direction = torch.randn(single.n_parameters, generator=generator, dtype=torch.float64)
        theta = double.theta0 + DISTANCE * double.theta0.norm() * direction / direction.norm()
        theta = theta.float()
        mean.add_up = WAYS["float64"]
        exact, exact_gradient = double.value_and_gradient(theta.double())
        mean.add_up = WAYS[way]
        loss, gradient = single.value_and_gradient(theta)
        errors.append((float(loss.double() / exact) - 1) ** 2)
        gradients.append(float((gradient.double() - exact_gradient).norm() / exact_gradient.norm()))
        end, least = floor(level_set, theta)
        reached.append(least / level)
        mean.add_up = WAYS["float64"]
        true.append(abs(float(double.loss(end.double())) - level) / level)
    found = [
        statistics.mean(errors) ** 0.5,
        statistics.median(gradients),
        statistics.median(reached),
        max(reached),
        statistics.median(true),
        max(true),
    ]
    return f"| {n_chunks:,} | {way} | " + " | ".join(f"{x:.1e}" for x in found) + " |"


def main() -> None:
    """Print a row for each way and number of chunks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=4_000)
    n = parser.parse_args().examples
    inputs, targets = scaling.examples(n)
    module = scaling.trained(WIDTH, inputs, targets)
    print(
        "| chunks | added up in | error of L | of ∇L | reached, median | worst | true, median "
        "| worst |\n|---|---|---|---|---|---|---|---|"
    )
    # The double one starts where the single one does: at numbers that float32 has.
    for parameter in module.parameters():
        parameter.data = parameter.data.float().double()
    double = gf.Problem.from_module(module, F.cross_entropy, inputs, targets)
    for n_chunks in CHUNKS:
        single = gf.Problem.from_module(
            module,
            F.cross_entropy,
            inputs,
            targets,
            batch_size=None if n_chunks == 1 else n // n_chunks,
            dtype=torch.float32,
        )
        for way in WAYS if n_chunks > 1 else ("float64",):
            print(row(way, n_chunks, single, double), flush=True)


if __name__ == "__main__":
    main()
