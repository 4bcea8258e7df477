"""Which of a problem's parameter tensors a regularisation function takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import ThetaFunction
from geoflow.manifold.regularizers.named import Make, needs_problem
from geoflow.problems.modules import matching_names, tied_names
from geoflow.problems.parts import TensorSpec, network_of
from geoflow.problems.protocol import ProblemLike

Patterns = str | Sequence[str] | None


def matching(problem: ProblemLike, patterns: Patterns) -> list[TensorSpec]:
    """Parameter tensors whose names match a pattern, in flat order; all for None.

    A tensor that several modules share has a name in each.

    Raises
    ------
    InputError
        A pattern that matches none.
    """
    if patterns is None:
        return list(problem.tensors)
    names = [t.name for t in problem.tensors]
    network = network_of(problem)
    ties = tied_names(network) if network else {}
    chosen: set[str] = set()
    for pattern in patterns:
        found = matching_names(names, ties, pattern)
        if not found:
            known = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
            raise InputError(
                f"regularizer: tensors={pattern!r} is the name of no parameter tensor; there are "
                f"{known}"
            )
        chosen |= found
    return [t for t in problem.tensors if t.name in chosen]


def entries(function: Callable[[Tensor], Tensor], patterns: Patterns) -> Make:
    """Make a function of the entries of some tensors, of flat θ where it is of all.

    Parameters
    ----------
    function : callable
        Tensor (n,) → scalar Tensor.
    patterns : sequence of str, optional
        Of the names of the tensors. None: all.
    """

    def make(problem: ProblemLike | None) -> ThetaFunction:
        if patterns is None:
            return ThetaFunction(function)
        chosen = of_entries(known(problem), patterns)
        return ThetaFunction(lambda theta: function(chosen(theta)))

    return make


def of_entries(problem: ProblemLike, patterns: Patterns) -> Callable[[Tensor], Tensor]:
    """Return what takes the entries of some tensors out of θ, as a vector (n,)."""
    slices = [slice(*_span(t)) for t in matching(problem, patterns)]
    return lambda theta: torch.cat([theta[s] for s in slices])


def each(function: Callable[[Tensor], Tensor], patterns: Patterns, *, matrices: bool) -> Make:
    """Make a sum of a function of each of some tensors.

    Parameters
    ----------
    function : callable
        Tensor of a parameter's shape → scalar Tensor.
    patterns : sequence of str, optional
        Of the names of the tensors. None: all.
    matrices : bool
        Leave out those of less than two dimensions, as biases are.
    """

    def make(problem: ProblemLike | None) -> ThetaFunction:
        chosen = matching(known(problem), patterns)
        if matrices:
            chosen = [t for t in chosen if len(t.shape) > 1]
            if not chosen:
                raise InputError(
                    "regularizer: none of its tensors has rows, as a layer's weight has; name "
                    "others by tensors="
                )

        def total(theta: Tensor) -> Tensor:
            parts = [function(theta[slice(*_span(t))].view(t.shape)) for t in chosen]
            return torch.stack(parts).sum()

        return ThetaFunction(total)

    return make


def known(problem: ProblemLike | None) -> ProblemLike:
    """Return the problem, where there is one.

    Raises
    ------
    InputError
        R is asked for at a θ alone.
    """
    if problem is None:
        raise needs_problem(
            "regularizer", "it takes tensors by their names, which θ alone does not have"
        )
    return problem


def _span(tensor: TensorSpec) -> tuple[int, int]:
    return tensor.offset, tensor.offset + math.prod(tensor.shape)
