"""Events along a walk: a function of θ crosses a value, located between the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from geoflow.errors import InputError, ObservableError
from geoflow.manifold.protocol import Flow
from geoflow.problems import inner
from geoflow.system import kinds, translation
from geoflow.system.naming import named
from geoflow.trajectories.records import Observable, value_of
from geoflow.walking.counting import uncounted
from geoflow.walking.inside import Inside

# The events of a step are kept as the bits of one whole number.
MOST = 63
# In an archive, what stands in the place of a function of one's own: its name.
OWN = "function_of_ones_own"
# An event is known to this part of its step: of its flow time, or of the function's change.
LOCATED = 1e-3
MAX_TRIALS = 60
# Beyond the crossing, in units of the tolerance: so that a trial seldom falls short of it.
AIM = 0.3
# Flow time of a difference by which a rate is known, as a part of the step.
DIFFERENCE = 1e-3


class Event:
    """A function of θ crosses a value along a walk; given as ``stop``, the walk ends there.

    It is seen where the function less ``value`` has another sign at the end of a step than at its
    start, and is then located inside the step by the solver's interpolant, re-projected: to 10⁻³ of
    the step's flow time or of the function's change over it, and never before the crossing. To come
    to the value is to cross it, to leave it is not. What crosses and returns within one step is not
    seen.

    Parameters
    ----------
    function : callable or str
        θ, shape (P,), → float; or the name of one of the walk's observables, or of a scalar of its
        flow: ``"angle"``, ``"regularizer"``, ``"multiplier"``, … A function of one's own cannot be
        kept in an archive, and is given again where the walk is resumed.
    direction : int
        1: only where it rises, −1: only where it falls, 0: both.
    value : float
        What it crosses.
    rate : bool
        The function's rate of change along the walk takes its place, by differences within the
        step: with ``value`` 0 an extremum, by ``direction`` 1 a minimum and by −1 a maximum. Not
        for a scalar of the flow. What the error of a loose tolerance makes of a function has
        extrema too.
    name : str, optional
        What it is called in the dataset; None: the function's name, with ``_rate`` for a rate.

    Raises
    ------
    InputError
        An argument that cannot be used.

    Examples
    --------
    >>> gf.Event("regularizer", value=10.0)
    Event('regularizer', value=10)
    >>> gf.Event("test_loss", 1, rate=True)
    Event('test_loss', direction=1, rate=True)
    """

    within = LOCATED
    look_back: float = 0.0

    def __init__(
        self,
        function: Observable | str,
        direction: int = 0,
        *,
        value: float = 0.0,
        rate: bool = False,
        name: str | None = None,
    ) -> None:
        if not (callable(function) or (isinstance(function, str) and function)):
            raise InputError(
                f"function={kinds.shown(function)}; use a function of θ, or an observable's or "
                "scalar's name"
            )
        if not isinstance(direction, Real) or direction not in (-1, 0, 1):
            given = kinds.shown(direction)
            raise InputError(f"direction={given}; use 1 (rising), -1 (falling) or 0 (both)")
        if isinstance(value, bool) or not kinds.is_finite(value):
            raise InputError(f"value={kinds.shown(value)}; use a finite number")
        if not isinstance(rate, Real | np.bool_) or rate not in (True, False):
            raise InputError(f"rate={kinds.shown(rate)}; use True or False")
        self.function: Observable | str = function
        self.direction: int = int(direction)
        self.value: float = float(value)
        self.rate: bool = bool(rate)
        called = function if isinstance(function, str) else getattr(function, "__name__", "")
        #: What it is called without a name of its own.
        self.usual: str = called + "_rate" * self.rate
        usual = self.usual
        self.name: str = (usual if usual.isidentifier() else "event") if name is None else name
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise InputError(f"name={kinds.shown(name)}; use letters, digits and underscores")

    def __repr__(self) -> str:
        shown = [repr(self.function) if isinstance(self.function, str) else self.usual]
        shown += [f"direction={self.direction}"] * (self.direction != 0)
        shown += [f"value={self.value:g}"] * (self.value != 0) + ["rate=True"] * self.rate
        shown += [f"name={self.name!r}"] * (self.name != self.usual)
        return f"Event({', '.join(shown)})"

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments but ``name``, JSON-able; of a function of one's own its name."""
        named = isinstance(self.function, str)
        return {
            **({"function": self.function} if named else {OWN: self.usual}),
            "direction": self.direction,
            "value": self.value,
            "rate": self.rate,
        }

    @property
    def config(self) -> dict[str, Any]:
        """As ``config`` of archives has it among the events of a walk."""
        return {"name": self.name, **self.options}

    def check(self, scalars: Collection[str], observables: Collection[str]) -> None:
        """Refuse a name that means nothing in a walk.

        Raises
        ------
        InputError
            There is no such observable and no such scalar, or a scalar of which no rate is known.
        """
        if not isinstance(self.function, str) or self.function in observables:
            return
        if self.function not in scalars:
            known = ", ".join([*observables, *scalars])
            raise InputError(f"event: the walk has no {self.function!r}; use one of {known}")
        if self.rate:
            raise InputError(
                f"event: {self.function!r} is a scalar of the flow, whose rate is not known; use "
                "that of an observable or of a function of θ"
            )

    def __call__(self, records: object) -> None:
        """As a stop, it ends no walk at the end of a step: the walk looks into its steps for it."""

    def level(self, at: Point) -> float:
        """The function, or its rate, less ``value``.

        Raises
        ------
        ObservableError
            The function raised an error, or came to no finite number.
        """
        if not isinstance(self.function, str):
            function: Observable = self.function
        elif self.function in at.observables:
            function = at.observables[self.function]
        else:
            return at.scalar(self.function) - self.value
        called = f"the function of event {self.name!r}"
        found = at.rate(function, called) if self.rate else at.value(function, called)
        if not math.isfinite(found):
            raise ObservableError(
                f"event {self.name!r} came to {found}, of which no crossing can be told; use a "
                "function that is finite along the walk"
            )
        return found - self.value

    def check_at(self, theta: Tensor) -> None:
        """Refuse a function of one's own that gives no number.

        Raises
        ------
        InputError
            Says what it gave, or raised.
        """
        if isinstance(self.function, str):
            return
        try:
            value = inner.value(self.function, theta)
            reason = "" if kinds.is_finite(value) else f"it gave {kinds.shown(value)}"
        except Exception as error:
            reason = translation.kind_and_reason(error)
        if reason:
            raise InputError(
                f"event {self.name!r}: its function gave no finite number at theta0 ({reason}); "
                "return a float"
            )

    def crosses(self, before: float, after: float) -> bool:
        """Whether a step from one level to another has the event in it."""
        rises = before < 0 <= after and self.direction >= 0
        return rises or (before > 0 >= after and self.direction <= 0)

    def tolerance(self, before: float, after: float) -> float:
        """How far behind the crossing the function may be where the event is located.

        Always less than at the end of the step: a function that has come to the value and stays
        there says nothing of when.
        """
        return min(LOCATED * abs(after - before), abs(after) / 2)

    def message(self, level: float) -> tuple[str, str]:
        """Status and message of a walk that ends with the event."""
        return "event", f"{self.name} came to {self.value + level:.6g}"


@dataclass(frozen=True)
class Point:
    """A point of a walk, inside a step or at an end of it, and what can be asked of it."""

    flow: Flow
    observables: Mapping[str, Observable]
    inside: Inside
    time: float

    def scalar(self, name: str) -> float:
        """One of the flow's scalars."""
        return float(self.flow.values(self.inside.state(self.time))[name])

    def value(self, function: Observable, called: str) -> float:
        """Value of a function of θ, by the name that the message of its error has."""
        return self._value(function, self.inside.state(self.time).flat, called)

    def rate(self, function: Observable, called: str) -> float:
        """Rate of change of a function of θ along the walk, as far as the step goes."""
        apart = DIFFERENCE * self.inside.duration
        begin, end = max(self.time - apart, 0.0), min(self.time + apart, self.inside.duration)
        flats = self.inside.flat(begin), self.inside.flat(end)
        behind, ahead = (self._value(function, flat, called) for flat in flats)
        return (ahead - behind) / (end - begin)

    def _value(self, function: Observable, flat: Tensor, called: str) -> float:
        theta = flat[: self.flow.problem.n_parameters]
        return value_of(uncounted(self.flow, function), theta, called)


def locate(
    level: Callable[[float], float],
    duration: float,
    levels: tuple[float, float],
    tolerance: float,
    within: float,
) -> tuple[float, float]:
    """Find where in a step a function crosses zero.

    Regula falsi, after Dowell & Jarratt's Illinois rule, aimed a little beyond the crossing: what
    is returned never lies before it. Where the function is zero, or the same as at the trial
    before, it may be so for long, and the step is halved.

    Parameters
    ----------
    level : callable
        The function, of a flow time after the start of the step.
    duration : float
        Flow time of the step.
    levels : tuple of float
        The function at its start and at its end, of opposite signs.
    tolerance : float
        What the function may be where it is located, beyond the crossing; zero says nothing.
    within : float
        Part of the step by which it may be late.

    Returns
    -------
    time : float
        Flow time after the start.
    level : float
        The function there.
    """
    low, high = 0.0, duration
    sign = 1.0 if levels[0] < 0 else -1.0
    aim = AIM * tolerance
    # Weights of the ends: an end that stays for a second time counts half.
    below, above = (sign * at_end - aim for at_end in levels)
    found, stayed, flat = levels[1], 0, False
    for _ in range(MAX_TRIALS):
        if 0 < abs(found) <= tolerance or high - low <= within * duration:
            break
        time = low + (high - low) * (below / (below - above) if above > 0 and not flat else 0.5)
        now = level(time)
        flat = now == found
        if sign * now >= 0:
            high, found, above = time, now, sign * now - aim
            below, stayed = (below / 2 if stayed == 1 else below), 1
        else:
            low, below = time, sign * now - aim
            above, stayed = (above / 2 if stayed == -1 else above), -1
    return high, found


def from_config(events: Sequence[Event | Mapping[str, Any]]) -> tuple[Event, ...]:
    """Return events, those made again of which there are the options only.

    Raises
    ------
    InputError
        What is no event, two of one name, or one of a function of one's own that has to be given.
    """
    if isinstance(events, str | Event | Mapping) or not isinstance(events, Sequence):
        raise InputError(f"events={kinds.shown(events)} is no list; use [Event(…), …]")
    made = []
    for event in events:
        if isinstance(event, Mapping):
            made.append(_again(event))
        elif isinstance(event, Event):
            made.append(event)
        else:
            raise InputError(f"events={kinds.shown(event)} is none; use Event(…)")
    if len(made) > MOST:
        raise InputError(f"events: there are {len(made)}; give at most {MOST}")
    names = [event.name for event in made]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"events: two are called {name!r}; give each a name=")
    return tuple(made)


def of_archive(kept: Any) -> tuple[Event, ...]:
    """Return the events that an archive has, those of functions of one's own by their names.

    They are as they were, but for these functions, which are not there.

    Raises
    ------
    InputError
        An archive of a walk has no such events.
    """
    if not isinstance(kept, list) or not all(isinstance(event, dict) for event in kept):
        raise InputError(f"events are {str(kept)[:40]!r}, not a list of JSON objects")
    made = []
    for event in kept:
        options = dict(event)
        if "function" not in event and isinstance(options.pop(OWN, None), str):
            options["function"] = "given_again"
        try:
            made.append(Event(**options))
        except TypeError:
            raise InputError(
                f"events has {str(event)[:80]!r}, which is not what an event has"
            ) from None
    return from_config(made)


def from_text(text: str) -> Event:
    """Make an event from a scalar or observable with options, ``"test_loss:rate=1,direction=1"``.

    Raises
    ------
    InputError
        An option that an event has not or cannot use.
    """
    function, options = named(text, words=("name",))
    try:
        return Event(function, **options)
    except TypeError:
        raise InputError(
            f"event={text!r}: its options are value, direction, rate and name, as in "
            "regularizer:value=30,direction=-1"
        ) from None


def _again(options: Mapping[str, Any]) -> Event:
    try:
        return Event(**options)
    except TypeError:
        raise InputError(
            f"events: {options.get('name')!r} is of a function of one's own; pass events="
        ) from None
