"""The implicit equation of one step, solved on the level set.

A formula y = ŷ + c (f(y) − s) of a gradient flow is a minimum: y is where ½‖y − ŷ + cs‖² + cR has
its least value on L = c₀, and what has to vanish is its gradient along the level set,

    G(y) = F + μg,    F = y − ŷ + cs + c∇R,    μ = −(F·g)/(g·g),    together with L(y) − c₀.

Newton's method for it asks for (I + cA)⁻¹G with A = ∇²R + (μ/c)∇²L in the tangent space. A Krylov
iteration for that would spend a gradient on every image of A. Here each of these gradients is
taken where the iteration has come to, at y itself: the difference of two in a row is the
image of the last correction. The corrections of a step span a space in which the system is solved
exactly (Galerkin, by Anderson's mixing of type I); outside it the pairs of the steps before serve
as preconditioner. So what an inexact Newton iteration spends on products goes into points nearer
and nearer to the solution, the last of which is the state a walk needs.

Where the minimum is, I + cA is positive definite along the level set. By images taken at points far
apart it may seem not to be; the oldest corrections are given up then. Where their lengths have not
fallen either, the step is too long for there to be a minimum near, long before the iteration
diverges.

What is known of A says nothing of other directions: after a stiff transient all of it is stiff, and
a soft force beside it would seem to ask for next to no correction. So the length of the first
correction is that which it would have were A zero there, and so is, within a factor, that of what
is left at the end.

Far from the solution A changes from one correction to the next, and the images taken early are no
longer those of the system: it may become all but singular there. No correction is therefore longer
than the first, as in a trust region.

Where the level set is curved much, as that of a network trained to a low loss is, what is left may
also be no more than a small part of its radius of curvature. Newton's method along the normal does
not come back to the level set from further off, and a history of such points is extrapolated into
walls of L that no step is short enough for.

The normal is not split off but kept as the second row of the system: a move along it changes G
too, and its image is learned with the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.normals import Numbers
from geoflow.solvers.multistep.directions import LEAST_CURVATURE, Matrix, Vector, numbers
from geoflow.solvers.multistep.history import Formula
from geoflow.solvers.multistep.secant import SecantPairs, resolved

MAX_ITERATIONS = 20
# Correction still to be made, in units of the error allowed, that is left out; and so many times
# as much, if it would be that only were A zero beside what is known of it.
NEGLIGIBLE, AT_WORST = 0.1, 3.0
# At most this part of ‖θ‖ whatever is allowed: what is left in stiff directions, where a little of
# θ is much of velocity, would lead the extrapolation of the next steps astray.
CEILING = 3e-5
# Where the level set has to be followed closely, what is left may turn its normal by so much, in
# radians: the least radius of curvature is about ‖∇R‖ over the largest curvature known.
TURN = 0.03
# And at most this part of the step itself, down to so many units of rounding: a flow that comes to
# rest is followed there.
PART, UNITS_OF_ROUNDING = 0.1, 4.0
# The iteration is given up where it asks for a correction so much longer than the first.
DIVERGED = 30.0
# Directions of the corrections that depend on the others but for this part, squared, say nothing on
# whether I + cA is definite: the images they would be made of belong to different points.
INDEPENDENT = 1e-2
# Images are of one matrix where what a move in their space leaves is less than so many times what
# there was.
APART = 2.0
# Where I + cA seems indefinite, the iteration goes on while its corrections are no longer than this
# part of the first.
PROGRESS = 0.5
# Corrections along the normal alone, at the end.
NORMAL_ITERATIONS = 6


@dataclass(frozen=True)
class Corrected:
    """A point that solves the equation of a step, on the level set.

    Attributes
    ----------
    state : FlowState
        There.
    iterations : int
        Corrections made from the predicted point on.
    """

    state: FlowState
    iterations: int


class IndefiniteError(ConvergenceError):
    """By what is known of it, the equation of a step is not that of a minimum near.

    It is not ahead of a maximum of R on the level set, and seems not to be where the level set
    bends so much that the images of the corrections are not those of A.

    Attributes
    ----------
    least : float
        Smallest eigenvalue of I + cA by the images of the latest corrections, negative.
    """

    def __init__(self, least: float, *, iterations: int, residual: float) -> None:
        super().__init__(
            "an implicit step is too long: by the curvature found there is no solution near",
            iterations=iterations,
            residual=residual,
            reason="iterations",
        )
        self.least = least


class LandingError(ConvergenceError):
    """The equation of a step counts as solved, but Newton's method finds no level set near."""


def correct(
    flow: RegularizingFlow, formula: Formula, pairs: SecantPairs, allowed: float, closely: bool
) -> Corrected:
    """Solve the equation of a step.

    Parameters
    ----------
    flow : RegularizingFlow
        Evaluates.
    formula : Formula
        Of the step.
    pairs : SecantPairs
        What is known of A; takes in what is learned here.
    allowed : float
        Local error allowed, in units of θ.
    closely : bool
        Leave no more than a small part of the level set's radius of curvature.

    Raises
    ------
    ConvergenceError
        The iteration comes to no end.
    LandingError
        It does, but the re-projection after it does not.
    IndefiniteError
        By the images found there is no minimum near that it could come to.
    CriticalPointError
        ∇L vanishes.
    """
    level_set, c = flow.level_set, formula.c
    shift = formula.predicted - c * formula.slope
    space = _Space(MAX_ITERATIONS - 1, formula.predicted)
    theta = formula.predicted
    sizes: list[float] = []
    size_theta = float(torch.linalg.vector_norm(theta))
    most = min(NEGLIGIBLE * allowed, CEILING * size_theta)
    eps = torch.finfo(theta.dtype).eps
    least = UNITS_OF_ROUNDING * eps * size_theta
    before: FlowState | None = None
    # The force and orthonormal normals. What they are made into is a correction, whose error the
    # next one sees: single precision is enough, and half of what has to be read from memory. Of
    # normals that are nearly dependent it is not enough to tell them apart.
    columns = theta.new_empty((1 + level_set.n_constraints, theta.numel()), dtype=torch.float32)
    force, normals = columns[0], columns[1:]
    for iteration in range(MAX_ITERATIONS):
        state = flow.evaluate(theta)
        residuals = level_set.residuals(state.values)
        g = torch.atleast_2d(state.gradients)
        whole = torch.sub(theta, shift).add_(state.regularizer_gradient, alpha=c)
        multipliers = torch.from_numpy(state.normals.multipliers(whole)).to(g)
        if before is not None:
            _learn(space, pairs, before, state, multipliers, c)
        force.copy_(whole.addmv_(g.T, multipliers))
        state.normals.write_basis(normals)
        # What remains to be done: in the space of the corrections so far, and by the pairs.
        move = space.solve(force, normals)
        read, distances = pairs.read(columns, c), state.normals.along_basis(residuals)
        solved = pairs.solved(read, c)
        along, onto = _weights(solved.products, distances)
        move.add_(solved.combined((along + onto)[None])[0])
        size = float(torch.linalg.vector_norm(move))
        gone = float(torch.linalg.vector_norm(theta - formula.start))
        # In the largest curvature known, of what is rounded.
        rounding = UNITS_OF_ROUNDING * eps * c * pairs.stiffest * size_theta
        if closely and pairs.stiffest > 0:
            steepest = float(torch.linalg.vector_norm(state.regularizer_gradient))
            turned = TURN * steepest / pairs.stiffest
            # What rounding cannot tell is not asked for.
            most = min(most, turned) if turned >= max(least, rounding) else most
        negligible = min(most, max(PART * gone, least))
        small = size <= negligible
        if small or not sizes:
            # Beside what is known A may be anything from zero on, whatever the pairs suggest.
            softest = pairs.solved(read, c, bulk=0.0)
            more = softest.parts(np.add(*_weights(softest.products, distances)))
            reach = size + pairs.length(read, more - solved.parts(along + onto))
            small = small and reach <= max(AT_WORST * negligible, rounding)
        if small and (abs(residuals) <= level_set.tolerances).all():
            return Corrected(state, iteration)
        if space.least < 0 and size > PROGRESS * sizes[0]:
            residual = float(residuals[np.argmax(abs(residuals) / level_set.scales)])
            raise IndefiniteError(space.least, iterations=iteration, residual=residual)
        if not math.isfinite(size) or (sizes and size > DIVERGED * sizes[0]):
            break
        if not sizes or size > sizes[0]:
            # Far from the images known: to go on a little is to learn what is missing. What leads
            # onto the level set is not cut. To know it apart is to read all rows once more.
            level = solved.combined(onto[None])[0]
            move.sub_(level)
            size = float(torch.linalg.vector_norm(move))
            longest = sizes[0] if sizes else size
            if size > longest:
                move *= longest / size
                size = longest
            move.add_(level)
        sizes.append(size if sizes else reach)
        theta = theta + move
        if small:
            try:
                end, projection = flow.project(theta, max_iterations=NORMAL_ITERATIONS)
            except ConvergenceError as failure:
                raise LandingError(
                    str(failure),
                    iterations=iteration + 1 + failure.iterations,
                    residual=failure.residual,
                    reason=failure.reason,
                ) from failure
            return Corrected(end, iteration + 1 + projection.iterations)
        before = state
    raise ConvergenceError(
        "Newton's iteration for an implicit step does not converge",
        iterations=len(sizes),
        residual=float(residuals[np.argmax(abs(residuals) / level_set.scales)]),
        reason="iterations",
    )


def _weights(products: Matrix, distances: Numbers) -> tuple[Vector, Vector]:
    """Weights of the images of the force and of the normals in the moves that are to be made.

    One takes the force away within the level set, the other leads onto it.

    Parameters
    ----------
    products : ndarray, shape (1 + n, 1 + n)
        Scalar products of the force and orthonormal normals with their images.
    distances : ndarray, shape (n,)
        From the levels, along these normals.

    Returns
    -------
    along, onto : ndarray, shape (1 + n,)

    Raises
    ------
    ConvergenceError
        The images do not span the normal space.
    """
    try:
        right = np.column_stack([products[1:, 0], -distances])
        found = np.linalg.solve(products[1:, 1:], right)
    except np.linalg.LinAlgError:
        raise ConvergenceError(
            "the normals of the constraints cannot be told apart in an implicit step",
            iterations=0,
            residual=math.nan,
            reason="iterations",
        ) from None
    return np.append(-1.0, found[:, 0]), np.append(0.0, found[:, 1])


class _Space:
    """Corrections of one step and their images under I + cA, as rows of one array each.

    They make the next correction, whose error the one after it sees, and so are kept in single
    precision.

    Attributes
    ----------
    least : float
        Smallest eigenvalue of I + cA in it, before any were given up; 1 while it is empty.
    """

    def __init__(self, limit: int, like: Tensor) -> None:
        self.vectors = like.new_empty((limit, like.numel()), dtype=torch.float32)
        self.images = torch.empty_like(self.vectors)
        self.system, self.gram = np.zeros((2, limit, limit))
        self.first, self.n, self.least = 0, 0, 1.0

    def add(self, vector: Tensor, image: Tensor, c: float) -> None:
        """Take in a unit vector and its image under A.

        The oldest are given up until I + cA is positive definite by those that are left.
        """
        n = self.n
        last = self.vectors[n].copy_(vector)
        torch.add(vector, image, alpha=c, out=self.images[n])
        self.n += 1
        used = slice(self.first, self.n)
        self.gram[n, used] = self.gram[used, n] = numbers(self.vectors[used] @ last)
        self.system[used, n] = numbers(self.vectors[used] @ self.images[n])
        self.system[n, used] = numbers(self.images[used] @ last)
        self.least = left = self._smallest()
        while left < 0 and self.first < n:
            self.first += 1
            left = self._smallest()

    def _smallest(self) -> float:
        """Smallest eigenvalue of I + cA by the images in use."""
        used = slice(self.first, self.n)
        sizes, directions = np.linalg.eigh(self.gram[used, used])
        distinct = sizes > INDEPENDENT * sizes[-1]
        basis = directions[:, distinct] / np.sqrt(sizes[distinct])
        projected = basis.T @ self.system[used, used] @ basis
        return float(np.linalg.eigvalsh((projected + projected.T) / 2)[0])

    def solve(self, force: Tensor, normals: Tensor) -> Tensor:
        """Tangent move in the space after which no force is left along it.

        What is left of the force elsewhere takes its place. Where that is more than there was, the
        images are those of points too far apart, and the oldest corrections are given up.
        """
        before = float(torch.linalg.vector_norm(force))
        while n := self.n - self.first:
            used = slice(self.first, self.n)
            vectors, images = self.vectors[used], self.images[used]
            on_normals = numbers(vectors @ normals.T)
            size = n + len(normals)
            system = np.zeros((size, size))
            system[:n, :n] = self.system[used, used]
            system[:n, n:] = on_normals
            system[n:, :n] = on_normals.T
            right = np.append(-numbers(vectors @ force), np.zeros(len(normals)))
            # Corrections that all but repeat one another are left out of it.
            found = np.linalg.lstsq(system, right, rcond=1e-8)[0][:n]
            coefficients = torch.from_numpy(found).to(vectors)
            left = torch.addmv(force, images.T, coefficients)
            if float(torch.linalg.vector_norm(left)) <= APART * before:
                force.copy_(left.addmv_(normals.T, normals @ left, alpha=-1))
                return coefficients @ vectors
            self.first += 1
        return torch.zeros_like(force)


def _learn(
    space: _Space,
    pairs: SecantPairs,
    before: FlowState,
    after: FlowState,
    multipliers: Tensor,
    c: float,
) -> None:
    """Take the last correction and its image into the space, and among the pairs.

    Raises
    ------
    ConvergenceError
        Single precision does not hold the image.
    """
    s = after.theta - before.theta
    size = resolved(s, after.theta)
    if not size:
        return
    image = after.regularizer_gradient - before.regularizer_gradient
    change = torch.atleast_2d(after.gradients - before.gradients)
    image = image.addmv_(change.T, multipliers / c).div_(size)
    if not c * float(torch.linalg.vector_norm(image)) < torch.finfo(torch.float32).max:
        raise ConvergenceError(
            "∇L or ∇R changes without bound over an implicit step",
            iterations=1,
            residual=math.nan,
            reason="diverged",
        )
    s = s.div_(size)
    space.add(s, image, c)
    if 1 + c * float(torch.dot(s, image)) > LEAST_CURVATURE:
        pairs.add(s, image)
