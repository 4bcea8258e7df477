"""Vector fields on the level set."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError, InputError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.level_set import MAX_ITERATIONS, SMALLER_STEPS, LevelSet
from geoflow.manifold.linearization import TangentHessian
from geoflow.manifold.normals import Numbers, normal_space, tangent
from geoflow.manifold.projection import Projection
from geoflow.manifold.protocol import Scalar
from geoflow.manifold.regularizers.bound import as_earlier, bytes_of
from geoflow.manifold.regularizers.checked import check_regularizer
from geoflow.manifold.regularizers.named import bound, get, name_of
from geoflow.manifold.values import Evaluated, as_values
from geoflow.problems import arithmetic, unchanged
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.protocol import ProblemLike
from geoflow.problems.scaling import length
from geoflow.system import kinds

SCALARS: Mapping[str, Scalar] = MappingProxyType(
    {
        "train_loss": Scalar("training loss L", "1"),
        "level_residual": Scalar("training loss less the level, L - c", "1"),
        "level_distance": Scalar("first-order distance |L - c|/|grad L| from the level set", "1"),
        "regularizer": Scalar("regularisation function R", "1"),
        "multiplier": Scalar("Lagrange multiplier", "1"),
        "angle": Scalar("angle between grad R and grad L", "degree"),
        "gradient_norm": Scalar("norm of the loss gradient", "1"),
        "tangent_norm": Scalar("norm of the tangent part of grad R", "1"),
    }
)


SCALARS_OF_SEVERAL: Mapping[str, Scalar] = MappingProxyType(
    {
        "train_loss": Scalar("mean of the constraints' losses", "1"),
        "level_residual": Scalar("residual of the constraint furthest from its level", "1"),
        "level_distance": Scalar("first-order distance from the level set", "1"),
        "regularizer": SCALARS["regularizer"],
        "multiplier": Scalar("norm of the normal part of grad R over gradient_norm", "1"),
        "angle": Scalar("angle between grad R and its normal part turned round", "degree"),
        "gradient_norm": Scalar("smallest norm of a constraint's gradient", "1"),
        "tangent_norm": SCALARS["tangent_norm"],
    }
)

# Of Newton's damped iteration from a θ whose loss is far from the level.
START_ITERATIONS = 200
# Rounding of a projected gradient, in units of its dtype's resolution and of its norm.
UNITS_OF_ROUNDING = 4


class RegularizingFlow:
    """dθ/dt = −(I − g gᵀ/(g·g)) ∇R(θ): down R, along the level set of L.

    On a level set of n > 1 constraints it is −(I − Nᵀ(NNᵀ)⁻¹N) ∇R(θ), N with rows ∇Lᵢ.

    Parameters
    ----------
    level_set : LevelSet
        M, with its problem or problems.
    regularizer : callable, Regularizer or ProblemLike
        R: Tensor (P,) → scalar Tensor, differentiable by autograd; one of
        :mod:`geoflow.regularizers <geoflow.manifold.regularizers>`, with its options, or its text
        as :func:`geoflow.regularizers.get <geoflow.manifold.regularizers.named.get>` reads it; or a
        problem of the same parameters, whose loss is R.

    Raises
    ------
    InputError
        R is not a finite scalar at ``theta0``, its gradient there is not that of its values, or it
        does not fit the problem.

    Examples
    --------
    On a circle of radius 2 down the distance from (3, 0), from its left half:

    >>> theta0 = torch.tensor([-1.2, 1.6], dtype=torch.float64)
    >>> problem = gf.Problem.from_function(lambda theta: theta.square().sum(), theta0)
    >>> there = torch.tensor([3.0, 0.0], dtype=torch.float64)
    >>> flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - there).square().sum())
    >>> state, _ = flow.start(theta0)
    >>> bool(abs(state.gradient @ state.velocity) < 1e-12)  # it is along the circle
    True
    """

    @arithmetic.without_autocast()
    def __init__(self, level_set: LevelSet, regularizer: Any) -> None:
        kinds.check_kind(level_set, LevelSet, "level_set", "a gf.LevelSet of the problem")
        self.level_set = level_set
        self.problem: ProblemLike = level_set.problem
        self.regularizer = get(regularizer) if isinstance(regularizer, str) else regularizer
        self._bound = bound(self.regularizer, self.problem)
        check_regularizer(self._bound, self.problem.theta0)

    def __repr__(self) -> str:
        return f"RegularizingFlow(down {self.regularizer_name} on {self.level_set!r})"

    def __getstate__(self) -> dict[str, Any]:
        # Made for the problem by functions inside others, which pickle does not take.
        return {name: value for name, value in vars(self).items() if name != "_bound"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._bound = bound(self.regularizer, self.problem)

    def on(self, level_set: LevelSet) -> RegularizingFlow:
        """The flow down the same R on another level set of the same problem.

        What R evaluates is what it was, and goes on counting.
        """
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        other.level_set, other.problem = level_set, level_set.problem
        return other

    @property
    def scalars(self) -> Mapping[str, Scalar]:
        """What a walk records of it at every step, beside :meth:`constraint_values`."""
        return SCALARS if self.level_set.n_constraints == 1 else SCALARS_OF_SEVERAL

    @property
    def regularizer_name(self) -> str:
        """Name of R in archives."""
        return name_of(self.regularizer)

    @property
    def regularizer_problems(self) -> tuple[ProblemLike, ...]:
        """Problems that R evaluates and the level set does not: they are counted apart."""
        of_level_set = (self.problem, *getattr(self.problem, "problems", ()))
        found = self._bound.problems
        return tuple(p for p in found if not any(p is other for other in of_level_set))

    @property
    def regularizer_bytes(self) -> int:
        """Bytes that an evaluation of R holds, where it is of higher derivatives of a loss."""
        return bytes_of(self._bound)

    @arithmetic.without_autocast()
    def state(self, theta: Tensor, loss: Tensor | Numbers | float, gradient: Tensor) -> FlowState:
        """Complete L and ∇L at θ to a state; costs R and ∇R.

        Raises
        ------
        ConvergenceError
            L, R or one of their gradients is not finite.
        CriticalPointError
            ∇L vanishes, or the gradients of several constraints are dependent to rounding.
        """
        return self._completed(theta, loss, gradient, *self._bound.value_and_gradient(theta))

    @arithmetic.without_autocast()
    def earlier_state(self, state: FlowState) -> FlowState | None:
        """The same with R and ∇R as earlier versions computed them; None where that is no other.

        For archives alone, whose records tell by it which R they are of.
        """
        found = as_earlier(self._bound, state.theta)
        if found is None:
            return None
        loss = state.values if len(state.values) > 1 else state.loss
        return self._completed(state.theta, loss, state.gradients, *found)

    def _completed(
        self,
        theta: Tensor,
        loss: Tensor | Numbers | float,
        gradient: Tensor,
        r_value: Tensor,
        r_gradient: Tensor,
    ) -> FlowState:
        values, regularizer = as_values(loss), float(r_value)
        try:
            normals = normal_space(gradient)
            normal, velocity, tangent_norm = tangent(r_gradient, normals)
        except CriticalPointError:
            # Where L is no number its gradient is often zero: what is missing there is L.
            if not np.isfinite(values).all():
                raise _not_finite(values, gradient, regularizer, r_gradient) from None
            raise
        finite = math.isfinite(tangent_norm) and math.isfinite(regularizer)
        if not (finite and np.isfinite(values).all()):
            raise _not_finite(values, gradient, regularizer, r_gradient)
        return FlowState(
            theta=theta,
            values=values,
            gradients=gradient,
            gradient_norms=normals.norms,
            regularizer=regularizer,
            regularizer_gradient=r_gradient,
            velocity=velocity,
            multipliers=normal.multipliers,
            tangent_norm=tangent_norm,
            # atan2, not arccos: near 180° float32 resolves an arccos to 0.02° only.
            angle=math.degrees(math.atan2(tangent_norm, normal.component)),
            normals=normals,
        )

    @arithmetic.without_autocast()
    def start(self, theta: Tensor) -> tuple[FlowState, Projection]:
        """State at the beginning of a walk: at the re-projection of θ, from however far.

        Raises
        ------
        InputError
            R or L is of so small a scale that the square of its gradient's norm underflows; or the
            loss at ``theta0``, of a problem of R too, is another than when its problem was made.
        ConvergenceError, CriticalPointError
            The level is not reached, or L, R or one of their gradients is not finite there; or ∇L
            vanishes. See :meth:`geoflow.LevelSet.project`.
        EvaluationLimitError
            A budget is spent.
        """
        theta = theta.detach()
        evaluated = self.problem.value_and_gradient(theta)
        unchanged.check(self.problem, theta, evaluated[0])
        for problem in self.regularizer_problems:
            unchanged.check(problem)
        try:
            projection = self.level_set.project(
                theta, evaluated=evaluated, max_iterations=START_ITERATIONS
            )
        except ConvergenceError as error:
            # Here there are no steps yet.
            start = ", ".join(f"{value:.6g}" for value in as_values(evaluated[0]))
            remedy = (
                f"train further, or choose a level the loss can reach, nearer to the L = {start}"
            )
            raise ConvergenceError(
                str(error).replace(SMALLER_STEPS, f"{remedy} of the start"),
                iterations=error.iterations,
                residual=error.residual,
                reason=error.reason,
            ) from None
        state = self.state(projection.theta, projection.values, projection.gradients)
        _check_scale("regularizer", length(state.regularizer_gradient), theta.dtype)
        for norm in state.gradient_norms:
            _check_scale("loss", float(norm), theta.dtype)
        return state, projection

    def evaluate(self, theta: Tensor) -> FlowState:
        """State at θ as it is, on the level set or not: one gradient a constraint.

        Raises
        ------
        InputError
            θ has another shape, dtype or device than the problem's.
        ConvergenceError, CriticalPointError
            See :meth:`state`.
        EvaluationLimitError
            A budget is spent.
        """
        return self.state(theta, *self.problem.value_and_gradient(theta))

    def project(
        self,
        theta: Tensor,
        *,
        evaluated: Evaluated | None = None,
        max_displacement: float = math.inf,
        max_iterations: int = MAX_ITERATIONS,
        rtol: float | None = None,
    ) -> tuple[FlowState, Projection]:
        """State at the re-projection of θ, undamped; see :meth:`geoflow.LevelSet.project`.

        Raises
        ------
        InputError, ConvergenceError, CriticalPointError, EvaluationLimitError
            See there, and :meth:`state` of the point.
        """
        projection = self.level_set.project(
            theta,
            evaluated=evaluated,
            max_displacement=max_displacement,
            max_iterations=max_iterations,
            rtol=rtol,
            damped=False,
        )
        return self.state(projection.theta, projection.values, projection.gradients), projection

    def at_rest(self, state: FlowState) -> bool:
        """Whether Π∇R is no more than its own rounding, and the velocity, where it is another."""
        rounding = UNITS_OF_ROUNDING * torch.finfo(state.theta.dtype).eps
        least = rounding * length(state.regularizer_gradient)
        return state.tangent_norm <= least and length(state.velocity) <= least

    def values(self, state: FlowState) -> dict[str, float]:
        """The :attr:`scalars` of a state."""
        if len(state.values) > 1:
            return self._values_of_several(state)
        residual = self.level_set.residual(state.loss)
        return {
            "train_loss": state.loss,
            "level_residual": residual,
            "level_distance": abs(residual) / state.gradient_norm,
            "regularizer": state.regularizer,
            "multiplier": state.multiplier,
            "angle": state.angle,
            "gradient_norm": state.gradient_norm,
            "tangent_norm": state.tangent_norm,
        }

    def _values_of_several(self, state: FlowState) -> dict[str, float]:
        residuals = self.level_set.residuals(state.values)
        smallest = float(state.gradient_norms.min())
        # Its length, whatever the signs of the multipliers: the constraints are equations.
        part = length(state.regularizer_gradient + state.velocity)
        return {
            "train_loss": float(state.values.mean()),
            "level_residual": float(residuals[np.argmax(abs(residuals) / self.level_set.scales)]),
            "level_distance": state.normals.distance(residuals),
            "regularizer": state.regularizer,
            "multiplier": part / smallest,
            "angle": math.degrees(math.atan2(state.tangent_norm, -part)),
            "gradient_norm": smallest,
            "tangent_norm": state.tangent_norm,
        }

    def constraint_values(self, state: FlowState) -> dict[str, Numbers]:
        """What a walk records of each of several constraints: arrays of shape (n,)."""
        return {
            "constraint_residual": self.level_set.residuals(state.values),
            "constraint_multiplier": state.multipliers,
        }

    def linearization(self, state: FlowState) -> TangentHessian:
        """A = Π(∇²R + Σ λᵢ∇²Lᵢ)Π, to which −∂velocity/∂θ comes down on the tangent space."""
        return TangentHessian(self, state)

    def regularizer_hessian(
        self, theta: Tensor, gradient: Tensor | None = None
    ) -> Callable[[Tensor], Tensor]:
        """∇²R(θ), as a function of a vector (P,) that returns its product (P,).

        Of a function of θ alone exact, by autograd, at no evaluation; of one that evaluates
        problems by differences of ∇R, which ``gradient`` is at θ, where it is known.
        """
        return self._bound.hessian(theta, gradient)


def _not_finite(
    values: Numbers, gradients: Tensor, regularizer: float, regularizer_gradient: Tensor
) -> ConvergenceError:
    """Say what is not finite where there is no state."""
    norms = torch.linalg.vector_norm(torch.atleast_2d(gradients), dim=-1).tolist()
    r_norm = float(torch.linalg.vector_norm(regularizer_gradient))
    found = [("R", regularizer), ("‖∇R‖", r_norm)]
    found += [("L", float(value)) for value in values] + [("‖∇L‖", norm) for norm in norms]
    said = {name: f"{name} = {value}" for name, value in found if not math.isfinite(value)}
    return ConvergenceError(
        f"{' and '.join(said.values()) or 'the velocity is not finite'} at a trial point, and must "
        "be finite near the walk; choose another L or R, or end the walk before by t_end",
        iterations=0,
        residual=math.nan,
        reason="not_finite",
    )


def check_single(flow: RegularizingFlow, what: str) -> None:
    """Make sure that a flow is on the level set of a single constraint.

    Raises
    ------
    InputError
        There are several.
    """
    n = flow.level_set.n_constraints
    if n > 1:
        raise InputError(
            f"flow: its level set has {n} constraints, and {what} takes one; make it of the loss "
            "of all examples"
        )


def _check_scale(name: str, norm: float, dtype: torch.dtype) -> None:
    """Refuse what solvers could not tell from nothing.

    Raises
    ------
    InputError
        Names the scale.
    """
    if 0 < norm < math.sqrt(torch.finfo(dtype).tiny):
        raise InputError(
            f"{name}: its gradient at the start has norm {norm:.1e}, whose square "
            f"{dtype_name(dtype)} does not hold; multiply the {name} by some "
            f"1e{-round(math.log10(norm))}"
        )
