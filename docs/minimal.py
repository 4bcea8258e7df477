"""Train a small network, then walk along the level set of its loss towards smaller weights."""

import math

import numpy as np
import torch
from scipy.linalg import expm
from sklearn.datasets import load_iris
from torch import nn
from torch.func import functional_call, grad_and_value


def network(seed=0, epochs=300):
    """Train a network on iris; return its loss as a function of flat θ, and θ."""
    data = load_iris()
    inputs = torch.tensor((data.data - data.data.mean(0)) / data.data.std(0))
    targets = torch.tensor(data.target)
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), targets).backward()
        optimizer.step()
    shapes = {name: p.shape for name, p in module.named_parameters()}

    def loss(theta):
        parts = theta.split([shape.numel() for shape in shapes.values()])
        named = {k: part.view(s) for (k, s), part in zip(shapes.items(), parts, strict=True)}
        return nn.functional.cross_entropy(functional_call(module, named, inputs), targets)

    return loss, nn.utils.parameters_to_vector(module.parameters()).detach()


class Point:
    """θ with L, g = ∇L, ∇R of R = ‖θ‖², the multiplier λ and the velocity f = −Π∇R."""

    def __init__(self, loss, theta):
        self.theta = theta
        self.gradient, value = grad_and_value(loss)(theta)
        self.loss, pull = float(value), 2 * theta
        self.gg = float(self.gradient @ self.gradient)
        self.multiplier = -float(pull @ self.gradient) / self.gg
        self.velocity = -(pull + self.multiplier * self.gradient)
        normal = -self.multiplier * math.sqrt(self.gg)
        self.angle = math.degrees(math.atan2(float(self.velocity.norm()), normal))

    def tangent(self, v):
        """Π v = v − g (g·v)/(g·g)."""
        return v - self.gradient * (float(self.gradient @ v) / self.gg)


def retract(loss, theta, level, rtol):
    """Newton's method along the normal: θ ← θ − (L − c) g/(g·g)."""
    for _ in range(6):
        point = Point(loss, theta)
        residual = point.loss - level
        if abs(residual) <= rtol * level:
            return point
        theta = theta - point.gradient * (residual / point.gg)
    raise ArithmeticError("Newton's method does not converge")


def phi(k, matrix):
    """φₖ of a small matrix: a corner of the exponential of a larger one (Saad 1992)."""
    n = len(matrix)
    large = np.zeros(((k + 1) * n, (k + 1) * n))
    large[:n, :n] = matrix
    large[: k * n, n:] += np.eye(k * n)
    return expm(large)[:n, k * n :]


def arnoldi(loss, point, start, defect, most):
    """Orthonormal V of a Krylov space of A = Π(∇²R + λ∇²L)Π from ``start``, and VᵀAV.

    A v is a difference of gradients. The space grows until ``defect(VᵀAV, β)``, β being the length
    of what A adds to it, is small enough.
    """
    difference = 1e-7 * float(point.theta.norm())
    vectors, images = [start / start.norm()], []
    while True:
        v = vectors[-1]
        curvature = (
            Point(loss, point.theta + difference * v).gradient - point.gradient
        ) / difference
        images.append(point.tangent(2 * v + point.multiplier * curvature))
        basis = torch.stack(vectors)
        rest = images[-1]
        for _ in range(2):  # once is not enough: the large eigenvalues cancel digits
            rest = point.tangent(rest - basis.T @ (basis @ rest))
        matrix = (basis @ torch.stack(images).T).numpy()
        matrix, beta = (matrix + matrix.T) / 2, float(rest.norm())
        if len(vectors) == most or beta <= 1e-12 * abs(matrix).max() or defect(matrix, beta):
            return basis, matrix
        vectors.append(rest / beta)


def attempt(loss, point, step, allowed, level, rtol):
    """One step of exprb32 (Hochbruck, Ostermann & Schweitzer 2009): the end, its error."""
    speed = float(point.velocity.norm())

    def small(matrix, beta):
        return step * beta * speed * abs(step * phi(1, -step * matrix)[-1, 0]) <= 0.1 * allowed

    basis, a = arnoldi(loss, point, point.velocity, small, most=60)
    move = step * phi(1, -step * a)[:, 0] * speed
    middle = retract(loss, point.theta + torch.from_numpy(move) @ basis, level, rtol)
    moved = basis @ (middle.theta - point.theta)
    linear = point.velocity - basis.T @ (torch.from_numpy(a) @ moved)
    remainder = point.tangent(middle.velocity) - linear

    def resolved(matrix, beta):
        last = abs(2 * step * phi(3, -step * matrix)[-1, 0])
        return step * beta * float(remainder.norm()) * last <= 0.1 * allowed

    basis, a = arnoldi(loss, point, remainder, resolved, most=60)
    correction = 2 * step * phi(3, -step * a)[:, 0] * float(remainder.norm())
    end = retract(loss, middle.theta + torch.from_numpy(correction) @ basis, level, rtol)
    return end, float(np.linalg.norm(correction))


def walk(loss, theta, t_end, rtol=1e-4, level_rtol=1e-9, degrees=180.0):
    """Walk dθ/dt = −Π∇R from θ, to ``t_end`` or an angle; yield time and point of each step."""
    point, time = Point(loss, theta), 0.0
    level = point.loss
    step = rtol * float(theta.norm()) / float(point.velocity.norm())
    yield time, point
    while time < t_end and point.angle < degrees:
        step = min(step, t_end - time)
        allowed = rtol * float(point.theta.norm())
        try:
            end, error = attempt(loss, point, step, allowed, level, level_rtol)
        except ArithmeticError:
            step /= 2
            continue
        if error <= allowed:
            time, point = time + step, end
            yield time, point
        step *= min(3.0, max(0.3, 0.9 * (allowed / max(error, 1e-300)) ** (1 / 3)))


if __name__ == "__main__":
    loss, start = network()
    level = float(loss(start))
    for time, point in walk(loss, start, t_end=10.0, degrees=175.0):
        size, residual = float(point.theta @ point.theta), point.loss - level
        print(f"t {time:8.5f}  angle {point.angle:6.2f}°  R {size:8.3f}  L − c {residual:9.1e}")
