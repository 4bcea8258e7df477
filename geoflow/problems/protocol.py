"""What a level set needs of a problem, whatever the loss is computed from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems.parts import Parameters, TensorSpec


class ProblemLike(Protocol):
    """A deterministic loss L(θ) on flat θ ∈ R^P, as :class:`geoflow.Problem` is one.

    Any class with these attributes and methods serves: a loss over batches that are read anew at
    each evaluation, one over several processes, or one that is no network's at all. Third
    derivatives are differences of its products, but for one with a method ``third_product`` like
    that of :class:`geoflow.Problem`.
    """

    @property
    def theta0(self) -> Tensor:
        """The starting point, shape (P,)."""

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Name, offset and shape of every trainable tensor, in flat order."""

    @property
    def data_sha256(self) -> str:
        """Hash of the data, by which an archive knows them again; may be empty."""

    @property
    def n_parameters(self) -> int:
        """P."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of θ and of every gradient."""

    @property
    def device(self) -> torch.device:
        """Device of θ and of every gradient."""

    @property
    def counts(self) -> dict[str, int]:
        """Evaluations so far: ``{"gradient": n, "hvp": m}``, full passes over the data."""

    @property
    def evaluations(self) -> int:
        """Cost so far in gradient evaluations; a Hessian-vector product counts 2."""

    def budget(self, evaluations: int) -> AbstractContextManager[None]:
        """Allow at most this many more evaluations inside the block.

        Raises
        ------
        EvaluationLimitError
            From the evaluation that would pass the limit, before it is made.
        """

    def loss(self, theta: Tensor) -> Tensor:
        """L(θ), a scalar tensor, not counted."""

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L(θ), a scalar tensor, and ∇L(θ), shape (P,): one evaluation."""

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²L(θ) v, shape (P,)."""

    def unflatten(self, theta: Tensor) -> Parameters:
        """Views of flat θ by tensor name."""


ATTRIBUTES = ("theta0", "tensors", "data_sha256", "n_parameters", "dtype", "device", "counts")
METHODS = ("budget", "loss", "value_and_gradient", "hvp", "unflatten")


def check_problem(problem: Any, name: str = "problem") -> None:
    """Refuse what is no problem, before anything is evaluated.

    Raises
    ------
    InputError
        Names what is missing.
    """
    has: dict[str, Callable[[str], bool]] = {
        **dict.fromkeys((*ATTRIBUTES, "evaluations"), lambda n: hasattr(problem, n)),
        **dict.fromkeys(METHODS, lambda n: callable(getattr(problem, n, None))),
    }
    missing = [member for member, found in has.items() if not found(member)]
    what = type(problem).__name__
    if missing:
        raise InputError(
            f"{name} is a {what} without {', '.join(missing)}; give a geoflow.Problem or what has "
            "these too"
        )
    theta0 = problem.theta0
    if not isinstance(theta0, Tensor) or theta0.ndim != 1 or not theta0.is_floating_point():
        raise InputError(f"{name}: theta0 of {what} is no flat floating-point tensor; make it one")
    if not {"gradient", "hvp"} <= set(problem.counts):
        raise InputError(
            f"{name}: counts of {what} are {problem.counts}; give {{'gradient': n, 'hvp': m}}"
        )
