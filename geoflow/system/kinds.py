"""Arguments of the wrong kind: refused by their name, before anything is done with them."""

from __future__ import annotations

import operator
import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import InputError

# Several numbers, as they are given.
Reals = Sequence[float] | NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
Wholes = Sequence[int] | NDArray[np.integer[Any]]

# What a message shows of a value.
LONGEST = 60
# Numbers of an array; of more its shape.
FEW = 3

# As of a float: what is longer is no count of anything, and Python may not write it.
LONGEST_WHOLE = 1024

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


def real(value: Any) -> float:
    """``float(value)``, but for NumPy's complex numbers, of which that drops the imaginary part.

    Raises
    ------
    TypeError, ValueError, OverflowError, RuntimeError
        It is no real number, or none that a float can hold.
    """
    if isinstance(value, np.complexfloating):
        raise TypeError(f"{value} is complex")
    return float(value)


def as_number(value: Any, name: str) -> float:
    """A number as a float.

    Raises
    ------
    InputError
        It is none.
    """
    try:
        # float("3") is 3, and float(True) is 1.
        if isinstance(value, str | bytes | bool | np.bool_):
            raise TypeError
        return real(value)
    except OverflowError:  # a whole number, or a fraction of two
        raise InputError(f"{name}={shown(value)}; give a number that a float can hold") from None
    except (TypeError, ValueError, RuntimeError):  # a tensor of several, or on no device
        raise InputError(f"{name}={shown(value)}; give a real number") from None


def as_whole(value: Any, name: str, least: int | None = None) -> int:
    """A whole number as an int.

    Parameters
    ----------
    value
        The argument.
    name : str
        Of the argument.
    least : int, optional
        None: whatever it is.

    Raises
    ------
    InputError
        It is none, or less.
    """
    try:
        number = _index(value)
    except TypeError:
        raise InputError(f"{name}={shown(value)}; give a whole number") from None
    except OverflowError:
        raise InputError(f"{name}={shown(value)}; give a smaller whole number") from None
    if least is not None and number < least:
        raise InputError(f"{name}={number}; use at least {least}")
    return number


def as_wholes(values: Any, name: str) -> list[int]:
    """Whole numbers in a list, a range or an array as a list of int.

    Raises
    ------
    InputError
        They are none, or only one.
    """
    try:
        return [_index(value) for value in values]
    except (TypeError, OverflowError):
        give = "give whole numbers in a list, such as [0, -1]"
        raise InputError(f"{name}={shown(values)}; {give}") from None


def as_names(values: Any, name: str) -> list[str]:
    """Names in a list or an array as a list of str.

    Raises
    ------
    InputError
        They are none, or only one.
    """
    try:
        found = list(values)
    except TypeError:
        found = [None]
    if isinstance(values, str) or not all(isinstance(value, str) for value in found):
        raise InputError(f"{name}={shown(values)}; give names in a list")
    return [str(value) for value in found]


def _index(value: Any) -> int:
    # True is a whole number to Python.
    if isinstance(value, bool | np.bool_):
        raise TypeError
    number = operator.index(value)
    if number.bit_length() > LONGEST_WHOLE:
        raise OverflowError
    return number


def check_switch(value: Any, name: str) -> None:
    """Refuse what is neither True nor False, and would be taken for one of them.

    Raises
    ------
    InputError
        It is another.
    """
    check_kind(value, bool | np.bool_, name, "True or False")


def as_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """Numbers as an array.

    Raises
    ------
    InputError
        They are none.
    """
    try:
        array = np.asarray(values)
        # Of which the one would become NaN, and the other lose its imaginary part.
        lost = None | np.complexfloating
        if array.dtype == object and any(isinstance(value, lost) for value in array.flat):
            raise TypeError
        if array.dtype.kind == "c":
            raise TypeError
        return np.asarray(values, dtype=np.float64)
    except OverflowError:
        raise InputError(f"{name}={shown(values)}; give numbers that a float can hold") from None
    except (TypeError, ValueError, RuntimeError):  # a tensor with a gradient
        raise InputError(f"{name}={shown(values)}; give real numbers") from None


class _Short(reprlib.Repr):
    """Dicts in their order: settings have their name first. Whole numbers of any length."""

    def __init__(self) -> None:
        super().__init__()
        # Texts are cut where the line ends, and not before.
        self.maxstring = LONGEST

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # of more digits than Python writes
            return f"a number of {x.bit_length()} bits"

    def repr_Tensor(self, x: Any, level: int) -> str:
        """Of many numbers the shape says more than the first of them do."""
        few = x.numel() <= FEW
        return self.repr_instance(x, level) if few else f"a tensor of shape {tuple(x.shape)}"

    repr_Parameter = repr_Tensor

    def repr_ndarray(self, x: Any, level: int) -> str:
        few = x.size <= FEW
        return self.repr_instance(x, level) if few else f"an array of shape {x.shape}"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        parts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in x.items()]
        most = self.maxdict
        return f"{{{', '.join([*parts[:most], '...'] if len(parts) > most else parts)}}}"


def shown(value: Any) -> str:
    """A value in one short line."""
    line = (_Short().repr(value).splitlines() or [""])[0]
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
