"""When a walk ends: criteria over the records of its accepted steps, a time, a budget."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from geoflow.errors import InputError
from geoflow.system.described import Described
from geoflow.system.kinds import as_number, shown
from geoflow.trajectories.schema import STATUSES
from geoflow.walking.ending import End, below_the_level
from geoflow.walking.events import Event, Point

DEFAULT_MAX_EVALUATIONS = 100_000

# How far beyond its angle a walk may end, in degrees.
ANGLE_LOCATED = 0.01
# How near to 0° a walk with λ < 0 has come to rest, in degrees.
ANGLE_OF_REST = 0.1

# The scalars of one accepted step, by their names in the dataset.
Record = Mapping[str, float]


class Stop(Protocol):
    """A stopping criterion: a status and a message, or None to go on.

    The status is one of those that trajectories have
    (:data:`geoflow.trajectories.schema.STATUSES`), such as ``event``.

    Attributes
    ----------
    look_back : float
        Flow time it looks back. A long walk that is archived forgets older records; one without
        this attribute is given every record.
    scalars : tuple of str
        Those of the flow that it looks at, so that a flow without them is refused; may be left out.
    """

    look_back: float

    def __call__(self, records: Sequence[Record]) -> End | None:
        """Judge the walk by its accepted steps, the latest last."""

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments, JSON-able."""


class Crossing(Protocol):
    """What a walk looks into its steps for: where a function of its points crosses zero."""

    def level(self, at: Point) -> float:
        """The function."""

    def crosses(self, before: float, after: float) -> bool:
        """Whether a step from one level to another has the crossing in it."""

    def tolerance(self, before: float, after: float) -> float:
        """How far behind the crossing the function may be."""

    @property
    def within(self) -> float:
        """How far behind the crossing the time may be, as a part of the step."""

    def message(self, level: float) -> End:
        """Status and message of a walk that ends there."""


class Stationary(Described):
    """The angle between ∇R and ∇L has reached ``degrees``: close to a KKT point.

    The walk ends at that angle, from above to within 0.01°, inside the step that passes it.

    Tested on the relative KKT residual ‖Π∇R‖/‖∇R‖ = sin(angle), with λ > 0. A walk that comes to
    0.1°, with λ < 0, ends too, with the status ``negative_multiplier``; with ∇R = 0 it is
    ``at_rest``.

    Parameters
    ----------
    degrees : float
        Angle, above 90 and below 180.

    Raises
    ------
    InputError
        An angle that does not lie between 90 and 180.

    Examples
    --------
    >>> gf.Stationary(degrees=170).options
    {'degrees': 170.0}
    """

    look_back: float = 0.0
    scalars: tuple[str, ...] = ("tangent_norm", "multiplier", "gradient_norm", "angle")

    def __init__(self, degrees: float = 175.0) -> None:
        self.degrees: float = as_number(degrees, "degrees")
        if not 90 < self.degrees < 180:
            raise InputError(f"degrees={degrees}; use an angle between 90 and 180")

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"degrees": self.degrees}

    def __call__(self, records: Sequence[Record]) -> End | None:
        """Judge the latest step."""
        last = records[-1]
        # With t = ‖Π∇R‖ and n = λ‖∇L‖ the normal part of −∇R, sin(angle) = t/√(t² + n²).
        tangent, normal = last["tangent_norm"], last["multiplier"] * last["gradient_norm"]
        least = math.hypot(tangent, normal) * math.sin(math.radians(180 - self.degrees))
        if tangent == 0 == normal:
            # ∇R is zero, and has no angle with anything: the flow is at rest.
            return None
        # Numbers that are none have come to no angle.
        if normal <= 0:
            # At 0° a walk may start, and leave; it ends there where it comes closer. It passes by a
            # saddle of R at a smaller angle the closer it is, and none that is a goal.
            beside = last["angle"] <= ANGLE_OF_REST and len(records) > 1
            if not beside or last["angle"] >= records[-2]["angle"]:
                return None
            return below_the_level(
                f"the angle between ∇R and ∇L fell to {last['angle']:.3f}°, with λ < 0"
            )
        return _reached(last["angle"]) if tangent <= least else None

    within: float = 1e-9

    def level(self, at: Point) -> float:
        """Of the angle a function that grows all but linearly in time as the angle nears 180°."""
        return _flattened(at.scalar("angle")) - _flattened(self.degrees)

    def crosses(self, before: float, after: float) -> bool:
        """Whether the angle is reached in a step."""
        return before < 0 <= after

    def tolerance(self, before: float, after: float) -> float:
        """0.01°."""
        furthest = min(self.degrees + ANGLE_LOCATED, (self.degrees + 180) / 2)
        return _flattened(furthest) - _flattened(self.degrees)

    def message(self, level: float) -> End:
        """Status and message."""
        flattened = level + _flattened(self.degrees)
        return _reached(180 - 2 * math.degrees(math.atan(math.exp(-flattened))))


def _reached(angle: float) -> End:
    return "stationary", f"the angle between ∇R and ∇L reached {angle:.3f}°"


def _flattened(degrees: float) -> float:
    """−log tan((180° − angle)/2), which rises with the angle from −∞ to ∞."""
    return -math.log(max(math.tan(math.radians(180 - degrees) / 2), 1e-300))


class Plateau(Described):
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

    scalars: tuple[str, ...] = ("regularizer",)

    def __init__(self, window: float = 1.0, rtol: float = 1e-4) -> None:
        window, rtol = as_number(window, "window"), as_number(rtol, "rtol")
        for name, value in (("window", window), ("rtol", rtol)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}; use a positive number")
        self.window: float = float(window)
        self.look_back = self.window
        self.rtol: float = float(rtol)

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {"window": self.window, "rtol": self.rtol}

    def __call__(self, records: Sequence[Record]) -> End | None:
        """Judge the latest step against the one a window earlier."""
        last = records[-1]
        start = last["time"] - self.window
        index = bisect.bisect_right(records, start, key=lambda r: r["time"]) - 1
        if index < 0:
            return None
        before = records[index]
        fall = before["regularizer"] - last["regularizer"]
        if fall >= self.rtol * abs(before["regularizer"]):
            return None
        return "plateau", f"R fell by {fall:.3g} over the last {self.window:g} of flow time"


@dataclass(frozen=True)
class Goals:
    """What ends a walk that is not ended by a failure."""

    t_end: float
    stop: Stop | None
    max_evaluations: int

    @classmethod
    def checked(
        cls, t_end: float | None, stop: Stop | None, max_evaluations: float | None
    ) -> Goals:
        """Fill in what is not given.

        Raises
        ------
        InputError
            A goal that is not positive.
        """
        t_end = math.inf if t_end is None else float(t_end)
        if not t_end > 0:
            raise InputError(f"t_end={t_end}; use a positive flow time")
        if max_evaluations is None:
            max_evaluations = DEFAULT_MAX_EVALUATIONS
        if max_evaluations < 1:
            raise InputError(f"max_evaluations={max_evaluations}; use a positive number")
        return cls(t_end, stop, int(max_evaluations))

    def check_scalars(self, scalars: Collection[str], observables: Collection[str] = ()) -> None:
        """Refuse a stop that looks at what the flow does not record.

        Raises
        ------
        InputError
            Names what is missing.
        """
        if isinstance(self.stop, Event):
            self.stop.check(scalars, observables)
        missing = [name for name in getattr(self.stop, "scalars", ()) if name not in scalars]
        if missing:
            raise InputError(
                f"stop={type(self.stop).__name__} looks at {', '.join(missing)}, which the flow "
                "does not record; pass stop=None and t_end, or a criterion of your own"
            )

    @property
    def crossing(self) -> Crossing | None:
        """The stop, where it ends a walk inside a step."""
        return self.stop if isinstance(self.stop, Stationary | Event) else None

    @property
    def look_back(self) -> float:
        """Flow time of records that the stop looks at."""
        return getattr(self.stop, "look_back", math.inf) if self.stop else 0.0

    @property
    def config(self) -> dict[str, Any]:
        """As JSON has it, for ``config``."""
        stop = self.stop
        return {
            "t_end": None if math.isinf(self.t_end) else self.t_end,
            "stop": None if stop is None else {"name": type(stop).__name__, **_options(stop)},
            "max_evaluations": self.max_evaluations,
        }

    def judge(self, records: Sequence[Record]) -> End | None:
        """Status and message where the latest record has come to a goal.

        Raises
        ------
        InputError
            The criterion returned what ends no walk.
        """
        end = self.stop(records) if self.stop else None
        if end is not None:
            end = _end_of(end, self.stop)
        if end is None and records[-1]["time"] >= self.t_end:
            end = "t_end", f"the walk reached flow time {self.t_end:g}"
        return end


def _end_of(end: Any, stop: Stop | None) -> End:
    """What a criterion returned; a user's own may be what ends no walk, and no file would take."""
    pair = isinstance(end, tuple | list) and len(end) == 2
    if not (pair and all(isinstance(text, str) for text in end) and end[0] in STATUSES):
        raise InputError(
            f"stop={type(stop).__name__} returned {shown(end)}; return None to go on, or a status "
            f"and a message, the status one of {', '.join(STATUSES)}"
        )
    return str(end[0]), str(end[1])


def _options(stop: Stop) -> dict[str, Any]:
    """Its options; of an event with a name of its own that too, beside the criterion's."""
    called = stop.name if isinstance(stop, Event) and stop.name != stop.usual else ""
    return {**stop.options, **({"event_name": called} if called else {})}


# Criteria that an archive can name.
NAMED: Mapping[str, Callable[..., Stop]] = {c.__name__: c for c in (Stationary, Plateau, Event)}


def from_config(config: Mapping[str, Any]) -> Stop:
    """Make a criterion again from its name and options, as a trajectory's ``config`` has them.

    Raises
    ------
    InputError
        A name or options that are not those of a criterion defined here.
    """
    options = {name: value for name, value in config.items() if name != "name"}
    if "event_name" in options:
        options["name"] = options.pop("event_name")
    try:
        return NAMED[config["name"]](**options)
    except InputError as error:
        raise InputError(f"stop={shown(dict(config))}: {error}") from None
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(
            f"stop={shown(dict(config))} is none of geoflow's own ({', '.join(NAMED)}) with its "
            "options; pass stop= as one of these, or the criterion itself"
        ) from None
