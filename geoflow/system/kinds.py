"""Arguments of the wrong kind: refused by their name, before anything is done with them."""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import InputError

# What a message shows of a value.
LONGEST = 60

A_WALK = "what gf.walk or gf.open_trajectory returned"
A_PATH = "what gf.regularization_path or gf.open_path returned"
A_FLOW = "a gf.RegularizingFlow"


def check_kind(value: Any, kind: Any, name: str, give: str) -> None:
    """Refuse a value that is none of these types.

    Parameters
    ----------
    value
        The argument.
    kind : type or union of types
        As ``isinstance`` takes them.
    name : str
        Of the argument.
    give : str
        What to give instead.

    Raises
    ------
    InputError
        It is another.
    """
    if not isinstance(value, kind):
        raise InputError(f"{name}={shown(value)} is of type {type(value).__name__}; give {give}")


def check_dataset(ds: Any, *names: str, name: str = "ds", give: str = A_WALK) -> None:
    """Refuse what is no dataset, or one without a dimension or variable of these names.

    Raises
    ------
    InputError
        It is none, or one of something else.
    """
    check_kind(ds, xr.Dataset, name, give)
    missing = [n for n in names if n not in ds.dims and n not in ds.variables]
    if missing:
        raise InputError(f"{name} has no {missing[0]!r}; give {give}")


def as_path(path: Any, name: str = "path") -> Path:
    """The name of a file as a Path.

    Raises
    ------
    InputError
        It is no name of a file.
    """
    check_kind(path, str | os.PathLike, name, "the name of a file, a str or Path")
    return Path(path)


def as_number(value: Any, name: str) -> float:
    """A number as a float.

    Raises
    ------
    InputError
        It is none.
    """
    try:
        if isinstance(value, str | bytes):  # float("3") is 3
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # a tensor of several, or on no device
        raise InputError(f"{name}={shown(value)}; give a real number") from None


def as_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Numbers as an array.

    Raises
    ------
    InputError
        They are none.
    """
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name}={shown(values)}; give real numbers") from None


class _Short(reprlib.Repr):
    """Dicts in their order: settings have their name first."""

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        parts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in x.items()]
        most = self.maxdict
        return f"{{{', '.join([*parts[:most], '...'] if len(parts) > most else parts)}}}"


def shown(value: Any) -> str:
    """A value in one short line."""
    line = (_Short().repr(value).splitlines() or [""])[0]
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
