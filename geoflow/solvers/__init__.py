"""Integrators of a flow on a level set, and their names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from geoflow.errors import InputError
from geoflow.solvers.base import (
    Carry,
    Solver,
    StepResult,
    Tolerance,
    bytes_of,
    check_needs,
    is_dense,
    vectors_of,
)
from geoflow.solvers.bdf import BDF
from geoflow.solvers.cvode import CVODE
from geoflow.solvers.exponential import Exponential
from geoflow.solvers.rkc import RKC
from geoflow.solvers.torchdiffeq import ADAPTIVE, FIXED, MAX_ORDERS, MULTISTEP, TorchDiffEq
from geoflow.system.kinds import check_kind, shown
from geoflow.system.naming import named

__all__ = [
    "BDF",
    "CVODE",
    "DEFAULT",
    "RKC",
    "Carry",
    "Exponential",
    "Solver",
    "StepResult",
    "Tolerance",
    "TorchDiffEq",
    "bytes_of",
    "check_needs",
    "from_config",
    "from_text",
    "get",
    "is_dense",
    "is_installed",
    "names",
    "vectors_of",
]

# What a walk asks of a solver, and nobody types.
_INNER = {"bytes_of", "check_needs", "is_dense", "vectors_of"}


def __dir__() -> list[str]:
    return sorted(set(__all__) - _INNER)


# The fewest evaluations to a wanted accuracy and to the end, in float32 too: docs/accuracy.md.
DEFAULT = "bdf"
STIFF: dict[str, type[Exponential] | type[BDF] | type[RKC] | type[CVODE]] = {
    "exponential": Exponential,
    "bdf": BDF,
    "rkc": RKC,
    "cvode": CVODE,
}


def names() -> list[str]:
    """Names that :func:`get` and ``walk(solver=…)`` take."""
    return [*STIFF, *ADAPTIVE, *FIXED]


def get(name: str, reproject_every: float | None = None) -> Solver:
    """Return a solver by its name, with its default settings.

    Raises
    ------
    InputError
        An unknown name, ``reproject_every`` for a solver that re-projects as it does by itself, or
        a solver whose package is not installed.
    """
    if not isinstance(name, str) or name not in names():
        raise InputError(f"solver={shown(name)} is not known; use one of {', '.join(names())}")
    if name in [*ADAPTIVE, *FIXED]:
        return TorchDiffEq(name, reproject_every=reproject_every)
    if reproject_every is not None:
        does = "re-projects at every step"
        if name == "cvode":
            does = "keeps to the level set by itself, and is re-projected where a snapshot is taken"
        raise InputError(f"reproject_every={shown(reproject_every)}: {name} {does}; leave it out")
    return STIFF[name]()


def is_installed(name: str) -> bool:
    """Whether :func:`get` returns a solver of this name here: cvode needs a package of its own."""
    try:
        return get(name) is not None
    except InputError:
        return False


def from_text(text: str, reproject_every: float | None = None) -> Solver:
    """Make a solver from its name with its options, ``"exponential:max_vectors=12"``.

    Parameters
    ----------
    text : str
        The name, with or without options.
    reproject_every : float, optional
        One of the options, where it is given by itself.

    Raises
    ------
    InputError
        An unknown name, or an option that the solver has not, cannot use or is given twice.
    """
    check_kind(text, str, "solver", "a name, such as 'bdf', with its options or without")
    name, options = named(text, words=("basis", "method", "error_norm"))
    usual = get(name, reproject_every)
    if reproject_every is not None and "reproject_every" in options:
        raise InputError(
            f"reproject_every={shown(reproject_every)}: solver={text!r} gives one too; choose one"
        )
    # Numbers are read as floats.
    options = {
        k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in options.items()
    }
    if isinstance(usual, TorchDiffEq) and options.setdefault("method", name) != name:
        raise InputError(f"solver={text!r} names two; use {options['method']!r} for that one")
    _check_options(f"solver={text!r}", usual, options)
    own = {} if reproject_every is None else {"reproject_every": reproject_every}
    return type(usual)(**own, **options)


def from_config(config: Mapping[str, Any]) -> Solver:
    """Make a solver again from its name and options, as a trajectory's ``config`` has them.

    Raises
    ------
    InputError
        A name or options that are not those of a solver of geoflow, or a solver whose package is
        not installed.
    """
    check_kind(config, Mapping, "solver", "what config has of one, a dict with its name")
    options = {name: value for name, value in config.items() if name != "name"}
    name, method = (v if isinstance(v := config.get(n), str) else "" for n in ("name", "method"))
    # As it was before an archive said so.
    if method in ADAPTIVE:
        options.setdefault("error_norm", "coordinate")
    if method == MULTISTEP:
        options.setdefault("max_order", MAX_ORDERS[1])
    given = f"solver={shown(dict(config))}"
    if name not in names():
        raise InputError(
            f"{given} is none of geoflow's own; pass solver= with the name of one, as "
            f"{{'name': {names()[0]!r}}}, or the instance itself"
        )
    # What it says of a package that is missing is the remedy.
    usual = get(name)
    if isinstance(usual, TorchDiffEq) and options.setdefault("method", name) != name:
        raise InputError(f"{given} names two methods; give one")
    _check_options(given, usual, options)
    try:
        return type(usual)(**options)
    except InputError as error:
        raise InputError(f"{given}: {error}") from None


def _check_options(given: str, usual: Solver, options: Mapping[str, Any]) -> None:
    """Refuse options that a solver has not, with those that it has."""
    known = [option for option in inspect.signature(type(usual)).parameters if option != "method"]
    if isinstance(usual, TorchDiffEq):
        # Each has some of those that torchdiffeq's methods have together.
        others = {"step_size"} if usual.name in ADAPTIVE else {"error_norm"}
        others |= {"max_order"} if usual.name != MULTISTEP else set()
        known = [option for option in known if option not in others]
    # What an instance tells of itself it takes, whatever is to be said of it.
    unknown = [option for option in options if option not in (*known, *usual.options)]
    if unknown:
        takes = f"it takes {', '.join(known)}" if known else f"use {usual.name!r}"
        raise InputError(f"{given}: {usual.name} has no such options as {unknown[0]!r}; {takes}")
