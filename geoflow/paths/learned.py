"""What a path knows beside its points: the curvature learned on the way, and where it goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import ArchiveError
from geoflow.paths.tangent_solver import PAIRS, LossCurvature
from geoflow.solvers.base import Carry
from geoflow.solvers.multistep.secant import SecantPairs
from geoflow.system.translation import reason

# Flow time of the first relaxation, in units of the flow's own, and change of log L that the first
# move makes.
FIRST_TIME, FIRST_REACH = 0.05, math.log(2.0)
OF_BEARING = ("direction", "stride", "rising")


@dataclass(frozen=True)
class Bearing:
    """Where a branch goes on from a point of it.

    Attributes
    ----------
    direction : Tensor, shape (P,)
        Unit tangent of the branch, in the sense in which it is followed.
    stride : float
        Arc length of the next stride, in θ.
    rising : float
        1 where L rises on it from here, −1 where it falls.
    """

    direction: Tensor
    stride: float
    rising: float

    def pack(self) -> dict[str, NDArray[Any]]:
        """As arrays, from which :meth:`unpack` makes it again."""
        numbers = {"stride": np.array(self.stride), "rising": np.array(self.rising)}
        return {"direction": self.direction.cpu().numpy(), **numbers}

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], like: Tensor) -> Bearing:
        """Make it again, on the device of ``like``."""
        direction = torch.from_numpy(arrays["direction"].copy()).to(like)
        if direction.shape != like.shape:
            raise ValueError("a direction of another length")
        return cls(direction, float(arrays["stride"]), float(arrays["rising"]))


@dataclass
class Learned:
    """What one level has taught for the next.

    Attributes
    ----------
    curvature : LossCurvature
        Of ∇²L.
    time : float
        τ, flow time of the next relaxation, in units of :attr:`FlowState.time_scale`.
    reach : float
        Change of log L that one move may make.
    bearing : Bearing, optional
        Where the branch goes on, of a point that was come to along its arc.
    """

    curvature: LossCurvature
    time: float = FIRST_TIME
    reach: float = FIRST_REACH
    bearing: Bearing | None = None

    @classmethod
    def unknown(cls, n_parameters: int) -> Learned:
        """Nothing is known yet."""
        return cls(LossCurvature.unknown(n_parameters))

    def pack(self) -> dict[str, NDArray[Any]]:
        """As arrays, from which :meth:`unpack` makes it again."""
        carry = self.curvature.pairs.pack()
        arrays = {
            name: torch.as_tensor(value, device="cpu").numpy() for name, value in carry.items()
        }
        of_bearing = {} if self.bearing is None else self.bearing.pack()
        numbers = {"time": np.array(self.time), "reach": np.array(self.reach)}
        return {**arrays, **numbers, **of_bearing}

    @classmethod
    def unpack(cls, arrays: Mapping[str, NDArray[Any]], like: Tensor) -> Learned:
        """Make it again, on the device of ``like``.

        Raises
        ------
        ArchiveError
            The arrays are not those of a path of as many parameters.
        """
        try:
            carry: Carry = {
                name: torch.from_numpy(array.copy()).to(like.device)
                for name, array in arrays.items()
                if name not in ("time", "reach", *OF_BEARING)
            }
            pairs = SecantPairs.unpack(carry, min(PAIRS, like.numel()))
            rows = [] if pairs.directions is None else [pairs.directions.rows]
            if any(block.shape[1:] != like.shape for block in [*pairs.blocks, *rows]):
                raise ValueError("vectors of another length")
            bearing = Bearing.unpack(arrays, like) if "direction" in arrays else None
            numbers = float(arrays["time"]), float(arrays["reach"])
            return cls(LossCurvature(pairs), *numbers, bearing)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArchiveError(
                f"what a path goes on with cannot be used ({reason(error)})"
            ) from None
