"""A point of Newton's iteration along the normals."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

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
    values, residuals : ndarray, shape (n,)
        L, and L − c.
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
        self.theta, self.gradients = theta, gradients
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
