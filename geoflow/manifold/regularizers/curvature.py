"""Functions of the gradient and the Hessian of the loss: they evaluate the problem they are of.

Their evaluations are the problem's own: those of the level set's loss count and spend with the
walk's. Where that is divided into groups of examples they are of the whole, and count apart. Where
the gradient of R is a third derivative, ∇(vᵀ∇²L v), it is exact to rounding, by PyTorch's third
derivatives. Where these are wrong or missing, and of a problem that has products with ∇²L alone, it
is of central differences of products; see :mod:`geoflow.problems.third`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from geoflow.errors import ConvergenceError, InputError
from geoflow.manifold.basis import BLOCK
from geoflow.manifold.lanczos import lanczos
from geoflow.manifold.regularizers.bound import BoundRegularizer, Product, differences
from geoflow.manifold.regularizers.earlier import second_difference
from geoflow.manifold.regularizers.named import Make, needs_problem, regularizer
from geoflow.problems import arithmetic, footprint, products, third
from geoflow.problems.counting import Counted
from geoflow.problems.protocol import ProblemLike
from geoflow.system.memory import check_memory

# Hessian-vector products after which the top eigenvalue is given up.
MAX_PRODUCTS = 300


@regularizer
def gradient_norm() -> Make:
    """R(θ) = ‖∇L(θ)‖², as Barrett & Dherin (2021, ICLR) have it; ∇R = 2∇²L ∇L, exactly.

    One gradient and one Hessian-vector product an evaluation; products with ∇²R are differences of
    ∇R, as many again each.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    """
    return _of_loss(_GradientNorm)


@regularizer
def sharpness(*, rtol: float = 1e-6, seed: int = 0) -> Make:
    """R(θ) = λ_max(∇²L(θ)), the largest eigenvalue, called sharpness by Cohen et al. (2021, ICLR).

    By Lanczos' process from a fixed vector, so that R is a function of θ and not of the points
    before. ∇R = ∇(vᵀ∇²L v) for its unit eigenvector v (Magnus 1985, Econometric Theory 1). Where
    the two largest eigenvalues meet, R has a kink. An evaluation costs as many Hessian-vector
    products as the process takes, and two, and holds as many vectors like θ, 300 at the most;
    products with ∇²R are differences of ∇R, as many again each.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    rtol : float
        Of the process: ‖∇²L v − λv‖ over |λ|. The eigenvalue's error is of its square, that of ∇R
        of rtol itself, over the gap to the next eigenvalue.
    seed : int
        Of the vector it starts from.

    Raises
    ------
    InputError
        ``rtol`` is not between 0 and 1, or ``seed`` not from 0 to below 2**63.
    """
    if not 0 < rtol < 1:
        raise InputError(f"rtol={rtol}; use a number such as 1e-6")
    _check_seed(seed)
    return _of_loss(lambda problem: _Sharpness(problem, rtol, seed))


@regularizer
def hessian_trace(*, probes: int = 8, seed: int = 0) -> Make:
    """R(θ) = (1/m) Σ zᵀ∇²L(θ)z over m fixed vectors z of signs: tr ∇²L by Hutchinson's estimator.

    Hutchinson (1990, Communications in Statistics 19). With the vectors fixed R is a function of θ,
    whose expectation over seeds is the trace. An evaluation costs 2m Hessian-vector products, and a
    product with ∇²R, a difference of ∇R, as many.

    Parameters
    ----------
    theta, sign
        See :func:`squared_norm <geoflow.manifold.regularizers.norms.squared_norm>`.
    probes : int
        m.
    seed : int
        Of the vectors.

    Raises
    ------
    InputError
        ``probes`` is not positive, or ``seed`` not from 0 to below 2**63.
    """
    if probes < 1:
        raise InputError(f"probes={probes}; use a positive whole number")
    _check_seed(seed)

    def make(problem: ProblemLike) -> BoundRegularizer:
        what = f"regularizer 'hessian_trace': probes={probes} vectors of signs"
        check_memory(probes * problem.n_parameters, what, "use fewer", problem.device)
        return _HessianTrace(problem, probes, seed)

    return _of_loss(make)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"seed={seed}; use zero or a positive number below 2**63")


class _OfLoss(ABC):
    """R of a problem's gradients, with products with ∇²R by differences of ∇R."""

    def __init__(self, problem: ProblemLike) -> None:
        self.problem = problem

    @property
    def problems(self) -> Sequence[ProblemLike]:
        """The problem."""
        return (self.problem,)

    @property
    def evaluation_bytes(self) -> int:
        """Bytes that an evaluation holds at its peak."""
        return footprint.third_bytes(self.problem)

    @abstractmethod
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """R and ∇R."""

    @abstractmethod
    def value_alone(self, theta: Tensor) -> Tensor:
        """R, the same to rounding."""

    def hessian(self, theta: Tensor, gradient: Tensor | None = None) -> Product:
        """∇²R(θ) by differences of ∇R."""
        rounding = self._error(theta)
        return differences(lambda at: self.value_and_gradient(at)[1], theta, gradient, rounding)

    def _error(self, theta: Tensor) -> float:
        """Relative error of ∇R."""
        return third.error_of(self.problem, theta)


class _GradientNorm(_OfLoss):
    """‖∇L‖²."""

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        _, gradient = self.problem.value_and_gradient(theta)
        return torch.dot(gradient, gradient), 2 * self.problem.hvp(theta, gradient)

    def value_alone(self, theta: Tensor) -> Tensor:
        _, gradient = self.problem.value_and_gradient(theta)
        return torch.dot(gradient, gradient)

    @property
    def evaluation_bytes(self) -> int:
        """Bytes that an evaluation holds at its peak."""
        return footprint.product_bytes(self.problem)

    def _error(self, theta: Tensor) -> float:
        return products.error_of(self.problem, theta)


class _Sharpness(_OfLoss):
    """λ_max(∇²L)."""

    def __init__(self, problem: ProblemLike, rtol: float, seed: int) -> None:
        super().__init__(problem)
        self.rtol, self.seed = rtol, seed
        self._third = third.third_product(problem)
        # The most that the process has taken so far.
        self._n_vectors = 0

    @property
    def evaluation_bytes(self) -> int:
        """Bytes that an evaluation holds at its peak, with the vectors of Lanczos' process.

        As many as it has taken; before it has taken any, as it takes at ``theta0``, which is not
        counted.
        """
        problem = self.problem
        if not self._n_vectors and isinstance(problem, Counted):
            with problem.uncounted(), suppress(ConvergenceError):
                self._top(problem.theta0)
        # The blocks that they are kept in, and the last vector and its image.
        rows = BLOCK * -(-self._n_vectors // BLOCK) + 2
        process = rows * problem.n_parameters * problem.theta0.element_size()
        return max(super().evaluation_bytes, footprint.product_bytes(problem) + process)

    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        value, vector = self._top(theta)
        return theta.new_tensor(value), self._third(theta, vector)[1]

    def value_alone(self, theta: Tensor) -> Tensor:
        return theta.new_tensor(self._top(theta)[0])

    def earlier(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The same with ∇R as earlier versions computed it."""
        value, vector = self._top(theta)
        return theta.new_tensor(value), second_difference(self.problem, theta, vector)[1]

    @arithmetic.without_autocast()
    def _top(self, theta: Tensor) -> tuple[float, Tensor]:
        """Largest eigenvalue of ∇²L and its unit eigenvector, by Lanczos' process.

        Raises
        ------
        ConvergenceError
            It does not come to ``rtol``.
        """
        generator = torch.Generator().manual_seed(self.seed)
        start = torch.randn(theta.shape, generator=generator, dtype=torch.float64, device="cpu").to(
            theta
        )
        diagonal: list[float] = []
        beside: list[float] = []
        limit = min(MAX_PRODUCTS, theta.numel())
        for alpha, beta, basis in lanczos(partial(self.problem.hvp, theta), start):
            diagonal.append(alpha)
            self._n_vectors = max(self._n_vectors, len(basis))
            if not (math.isfinite(alpha) and math.isfinite(beta)):
                break
            values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
            residual, top = beta * abs(float(vectors[-1, -1])), float(values[-1])
            if residual <= self.rtol * abs(top) or len(basis) == theta.numel():
                vector = basis.combined(torch.from_numpy(vectors[:, -1].copy()).to(theta))
                return top, vector / torch.linalg.vector_norm(vector)
            if len(basis) == limit:
                break
            if len(basis) % BLOCK == 0:
                self._check_room(theta, len(basis))
            beside.append(beta)
        raise ConvergenceError(
            f"the largest eigenvalue of the Hessian does not come to rtol={self.rtol:g} within "
            f"{limit} products; use a larger rtol for sharpness",
            iterations=len(basis),
            residual=beta,
            reason="iterations",
        )

    def _check_room(self, theta: Tensor, n: int) -> None:
        """Refuse more vectors than there is memory for: how many it takes is not known before."""
        check_memory(
            BLOCK * theta.numel() * theta.element_size(),
            f"regularizer 'sharpness': {BLOCK} more vectors of Lanczos' process beside {n}",
            "use a larger rtol for it, or a problem in float32",
            theta.device,
        )


class _HessianTrace(_OfLoss):
    """Hutchinson's estimate of tr ∇²L."""

    def __init__(self, problem: ProblemLike, probes: int, seed: int) -> None:
        super().__init__(problem)
        self._third = third.third_product(problem)
        generator = torch.Generator().manual_seed(seed)
        shape = (probes, problem.n_parameters)
        signs = torch.randint(0, 2, shape, generator=generator, dtype=torch.int8, device="cpu")
        self.signs = signs.to(problem.device)

    @arithmetic.without_autocast()
    def value_and_gradient(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = theta.new_zeros(()), torch.zeros_like(theta)
        for z in self._vectors(theta):
            image, slope = self._third(theta, z)
            value, gradient = value + torch.dot(z, image), gradient.add_(slope)
        return value / len(self.signs), gradient / len(self.signs)

    @arithmetic.without_autocast()
    def value_alone(self, theta: Tensor) -> Tensor:
        value = theta.new_zeros(())
        for z in self._vectors(theta):
            value = value + torch.dot(z, self.problem.hvp(theta, z))
        return value / len(self.signs)

    def earlier(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The same as earlier versions computed it."""
        found = [second_difference(self.problem, theta, z) for z in self._vectors(theta)]
        value, gradient = (sum(each[1:], each[0]) for each in zip(*found, strict=True))
        return value / len(self.signs), gradient / len(self.signs)

    def _vectors(self, theta: Tensor) -> Iterator[Tensor]:
        return (2 * signs.to(theta) - 1 for signs in self.signs)


def _of_loss(make: Callable[[ProblemLike], BoundRegularizer]) -> Make:
    def made(problem: ProblemLike | None) -> BoundRegularizer:
        if problem is None:
            raise needs_problem(
                "regularizer", "it is of the derivatives of a loss, which θ alone does not have"
            )
        if problem.loss(problem.theta0).ndim:
            raise InputError(
                "regularizer: it is of the derivatives of one loss, and the level set has several "
                "constraints; make it of the one you mean by .bind(problem)"
            )
        return make(problem)

    return made
