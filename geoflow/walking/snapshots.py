"""At which points of a walk θ is kept: at exact times, or evenly in arc length."""

from __future__ import annotations

import bisect
import math
from typing import Protocol

from geoflow.errors import InputError, NumericalError
from geoflow.system import kinds
from geoflow.system.kinds import Reals

# Times that the settings of an archive hold, and multiples that one step may have in it.
MOST_TIMES, MOST_IN_A_STEP = 40_000, 100_000
OR_EVERY = ", or snapshot_every"
# Whole numbers of which the next is another.
RESOLVED = 2.0**53


class SnapshotRule(Protocol):
    """Decides which accepted steps keep their θ.

    What it decides follows from the steps it has been offered and from nothing else, so that a
    resumed walk finds its rule again by offering the recorded steps anew.
    """

    def next_time(self, time: float) -> float:
        """Return the next flow time after ``time`` at which θ is kept; inf for none.

        It lies between the steps, where none happens to end at it.
        """

    def offer(self, step: int, time: float, arc_length: float) -> tuple[bool, list[int]]:
        """Judge an accepted step: keep its θ, and which kept steps to drop for it."""

    @property
    def keeps_last(self) -> bool:
        """Whether the last step of a walk is kept whatever the rule says of it."""


def between(rule: SnapshotRule, before: float, time: float) -> list[float]:
    """Flow times within a step at which a rule keeps θ, its ends left out.

    Raises
    ------
    NumericalError
        There are too many; in the first step of a walk it is an InputError.
    """
    if isinstance(rule, Every) and (time - before) / rule.interval > MOST_IN_A_STEP:
        # In the first step of a walk nothing is lost: the argument is refused.
        raise (NumericalError if before else InputError)(
            f"snapshot_every={rule.interval:g}: a step of {time - before:.3g} holds more than "
            f"{MOST_IN_A_STEP:,} of these; use a longer one"
        )
    found = []
    while (before := rule.next_time(before)) < time:
        found.append(before)
    return found


class AtTimes:
    """Keep θ at exactly these flow times.

    Raises
    ------
    InputError
        They are too many, do not increase, or are no flow times.
    """

    keeps_last = False

    def __init__(self, times: Reals) -> None:
        several = kinds.listed(times, "snapshot_times", "numbers", MOST_TIMES, OR_EVERY)
        self.times: list[float] = [float(t) for t in several]
        ordered = all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        if not self.times or not ordered or self.times[0] < 0 or not math.isfinite(self.times[-1]):
            raise InputError(
                f"snapshot_times={self.times[:5]}…; use finite, increasing times from 0 on"
            )
        self._wanted = set(self.times)

    def next_time(self, time: float) -> float:
        """Return the first wanted time after ``time``."""
        index = bisect.bisect_right(self.times, time)
        return self.times[index] if index < len(self.times) else math.inf

    def offer(self, step: int, time: float, arc_length: float) -> tuple[bool, list[int]]:
        """Keep the steps that end at a wanted time."""
        return time in self._wanted, []


class Every:
    """Keep θ at 0, ``interval``, 2·``interval``, … of flow time.

    Raises
    ------
    InputError
        The interval is not positive.
    """

    keeps_last = False

    def __init__(self, interval: float) -> None:
        if not (math.isfinite(interval) and interval > 0):
            raise InputError(f"snapshot_every={interval}; use a positive flow time")
        self.interval: float = float(interval)

    def next_time(self, time: float) -> float:
        """Return the first multiple of the interval after ``time``.

        Raises
        ------
        NumericalError
            Rounding of ``time`` is more than the interval.
        """
        n = math.floor(min(time / self.interval, RESOLVED))
        while n * self.interval <= time:
            n += 1
            if n > RESOLVED:
                raise NumericalError(
                    f"snapshot_every={self.interval:g}: at flow time {time:g} its multiples are "
                    "below rounding; use a longer one"
                )
        return n * self.interval

    def offer(self, step: int, time: float, arc_length: float) -> tuple[bool, list[int]]:
        """Keep the steps that end at a multiple of the interval."""
        return time == round(time / self.interval) * self.interval, []


class Thinned:
    """Keep at most ``limit`` values of θ, as evenly in arc length as can be.

    The end of a walk is not known beforehand. So every step at least ``spacing`` further than
    the last kept one is kept, and once there is no room, ``spacing`` doubles and the kept ones
    are thinned to it: few are ever written, and neighbours stay within a factor of about two
    of each other, where the steps themselves allow it. The first step is always kept.

    Raises
    ------
    InputError
        A limit below 2.
    """

    keeps_last = True

    def __init__(self, limit: int) -> None:
        if limit < 2:
            raise InputError(
                f"max_snapshots={limit} (--snapshots {limit}); use at least 2, for the first and "
                "the last"
            )
        self.limit: int = int(limit)
        self.spacing: float = 0.0
        self.kept: list[tuple[int, float]] = []

    def next_time(self, time: float) -> float:
        """No time is wanted of itself."""
        return math.inf

    def offer(self, step: int, time: float, arc_length: float) -> tuple[bool, list[int]]:
        """Keep a step far enough from the last kept one."""
        if self.kept and arc_length - self.kept[-1][1] < self.spacing:
            return False, []
        dropped: list[int] = []
        # One place stays free for the walk's last point.
        while len(self.kept) >= self.limit - 1 > 1:
            self.spacing = 2 * self.spacing or arc_length / (self.limit - 1)
            if not self.spacing:
                # Nothing has moved, so that no distance tells one step from another.
                return False, []
            thinned = self.kept[:1]
            for item in self.kept[1:]:
                if item[1] - thinned[-1][1] >= self.spacing:
                    thinned.append(item)
                else:
                    dropped.append(item[0])
            self.kept = thinned
        if len(self.kept) >= self.limit - 1 or (
            self.kept and arc_length - self.kept[-1][1] < self.spacing
        ):
            return False, dropped
        self.kept.append((step, arc_length))
        return True, dropped


def rule_for(times: Reals | None, every: float | None, limit: int) -> SnapshotRule:
    """Return the rule that a walk's ``snapshot_times``, ``snapshot_every`` and limit ask for.

    Raises
    ------
    InputError
        Both are given, or one cannot be used.
    """
    if times is not None and every is not None:
        raise InputError("snapshot_times and snapshot_every are both given; choose one")
    if times is not None:
        return AtTimes(times)
    return Thinned(limit) if every is None else Every(every)
