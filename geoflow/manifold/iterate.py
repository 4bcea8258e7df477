"""A point of Newton's iteration along the normals."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from geoflow.errors import CriticalPointError
from geoflow.manifold.normals import NormalSpace, Numbers, normal_space
from geoflow.manifold.values import as_values


class Iterate:
    """A point of Newton's iteration, and what follows from L and ∇L there.

    Parameters
    ----------
    theta : Tensor, shape (P,)
        The point.
    loss, gradients : float and Tensor of shape (P,), or Tensors of shapes (n,) and (n, P)
        L and ∇L there.
    levels, scales : ndarray, shape (n,)
        The levels, and what residuals are relative to.

    Attributes
    ----------
    levels, values, residuals : ndarray, shape (n,)
        c, L, and L − c.
    size : float
        The largest residual relative to its scale.
    """

    def __init__(
        self,
        theta: Tensor,
        loss: Tensor | float,
        gradients: Tensor,
        levels: Numbers,
        scales: Numbers,
    ) -> None:
        self.theta, self.gradients, self.levels = theta, gradients, levels
        self.values = as_values(loss)
        self.residuals = self.values - levels
        # The largest relative to its level, by which each constraint counts the same.
        self.size = float(np.max(abs(self.residuals) / scales))

    @cached_property
    def normals(self) -> NormalSpace:
        """The normal space."""
        return normal_space(self.gradients)

    @cached_property
    def step(self) -> Tensor:
        """Newton's step, to be subtracted."""
        return self.normals.step(self.residuals)

    @property
    def tiny(self) -> bool:
        """Whether that step is too short to matter, if rounding spoils it."""
        eps = torch.finfo(self.theta.dtype).eps
        norm = float(torch.linalg.vector_norm(self.theta))
        regular = self.normals.norms.all() and math.isfinite(self.size)
        return bool(regular) and self.normals.distance(self.residuals) <= math.sqrt(eps) * norm

    @property
    def rounding(self) -> Numbers:
        """What one unit of rounding in L and in θ makes of the residuals, shape (n,)."""
        norm = float(torch.linalg.vector_norm(self.theta))
        eps: float = torch.finfo(self.theta.dtype).eps
        return eps * (abs(self.levels) + self.normals.norms * norm)

    def check_regular(self) -> None:
        """Refuse a point from which no normal leads anywhere.

        Raises
        ------
        CriticalPointError
            A gradient vanishes to rounding, beside its loss or beside its level.
        """
        scale = max(float(torch.linalg.vector_norm(self.theta)), 1.0)
        eps = torch.finfo(self.theta.dtype).eps
        sizes = np.maximum(abs(self.values), abs(self.levels))
        for loss, norm, size, level in zip(
            self.values, self.normals.norms, sizes, self.levels, strict=True
        ):
            if norm * scale > eps * size:
                continue
            if norm * scale > eps * abs(loss):
                raise CriticalPointError(
                    f"the loss gradient (norm {norm:.1e} at loss {loss:.6g}) is nothing beside the "
                    f"level {level:.6g}, which is out of reach; choose a level the loss can reach"
                )
            raise CriticalPointError(
                f"the loss gradient vanishes (norm {norm:.1e} at loss {loss:.6g}): the "
                "level set is not a manifold there; start elsewhere or choose another level"
            )
