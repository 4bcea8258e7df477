"""Regularisation functions at work: value, gradient and products with the Hessian, of flat θ."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.apart import Apart
from geoflow.problems import alone, arithmetic, derivatives, products
from geoflow.problems.protocol import ProblemLike
from geoflow.problems.widened import Either

Product = Callable[[Tensor], Tensor]
GradientOf = Callable[[Tensor], Tensor]

# A difference of gradients is taken over a step of this power of their rounding: with the error of
# the formula, which is linear in the step, below 1e-6 of what it finds.
STEP_POWER = 4 / 9


class BoundRegularizer(Protocol):
    """A regularisation function R made for the parameters of one problem.

    A :class:`geoflow.RegularizingFlow` makes one of whatever it is given as R; any class with these
    attributes and methods can be given to it too.
    """

    @property
    def problems(self) -> Sequence[ProblemLike]:
        """What it evaluates, whose counts are its cost; none for a function of θ alone."""

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R(θ), a scalar tensor, and ∇R(θ), shape (P,)."""

    def hessian(self, theta: Tensor, gradient: Tensor | None = None) -> Product:
        """∇²R(θ), as a function of a vector (P,) that returns its product (P,).

        Parameters
        ----------
        theta : Tensor, shape (P,)
            The point.
        gradient : Tensor, shape (P,), optional
            ∇R there, where it is known: may save its evaluation.
        """


def value_alone(of: BoundRegularizer, theta: Tensor) -> Tensor:
    """R(θ), without the work of its gradient where that is some."""
    own = getattr(of, "value_alone", None)
    value: Tensor = of.value_and_gradient(theta)[0] if own is None else own(theta)
    return value


def bytes_of(of: BoundRegularizer) -> int:
    """Bytes that an evaluation holds at its peak, where that is more than one of its problem's."""
    return int(getattr(of, "evaluation_bytes", 0))


def as_earlier(of: BoundRegularizer, theta: Tensor) -> tuple[Tensor, Tensor] | None:
    """R and ∇R as earlier versions computed them; None where that is no other."""
    own = getattr(of, "earlier", None)
    found: tuple[Tensor, Tensor] | None = None if own is None else own(theta)
    return found


class ThetaFunction:
    """A function of θ alone, differentiated by autograd: exact to rounding.

    Parameters
    ----------
    function : callable
        Tensor (P,) → scalar Tensor, differentiable twice by autograd.
    """

    problems: Sequence[ProblemLike] = ()

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function

    @arithmetic.without_autocast()
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R and ∇R; a user's R never gets the walk's own θ to write into.

        Raises
        ------
        InputError
            R has no derivative in θ.
        """
        variable = theta.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self.function(variable)
            gradient = None
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, variable, allow_unused=True)
        if gradient is None:
            derivatives.check_derivatives("regularizer")
            raise InputError(
                "regularizer: it has no derivative in θ, so something in it leaves the graph "
                "(detach, item, NumPy), or it is constant; compute it from its argument alone"
            )
        return value.detach(), gradient

    @arithmetic.without_autocast()
    def hessian(self, theta: Tensor, gradient: Tensor | None = None) -> Product:
        """∇²R(θ): reverse over reverse, ∇²R being symmetric, with ∇R evaluated once for all."""
        variable = theta.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.function(variable), variable, create_graph=True)

        def product(v: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(v)
            try:
                return along(v)
            except RuntimeError:
                # Numbers are viewed as complex ones at even places of memory alone. A copy of each
                # v would change last bits.
                if v.storage_offset() % 2 == 0:
                    raise
                return along(v.clone())

        @arithmetic.without_autocast()
        def along(v: Tensor) -> Tensor:
            found = torch.autograd.grad(
                slope, variable, v, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return found[0]

        return product


class OwnFunction(ThetaFunction):
    """A user's function of θ, whose second derivatives are compared with differences of ∇R first.

    Parameters
    ----------
    function : callable
        Tensor (P,) → scalar Tensor, differentiable by autograd.
    problem : ProblemLike
        Has θ0, where they are compared, and the tensors that θ is made of.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], problem: ProblemLike) -> None:
        super().__init__(alone.Alone(function))
        self.theta0 = problem.theta0
        self._sizes = [math.prod(s.shape) for s in problem.tensors]
        self._products = products.HessianProducts("regularizer")

    def hessian(self, theta: Tensor, gradient: Tensor | None = None) -> Product:
        """∇²R(θ) by autograd, or by differences of ∇R where that is missing or wrong."""
        if self._products.exact is None:
            self._products.choose(
                self.derived, self.value_and_gradient, self.theta0, self._sizes, self._wide
            )
        if self._products.exact:
            return self._derived(theta)
        return lambda v: self._products.difference(self.value_and_gradient, theta, v)

    def derived(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²R(θ) v by autograd.

        Raises
        ------
        InputError
            R has no second derivative.
        """
        return derivatives.derived(lambda: self._derived(theta)(v), "regularizer")

    def _wide(self) -> _InFloat64:
        return _InFloat64(self)

    def _derived(self, theta: Tensor) -> Product:
        with derivatives.twice_differentiable():
            # A user's function never gets the walk's own θ to write into.
            return super().hessian(theta.clone())


class _InFloat64:
    """A user's function of float32 numbers and PyTorch's derivatives of it, in float64."""

    def __init__(self, of: OwnFunction) -> None:
        self._of, self.theta0 = of, of.theta0.double()
        self.value_and_gradient = Either(lambda _: of.value_and_gradient)

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²R v."""
        return Either(lambda _: lambda at: (at, self._of.derived(at, v)))(theta)[1]


class Loss:
    """The loss of a problem as R; products with ∇²R are differences of its gradients.

    A difference costs one gradient, as those of the level set's own loss do.

    Parameters
    ----------
    problem : ProblemLike
        Its loss is R.
    """

    def __init__(self, problem: ProblemLike) -> None:
        self.problem = problem

    @property
    def problems(self) -> Sequence[ProblemLike]:
        """The problem."""
        return (self.problem,)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Its loss and gradient: one evaluation."""
        return self.problem.value_and_gradient(theta)

    def hessian(self, theta: Tensor, gradient: Tensor | None = None) -> Product:
        """∇²R(θ) by differences: one gradient a product, and one where ∇R is not given."""
        return differences(lambda at: self.value_and_gradient(at)[1], theta, gradient)


class Weighted:
    """A sum of regularisation functions with weights.

    Parameters
    ----------
    terms : sequence of (float, BoundRegularizer)
        The weight and the function of each.
    """

    def __init__(self, terms: Sequence[tuple[float, BoundRegularizer]]) -> None:
        self.terms = terms

    @property
    def problems(self) -> Sequence[ProblemLike]:
        """Those of all terms, each once."""
        found: list[ProblemLike] = []
        for _, term in self.terms:
            found += [p for p in term.problems if not any(p is other for other in found)]
        return found

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Σ wᵢRᵢ and Σ wᵢ∇Rᵢ."""
        return self._summed(theta, [term.value_and_gradient(theta) for _, term in self.terms])

    @property
    def evaluation_bytes(self) -> int:
        """Bytes that an evaluation holds at its peak, where terms say so."""
        return max(bytes_of(term) for _, term in self.terms)

    def earlier(self, theta: Tensor) -> tuple[Tensor, Tensor] | None:
        """The same as earlier versions computed it; None where that is no other."""
        found = [as_earlier(term, theta) for _, term in self.terms]
        if all(one is None for one in found):
            return None
        pairs = zip(found, self.terms, strict=True)
        return self._summed(theta, [f or term.value_and_gradient(theta) for f, (_, term) in pairs])

    def _summed(
        self, theta: Tensor, found: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        value, gradient = theta.new_zeros(()), torch.zeros_like(theta)
        for (weight, _), (more, slope) in zip(self.terms, found, strict=True):
            value, gradient = value + weight * more, gradient.add(slope, alpha=weight)
        return value, gradient

    def value_alone(self, theta: Tensor) -> Tensor:
        """Σ wᵢRᵢ."""
        value = theta.new_zeros(())
        for weight, term in self.terms:
            value = value + weight * value_alone(term, theta)
        return value

    def hessian(self, theta: Tensor, gradient: Tensor | None = None) -> Product:
        """Σ wᵢ∇²Rᵢ."""
        # Of a single term its gradient is known too.
        known = None if gradient is None or len(self.terms) > 1 else gradient / self.terms[0][0]
        by_term = [(weight, term.hessian(theta, known)) for weight, term in self.terms]

        def product(v: Tensor) -> Tensor:
            total = torch.zeros_like(v)
            for weight, one in by_term:
                total.add_(one(v), alpha=weight)
            return total

        return product


def differences(
    gradient_of: GradientOf, theta: Tensor, gradient: Tensor | None, rounding: float = 0.0
) -> Product:
    """Products with a Hessian by differences of gradients, one a product.

    Parameters
    ----------
    gradient_of : callable
        θ (P,) → ∇R (P,).
    theta : Tensor, shape (P,)
        Where.
    gradient : Tensor, shape (P,), optional
        ∇R there; None: evaluated here.
    rounding : float
        Relative error of the gradients; 0 for the resolution of θ's dtype.
    """
    start = gradient_of(theta) if gradient is None else gradient
    part = (rounding or torch.finfo(theta.dtype).eps) ** STEP_POWER
    apart = Apart(theta, part, rounding)

    def product(v: Tensor) -> Tensor:
        norm = float(torch.linalg.vector_norm(v))
        if norm == 0:
            return torch.zeros_like(v)
        return apart(gradient_of, start, v / norm).mul_(norm)

    return product
