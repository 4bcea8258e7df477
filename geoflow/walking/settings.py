"""All that decides the numbers of a walk, as one object: each setting declared once.

Its name is the same in Python, in the ``config`` of archives and on the command line, where
``rtol`` is ``--rtol``. A name of its own that a setting also goes by is part of its declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from geoflow import solvers
from geoflow.errors import ArchiveError, InputError
from geoflow.problems.dtypes import DTYPES, dtype_name
from geoflow.solvers import Solver, Tolerance
from geoflow.system import kinds
from geoflow.system.kinds import Reals, check_kind, shown
from geoflow.system.naming import named
from geoflow.walking import stopping
from geoflow.walking.snapshots import MOST_TIMES, OR_EVERY, SnapshotRule, rule_for
from geoflow.walking.stopping import DEFAULT_MAX_EVALUATIONS, Goals, Stationary, Stop

Json = Mapping[str, Any]

# What a crash can cost: no setting of the numbers, but of every archived walk.
CHECKPOINT_SECONDS = 30.0


def times(text: str) -> list[float]:
    """Read numbers with commas between them."""
    return [float(part) for part in text.split(",")]


@dataclass(frozen=True)
class Option:
    """How a setting is given by a keyword and on the command line.

    Attributes
    ----------
    help, metavar : str
        For people.
    read : callable
        Reads its value from text.
    name : str
        The keyword, and with dashes the option, where it is not the setting's own name.
    also, first : tuple of str
        Further options of the command line, shown after its own and before it.
    make : callable, optional
        Gives the setting for such a value, where it is not the value itself.
    """

    help: str
    metavar: str
    read: Callable[[str], Any] = float
    name: str = ""
    also: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    make: Callable[[Any], Any] | None = None


def _setting(default: Any, *options: Option) -> Any:
    return field(default=default, metadata={"options": options})


@dataclass(frozen=True, eq=False, repr=False)
class WalkSettings:
    """What decides the numbers of a walk, beside its flow; see :func:`geoflow.walk`.

    ``solver`` and ``stop`` are objects, names with their options in one text, or what
    :attr:`config` has of them. Two are equal where their :attr:`config` is.

    Raises
    ------
    InputError
        A setting that cannot be used, or two that exclude each other.
    """

    solver: str | Solver | Json = _setting(
        solvers.DEFAULT,
        Option(
            f"one of {', '.join(solvers.names())}; options as in exponential:max_vectors=12",
            "NAME[:option=value,…]",
            str,
        ),
    )
    rtol: float = _setting(1e-3, Option("local error, relative to the norm", "X"))
    atol: float = _setting(1e-6, Option("local error, absolute", "X"))
    t_end: float | None = _setting(None, Option("end at this flow time", "T"))
    stop: Stop | str | Json | None = _setting(
        Stationary(),
        Option(
            "end at Stationary:degrees=X, Plateau:window=T,rtol=X, "
            "Event:function=SCALAR,value=X or none",
            "NAME:…",
            str,
        ),
        Option(
            f"end at this angle between ∇R and ∇L ({Stationary().degrees:g})",
            "DEGREES",
            name="degrees",
            first=("--angle",),
            make=Stationary,
        ),
    )
    max_evaluations: float | None = _setting(
        None,
        Option(f"budget in gradients, from the start on ({DEFAULT_MAX_EVALUATIONS:,})", "N", int),
    )
    reproject_every: float | None = _setting(
        None, Option("flow time between re-projections, for torchdiffeq's solvers", "T")
    )
    snapshot_times: Reals | None = _setting(
        None, Option("keep θ at exactly these flow times", "T,…", times)
    )
    snapshot_every: float | None = _setting(
        None, Option("keep θ at the multiples of this flow time", "T")
    )
    max_snapshots: int = _setting(
        100, Option("keep at most N θ, evenly in arc length", "N", int, also=("--snapshots",))
    )
    theta_dtype: str | None = _setting(
        None, Option("float32: keep θ in half the space", "DTYPE", str)
    )

    def __post_init__(self) -> None:
        for name in ("rtol", "atol", "t_end", "reproject_every", "snapshot_every"):
            self._convert(name, kinds.real, "a number")
        for name in ("max_evaluations", "max_snapshots"):
            if not self._is_left_out(name):
                count = kinds.as_count(getattr(self, name), name, below=kinds.COUNTED)
                object.__setattr__(self, name, count)
        self._convert("snapshot_times", _times, "numbers")
        check_kind(self.theta_dtype, str | None, "theta_dtype", "'float32', or None")
        if self.theta_dtype not in (None, *DTYPES):
            raise InputError(f"theta_dtype={shown(self.theta_dtype)}; use 'float32', or None")
        self.make_solver()
        self.goals()
        self.rule()
        self.tolerance(torch.float64)

    def _convert(self, name: str, convert: Callable[[Any], Any], what: str) -> None:
        value = getattr(self, name)
        if self._is_left_out(name):
            return
        try:
            if isinstance(value, (str, bytes, bool)):
                raise TypeError
            object.__setattr__(self, name, convert(value))
        except InputError:  # of too many, which says so
            raise
        except (TypeError, ValueError, OverflowError, RuntimeError):
            raise InputError(f"{name}={shown(value)}; use {what}") from None

    def _is_left_out(self, name: str) -> bool:
        """Whether it is None where that has a meaning, being the default."""
        default = WalkSettings.__dataclass_fields__[name].default
        return getattr(self, name) is None and default is None

    def make_solver(self) -> Solver:
        """Return the integrator.

        Raises
        ------
        InputError
            It is none, or its options cannot be used.
        """
        solver, every = self.solver, self.reproject_every
        if isinstance(solver, str):
            return solvers.from_text(solver, every)
        if every is not None:
            raise InputError(
                f"reproject_every={every} goes with a solver's name; give it to the solver instance"
            )
        if isinstance(solver, Mapping):
            return solvers.from_config(solver)
        if isinstance(solver, type) or not (hasattr(solver, "step") and hasattr(solver, "options")):
            known = ", ".join(solvers.names())
            raise InputError(f"solver={shown(solver)} is none; use one of {known}")
        return solver

    def goals(self) -> Goals:
        """Return what ends the walk.

        Raises
        ------
        InputError
            What cannot end one.
        """
        stop = self.stop
        if isinstance(stop, str):
            name, options = named(stop, words=("function",))
            stop = None if stop == "none" else {"name": name, **options}
        if isinstance(stop, Mapping):
            stop = stopping.from_config(stop)
        usable = callable(stop) and hasattr(stop, "options") and not isinstance(stop, type)
        if not (stop is None or usable):
            raise InputError(
                f"stop={shown(stop)} is none; use Stationary(…), Plateau(…), Event(…) or None"
            )
        return Goals.checked(self.t_end, stop, self.max_evaluations)

    def rule(self) -> SnapshotRule:
        """Return a rule, at its start, for where θ is kept."""
        return rule_for(self.snapshot_times, self.snapshot_every, self.max_snapshots)

    def tolerance(self, dtype: torch.dtype) -> Tolerance:
        """Return the local error allowed.

        Raises
        ------
        InputError
            ``dtype`` does not resolve it.
        """
        return Tolerance.checked(self.rtol, self.atol, dtype)

    def resolved(self, dtype: torch.dtype) -> WalkSettings:
        """Fill in what the dtype of the walk decides.

        Raises
        ------
        InputError
            ``dtype`` does not resolve ``rtol``, or ``theta_dtype`` is wider.
        """
        self.tolerance(dtype)
        kept = dtype if self.theta_dtype is None else DTYPES[self.theta_dtype]
        if kept.itemsize > dtype.itemsize:
            raise InputError(
                f"theta_dtype={self.theta_dtype!r}; use 'float32', or None for that of the walk "
                f"({dtype})"
            )
        return replace(self, theta_dtype=dtype_name(kept))

    def changed(self, **given: Any) -> WalkSettings:
        """Return settings that differ in what is given, by a name of :data:`OPTIONS`.

        Another solver brings its own ``reproject_every``, and of the three ways to keep θ the one
        that is given replaces the others.

        Raises
        ------
        InputError
            A name that is none, a setting given by two names, or one that cannot be used.
        """
        changes = by_setting(given)
        if "solver" in changes:
            changes.setdefault("reproject_every", None)
        elif "reproject_every" in changes:
            solver = self.make_solver()
            # Says so where that solver takes none.
            solvers.get(solver.name, changes["reproject_every"])
            options = {**solver.options, "reproject_every": changes["reproject_every"]}
            changes |= {"solver": {"name": solver.name, **options}, "reproject_every": None}
        if {"snapshot_times", "snapshot_every", "max_snapshots"} & changes.keys():
            changes = {"snapshot_times": None, "snapshot_every": None, **changes}
        return replace(self, **changes)

    @property
    def config(self) -> dict[str, Any]:
        """As JSON has it, and as ``config`` of archives does; :meth:`from_config` reads it."""
        solver, at = self.make_solver(), self.snapshot_times
        return {
            "solver": {"name": solver.name, **solver.options},
            "rtol": self.rtol,
            "atol": self.atol,
            **self.goals().config,
            "snapshot_times": None if at is None else list(at),
            "snapshot_every": self.snapshot_every,
            "max_snapshots": self.max_snapshots,
            "theta_dtype": self.theta_dtype,
        }

    @classmethod
    def from_config(cls, config: Json, **instead: Any) -> WalkSettings:
        """Read what :attr:`config` gave, ``instead`` in the place of what it has.

        Raises
        ------
        ArchiveError
            A setting is missing.
        InputError
            One cannot be used; or a solver or criterion is not geoflow's own, and ``instead`` has
            none.
        """
        names = [f.name for f in fields(cls) if f.name not in ("reproject_every", *instead)]
        missing = [name for name in names if name not in config]
        if missing:
            raise ArchiveError(f"its config has no {missing[0]!r}; walk again")
        return cls(**{name: config[name] for name in names}, **instead)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WalkSettings) and self.config == other.config

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        usual = DEFAULTS.config
        different = [f"{k}={v!r}" for k, v in self.config.items() if v != usual[k]]
        return f"WalkSettings({', '.join(different)})"


def by_setting(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given by the names of :data:`OPTIONS` by those of the settings.

    Raises
    ------
    InputError
        A name that is none, or a setting given twice.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in OPTIONS:
            raise InputError(f"{name}={value!r} is no setting of a walk; use {', '.join(OPTIONS)}")
        setting, option = OPTIONS[name]
        if setting in found:
            raise InputError(f"{name}={value!r}: {setting} is given too; choose one")
        found[setting] = option.make(value) if option.make else value
    return found


def _times(values: Any) -> tuple[float, ...]:
    several = kinds.listed(values, "snapshot_times", "numbers", MOST_TIMES, OR_EVERY)
    return tuple(map(kinds.real, several))


# By the keyword each goes by: the setting, and the option.
OPTIONS: dict[str, tuple[str, Option]] = {
    option.name or f.name: (f.name, option)
    for f in fields(WalkSettings)
    for option in f.metadata["options"]
}

DEFAULTS = WalkSettings()
