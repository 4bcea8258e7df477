"""Points reached on a branch of the path, and whether two of them are on the same one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from geoflow.errors import BranchError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.paths.corrector import away

# A point that is farther from the one before may lie on another branch: a level in between shows
# whether the path leads there. In units of ‖θ‖; and of ‖θ‖ √|Δ log L|, since near a fold a path
# goes as the square root of the level (networks' paths go up to 0.75 of it), with as many times
# the way along the normals.
FAR, FAR_FOR_LEVEL, FAR_ALONG_NORMAL = 0.5, 1.0, 2.0


@dataclass(frozen=True)
class Reached:
    """A KKT point, and how it was reached.

    Attributes
    ----------
    state : FlowState
        There.
    flow : RegularizingFlow
        On its level.
    method : str
        ``corrector``, or ``walk`` where the flow was needed for it, or ``arclength``.
    n_between : int
        Levels gone through on the way.
    n_corrections : int
        Corrections made on the way.
    """

    state: FlowState
    flow: RegularizingFlow
    method: str
    n_between: int = 0
    n_corrections: int = 0

    @property
    def c(self) -> float:
        """The level."""
        return self.flow.level_set.level


class FarError(Exception):
    """A point is far from the one before: a level in between is wanted."""


def check_near(before: Reached, after: Reached) -> None:
    """Refuse a point that may lie on another branch than the one before.

    Raises
    ------
    FarError
        It is far from that.
    """
    old, new = before.state.theta, after.state.theta
    norm = float(torch.linalg.vector_norm(old))
    slope = min(before.state.gradient_norm, after.state.gradient_norm)
    allowed = FAR_FOR_LEVEL * norm * math.sqrt(abs(away(before.c, after.c)))
    allowed += FAR_ALONG_NORMAL * abs(after.c - before.c) / slope
    if float(torch.linalg.vector_norm(new - old)) > min(FAR * norm, allowed):
        raise FarError


def check_no_fold(before: Reached, after: Reached) -> None:
    """Refuse a point to which the path does not lead, however near the levels.

    Raises
    ------
    BranchError
        It is on another branch.
    """
    try:
        check_near(before, after)
    except FarError:
        raise BranchError(
            f"the path folds between L = {before.c:.6g} and L = {after.c:.6g}: beyond, the "
            "flow leads to another branch",
            status="fold",
        ) from None
