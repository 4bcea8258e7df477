"""Points reached on a branch of the path, and whether two of them are on the same one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from geoflow.errors import BranchError
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow

# On one branch dR/dc = −λ (the envelope theorem): R falls from one point to the next by between the
# lesser and the greater of their λ times Δc where λ is monotone, whatever the units of L, R and θ
# and wherever the origin of θ. λ need not be monotone: it may lie outside by this factor, or where
# the levels are near, by the second before the point is taken to be of another branch.
MARGIN, MARGIN_NEARBY = 1.25, 2.0
# A point where ∇R has changed by more than this part of itself is far: R alone may then agree by
# chance, also beyond two folds. For ‖θ‖² it is half of ‖θ‖.
FAR = 0.5
# L and R are known to so many units of rounding.
ROUNDING = 100


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
    """A point is far from the one before: a level in between is wanted.

    Attributes
    ----------
    told : bool
        Whether R has fallen as λ says, so that it may well be of the same branch.
    """

    def __init__(self, *, told: bool = False) -> None:
        super().__init__()
        self.told = told


def check_near(before: Reached, after: Reached) -> None:
    """Refuse a point that may lie on another branch than the one before.

    Raises
    ------
    FarError
        R has not fallen as λ says, or ∇R has changed by much.
    """
    if not _falls_as_told(before.state, after.state, MARGIN):
        raise FarError
    old, new = before.state.regularizer_gradient, after.state.regularizer_gradient
    change, size = torch.linalg.vector_norm(new - old), torch.linalg.vector_norm(old)
    if float(change) > FAR * float(size):
        raise FarError(told=True)


def check_no_fold(before: Reached, after: Reached) -> None:
    """Refuse a point on a level nearby that is on another branch.

    Raises
    ------
    BranchError
        R has changed as it does on no branch with these λ at its ends.
    """
    if not _falls_as_told(before.state, after.state, MARGIN_NEARBY):
        raise BranchError(
            f"the path folds between L = {before.c:.6g} and L = {after.c:.6g}: beyond, the "
            "flow leads to another branch",
            status="fold",
        )


def _falls_as_told(old: FlowState, new: FlowState, margin: float) -> bool:
    """Whether R falls from one point to another by what λ says at both."""
    rise, fall = new.loss - old.loss, old.regularizer - new.regularizer
    least, most = sorted((old.multiplier, new.multiplier))
    low, high = sorted((least / margin * rise, most * margin * rise))
    uncertainty = _uncertainty(old, new)
    return low - uncertainty <= fall <= high + uncertainty


def _uncertainty(old: FlowState, new: FlowState) -> float:
    """By how much R may fall otherwise, as neither is a KKT point to the last digit.

    Along any curve dR = −λ dL + Π∇R·dθ. The last, on the straight way, is at most the mean ‖Π∇R‖
    times its length; twice that is allowed, as the way is curved.
    """
    length = float(torch.linalg.vector_norm(new.theta - old.theta))
    known = abs(old.regularizer) + abs(new.regularizer)
    known += max(old.multiplier, new.multiplier) * (abs(old.loss) + abs(new.loss))
    rounding = ROUNDING * torch.finfo(new.theta.dtype).eps * known
    return (old.tangent_norm + new.tangent_norm) * length + rounding
