"""Derivatives of a loss of its first examples, in float64 where the loss is of float32 numbers."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from geoflow.problems import sampling
from geoflow.problems.mean import MeanOfParts
from geoflow.problems.widened import Either, Evaluation


class Few:
    """What is compared where it is a question of how a loss is computed, and not of which examples.

    Among many examples of a network with kinks there are some within every step that float32
    resolves, whose jumps add up to what looks like a derivative; in float64 steps are shorter.

    Parameters
    ----------
    problem : Problem
        The loss.
    dtype : torch.dtype
        In which its derivatives are taken.
    """

    def __init__(self, problem: MeanOfParts, dtype: torch.dtype) -> None:
        self._problem = copy.copy(problem)
        parts = sampling.some(problem._parts, dtype, sampling.EXAMPLES)
        self._problem._parts = tuple(parts) if isinstance(parts, list) else parts
        self.theta0 = self._problem.theta0 = problem.theta0.to(dtype)
        self._is_widened = self.theta0.dtype != problem.theta0.dtype

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """L and ∇L."""
        return self._of(self._problem._evaluated, theta)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²L v by PyTorch's second derivatives."""
        return self._of(lambda at: (at, self._problem._derived(at, v)), theta)[1]

    def third_product(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """∇²L v and ∇³L[v, v] by PyTorch's derivatives."""
        return self._of(lambda at: self._problem._derived_thrice(at, v), theta)

    def _of(self, function: Evaluation, theta: Tensor) -> tuple[Tensor, Tensor]:
        return Either(lambda _: function)(theta) if self._is_widened else function(theta)
