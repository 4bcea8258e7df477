"""Whether L jumps where a walk can go no further: no step is short enough across a jump."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geoflow.manifold.normals import Numbers
from geoflow.manifold.protocol import Flow
from geoflow.manifold.values import as_values
from geoflow.walking.counting import uncounted

# How far from θ is looked, in its roundings: the shortest step moves it by four.
BEHIND, AHEAD = (-64.0, -4.0), (4.0, 16.0, 64.0)
# A jump is so many times what L changes by on the side that the walk has come from, and no less
# than so many of its own roundings, or than the tolerance of the level.
TIMES, ROUNDINGS = 10.0, 1e3


def beside(flow: Flow, state: Any) -> str:
    """Say by how much L jumps within rounding of θ, on the way on; empty where it does not.

    Over so short a way a loss without a jump changes by its rounding only, beside a kink too. That
    costs six evaluations, which are not the walk's.

    Parameters
    ----------
    flow : Flow
        What was walked.
    state : State
        Where the walk stands.
    """
    theta, eps = state.theta, torch.finfo(state.theta.dtype).eps
    velocity = state.velocity[: theta.numel()]
    speed = float(torch.linalg.vector_norm(velocity))
    if not 0 < speed < math.inf:
        return ""
    rounding = eps * float(torch.linalg.vector_norm(theta)) / speed
    found: dict[float, Numbers] = {}

    def look(theta: Tensor) -> float:
        for n in (0.0, *BEHIND, *AHEAD):
            found[n] = as_values(flow.problem.loss(theta + n * rounding * velocity))
        return 0.0

    try:
        uncounted(flow, look)(theta)
    except Exception:
        # Whatever a loss raises where it has no value: why the walk has ended is known without.
        return ""
    before, after = (np.abs([found[n] - found[0] for n in side]) for side in (BEHIND, AHEAD))
    usual = np.maximum(flow.level_set.tolerances, ROUNDINGS * eps * abs(found[0]))
    # Of several constraints, that which jumps most.
    ratios = after.max(axis=0) / np.maximum(TIMES * before.max(axis=0), usual)
    which = int(np.argmax(ratios))
    if not 1 < ratios[which] < math.inf:
        return ""
    return (
        f"L jumps there by {after.max(axis=0)[which]:.3e}, as by top-k routing, argmax or round in "
        "the network, and no step is short enough across a jump"
    )
