"""What a re-projection onto a level set gives: the point, and what it took."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from geoflow.manifold.normals import Numbers
from geoflow.manifold.values import only


@dataclass(frozen=True)
class Projection:
    """A point on the level set and what it took to get there.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        The point.
    values : ndarray, shape (n,)
        The constraints' losses there.
    gradients : Tensor, shape (P,), or (n, P) for n > 1 constraints
        Theirs, evaluated at ``theta`` itself: the next step needs no evaluation there.
    iterations : int
        Newton corrections; 0 where the point was on the level set already.
    at_floor : bool
        True where rounding ended the iteration before ``level_rtol`` was reached.
    """

    theta: Tensor
    values: Numbers
    gradients: Tensor
    iterations: int
    at_floor: bool = False

    def __repr__(self) -> str:
        floor = ", at_floor=True" if self.at_floor else ""
        values = ", ".join(f"{value:.9g}" for value in self.values)
        return (
            f"Projection({self.theta.numel():,} parameters, L = {values}, "
            f"iterations={self.iterations}{floor})"
        )

    @property
    def loss(self) -> float:
        """L(θ), of a single constraint."""
        return float(only(self.values, "values"))

    @property
    def gradient(self) -> Tensor:
        """∇L(θ), shape (P,), of a single constraint."""
        only(self.values, "gradients")
        return self.gradients
