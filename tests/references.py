"""Flows on level sets beside their exact solutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import geoflow as gf


@dataclass(frozen=True)
class Reference:
    flow: gf.RegularizingFlow
    exact: Callable[[float], Tensor]


def _normal(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64)


def half_square(theta: Tensor) -> Tensor:
    return 0.5 * torch.dot(theta, theta)


def sphere_linear(n: int = 6, seed: int = 0) -> Reference:
    """L = ½‖θ‖², R = a·θ: θ slides towards −a along a great circle, cos falling as a tanh."""
    start, a = _normal(n, seed), _normal(n, seed + 1)
    flow = gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(half_square, start)), lambda theta: torch.dot(a, theta)
    )
    radius, pole = start.norm(), a / a.norm()
    cosine = torch.dot(start, pole) / radius
    side = start / radius - cosine * pole
    side = side / side.norm()

    def exact(t: float) -> Tensor:
        c = torch.tanh(torch.atanh(cosine) - a.norm() / radius * t)
        return radius * (c * pole + torch.sqrt(1 - c**2) * side)

    return Reference(flow, exact)


def oja(n: int = 5, seed: int = 3) -> Reference:
    """L = ½‖θ‖², R = θᵀAθ: Oja's flow, θ(t) ∝ exp(−2At) θ(0)."""
    start = _normal(n, seed)
    matrix = torch.diag(torch.linspace(-1.0, 1.0, n, dtype=torch.float64))
    flow = gf.RegularizingFlow(
        gf.LevelSet(gf.Problem.from_function(half_square, start)),
        lambda theta: torch.dot(theta, matrix @ theta),
    )

    def exact(t: float) -> Tensor:
        moved = torch.linalg.matrix_exp(-2 * t * matrix) @ start
        return start.norm() * moved / moved.norm()

    return Reference(flow, exact)


def ellipsoid() -> gf.RegularizingFlow:
    """L = ½θᵀDθ, R = ‖θ‖²: no closed form; the flow ends on the shortest axis."""
    start = _normal(4, 5)
    axes = torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: 0.5 * torch.dot(theta, axes * theta), start)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


@functools.cache
def _trained_state() -> dict[str, Tensor]:
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.6 * _normal(parameter.numel(), seed).view(parameter.shape))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    inputs, targets = small_data()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    return module.state_dict()


def small_module() -> nn.Sequential:
    """A tanh network of 50 parameters, trained for a moment: its loss is below chance."""
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    module.load_state_dict(_trained_state())
    return module


def small_data(n: int = 24, seed: int = 1) -> tuple[Tensor, Tensor]:
    inputs = _normal(3 * n, seed).reshape(n, 3)
    return inputs, (inputs[:, 0] * inputs[:, 1] > 0).long()


def small_network(**kwargs: object) -> gf.RegularizingFlow:
    """The level set of the small network's loss, with R = ‖θ‖²."""
    problem = gf.Problem.from_module(
        small_module(), nn.functional.cross_entropy, *small_data(), **kwargs
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def order_of_convergence(steps: list[float], errors: list[float]) -> float:
    """Slope of log(error) on log(step), by least squares."""
    x = torch.tensor(steps, dtype=torch.float64).log()
    y = torch.tensor(errors, dtype=torch.float64).log()
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / (x * x).sum())
