"""What a walk finds inside a step that it has made: the events in it, and whether one ends it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from geoflow.manifold.protocol import Flow, State
from geoflow.trajectories.records import Observable
from geoflow.walking.ending import End
from geoflow.walking.events import Event, Point, locate
from geoflow.walking.inside import Inside
from geoflow.walking.stopping import Crossing


class Found(NamedTuple):
    """A point inside a step or at its end: flow time since the start, state, events as a mask."""

    time: float
    state: State
    events: int


class Seeker:
    """Looks for events in one step after the other.

    Parameters
    ----------
    flow, observables
        Those of the walk.
    events : sequence of Event
        To be recorded.
    stop : Crossing, optional
        What ends the walk.
    """

    def __init__(
        self,
        flow: Flow,
        observables: Mapping[str, Observable],
        events: Sequence[Event],
        stop: Crossing | None,
    ) -> None:
        self.flow, self.observables = flow, observables
        self.sought: list[Crossing] = [*events, *([stop] if stop else [])]
        self.n_recorded = len(events)

    def look(
        self, inside: Inside, before: Sequence[float]
    ) -> tuple[list[Found], End | None, list[float]]:
        """Find what is in a step.

        Parameters
        ----------
        inside : Inside
            The step.
        before : sequence of float
            What crosses zero, of each, at its start: as the step before left it. Of those that are
            missing, as this step begins.

        Returns
        -------
        list of Found
            In order of time. The last one is the step's end, or where the walk ends in it.
        tuple, optional
            Status and message of a walk that ends there.
        list of float
            What crosses zero, of each, at the end of the step.
        """
        duration = inside.duration
        new = self.sought[len(before) :]
        before = [*before, *(self._level(inside, crossing, 0.0) for crossing in new)]
        after = [self._level(inside, crossing, duration) for crossing in self.sought]
        located: list[tuple[float, int]] = []
        last, end = duration, None
        for number, crossing in enumerate(self.sought):
            levels = before[number], after[number]
            if crossing.crosses(*levels):
                time, level = locate(
                    functools.partial(self._level, inside, crossing),
                    duration,
                    levels,
                    crossing.tolerance(*levels),
                    crossing.within,
                )
                if number < self.n_recorded:
                    located.append((time, number))
                else:
                    last, end = time, crossing.message(level)
        masks: dict[float, int] = {last: 0}
        for time, number in located:
            if time > last:
                # Both are located a little late: what is crossed where the walk ends is of it.
                crossing = self.sought[number]
                if not crossing.crosses(before[number], self._level(inside, crossing, last)):
                    continue
                time = last
            masks[time] = masks.get(time, 0) | 1 << number
        times = sorted(masks)
        found = [Found(time, inside.state(time), masks.get(time, 0)) for time in times]
        return found, end, after

    def _level(self, inside: Inside, crossing: Crossing, time: float) -> float:
        return crossing.level(Point(self.flow, self.observables, inside, time))
