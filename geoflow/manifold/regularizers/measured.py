"""Regularisation functions as functions of θ alone, where they are measured and not descended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor

from geoflow.manifold.regularizers.bound import (
    BoundRegularizer,
    ThetaFunction,
    as_earlier,
    value_alone,
)
from geoflow.manifold.regularizers.named import REGULARIZERS, Regularizer, WeightedSum
from geoflow.problems.counting import Counted
from geoflow.problems.protocol import ProblemLike


def as_function(one: Any, problem: ProblemLike) -> Any:
    """θ → R(θ) of a regularisation function, made for a problem; whatever else as it is.

    Its evaluations are not counted. What earlier versions computed is its ``earlier``.

    Parameters
    ----------
    one : Regularizer, BoundRegularizer or other
        One of :mod:`geoflow.regularizers <geoflow.manifold.regularizers>`, with its options or
        without, or what its ``bind`` has made, which stays that of its own problem.
    problem : ProblemLike
        For which it is made, where that is not done yet.

    Raises
    ------
    InputError
        The problem is not of the kind that it needs.
    """
    named = isinstance(one, Regularizer | WeightedSum)
    if named or any(one is other for other in REGULARIZERS.values()):
        return _value_of(one.bind(problem))
    if callable(one) or hasattr(one, "loss"):
        return one
    if callable(getattr(one, "bind", None)):
        return _value_of(one.bind(problem))
    return _value_of(one) if hasattr(one, "value_and_gradient") else one


def _value_of(made: BoundRegularizer) -> Callable[[Tensor], Tensor]:
    if isinstance(made, ThetaFunction):
        return made.function

    def value(theta: Tensor) -> Tensor:
        with ExitStack() as stack:
            for problem in made.problems:
                if isinstance(problem, Counted):
                    stack.enter_context(problem.uncounted())
            return value_alone(made, theta)

    def earlier(theta: Tensor) -> Tensor | None:
        found = as_earlier(made, theta)
        return None if found is None else found[0]

    vars(value)["earlier"] = earlier
    return value
