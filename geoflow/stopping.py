"""When a walk ends: criteria over the records of its accepted steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from geoflow.errors import InputError

# The scalars of one accepted step, by their names in the dataset.
Record = Mapping[str, float]


class Stop(Protocol):
    """A stopping criterion: a status and a message, or None to go on."""

    def __call__(self, records: Sequence[Record]) -> tuple[str, str] | None:
        """Judge the walk by all its accepted steps, the latest last."""

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""


class Stationary:
    """The angle between ∇R and ∇L has come to ``degrees``: close to a KKT point.

    Tested on the relative KKT residual ‖Π∇R‖/‖∇R‖ = sin(angle), with λ > 0.

    Parameters
    ----------
    degrees : float
        Angle, above 90 and below 180.

    Raises
    ------
    InputError
        An angle that does not lie between 90 and 180.
    """

    def __init__(self, degrees: float = 175.0) -> None:
        if not 90 < degrees < 180:
            raise InputError(f"degrees={degrees}; use an angle between 90 and 180")
        self.degrees = float(degrees)

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"degrees": self.degrees}

    def __call__(self, records: Sequence[Record]) -> tuple[str, str] | None:
        """Judge the latest step."""
        last = records[-1]
        # With t = ‖Π∇R‖ and n = λ‖∇L‖ the normal part of −∇R, sin(angle) = t/√(t² + n²).
        tangent, normal = last["tangent_norm"], last["multiplier"] * last["gradient_norm"]
        if normal <= 0 or tangent > math.hypot(tangent, normal) * math.sin(
            math.radians(180 - self.degrees)
        ):
            return None
        return "stationary", f"the angle between ∇R and ∇L reached {last['angle']:.3f}°"


class Plateau:
    """R has fallen by less than ``rtol``·R over the last ``window`` of flow time.

    Parameters
    ----------
    window : float
        Flow time, > 0.
    rtol : float
        Relative fall of R below which the walk ends, > 0.

    Raises
    ------
    InputError
        A parameter that is not positive.
    """

    def __init__(self, window: float = 1.0, rtol: float = 1e-4) -> None:
        for name, value in (("window", window), ("rtol", rtol)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}; use a positive number")
        self.window = float(window)
        self.rtol = float(rtol)

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"window": self.window, "rtol": self.rtol}

    def __call__(self, records: Sequence[Record]) -> tuple[str, str] | None:
        """Judge the latest step against the one a window earlier."""
        last = records[-1]
        start = last["time"] - self.window
        if records[0]["time"] > start:
            return None
        before = next(r for r in reversed(records) if r["time"] <= start)
        fall = before["regularizer"] - last["regularizer"]
        if fall >= self.rtol * abs(before["regularizer"]):
            return None
        return "plateau", f"R fell by {fall:.3g} over the last {self.window:g} of flow time"
