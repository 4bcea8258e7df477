"""What a walk finds inside a step that it has made: the events in it, and whether one ends it."""

from __future__ import annotations

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
        self._latest: tuple[State, list[float]] | None = None

    def _levels(self, state: State) -> list[float]:
        """What crosses zero, of each; the end of a step is the start of the next."""
        if self._latest is None or self._latest[0] is not state:
            point = Point(self.flow, state, self.observables)
            self._latest = state, [crossing.level(point) for crossing in self.sought]
        return self._latest[1]

    def look(self, inside: Inside) -> tuple[list[Found], End | None]:
        """Find what is in a step.

        Parameters
        ----------
        inside : Inside
            The step.

        Returns
        -------
        list of Found
            In order of time. The last one is the step's end, or where the walk ends in it.
        tuple, optional
            Status and message of a walk that ends there.
        """
        duration = inside.duration
        before, after = (self._levels(state) for state in inside.ends.values())
        masks: dict[float, int] = {duration: 0}
        last, end = duration, None
        for number, crossing in enumerate(self.sought):
            levels = before[number], after[number]
            if crossing.crosses(*levels):
                time, level = self._locate(inside, crossing, levels)
                if number < self.n_recorded:
                    masks[time] = masks.get(time, 0) | 1 << number
                else:
                    last, end = time, crossing.message(level)
        times = sorted({last, *(time for time in masks if time <= last)})
        return [Found(time, inside.state(time), masks.get(time, 0)) for time in times], end

    def _locate(
        self, inside: Inside, crossing: Crossing, levels: tuple[float, float]
    ) -> tuple[float, float]:
        def level(state: State) -> float:
            return crossing.level(Point(self.flow, state, self.observables))

        return locate(
            level,
            inside.state,
            inside.duration,
            levels,
            crossing.tolerance(*levels),
            crossing.within,
        )
