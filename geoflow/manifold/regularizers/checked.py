"""What is asked of a regularisation function when a flow is made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import BoundRegularizer, ThetaFunction, Weighted
from geoflow.problems import checks, differences, inner, live, widened
from geoflow.problems.scaling import length
from geoflow.system import kinds


def check_regularizer(bound: BoundRegularizer, theta0: Tensor) -> None:
    """Refuse an R of θ alone that is no finite scalar with its gradient, in sums too.

    What evaluates problems costs evaluations, and they were checked when they were made.

    Raises
    ------
    InputError
        Says what it gave.
    """
    terms = [term for _, term in bound.terms] if isinstance(bound, Weighted) else []
    for term in terms:
        check_regularizer(term, theta0)
    if isinstance(bound, ThetaFunction):
        of_theta = "make the problem with dtype="
        with _naming_sums(), checks.explained(theta0.dtype, "regularizer", remedy=of_theta):
            function = bound.function
            try:
                value = function(theta0.clone())
            except RuntimeError as error:
                if not inner.is_missing(error):
                    raise
                function = inner.OfTheta(function)
                value = function(theta0)
            real = isinstance(value, Tensor) and value.shape == () and not value.is_complex()
            if not real or not torch.isfinite(value):
                shown = kinds.shown(value.tolist() if isinstance(value, Tensor) else value)
                raise InputError(
                    f"regularizer gave {shown} at theta0; it must return a finite scalar tensor"
                )
            # First, since differences of what is random tell of a gradient that is wrong.
            if not torch.equal(value, function(theta0.clone())):
                raise _random()
            evaluate = bound.value_and_gradient
            differences.check_gradient(
                evaluate, theta0, "regularizer", [widened.Either(lambda _: evaluate)]
            )
            live.check_alone(function, theta0, "regularizer")
    if bound.problems:
        return
    first, second = (bound.value_and_gradient(theta0) for _ in range(2))
    value, gradient = first
    if not (torch.isfinite(value) and torch.isfinite(gradient).all()):
        raise InputError(
            f"regularizer gave {float(value)} at theta0 with a gradient of norm "
            f"{length(gradient)}; both must be finite, there as well"
        )
    if not all(torch.equal(a, b) for a, b in zip(first, second, strict=True)):
        raise _random()


@contextmanager
def _naming_sums() -> Iterator[None]:
    """Say of a function that calls what ``bind`` made how to add that."""
    try:
        yield
    except InputError as error:
        if "object is not callable" not in str(error):
            raise
        raise InputError(
            f"{error}; what bind() made is added by gf.regularizers.weighted_sum((1.0, R), …)"
        ) from error


def _random() -> InputError:
    return InputError(
        "regularizer: two evaluations at theta0 differ, so R(θ) is random or stateful; remove the "
        "randomness, as by a generator that R makes anew with a fixed seed, on a GPU also "
        "operations that add in any order"
    )
