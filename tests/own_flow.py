"""A flow of one's own: geodesics of a level set, their velocity part of the state."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import geoflow as gf
import references
from geoflow.manifold.protocol import Scalar
from geoflow.walking.stream import Stream


@dataclass(frozen=True)
class GeodesicState:
    theta: Tensor
    momentum: Tensor
    loss: float
    gradient: Tensor
    acceleration: Tensor

    @cached_property
    def flat(self) -> Tensor:
        return torch.cat([self.theta, self.momentum])

    @cached_property
    def velocity(self) -> Tensor:
        return torch.cat([self.momentum, self.acceleration])

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"theta": self.theta, "momentum": self.momentum}

    @property
    def evaluated(self) -> tuple[float, Tensor]:
        return self.loss, self.gradient


class GeodesicFlow:
    """θ̈ = −g (θ̇·∇²L θ̇)/(g·g): straight on, along the level set."""

    regularizer_name = ""
    linearization = None
    scalars: ClassVar = {
        "energy": Scalar("kinetic energy", "1"),
        "level_residual": Scalar("training loss less the level", "1"),
    }

    def __init__(self, level_set: gf.LevelSet, momentum: Tensor) -> None:
        self.level_set, self.problem, self.momentum = level_set, level_set.problem, momentum

    def start(self, theta: Tensor) -> tuple[GeodesicState, gf.Projection]:
        return self.project(torch.cat([theta, self.momentum]))

    def evaluate(self, flat: Tensor) -> GeodesicState:
        theta, momentum = flat.chunk(2)
        return self.state(theta, momentum, *self.problem.value_and_gradient(theta))

    def project(
        self, flat: Tensor, *, evaluated: Any = None
    ) -> tuple[GeodesicState, gf.Projection]:
        theta, momentum = flat.chunk(2)
        found = self.level_set.project(theta, evaluated=evaluated)
        momentum = self.level_set.tangent(momentum, found.gradient)
        return self.state(found.theta, momentum, found.loss, found.gradient), found

    def state(self, theta: Tensor, momentum: Tensor, loss: Any, gradient: Tensor) -> GeodesicState:
        # Contiguous and on their own, as a checkpoint gives them back.
        theta, momentum = theta.clone(), momentum.clone()
        curvature = torch.dot(momentum, self.problem.hvp(theta, momentum))
        acceleration = -gradient * (curvature / torch.dot(gradient, gradient))
        return GeodesicState(theta, momentum, float(loss), gradient, acceleration)

    def at_rest(self, state: GeodesicState) -> bool:
        return not state.velocity.any()

    def values(self, state: GeodesicState) -> dict[str, float]:
        return {
            "energy": float(torch.dot(state.momentum, state.momentum)) / 2,
            "level_residual": self.level_set.residual(state.loss),
        }


def great_circle() -> tuple[GeodesicFlow, Any]:
    """On a sphere: θ goes round a great circle, at the speed it starts with."""
    problem = references.sphere_linear().flow.problem
    theta = problem.theta0
    side = torch.linspace(-1, 1, len(theta), dtype=torch.float64)
    flow = GeodesicFlow(gf.LevelSet(problem), side)
    tangent = flow.level_set.tangent(side, theta)
    radius, speed = float(theta.norm()), float(tangent.norm())

    def exact(t: float) -> Tensor:
        turned = speed * t / radius
        return math.cos(turned) * theta + math.sin(turned) * radius / speed * tangent

    return flow, exact


def walk(path: Path | None = None, **kwargs: Any) -> Any:
    torch.set_num_threads(1)
    settings = {"rtol": 1e-9, "atol": 0.0, "stop": None, "t_end": 2.0, **kwargs}
    return gf.walk(great_circle()[0], "dopri5", archive=path, **settings)


def die_at_step(connection: Connection, step: int, path: Path) -> None:
    """Walk, and be killed at the accepted step of this number."""
    accepted = Stream.accepted

    def dying(self: Stream, checkpoint: Any) -> None:
        accepted(self, checkpoint)
        if self.n_steps == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Stream.accepted = dying  # type: ignore[method-assign]
    walk(path, checkpoint_seconds=0)
