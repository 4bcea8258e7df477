"""Whether a walk has come to the least R there is, and that lies at its level."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError
from geoflow.manifold.flows import RegularizingFlow
from geoflow.manifold.protocol import Flow
from geoflow.problems.scaling import length
from geoflow.walking.counting import uncounted


def is_at_the_level(flow: Flow, state: Any) -> bool:
    """Whether R has its minimum on the level set, next to θ, to within the level's tolerance.

    There ∇R is zero, so what a walk comes to is its rounding, or what is left of it where θ is a
    little off the level, and angle and λ are of any kind. They say nothing where λ has another sign
    at the far end of what counts as the level, along its normal: that costs two evaluations, which
    are not the walk's. On several constraints see :func:`no_gradient_left`.

    Parameters
    ----------
    flow : Flow
        Of another kind than :class:`~geoflow.RegularizingFlow` it is not known.
    state : State
        Where the walk stands.
    """
    if not isinstance(flow, RegularizingFlow):
        return False
    if flow.level_set.n_constraints > 1:
        return no_gradient_left(flow, state)
    residual, tolerance = flow.level_set.residual(state.loss), flow.level_set.tolerance

    def multiplier_at(theta: Tensor) -> float:
        return flow.evaluate(theta).multiplier

    try:
        below, above = (
            float(uncounted(flow, multiplier_at)(state.theta - state.normals.step(to_there)))
            for to_there in (np.array([residual + tolerance]), np.array([residual - tolerance]))
        )
    except (ConvergenceError, CriticalPointError):
        return False
    return below >= 0 >= above


def no_gradient_left(flow: Flow, state: Any) -> bool:
    """Whether ∇R says nothing next to θ, on whatever constraints: R is at its minimum, or nearly.

    So it is where it changes by as much as it is over a way as long as what counts as the level.
    That way is up R, where no kink of a convex R lies. It costs an evaluation, which is not the
    walk's.

    Parameters
    ----------
    flow : Flow
        Of another kind than :class:`~geoflow.RegularizingFlow` it is not known.
    state : State
        Where the walk stands.
    """
    if not isinstance(flow, RegularizingFlow):
        return False
    gradient = state.regularizer_gradient
    size = length(gradient)
    if size == 0:
        return True
    way = state.normals.distance(flow.level_set.tolerances) / size

    def change_at(theta: Tensor) -> float:
        return length(flow.evaluate(theta).regularizer_gradient - gradient)

    try:
        change = uncounted(flow, change_at)(state.theta + way * gradient)
    except Exception:
        # Whatever a user's function raises where it has no value.
        return False
    return size <= float(change)
