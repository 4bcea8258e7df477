"""Several losses of the same parameters, evaluated together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems import arithmetic
from geoflow.problems.counting import Counted, own_counts
from geoflow.problems.parts import Parameters, TensorSpec
from geoflow.problems.protocol import ProblemLike, check_problem


@arithmetic.without_autocast()
def weighted_gradient(problem: ProblemLike, theta: Tensor, weights: NDArray[np.float64]) -> Tensor:
    """∇Σ wᵢLᵢ at θ, shape (P,), of a problem of n ≥ 2 losses: one evaluation of them all.

    By one backward pass, where the problem has a method ``weighted_gradient`` that makes it.
    """
    method = getattr(problem, "weighted_gradient", None)
    coefficients = torch.from_numpy(np.array(weights)).to(theta)
    if method is not None:
        found: Tensor = method(theta, coefficients)
        return found
    return coefficients @ problem.value_and_gradient(theta)[1]


def values(problem: ProblemLike, theta: Tensor) -> Tensor:
    """The n ≥ 2 losses at θ, shape (n,): one evaluation of them all.

    Without gradients, where the problem has a method ``values`` that goes without.
    """
    method = getattr(problem, "values", None)
    found: Tensor = problem.value_and_gradient(theta)[0] if method is None else method(theta)
    return found


class Problems(Counted):
    """n ≥ 2 losses of one θ: values of shape (n,), gradients and products of shape (n, P).

    Counts are those of all the problems together, and so is a budget.

    Parameters
    ----------
    problems : sequence of ProblemLike
        θ0 and the names of its tensors are those of the first.

    Raises
    ------
    InputError
        A problem whose θ has another shape, dtype or device, or one that stands twice.
    """

    def __init__(self, problems: Sequence[ProblemLike]) -> None:
        self.problems: tuple[ProblemLike, ...] = tuple(problems)
        first = self.problems[0]
        for i, problem in enumerate(self.problems):
            name = f"problems[{i}]"
            check_problem(problem, name)
            if problem.loss(problem.theta0).ndim:
                raise InputError(
                    f"{name} is several constraints by itself; give problems of one loss each"
                )
            if any(problem is other for other in self.problems[:i]):
                raise InputError(f"{name} stands there twice; each constraint needs its own")
            for what in ("shape", "dtype", "device"):
                here, there = getattr(problem.theta0, what), getattr(first.theta0, what)
                if here != there:
                    raise InputError(
                        f"{name}: its theta0 has {what} {here} and that of problems[0] {there}; "
                        "make them of the same parameters"
                    )

    def __repr__(self) -> str:
        return f"Problems({', '.join(map(repr, self.problems))})"

    @property
    def theta0(self) -> Tensor:
        """The starting point of the first, shape (P,)."""
        return self.problems[0].theta0

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Name, offset and shape of every trainable tensor, as the first has them."""
        return self.problems[0].tensors

    @property
    def data_sha256(self) -> str:
        """Hash of the problems' hashes."""
        hashes = " ".join(problem.data_sha256 for problem in self.problems)
        return hashlib.sha256(hashes.encode()).hexdigest()

    @property
    def n_parameters(self) -> int:
        """P."""
        return self.theta0.numel()

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of θ and of every gradient."""
        return self.theta0.dtype

    @property
    def device(self) -> torch.device:
        """Device of θ and of every gradient."""
        return self.theta0.device

    @property
    def counts(self) -> dict[str, int]:
        """Evaluations so far of all the problems: ``{"gradient": n, "hvp": m}``."""
        names = ("gradient", "hvp")
        return {name: sum(p.counts[name] for p in self.problems) for name in names}

    @property
    def _own_counts(self) -> dict[str, int]:
        own = [own_counts(problem) for problem in self.problems]
        return {name: sum(counts[name] for counts in own) for name in ("gradient", "hvp")}

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave the counts of all, and the budget, as they are inside the block."""
        with ExitStack() as stack:
            stack.enter_context(super().uncounted())
            for problem in self.problems:
                if isinstance(problem, Counted):
                    stack.enter_context(problem.uncounted())
            yield

    def loss(self, theta: Tensor) -> Tensor:
        """The losses at θ, shape (n,), not counted."""
        return torch.stack([problem.loss(theta) for problem in self.problems])

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, shape (n,), and their gradients, shape (n, P): n evaluations.

        Raises
        ------
        EvaluationLimitError
            A budget does not hold all n of them.
        """
        self._check_budget(len(self.problems))
        values, gradients = zip(*(p.value_and_gradient(theta) for p in self.problems), strict=True)
        return torch.stack(values), torch.stack(gradients)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """The Hessians of the losses times v, shape (n, P): n Hessian-vector products.

        Raises
        ------
        EvaluationLimitError
            A budget does not hold all n of them.
        """
        self._check_budget(2 * len(self.problems))
        return torch.stack([problem.hvp(theta, v) for problem in self.problems])

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of flat θ by tensor name, as the first problem names them."""
        return self.problems[0].unflatten(theta)
