"""Curvature at one point of a walk, as symmetric operators known by their products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems import arithmetic
from geoflow.problems.checks import check_like
from geoflow.problems.modules import tied_names
from geoflow.problems.parts import network_of
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike, check_problem
from geoflow.problems.scaling import length
from geoflow.system import kinds

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subspace:
    """An orthonormal basis E of an n-dimensional subspace of R^P, never written out.

    Attributes
    ----------
    size : int
        n.
    embed : callable
        E: coordinates (n,) → vector (P,).
    coordinates : callable
        Eᵀ: vector (P,) → coordinates (n,).
    """

    size: int
    embed: Map
    coordinates: Map


@dataclass(frozen=True)
class Curvature:
    """A symmetric matrix EᵀME, shape (n, n), known by its products.

    A call takes coordinates x, shape (n,), to EᵀMEx; one Hessian-vector product of the loss each.

    Attributes
    ----------
    name : str
        For people.
    product : callable
        M, from R^P to R^P.
    subspace : Subspace
        E.
    theta : Tensor, shape (P,)
        Where it is taken; its dtype and device are the operator's.
    nullity : int
        The least dimension that its null space is known to have.
    """

    name: str
    product: Map
    subspace: Subspace
    theta: Tensor
    nullity: int = 0

    @property
    def size(self) -> int:
        """n, the dimension of the subspace."""
        return self.subspace.size

    @arithmetic.without_autocast()
    def __call__(self, x: Tensor) -> Tensor:
        """EᵀMEx, shape (n,).

        Raises
        ------
        InputError
            The product is not finite.
        """
        image = self.subspace.coordinates(self.product(self.subspace.embed(x)))
        if not torch.isfinite(image).all():
            raise InputError(
                f"operator {self.name!r} gave non-finite values; take it at a finite point where "
                "the loss is twice differentiable"
            )
        return image

    def dense(self) -> NDArray[np.float64]:
        """Return the matrix, shape (n, n), in float64: n products, for small n."""
        identity = torch.eye(self.size, dtype=self.theta.dtype, device=self.theta.device)
        columns = torch.stack([self(row) for row in identity]).double().cpu().numpy()
        symmetric: NDArray[np.float64] = (columns + columns.T) / 2
        return symmetric


def loss_hessian(
    problem: ProblemLike, theta: Tensor, tensors: Sequence[str] | None = None
) -> Curvature:
    """∇²L(θ), on all of R^P or on some parameter tensors.

    Parameters
    ----------
    problem : ProblemLike
        Gives L; of several constraints their mean.
    theta : Tensor, shape (P,)
        The point.
    tensors : sequence of str, optional
        Names of parameter tensors: only the block of these. None: all.

    Raises
    ------
    InputError
        θ does not fit the problem, or a name is not among its tensors.
    """
    check_problem(problem)
    problem.unflatten(theta)

    def product(v: Tensor) -> Tensor:
        found = problem.hvp(theta, v)
        return found if found.ndim == 1 else found.mean(0)

    return Curvature("hessian", product, tensor_subspace(problem, tensors), theta)


def gauss_newton(
    problem: ProblemLike, theta: Tensor, tensors: Sequence[str] | None = None
) -> Curvature:
    """G(θ), the Gauss–Newton part of ∇²L, on all of R^P or on some parameter tensors.

    See :meth:`geoflow.Problem.gauss_newton_product`. Its rank is at most the number of outputs on
    the whole training set, so its null space is large.

    Parameters
    ----------
    problem : ProblemLike
        Gives L, as the loss of a network's outputs.
    theta : Tensor, shape (P,)
        The point.
    tensors : sequence of str, optional
        Names of parameter tensors: only the block of these. None: all.

    Raises
    ------
    InputError
        The problem is a function of θ alone or several constraints, θ does not fit it, or a name
        is not among its tensors.
    """
    check_problem(problem)
    problem.unflatten(theta)
    if not isinstance(problem, Problem):
        if problem.loss(theta).ndim:
            raise InputError(
                "problem: it is several constraints, and a Gauss–Newton matrix is that of one "
                "loss; take it of one of their problems, or other operators"
            )
        raise InputError(
            f"problem: a {type(problem).__name__} says nothing of a network's outputs, which the "
            "Gauss–Newton matrix needs; make it with Problem.from_module"
        )
    space = tensor_subspace(problem, tensors)
    return Curvature(
        "gauss_newton",
        lambda v: problem.gauss_newton_product(theta, v),
        space,
        theta,
        nullity=max(0, space.size - problem.n_outputs),
    )


def tangent_hessian(
    flow: RegularizingFlow, state: FlowState, tensors: Sequence[str] | None = None
) -> Curvature:
    """A = Π(∇²R + λ∇²L)Π on the tangent space of the level set, to which −A linearises the flow.

    The tangent space has P − 1 dimensions, and so has the operator: as a P × P matrix, A has the
    normal as an eigenvector of eigenvalue 0 that says nothing of the level set. The basis is that
    of a Householder reflection which takes the normal to an axis. With n constraints λ∇²L stands
    for Σ λᵢ∇²Lᵢ, the space has P − n dimensions, and there are n reflections.

    Parameters
    ----------
    flow : RegularizingFlow
        Gives L and R.
    state : FlowState
        Where A is taken, from ``flow.evaluate(theta)``; its λ is used.
    tensors : sequence of str, optional
        Only tangent vectors that move no parameter but those of these tensors. None: all.

    Raises
    ------
    InputError
        A name is not among the problem's tensors.
    """
    _check_state(flow, state)
    problem, theta = flow.problem, state.theta
    regularizer_hessian = flow.regularizer_hessian(theta)

    def product(v: Tensor) -> Tensor:
        curved = problem.hvp(theta, v)
        if curved.ndim == 1:
            return regularizer_hessian(v) + state.multiplier * curved
        return regularizer_hessian(v) + multipliers @ curved

    multipliers = torch.from_numpy(np.array(state.multipliers)).to(theta)
    free = tensor_subspace(problem, tensors)
    normals = state.gradients.reshape(-1, theta.numel())
    return Curvature("tangent", product, _orthogonal_to(normals, free), theta)


@arithmetic.without_autocast()
def normal_curvature(flow: RegularizingFlow, state: FlowState, direction: Tensor) -> float:
    """Normal curvature of the level set along a tangent direction: one Hessian-vector product.

    κ = −vᵀ∇²L v/‖∇L‖ for the unit vector v: the part along ∇L/‖∇L‖ of the acceleration of a curve
    on the level set that passes with velocity v and unit speed. Negative where the level set
    curves away from growing loss: −1/r on a sphere around the minimum. Of n constraints the normal
    part of that acceleration, −Nᵀ(NNᵀ)⁻¹(vᵀ∇²Lᵢv)ᵢ, has no one direction, and its length is
    returned. In units of 1/θ.

    Parameters
    ----------
    flow : RegularizingFlow
        Gives L.
    state : FlowState
        The point.
    direction : Tensor, shape (P,)
        Need not be of unit length, nor quite tangent: its tangent part is taken. NaN where that
        is zero.
    """
    _check_state(flow, state)
    check_like(direction, state.theta, "direction")
    tangent = flow.level_set.tangent(direction, state.gradients)
    norm = length(tangent)
    if norm == 0:
        return math.nan
    unit = tangent / norm
    curved = flow.problem.hvp(state.theta, unit) @ unit
    if curved.ndim == 0:
        return -float(curved) / state.gradient_norm
    return state.normals.distance(curved.to("cpu", torch.float64).numpy())


def _check_state(flow: RegularizingFlow, state: FlowState) -> None:
    kinds.check_kind(flow, RegularizingFlow, "flow", kinds.A_FLOW)
    kinds.check_kind(state, FlowState, "state", "what flow.evaluate(theta) returned")


def tensor_subspace(problem: ProblemLike, tensors: Sequence[str] | None) -> Subspace:
    """Return the parameters of some tensors, in flat order; None: all of them.

    Raises
    ------
    InputError
        No name, or one that is not among the problem's tensors.
    """
    if tensors is None:
        return Subspace(problem.n_parameters, lambda x: x, lambda v: v)
    known = [spec.name for spec in problem.tensors]
    network = network_of(problem)
    ties = tied_names(network) if network else {}
    chosen_names = [ties.get(name, name) for name in tensors]
    unknown = [name for name, own in zip(tensors, chosen_names, strict=True) if own not in known]
    if unknown or not tensors:
        what = f"has no {unknown[0]!r}" if unknown else "is empty"
        raise InputError(f"tensors={list(tensors)!r} {what}; choose from {', '.join(known)}")
    chosen = [
        torch.arange(s.offset, s.offset + math.prod(s.shape), device=problem.device)
        for s in problem.tensors
        if s.name in chosen_names
    ]
    index = torch.cat(chosen)
    like = problem.theta0
    return Subspace(
        len(index), lambda x: torch.zeros_like(like).index_copy(0, index, x), lambda v: v[index]
    )


def _orthogonal_to(normals: Tensor, space: Subspace) -> Subspace:
    """Vectors of a subspace that are orthogonal to the normals, shape (n, P)."""
    inside = torch.stack([space.coordinates(normal) for normal in normals])
    # In a small subspace normals that are independent in all of R^P may not be.
    _, sizes, rows = torch.linalg.svd(inside, full_matrices=False)
    eps = torch.finfo(inside.dtype).eps
    rows = rows[sizes > max(inside.shape) * eps * sizes[0]]
    rank = len(rows)
    if rank == 0:
        return space
    # Q takes the first axes to the span of the normals, and all others to what is orthogonal.
    reflections, factors = torch.geqrf(rows.T.contiguous())

    def embed(x: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x, (rank, 0))[:, None]
        return space.embed(torch.ormqr(reflections, factors, padded)[:, 0])

    def coordinates(v: Tensor) -> Tensor:
        inside = space.coordinates(v)[:, None]
        return torch.ormqr(reflections, factors, inside, transpose=True)[rank:, 0]

    return Subspace(space.size - rank, embed, coordinates)
