"""How far levels are apart: in log L on one side of L = 0, and in L where that lies between."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """On which the way from one level to another is divided.

    Attributes
    ----------
    sign : float
        1 or −1 in log ±L, of levels that are all positive or all negative; 0 in L.
    """

    sign: float

    @classmethod
    def between(cls, a: float, b: float) -> Scale:
        """That of the way between two levels."""
        return cls(math.copysign(1.0, a) if same_side(a, b) else 0.0)

    def distance(self, a: float, b: float) -> float:
        """Between two levels."""
        return abs(self._place(a) - self._place(b))

    def towards(self, goal: float, at: float, length: float) -> float:
        """The level so far from one towards another, or that itself where it is no farther."""
        here, there = self._place(at), self._place(goal)
        if abs(there - here) <= length * (1 + 1e-9):
            return goal
        place = here + math.copysign(length, there - here)
        return self.sign * math.exp(place) if self.sign else place

    def _place(self, level: float) -> float:
        return math.log(self.sign * level) if self.sign else level


def same_side(a: float, b: float) -> bool:
    """Whether two losses are both positive or both negative."""
    return a > 0 < b or a < 0 > b


def away(loss: float, level: float) -> float:
    """How far a loss is above a level: in log L, or where L = 0 lies between in the larger one."""
    if same_side(loss, level) and 0 < loss / level < math.inf:
        return math.copysign(math.log(loss / level), loss - level)
    return (loss - level) / max(abs(loss), abs(level)) if loss != level else 0.0
