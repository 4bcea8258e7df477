"""The level set M = {θ : L(θ) = c}: residual, normal, tangent projection, re-projection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError, InputError
from geoflow.problems.problem import Problem

MAX_ITERATIONS = 20

# Newton's residual falls by four at the least once it falls at all (a parabola seen from far
# off); one that does not halve, twice running, has stopped falling.
STALL_RATIO = 0.5
DIVERGENCE_RATIO = 1e3


@dataclass(frozen=True)
class Projection:
    """A point on the level set and what it took to get there.

    Attributes
    ----------
    theta : Tensor, shape (P,)
        The point.
    loss : float
        L(θ).
    gradient : Tensor, shape (P,)
        ∇L(θ), evaluated at ``theta`` itself: the next step needs no evaluation there.
    iterations : int
        Newton corrections; 0 where the point was on the level set already.
    displacement : float
        ‖θ − start‖.
    at_floor : bool
        True where rounding ended the iteration before ``level_rtol`` was reached.
    """

    theta: Tensor
    loss: float
    gradient: Tensor
    iterations: int
    displacement: float = 0.0
    at_floor: bool = False


class LevelSet:
    """The hypersurface M = {θ : L(θ) = c} of a problem.

    Parameters
    ----------
    problem : Problem
        Gives L and ∇L.
    level : float, optional
        c, in units of the loss. None: the loss at ``problem.theta0``.
    level_rtol : float
        A point is on M where |L(θ) − c| ≤ ``level_rtol``·|c|.

    Raises
    ------
    InputError
        A level that is zero or not finite, or a ``level_rtol`` that is not positive or
        below what the problem's dtype resolves.
    """

    def __init__(
        self, problem: Problem, level: float | None = None, level_rtol: float = 1e-6
    ) -> None:
        self.problem = problem
        self.level = float(problem.loss(problem.theta0)) if level is None else float(level)
        self.level_rtol = float(level_rtol)
        if not math.isfinite(self.level) or self.level == 0:
            raise InputError(
                f"level={self.level}; the tolerance is relative to it, so it must be finite "
                "and not zero"
            )
        resolution = 4 * torch.finfo(problem.dtype).eps
        if not self.level_rtol >= resolution:
            raise InputError(
                f"level_rtol={level_rtol} is below what {problem.dtype} resolves; "
                f"use at least {resolution:.1e}"
            )

    @property
    def tolerance(self) -> float:
        """Largest |L(θ) − c| of a point on M, in units of the loss."""
        return self.level_rtol * abs(self.level)

    def residual(self, loss: Tensor | float) -> float:
        """L − c, in units of the loss."""
        return float(loss) - self.level

    def distance(self, loss: Tensor | float, gradient: Tensor) -> float:
        """First-order distance |L − c|/‖g‖ from M, in units of θ."""
        return abs(self.residual(loss)) / float(torch.linalg.vector_norm(gradient))

    def tangent(self, v: Tensor, gradient: Tensor) -> Tensor:
        """Tangent projection Π v = v − g (g·v)/(g·g).

        Parameters
        ----------
        v : Tensor, shape (P,)
            Any vector.
        gradient : Tensor, shape (P,)
            g = ∇L at the point.

        Returns
        -------
        Tensor, shape (P,)
        """
        return v - gradient * (torch.dot(gradient, v) / torch.dot(gradient, gradient))

    def multiplier(self, regularizer_gradient: Tensor, gradient: Tensor) -> float:
        """Lagrange multiplier λ = −(∇R·g)/(g·g) of min R subject to L = c."""
        return -float(torch.dot(regularizer_gradient, gradient) / torch.dot(gradient, gradient))

    def project(
        self,
        theta: Tensor,
        *,
        evaluated: tuple[Tensor | float, Tensor] | None = None,
        max_displacement: float = math.inf,
        max_iterations: int = MAX_ITERATIONS,
        rtol: float | None = None,
    ) -> Projection:
        """Re-project onto M by Newton's method along the normal, θ ← θ − (L − c) g/(g·g).

        Each iteration costs one gradient, and the last one is returned with the point.

        Parameters
        ----------
        theta : Tensor, shape (P,)
            Start.
        evaluated : tuple of float and Tensor, optional
            L and ∇L at ``theta``, where they are known: saves one gradient.
        max_displacement : float
            Give up where the point would move further than this, in units of θ.
        max_iterations : int
            Give up after this many corrections.
        rtol : float, optional
            For this projection in place of ``level_rtol``.

        Returns
        -------
        Projection

        Raises
        ------
        ConvergenceError
            The residual does not fall to the tolerance; its ``reason`` says which test failed.
        CriticalPointError
            ∇L vanishes to rounding.
        """
        start, best, stalls = theta, math.inf, 0
        loss: Tensor | float
        loss, gradient = evaluated or self.problem.value_and_gradient(theta)
        displacement = 0.0
        tolerance = self.tolerance if rtol is None else rtol * abs(self.level)
        for iteration in range(max_iterations + 1):
            value = float(loss)
            residual = value - self.level
            if abs(residual) <= tolerance:
                return Projection(theta, value, gradient, iteration, displacement)
            limit = DIVERGENCE_RATIO * max(best, abs(self.level))
            if not math.isfinite(residual) or abs(residual) > limit:
                raise self._failure("diverged", iteration, residual)
            norm = float(torch.linalg.vector_norm(gradient))
            self._check_regular(value, norm, theta)
            newton = abs(residual) / norm
            # Rounding, not the iteration, is the limit where a tiny correction changes nothing.
            stalls = stalls + 1 if abs(residual) > STALL_RATIO * best else 0
            best = min(best, abs(residual))
            tiny = math.sqrt(torch.finfo(theta.dtype).eps) * float(torch.linalg.vector_norm(theta))
            if stalls >= 2 and newton <= tiny:
                return Projection(theta, value, gradient, iteration, displacement, at_floor=True)
            if iteration == max_iterations:
                break
            theta = theta - gradient * (residual / norm**2)
            displacement = float(torch.linalg.vector_norm(theta - start))
            if not displacement <= max_displacement:
                raise self._failure("displacement", iteration, residual)
            loss, gradient = self.problem.value_and_gradient(theta)
        raise self._failure("iterations", max_iterations, residual)

    def _check_regular(self, loss: float, gradient_norm: float, theta: Tensor) -> None:
        scale = max(float(torch.linalg.vector_norm(theta)), 1.0)
        eps = torch.finfo(theta.dtype).eps
        if gradient_norm * scale <= eps * max(abs(loss), abs(self.level)):
            raise CriticalPointError(
                f"the loss gradient vanishes (norm {gradient_norm:.1e} at loss {loss:.6g}): the "
                "level set is not a manifold there; start elsewhere or choose another level"
            )

    def _failure(self, reason: str, iterations: int, residual: float) -> ConvergenceError:
        what = {
            "diverged": "diverged",
            "displacement": "moved further than allowed",
            "iterations": "did not converge",
        }[reason]
        return ConvergenceError(
            f"re-projection onto L = {self.level:.6g} {what} after {iterations} iterations "
            f"(L − c = {residual:.3e}, tolerance {self.tolerance:.1e}); take smaller steps, or "
            "choose a level the loss can reach",
            iterations=iterations,
            residual=residual,
            reason=reason,
        )
