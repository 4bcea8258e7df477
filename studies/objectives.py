"""What the studies of docs/objectives.md have in common; not a study itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import geoflow as gf
from geoflow.errors import ConvergenceError, CriticalPointError

ROOT = Path(__file__).parents[1]
PAGE, PICTURES, RUNS = ROOT / "docs" / "objectives.md", ROOT / "docs" / "_static", ROOT / "runs"

# Of Newton's iteration that takes a network back to its losses after something was done to it.
REPAIRS = 20


class Network:
    """A trained network of the paper's, and the loss of each class that is to be kept."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.prepared = gf.experiments.get(name).prepare(seed)
        self.problem = self.prepared.problem
        self.classes = gf.by_class(self.problem)
        self.theta0 = self.problem.theta0
        self.levels = self.classes.loss(self.theta0).numpy()

    def measured(self, theta: Tensor) -> dict[str, float]:
        """Losses and accuracies at θ; the class whose loss is furthest above its level."""
        worst = float((self.classes.loss(theta).numpy() / self.levels).max())
        found = {n: float(f(theta)) for n, f in self.prepared.observables.items()}
        loss = float(self.problem.loss(theta))
        return found | {"train_loss": loss, "worst_class": worst}

    def restored(self, theta: Tensor, mask: Tensor | None = None) -> Tensor | None:
        """The point where every class has its loss again, by Newton along the normals.

        With a mask what it leaves out stays as it is. None where Newton does not come there.
        """
        kept = self.classes if mask is None else Masked(self.classes, theta, mask)
        try:
            level_set = gf.LevelSet(kept, [float(c) for c in self.levels])
            return level_set.project(theta, max_iterations=REPAIRS).theta
        except (ConvergenceError, CriticalPointError):
            return None


class Masked:
    """A problem of which some parameters stay as they are at ``theta0``."""

    def __init__(self, problem: object, theta0: Tensor, mask: Tensor) -> None:
        self.problem, self.theta0, self.mask = problem, theta0, mask
        for name in ("tensors", "data_sha256", "n_parameters", "dtype", "device"):
            setattr(self, name, getattr(problem, name))
        self.loss, self.unflatten = problem.loss, problem.unflatten
        self.budget = problem.budget

    @property
    def counts(self) -> dict[str, int]:
        """Those of the problem."""
        return self.problem.counts

    @property
    def evaluations(self) -> int:
        """Those of the problem."""
        return self.problem.evaluations

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients without the entries that do not move."""
        value, gradient = self.problem.value_and_gradient(theta)
        return value, gradient * self.mask

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """Products without them."""
        return self.problem.hvp(theta, v * self.mask) * self.mask


def fine_tuned(
    problem: gf.Problem,
    theta: Tensor,
    evaluations: int,
    *,
    penalty: object = None,
    weight: float = 0.0,
    mask: Tensor | None = None,
    rate: float = 1e-3,
    gradient_at: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Adam on L + weight·R over all the data, for so many gradients of L.

    The rate falls to nothing along half a cosine. ``gradient_at`` takes the place of ∇L, and spends
    what it needs: the evaluations are counted by the problem.
    """
    theta = theta.clone()
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    bound = gf.RegularizingFlow(gf.LevelSet(problem), penalty)._bound if penalty else None
    at = gradient_at or (lambda here: problem.value_and_gradient(here)[1])
    start, step = problem.evaluations, 0
    while (spent := problem.evaluations - start) < evaluations:
        gradient = at(theta)
        if bound is not None:
            gradient = gradient + weight * bound.value_and_gradient(theta)[1]
        if mask is not None:
            gradient = gradient * mask
        step += 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        now = rate * 0.5 * (1 + math.cos(math.pi * spent / evaluations))
        scale = (second / (1 - 0.999**step)).sqrt() + 1e-7
        theta = theta - now / (1 - 0.9**step) * first / scale
    return theta


def kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """A point that is in a file, made and written where it is not."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make().numpy()
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, made)
        path.with_suffix(".part").replace(path)
    return torch.from_numpy(np.load(path, allow_pickle=False))


def noted(path: Path, make: Callable[[], object]) -> object:
    """What a JSON file has, made and written where it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(make(), indent=1)
        path.with_suffix(".part").write_text(text + "\n")
        path.with_suffix(".part").replace(path)
    return json.loads(path.read_text())


def walked(path: Path, flow: gf.RegularizingFlow, **settings: object) -> Tensor:
    """The end of a walk that is in an archive, walked where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        gf.walk(flow, "exponential", archive=path, overwrite=True, **settings).close()
    with gf.open_trajectory(path) as ds:
        return torch.from_numpy(ds["theta"].isel(snapshot=-1).values.copy())


def fill(study: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table into the page, between the comments that name its study."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    begin, end = f"<!-- table: studies/{study}.py -->", f"<!-- end of {study} -->"
    before, rest = PAGE.read_text().split(begin)
    PAGE.write_text(f"{before}{begin}\n" + "\n".join(lines) + f"\n{end}{rest.split(end)[1]}")
