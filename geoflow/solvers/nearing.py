"""The start of a step, nearer to the level set where its distance is not small beside the step."""

from __future__ import annotations

import numpy as np
import torch

from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.solvers.base import norm
from geoflow.solvers.control import TOO_FAR

# A distance that is small beside a length, over it; one re-projection comes to half of that.
SMALL = 0.1
# Nothing nearer is asked for than so many units of rounding of L.
UNITS_OF_ROUNDING = 1e3


def nearer(flow: RegularizingFlow, state: FlowState, length: float) -> tuple[FlowState, int]:
    """Re-project the start of a step where it is not near the level set beside a length.

    A point is on the level set to its tolerance, which in units of θ is tolerance/‖∇L‖. Where ∇L is
    small beside L, as near the minimum of a loss that is not zero there, that may be more than the
    error allowed of a step, or than a step is long; and unlike the error of a step it is no less
    for a shorter one.

    Parameters
    ----------
    flow : RegularizingFlow
        Re-projects: one gradient, mostly.
    state : FlowState
        Where a step is to begin.
    length : float
        In units of θ.

    Returns
    -------
    FlowState
        The same one where it is near enough, or rounding lets it be no nearer.
    int
        Newton's corrections.
    """
    level_set = flow.level_set
    residuals = level_set.residuals(state.values)
    distance = state.normals.distance(residuals)
    if distance <= SMALL * length:
        return state, 0
    size = float(np.max(abs(residuals) / level_set.scales))
    rounded = abs(level_set.levels) + state.gradient_norms * norm(state.theta)
    least = UNITS_OF_ROUNDING * torch.finfo(state.theta.dtype).eps * rounded / level_set.scales
    rtol = max(size * SMALL / 2 * length / distance, float(least.max()))
    if rtol > size / 2:
        return state, 0
    try:
        found, projection = flow.project(
            state.theta, evaluated=state.evaluated, max_displacement=2 * distance, rtol=rtol
        )
    except TOO_FAR as failure:
        return state, getattr(failure, "iterations", 0)
    return found, projection.iterations


def unresolved(flow: RegularizingFlow, state: FlowState, length: float) -> str:
    """Say that rounding leaves a start too far from the level set for a step of a length, if so.

    Of a step that is short beside θ nothing is said: whatever made it so short did so before.
    """
    distance = state.normals.distance(flow.level_set.residuals(state.values))
    shortest = torch.finfo(state.theta.dtype).eps ** 0.75 * norm(state.theta)
    if distance <= SMALL * length or length < shortest:
        return ""
    return (
        f"rounding of L leaves θ {distance:.1e} beside the level set, which is not small beside a "
        "step; use float64, or choose a level further from the minimum"
    )
