"""The level set M = {θ : L(θ) = c}: residual, normal, tangent projection, re-projection."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, InputError
from geoflow.manifold.iterate import Iterate
from geoflow.manifold.normals import Numbers, normal_space
from geoflow.manifold.projection import Projection as Projection
from geoflow.manifold.values import Evaluated, as_values, check_gradient, only
from geoflow.problems import arithmetic, rounding, unchanged
from geoflow.problems.checks import check_like
from geoflow.problems.protocol import ProblemLike, check_problem
from geoflow.problems.several import Problems
from geoflow.system import kinds

MAX_ITERATIONS = 20

# The remedy of a re-projection from too far off.
SMALLER_STEPS = "take smaller steps, or choose a level the loss can reach"
# Of ``level_rtol``: a set of points from one level to another that far off is no level set.
LARGEST_RTOL = 0.25

# Newton's residual falls by four at the least once it falls at all (a parabola seen from far
# off); one that does not halve, twice running, has stopped falling.
STALL_RATIO = 0.5
DIVERGENCE_RATIO = 1e3

# Rounding of a loss: in units of its dtype's resolution, of the level and of what rounding θ does.
UNITS_OF_ROUNDING = 8
# A damped step is cut until the residual falls by this part of what Newton's step promises, at the
# least to this fraction.
SUFFICIENT, SMALLEST_FRACTION = 0.25, 2.0**-20


class LevelSet:
    """The level set M = {θ : L(θ) = c} of a problem, or the intersection of those of several.

    Parameters
    ----------
    problem : ProblemLike or sequence of ProblemLike
        Gives L and ∇L; several give n constraints on the same θ. θ0 is that of the first.
    level : float or sequence of float, optional
        c, in units of the loss. None, for all or in place of one: the loss at θ0.
    level_rtol, level_atol : float
        A point is on M where |L(θ) − c| ≤ ``level_rtol``·|c| + ``level_atol`` for each constraint.

    Attributes
    ----------
    problem : ProblemLike
        What was given; several as one whose values have the shape (n,), gradients (n, P).
    levels, tolerances : ndarray, shape (n,)
        The c of each constraint, and the largest |L(θ) − c| of a point on M.
    n_at_floor : int
        Re-projections so far that rounding ended above the tolerance.

    Raises
    ------
    InputError
        What is no problem, or several that do not fit; a level that is zero or not finite; or a
        ``level_rtol`` that is not positive, below what the problem's dtype resolves or above
        ``LARGEST_RTOL``; or a ``level_atol`` that is negative or not finite. Or a problem whose
        loss at ``theta0`` has become another since it was made.
    """

    def __init__(
        self,
        problem: ProblemLike | Sequence[ProblemLike],
        level: float | Tensor | kinds.Reals | Sequence[float | None] | None = None,
        level_rtol: float = 1e-6,
        level_atol: float = 0.0,
    ) -> None:
        self.problem: ProblemLike = _as_one(problem)
        self.levels: Numbers = _levels(self.problem, level)
        self.level_rtol: float = kinds.as_number(level_rtol, "level_rtol")
        self.level_atol: float = kinds.as_number(level_atol, "level_atol")
        self.n_at_floor: int = 0
        for c in self.levels:
            if not math.isfinite(c) or c == 0:
                raise InputError(
                    f"level={float(c)}; the tolerance is relative to it, so it must be finite and "
                    "not zero; where L is to be zero, add 1 to the loss and keep that at 1"
                )
        resolution = 4 * torch.finfo(self.problem.dtype).eps
        if not self.level_rtol >= resolution:
            raise InputError(
                f"level_rtol={level_rtol} is below what {self.problem.dtype} resolves; "
                f"use at least {resolution:.1e}"
            )
        if self.level_rtol > LARGEST_RTOL:
            raise InputError(
                f"level_rtol={level_rtol} keeps no level; use at most {LARGEST_RTOL}, and usually "
                "1e-6"
            )
        if not 0 <= self.level_atol < math.inf:
            raise InputError(f"level_atol={level_atol}; use zero or a positive number")
        # What residuals are relative to.
        self.scales: Numbers = abs(self.levels) + self.level_atol / self.level_rtol
        self.tolerances: Numbers = self.level_rtol * self.scales
        if said := rounding.beyond(self.rounding, self.tolerances, self.scales):
            rounding.warn_once(self.problem, f"level_rtol={level_rtol:g}: {said}")

    def __repr__(self) -> str:
        levels = ", ".join(f"{c:.9g}" for c in self.levels)
        return f"LevelSet(L = {levels} to {self.level_rtol:g}, of {self.problem!r})"

    @property
    def n_constraints(self) -> int:
        """n, the codimension of M."""
        return len(self.levels)

    @property
    def level(self) -> float:
        """c, of a single constraint."""
        return float(only(self.levels, "levels"))

    @property
    def tolerance(self) -> float:
        """Largest |L(θ) − c| of a point on M, in units of the loss, of a single constraint."""
        return float(only(self.tolerances, "tolerances"))

    @property
    def rounding(self) -> Numbers:
        """Error of each loss by its own rounding, shape (n,), where it was measured; else 0.

        See :func:`geoflow.problems.rounding.measured`. No level is kept more closely.
        """
        return rounding.of(self.problem, self.n_constraints)

    def residual(self, loss: Tensor | float) -> float:
        """L − c, in units of the loss, of a single constraint."""
        return float(loss) - self.level

    def residuals(self, values: Tensor | Numbers | float) -> Numbers:
        """L − c of each constraint, shape (n,)."""
        return as_values(values) - self.levels

    @arithmetic.without_autocast()
    def distance(self, loss: Tensor | Numbers | float, gradient: Tensor) -> float:
        """First-order distance from M, in units of θ: |L − c|/‖g‖, or √(rᵀG⁻¹r) for n > 1.

        Parameters
        ----------
        loss : float, or Tensor of shape (n,)
            L at the point.
        gradient : Tensor, shape (P,) or (n, P)
            ∇L at the point.

        Raises
        ------
        InputError
            ``gradient`` has another shape, dtype or device than the problem's.
        CriticalPointError
            ∇L is zero, or the gradients of several constraints are dependent to rounding.
        """
        check_gradient(gradient, self.problem.theta0)
        return normal_space(gradient).distance(self.residuals(loss))

    @arithmetic.without_autocast()
    def tangent(self, v: Tensor, gradient: Tensor) -> Tensor:
        """Tangent projection Π v = v − g (g·v)/(g·g), or v − Nᵀ(NNᵀ)⁻¹Nv for n > 1.

        Parameters
        ----------
        v : Tensor, shape (P,)
            Any vector.
        gradient : Tensor, shape (P,) or (n, P)
            g = ∇L at the point; the rows of N for n > 1 constraints.

        Returns
        -------
        Tensor, shape (P,)

        Raises
        ------
        InputError
            ``v`` or ``gradient`` has another shape, dtype or device than the problem's.
        CriticalPointError
            g is zero, or the gradients of several constraints are dependent to rounding.
        """
        check_like(v, self.problem.theta0, "v")
        check_gradient(gradient, self.problem.theta0)
        return v - normal_space(gradient).split(v).part

    @arithmetic.without_autocast()
    def project(
        self,
        theta: Tensor,
        *,
        evaluated: Evaluated | None = None,
        max_displacement: float = math.inf,
        max_iterations: int = MAX_ITERATIONS,
        rtol: float | None = None,
        damped: bool = True,
    ) -> Projection:
        """Re-project onto M by Newton's method along the normals, θ ← θ − Nᵀ(NNᵀ)⁻¹(L − c).

        For one constraint that is θ ← θ − (L − c) g/(g·g). Each iteration costs one gradient a
        constraint, and the last one is returned with the point.

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
        damped : bool
            Shorten Newton's steps where the residual falls less than they promise: from far off, or
            across a fold of the loss. A solver does without, and takes a shorter step of its own.

        Returns
        -------
        Projection

        Raises
        ------
        ConvergenceError
            The residual does not fall to the tolerance; its ``reason`` says which test failed.
        CriticalPointError
            ∇L vanishes to rounding, or those of several constraints are dependent.
        EvaluationLimitError
            A budget of the problem is spent.
        InputError
            ``rtol``, ``max_iterations`` or ``max_displacement`` is negative or no number, or θ has
            another shape, dtype or device than the problem's.
        """
        max_iterations = kinds.as_whole(max_iterations, "max_iterations", 0)
        rtol = self.level_rtol if rtol is None else kinds.as_number(rtol, "rtol")
        if not 0 <= rtol < math.inf:
            raise InputError(f"rtol={rtol}; use zero or a positive number")
        # A graph that it is of is none of the projection's.
        theta = theta.detach() if theta.requires_grad else theta
        max_displacement = kinds.as_number(max_displacement, "max_displacement")
        if not max_displacement >= 0:
            raise InputError(f"max_displacement={max_displacement}; use zero or a positive number")
        start, stalls, fraction = theta, 0, 1.0
        tolerances = rtol * self.scales
        evaluation = evaluated or self.problem.value_and_gradient(theta)
        base: Iterate | None = None
        best: Iterate | None = None
        for iteration in range(max_iterations + 1):
            now = Iterate(theta, *evaluation, self.levels, self.scales)
            if (abs(now.residuals) <= tolerances).all():
                return Projection(theta, now.values, now.gradients, iteration)
            stalls = stalls + 1 if best and not now.size <= STALL_RATIO * best.size else 0
            if not best or now.size < best.size:
                best = now
            promised = base and (1 - SUFFICIENT * fraction) * base.size
            if damped and base and promised and not now.size <= promised and not now.tiny:
                fraction /= 4
            else:
                limit = DIVERGENCE_RATIO * max(best.size, 1.0)
                if not math.isfinite(now.size) or now.size > limit:
                    raise self._failure("diverged", iteration, now, tolerances)
                now.check_regular()
                # Rounding, not the iteration, is the limit where a tiny correction changes nothing.
                if stalls >= 2 and now.tiny:
                    return self._at_floor(best, iteration, tolerances)
                base, fraction = now, min(2 * fraction, 1.0)
            if iteration == max_iterations or fraction < SMALLEST_FRACTION:
                break
            theta = base.theta - base.step * fraction if fraction < 1 else base.theta - base.step
            displacement = float(torch.linalg.vector_norm(theta - start))
            if not displacement <= max_displacement:
                raise self._failure("displacement", iteration, now, tolerances)
            evaluation = self.problem.value_and_gradient(theta)
        reached = best if damped and best else now
        raise self._failure("iterations", iteration, reached, tolerances)

    def _at_floor(self, best: Iterate, iterations: int, tolerances: Numbers) -> Projection:
        """Accept the best point where rounding forces what is left, and nothing else.

        Raises
        ------
        ConvergenceError
            More is left than rounding explains.
        """
        # From one end of the loss's own error to the other.
        forced = UNITS_OF_ROUNDING * best.rounding + 2 * self.rounding
        if not (abs(best.residuals) <= forced).all():
            raise self._failure("floor", iterations, best, tolerances)
        self.n_at_floor += 1
        return Projection(best.theta, best.values, best.gradients, iterations, at_floor=True)

    def _failure(
        self, reason: str, iterations: int, at: Iterate, tolerances: Numbers
    ) -> ConvergenceError:
        what = {
            "diverged": "diverged",
            "displacement": "moved further than allowed",
            "iterations": "did not converge",
            "floor": "is held up by rounding",
        }[reason]
        worst = int(np.argmax(abs(at.residuals) / self.scales))
        residual, level = float(at.residuals[worst]), float(self.levels[worst])
        allowed, kept = float(tolerances[worst]), float(self.tolerances[worst])
        # However small the steps are: nothing finer than that can be asked for.
        unresolved = reason != "diverged" and min(allowed, kept) < (
            at.rounding[worst] + self.rounding[worst]
        )
        larger = "rtol" if allowed < kept else "level_rtol or level_atol"
        remedy = (
            f"use float64, or a larger {larger}"
            if reason == "floor" or unresolved
            else SMALLER_STEPS
        )
        which = f" of constraint {worst}" if self.n_constraints > 1 else ""
        return ConvergenceError(
            f"re-projection onto L = {level:.6g}{which} {what} after {iterations} iterations "
            f"(L − c = {residual:.3e}, tolerance {allowed:.1e}); {remedy}",
            iterations=iterations,
            residual=residual,
            reason=reason,
        )


def _as_one(problem: ProblemLike | Sequence[ProblemLike]) -> ProblemLike:
    if isinstance(problem, Sequence):
        if not problem:
            raise InputError("problem=[] has no constraint; give one problem or more")
        if len(problem) > 1:
            return Problems(kinds.listed(problem, "problem", "problems in a list"))
        problem = problem[0]
    check_problem(problem)
    return problem


def _levels(
    problem: ProblemLike, level: float | Tensor | kinds.Reals | Sequence[float | None] | None
) -> Numbers:
    losses = problem.loss(problem.theta0)
    unchanged.check(problem, problem.theta0, losses, alone=True)
    start = as_values(losses)
    # Of one number, an array or a tensor without dimensions.
    try:
        level = level.tolist() if isinstance(level, Tensor | np.ndarray) else level
    except RuntimeError:  # it is on no device, or sparse
        raise InputError(f"level={kinds.shown(level)}; give real numbers") from None
    text = isinstance(level, str | bytes)  # a sequence, of letters
    given = level if isinstance(level, Sequence) and not text else [level]
    if level is None:
        return start
    if len(given) != len(start):
        raise InputError(
            f"level={kinds.shown(level)} is of {len(given)} and there are {len(start)} "
            "constraints; give one for each, None for the loss at theta0"
        )
    wanted = [c if c is None else kinds.as_number(c, "level") for c in given]
    return np.array([s if c is None else c for s, c in zip(start, wanted, strict=True)])
