"""Linear systems in the tangent space: conjugate gradients on A + σ, A = Π(∇²R + λ∇²L)Π.

The preconditioner is made of pairs of vectors and their images under ∇²L, in which neither λ nor
the level occurs: what one level has taught serves at the next, where λ is another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geoflow.manifold.linearization import TangentHessian
from geoflow.solvers.multistep.secant import SecantPairs

PAIRS = 40
# Products at most in one solution.
MAX_PRODUCTS = 30
# Of ‖∇R‖/‖θ‖: R is taken to have no less curvature anywhere.
STRAIGHT = 1e-6


class LossCurvature:
    """What is known of ∇²L, as a preconditioner of ∇²R + λ∇²L + σ for whatever λ and σ.

    Parameters
    ----------
    pairs : SecantPairs
        Unit vectors and their images under ∇²L.
    """

    def __init__(self, pairs: SecantPairs) -> None:
        self.pairs = pairs

    @classmethod
    def unknown(cls, n_parameters: int) -> LossCurvature:
        """Nothing is known yet."""
        return cls(SecantPairs(min(PAIRS, n_parameters), [], np.zeros((0, 0))))

    def add(self, unit: Tensor, image: Tensor) -> None:
        """Take in a unit vector and its image under ∇²L."""
        self.pairs.add(unit, image)

    def inverse(self, vectors: Tensor, multiplier: float, base: float) -> Tensor:
        """Apply about (``base`` + λ∇²L)⁻¹ to the rows of ``vectors``, shape (n, P)."""
        return self.pairs.inverse(vectors, max(multiplier, 0.0) / base) / base


@dataclass(frozen=True)
class Solved:
    """A solution, as far as it was wanted.

    Attributes
    ----------
    solution, residual : Tensor, shape (P,)
        x and b − (A + σ)x, both tangent.
    bend : float
        xᵀ∇²L x.
    n_products : int
        Products with A: a gradient each.
    indefinite : bool
        A direction of no positive curvature ended the iteration.
    space : Space
        What it was made of.
    """

    solution: Tensor
    residual: Tensor
    bend: float
    n_products: int
    indefinite: bool
    space: Space


class Space:
    """The vectors and images that a solution was made of: with another σ it is made of them again.

    Parameters
    ----------
    operator : TangentHessian
        A.
    right : Tensor, shape (P,)
        b.
    learned : list of (Tensor, Tensor)
        Unit tangent vectors and their images under ∇²L.
    """

    def __init__(
        self, operator: TangentHessian, right: Tensor, learned: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.operator, self.right, self.learned = operator, right, learned

    def solve(self, shift: float) -> Solved:
        """Solve (A + σ)x = b as well as the space does (Galerkin): no product with ∇²L is made."""
        if not self.learned:
            return Solved(torch.zeros_like(self.right), self.right, 0.0, 0, False, self)
        operator, of_regularizer = self.operator, self.operator.regularizer_hessian
        multiplier = operator.state.multiplier
        units = torch.stack([unit for unit, _ in self.learned])
        # One image at a time: there may be no room for all.
        images = [
            units @ torch.add(of_regularizer(unit), of_loss, alpha=multiplier)
            for unit, of_loss in self.learned
        ]
        columns = torch.stack([*images, units @ self.right], 1)
        products = torch.cat([columns, units @ units.T], 1).to("cpu", torch.float64).numpy()
        n = len(units)
        system = (products[:, :n] + products[:, :n].T) / 2 + shift * products[:, n + 1 :]
        found = np.linalg.lstsq(system, products[:, n], rcond=1e-10)[0]
        x = torch.from_numpy(found).to(self.right) @ units
        of_x = torch.zeros_like(x)
        for weight, (_, of_loss) in zip(found, self.learned, strict=True):
            of_x.add_(of_loss, alpha=float(weight))
        image = operator.tangent(torch.add(of_regularizer(x), of_x, alpha=multiplier))
        residual = self.right - image - shift * x
        return Solved(x, residual, float(torch.dot(x, of_x)), 0, False, self)


def solve(
    operator: TangentHessian,
    curvature: LossCurvature,
    right: Tensor,
    *,
    shift: float,
    enough: Callable[[Tensor, Tensor], bool],
) -> Solved:
    """Solve (A + σ)x = b by conjugate gradients in the tangent space.

    Parameters
    ----------
    operator : TangentHessian
        A, on the space orthogonal to its ``normals``.
    curvature : LossCurvature
        Preconditions; takes in the products at the end, since it must not change in between.
    right : Tensor, shape (P,)
        b, tangent and not zero.
    shift : float
        σ.
    enough : callable
        Told x and the residual, whether that is close enough.
    """
    multiplier = operator.state.multiplier
    base = bulk_of(operator, right) + shift
    normals = operator.normals
    assert normals is not None, "a path is on one constraint"
    oblique = _oblique(normals, curvature, multiplier, base)
    x, residual, of_x = torch.zeros_like(right), right, torch.zeros_like(right)

    def precondition(v: Tensor) -> Tensor:
        image = curvature.inverse(v[None], multiplier, base)[0]
        return image - (normals @ image) @ oblique

    z = precondition(residual)
    direction, size = z, float(torch.dot(residual, z))
    learned: list[tuple[Tensor, Tensor]] = []
    indefinite = False
    while len(learned) < MAX_PRODUCTS and size > 0:
        length = float(torch.linalg.vector_norm(direction))
        unit = direction / length
        image, of_loss = operator(unit)
        learned.append((unit, of_loss))
        image = torch.add(image, unit, alpha=shift) * length
        bend = float(torch.dot(direction, image))
        if not (math.isfinite(bend) and bend > 0):
            indefinite = True
            break
        x = torch.add(x, direction, alpha=size / bend)
        of_x.add_(of_loss, alpha=size / bend * length)
        residual = torch.sub(residual, image, alpha=size / bend)
        if enough(x, residual):
            break
        z = precondition(residual)
        following = float(torch.dot(residual, z))
        direction, size = torch.add(z, direction, alpha=following / size), following
    learned = [pair for pair in learned if bool(torch.isfinite(pair[1]).all())]
    for unit, of_loss in learned:
        curvature.add(unit, of_loss)
    bend_of_loss = float(torch.dot(x, of_x))
    space = Space(operator, right, learned)
    return Solved(x, residual, bend_of_loss, len(learned), indefinite, space)


def bulk_of(operator: TangentHessian, along: Tensor) -> float:
    """The curvature of R along a vector, positive: what A is where no pair tells."""
    bend = float(torch.dot(along, operator.regularizer_hessian(along)))
    tiny = torch.finfo(along.dtype).tiny ** 0.25
    of_r, theta = operator.state.regularizer_gradient, operator.state.theta
    size = max(float(torch.linalg.vector_norm(theta)), tiny)
    least = STRAIGHT * float(torch.linalg.vector_norm(of_r)) / size
    curvature = abs(bend) / float(torch.dot(along, along))
    return max(curvature, least, tiny)


def oblique_normal(operator: TangentHessian, curvature: LossCurvature, shift: float) -> Tensor:
    """B⁻¹g/(g·B⁻¹g) with B about ∇²R + λ∇²L + σ, shape (P,): about dθ/dL along the path."""
    base = bulk_of(operator, operator.normal) + shift
    gradient = operator.state.gradient[None]
    return _oblique(gradient, curvature, operator.state.multiplier, base)[0]


def _oblique(normals: Tensor, curvature: LossCurvature, multiplier: float, base: float) -> Tensor:
    """(N B⁻¹Nᵀ)⁻¹ N B⁻¹ with N of rows ``normals``, shape (n, P): N times its transpose is 1."""
    images = curvature.inverse(normals, multiplier, base)
    return torch.linalg.solve(normals @ images.T, images)
