"""A loss as the mean of its parts, and its derivatives in flat θ."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable

from torch import Tensor

from geoflow.errors import InputError
from geoflow.problems import arithmetic, checks, derivatives, flattening
from geoflow.problems.parts import LossPart, Parameters
from geoflow.problems.pickling import Picklable
from geoflow.problems.weighted import add_up


class MeanOfParts(Picklable):
    """L = Σ sums / Σ weights over the parts of a loss; ∇L and products with matrices likewise.

    Attributes
    ----------
    theta0 : Tensor, shape (P,)
        The starting point; everything is in its dtype and on its device.
    """

    theta0: Tensor

    @abstractmethod
    def unflatten(self, theta: Tensor, name: str = "theta") -> Parameters:
        """Views of flat θ by parameter name."""

    def _evaluated(
        self, theta: Tensor, parts: Iterable[LossPart] | None = None
    ) -> tuple[Tensor, Tensor]:
        """L and ∇L, of all parts or of these; not counted."""
        # A user's loss may write into what it is given: never the caller's θ.
        given = theta.detach().clone()
        parameters = self.unflatten(given)

        def contribution(part: LossPart) -> tuple[tuple[Tensor, Tensor], Tensor]:
            value, weight, gradient = derivatives.value_and_gradient(
                part.sum_and_weight, parameters
            )
            return (value, flattening.together(gradient)), weight

        of = self._parts if parts is None else parts
        value, gradient = self._mean(contribution(part) for part in of)
        # Of a view the version is that of the whole.
        if any(t._version for t in parameters.values()):
            raise InputError(
                "loss: it writes into its parameters while it is evaluated; remove what does "
                "(an embedding's max_norm, an in-place operation)"
            )
        return value, gradient

    def _derived(self, theta: Tensor, v: Tensor) -> Tensor:
        """∇²L v by PyTorch's second derivatives."""
        return self._product(
            theta,
            v,
            lambda part, at, along: derivatives.hessian_product(part.sum_and_weight, at, along),
        )

    def _derived_thrice(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """∇²L v and ∇³L[v, v] by PyTorch's derivatives; counted as two products."""
        at, along = self._at_and_along(theta, v)
        self._check_budget(4)
        self._count(hvp=2)

        def contribution(part: LossPart) -> tuple[tuple[Tensor, Tensor], Tensor]:
            product, slope, weight = derivatives.third_product(part.sum_and_weight, at, along)
            return (flattening.together(product), flattening.together(slope)), weight

        product, slope = self._mean(contribution(part) for part in self._parts)
        return product, slope

    def _product(
        self,
        theta: Tensor,
        v: Tensor,
        multiply: Callable[[LossPart, Parameters, Parameters], tuple[Parameters, Tensor]],
    ) -> Tensor:
        """Mean of what each part gives; counted as one Hessian-vector product."""
        at, along = self._at_and_along(theta, v)
        self._check_budget(2)
        self._count(hvp=1)

        def contribution(part: LossPart) -> tuple[tuple[Tensor], Tensor]:
            product, weight = multiply(part, at, along)
            return (flattening.together(product),), weight

        return self._mean(contribution(part) for part in self._parts)[0]

    def _check_both(self, theta: Tensor, v: Tensor) -> None:
        checks.check_like(theta, self.theta0)
        checks.check_like(v, self.theta0, "v")

    def _at_and_along(self, theta: Tensor, v: Tensor) -> tuple[Parameters, Parameters]:
        """θ, copied, and v by parameter name."""
        self._check_both(theta, v)
        return self.unflatten(theta.detach().clone()), self.unflatten(v.detach(), "v")

    def _mean(
        self, contributions: Iterable[tuple[tuple[Tensor, ...], Tensor]]
    ) -> tuple[Tensor, ...]:
        """Σ sums / Σ weights, in the dtype of θ."""
        with arithmetic.exact(self.theta0.device):
            sums, weight = add_up(contributions)
        return tuple((total / weight).to(self.theta0.dtype) for total in sums)
