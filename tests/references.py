"""Flows on level sets beside their exact solutions."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
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


def _flow(
    loss: Callable[[Tensor], Tensor], regularizer: Callable[[Tensor], Tensor], start: Tensor
) -> gf.RegularizingFlow:
    problem = gf.Problem.from_function(loss, start)
    return gf.RegularizingFlow(gf.LevelSet(problem), regularizer)


def ill_conditioned_ellipsoid() -> gf.RegularizingFlow:
    """L = ½θᵀDθ, axes of D from 1 to 10⁶, R = ‖θ‖²: the start has all of them in L alike."""
    axes = torch.logspace(0, 6, 8, dtype=torch.float64)
    return _flow(
        lambda theta: 0.5 * torch.dot(theta, axes * theta),
        gf.regularizers.squared_norm,
        _normal(8, 5) / axes.sqrt(),
    )


def torus() -> gf.RegularizingFlow:
    """L = (√(x² + y²) − 2)² + z² = 1, R a linear function with a quadratic one."""
    tilt = torch.tensor([1.0, 0.5, -0.7], dtype=torch.float64)
    pull = torch.tensor([0.3, -0.4, 0.5], dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        return (torch.hypot(theta[0], theta[1]) - 2) ** 2 + theta[2] ** 2

    start = torch.tensor([0.0, 2 + 3**-0.5, (2 / 3) ** 0.5], dtype=torch.float64)
    return _flow(loss, lambda theta: torch.dot(tilt + pull * theta, theta), start)


def rosenbrock() -> gf.RegularizingFlow:
    """Rosenbrock's function in 4 dimensions, R = ‖θ − a‖²: a curved shell, 100 times narrower."""
    goal = torch.tensor([-0.5, 0.3, 0.8, -0.2], dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        curve = theta[1:] - theta[:-1] ** 2
        return (100 * curve**2 + (1 - theta[:-1]) ** 2).sum()

    start = torch.tensor([-0.4, 0.3, 0.2, 0.25], dtype=torch.float64)
    return _flow(loss, lambda theta: ((theta - goal) ** 2).sum(), start)


def narrow_valley() -> gf.RegularizingFlow:
    """L = ½(x² + z²) + 10³(y − sin 2x)²/2, R = ‖θ − a‖²: stiff across a bent valley."""
    goal = torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)

    def loss(theta: Tensor) -> Tensor:
        x, y, z = theta
        return 0.5 * (x**2 + z**2) + 500 * (y - torch.sin(2 * x)) ** 2

    start = torch.tensor([-0.6, -0.9, 0.5], dtype=torch.float64)
    return _flow(loss, lambda theta: ((theta - goal) ** 2).sum(), start)


class _Sine(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


def network(activation: nn.Module, layers: Sequence[int] = (2, 8, 7, 1)) -> gf.RegularizingFlow:
    """A network of 95 parameters fitted for a moment to a smooth function, with R = ‖θ‖²."""
    modules: list[nn.Module] = []
    for n, m in itertools.pairwise(layers):
        modules += [nn.Linear(n, m).double(), activation]
    module = nn.Sequential(*modules[:-1])
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(0.6 * _normal(parameter.numel(), seed).view(parameter.shape))
    inputs = _normal(60, 11).reshape(30, 2)
    targets = torch.sin(2 * inputs[:, :1]) * inputs[:, 1:]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.mse_loss(module(inputs), targets).backward()
        optimizer.step()
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, inputs, targets)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def trained(
    layers: Sequence[int], activation: nn.Module, seed: int = 0, iterations: int = 200
) -> gf.RegularizingFlow:
    """A network trained by L-BFGS to a low loss on thirty examples, with R = ‖θ‖²."""
    pairs = list(itertools.pairwise(layers))
    parts = [[nn.Linear(n, m).double(), activation] for n, m in pairs]
    module = nn.Sequential(*[part for both in parts for part in both][:-1])
    with torch.no_grad():
        for i, (linear, _) in enumerate(parts):
            n, m = pairs[i]
            linear.weight.copy_(_normal(n * m, 100 * seed + i).view(m, n) / math.sqrt(n))
            linear.bias.zero_()
    inputs = _normal(30 * layers[0], 100 * seed + 99).view(30, layers[0])
    targets = torch.sin(inputs.sum(1, keepdim=True)).expand(-1, layers[-1]).contiguous()
    optimizer = torch.optim.LBFGS(
        module.parameters(),
        max_iter=iterations,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    problem = gf.Problem.from_module(module, nn.functional.mse_loss, inputs, targets)
    return gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)


def straight(wall: float = math.inf, start: float = 0.0) -> gf.RegularizingFlow:
    """L = y on y = 1 and R = −x: θ moves along x at speed 1; L is not defined from x = wall on."""
    return _flow(
        lambda theta: theta[1] + torch.where(theta[0] < wall, 0.0, torch.nan),
        lambda theta: -theta[0],
        torch.tensor([start, 1.0], dtype=torch.float64),
    )


def pulled(stiffness: float, x: float) -> gf.RegularizingFlow:
    """L = y on y = 1 and R = ½k x²: x falls as exp(−kt)."""
    return _flow(
        lambda theta: theta[1],
        lambda theta: 0.5 * stiffness * theta[0] ** 2,
        torch.tensor([x, 1.0], dtype=torch.float64),
    )


class Refusing:
    """A flow of which the first re-projections fail; it counts them all."""

    def __init__(self, flow: gf.RegularizingFlow, times: int, error: Exception) -> None:
        self.flow, self.left, self.error = flow, times, error
        self.projected: list[dict[str, object]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.flow, name)

    def project(self, theta: Tensor, **kwargs: object) -> object:
        self.projected.append(kwargs)
        if self.left:
            self.left -= 1
            raise self.error
        return self.flow.project(theta, **kwargs)


# Flows without a fault of their own, from smooth to stiff, and the time to follow each.
PROBLEMS: dict[str, tuple[Callable[[], gf.RegularizingFlow], float]] = {
    "Oja, 5 dimensions": (lambda: oja().flow, 1.0),
    "torus": (torus, 2.0),
    "ellipsoid": (ellipsoid, 0.4),
    "ellipsoid, condition 1e6": (ill_conditioned_ellipsoid, 1.0),
    "Rosenbrock": (rosenbrock, 0.5),
    "narrow valley": (narrow_valley, 0.5),
    "tanh network, P = 95": (lambda: network(nn.Tanh()), 0.2),
    "sine network, P = 95": (lambda: network(_Sine()), 0.2),
}


def tight(flow: gf.RegularizingFlow, times: Sequence[float], rtol: float = 1e-11) -> np.ndarray:
    """θ at some times, shape (times, P), by SciPy's Radau or, for larger P, DOP853."""
    start = flow.level_set.project(flow.problem.theta0, rtol=1e-13)

    def velocity(t: float, theta: np.ndarray) -> np.ndarray:
        return flow.evaluate(torch.from_numpy(theta)).velocity.numpy()

    solution = solve_ivp(
        velocity,
        (0.0, max(times)),
        start.theta.numpy(),
        "Radau" if len(start.theta) < 20 else "DOP853",
        t_eval=list(times),
        rtol=rtol,
        atol=1e-2 * rtol,
    )
    return np.asarray(solution.y.T)


START, OTHER, DOWN = (
    torch.tensor(values, dtype=torch.float64)
    for values in ([1.0, 0.5, -0.7], [0.4, -1.1, 0.3], [0.9, 0.2, 0.6])
)


def spheres() -> gf.LevelSet:
    """½‖θ‖² and ½‖θ − b‖² on R³: they meet in a circle around the axis b."""
    losses = half_square, lambda theta: half_square(theta - OTHER)
    return gf.LevelSet([gf.Problem.from_function(loss, START) for loss in losses])


def circle(down: Tensor = DOWN) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre and radius of that circle, and unit vectors in its plane: along ``down``, beside."""
    axis = OTHER / OTHER.norm()
    center = axis * torch.dot(axis, START)
    pole = down - axis * torch.dot(axis, down)
    side = torch.linalg.cross(axis, pole)
    return center, (START - center).norm(), pole / pole.norm(), side / side.norm()


def linear_on_a_circle() -> Reference:
    """R = a·θ: as on a sphere, the cosine falls as a tanh."""
    center, radius, pole, side = circle()
    flow = gf.RegularizingFlow(spheres(), lambda theta: torch.dot(DOWN, theta))
    cosine = torch.dot(START - center, pole) / radius
    sign = torch.sign(torch.dot(START - center, side))

    def exact(t: float) -> Tensor:
        c = torch.tanh(torch.atanh(cosine) - torch.dot(DOWN, pole) / radius * t)
        return center + radius * (c * pole + sign * torch.sqrt(1 - c**2) * side)

    return Reference(flow, exact)


def oja_on_a_circle() -> Reference:
    """R = (u·(θ − centre))², u in the plane: the tangent of the angle to u grows as exp(2t)."""
    center, radius, pole, side = circle()
    flow = gf.RegularizingFlow(spheres(), lambda theta: torch.dot(pole, theta - center) ** 2)
    x, y = (float(torch.dot(START - center, v)) for v in (pole, side))

    def exact(t: float) -> Tensor:
        angle = math.atan2(y * math.exp(2 * t), x)
        return center + radius * (math.cos(angle) * pole + math.sin(angle) * side)

    return Reference(flow, exact)


def squared_norm_on_an_ellipsoid() -> Reference:
    """L = ½θᵀDθ, R = ‖θ‖²: θᵢ(t) = θᵢ(0) exp(−2t + 2dᵢs), with the s that keeps the level."""
    flow = ellipsoid()
    start, axes = flow.problem.theta0, torch.tensor([1.0, 2.0, 3.0, 5.0], dtype=torch.float64)

    def exact(t: float) -> Tensor:
        def at(s: float) -> Tensor:
            return start * torch.exp(-2 * t + 2 * axes * s)

        s = brentq(lambda s: float(flow.problem.loss(at(s))) - flow.level_set.level, 0, 2 * t)
        return at(s)

    return Reference(flow, exact)
