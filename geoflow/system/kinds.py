"""Arguments of the wrong kind: refused by their name, before anything is done with them."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from geoflow.errors import InputError
from geoflow.system.showing import LONGEST as LONGEST
from geoflow.system.showing import shown as shown

# Several numbers, as they are given.
Reals = Sequence[float] | NDArray[np.floating[Any]] | NDArray[np.integer[Any]]
Wholes = Sequence[int] | NDArray[np.integer[Any]]

# As of a float: what is longer is no count of anything, and Python may not write it.
LONGEST_WHOLE = 1024

# Below it are the whole numbers that files count.
COUNTED = 2**63

# Of what is listed before it is looked at, where nothing else limits it: a range may have 10¹² of
# them, and a generator no end.
MOST = 100_000
# And of numbers that go into an array: 80 MB.
MOST_NUMBERS = 10_000_000

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


def as_made(
    ds: xr.Dataset, dims: Sequence[str], what: str, name: str = "ds", least: int = 1
) -> xr.Dataset:
    """What an analysis made, its dimensions in the order in which it made them.

    Parameters
    ----------
    ds : xarray.Dataset
        As it was given back: transposed perhaps, or cut.
    dims : sequence of str
        Those that are used, in that order; others are left behind them.
    what : str
        What the dataset is, for people.
    name : str
        Of the argument.
    least : int
        As many points must be left along each.

    Raises
    ------
    InputError
        One is not there, as where it was cut by a number or a name, or nothing is left along it, or
        less than ``least``.
    """
    some = "some" if least == 1 else f"{least} or more"
    for dim in dims:
        if (n := ds.sizes.get(dim, 0)) < least:
            left = f"{n} of {least} points that it takes are" if n else "nothing is"
            there = f"{left} left along" if dim in ds.dims else "there is no dimension"
            raise InputError(
                f"{name}: {there} {dim!r}; cut {what} by a list or a slice that keeps {some} of "
                f"it, such as {name}.isel({dim}={list(range(least))})"
            )
    return ds.transpose(*dims, ...)


def as_path(path: Any, name: str = "path") -> Path:
    """The name of a file as a Path.

    Raises
    ------
    InputError
        It is no name of a file.
    """
    give = "the name of a file, a str or Path"
    check_kind(path, str | os.PathLike, name, give)
    try:
        # What a PathLike gives may be bytes.
        text = os.fsdecode(path)
    except TypeError:
        raise InputError(f"{name}={shown(path)} names nothing; give {give}") from None
    if "\0" in text:
        raise InputError(f"{shown(text)} is no name of a file (embedded null byte)")
    return Path(text)


def listed(values: Any, name: str, give: str, most: int = MOST, instead: str = "") -> list[Any]:
    """What a sequence or a generator holds, as a list: no more of it is taken than can be used.

    Parameters
    ----------
    values
        The argument.
    name : str
        Of the argument.
    give : str
        What to give instead of what is no sequence.
    most : int
        As many as can be used.
    instead : str
        What to give instead of more, to follow their number.

    Raises
    ------
    InputError
        There are more; or it is no sequence, as a number or an array without dimensions.
    """
    there, found = f"more than {most:,}", None
    try:
        if (n := operator.length_hint(values)) > most:
            there = f"{n:,}"
        else:
            found = list(islice(values, most + 1))
    except OverflowError:  # of a range of more than 2⁶³
        pass
    except TypeError:
        raise InputError(f"{name}={shown(values)}; give {give}") from None
    if found is None or len(found) > most:
        raise InputError(f"{name}: there are {there}; give at most {most:,}{instead}")
    return found


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


def is_finite(value: Any) -> bool:
    """Whether a value is a finite real number, a tensor or array of one element too."""
    try:
        return not isinstance(value, str | bytes) and math.isfinite(real(value))
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


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


def as_count(value: Any, name: str, least: int | None = None, below: int | None = None) -> int:
    """As :func:`as_whole`, of a float or fraction that is whole too, as 1e4 is.

    ``below`` is a power of two; None: of any size.

    Raises
    ------
    InputError
        It is none, or less than ``least``, or not below ``below``.
    """
    given = value
    try:
        # A float does not hold all whole numbers.
        operator.index(value)
    except TypeError:
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            named = isinstance(value, str | bytes | np.bool_)
            if not named and (number := real(value)) == value:
                given = int(number) if number.is_integer() else value
    count = as_whole(given, name, least)
    if below is not None and abs(count) >= below:
        raise InputError(
            f"{name}={shown(value)}; use a whole number below 2**{below.bit_length() - 1}"
        )
    return count


def as_wholes(values: Any, name: str, most: int = MOST) -> list[int]:
    """Whole numbers in a list, a range or an array as a list of int.

    Raises
    ------
    InputError
        They are none, or only one, or more than ``most``.
    """
    give = "whole numbers in a list, such as [0, -1]"
    try:
        return [_index(value) for value in listed(values, name, give, most)]
    except (TypeError, OverflowError):
        raise InputError(f"{name}={shown(values)}; give {give}") from None


def as_names(values: Any, name: str) -> list[str]:
    """Names in a list or an array as a list of str.

    Raises
    ------
    InputError
        They are none, or only one, or too many.
    """
    give = "names in a list"
    found = listed(values, name, give)
    if isinstance(values, str) or not all(isinstance(value, str) for value in found):
        raise InputError(f"{name}={shown(values)}; give {give}")
    return [str(value) for value in found]


def _index(value: Any) -> int:
    # True is a whole number to Python.
    if isinstance(value, bool | np.bool_):
        raise TypeError
    number = operator.index(value)
    if number.bit_length() > LONGEST_WHOLE:
        raise OverflowError
    return number


def check_choice(value: Any, choices: Collection[str], name: str) -> None:
    """Refuse what is none of some words.

    Parameters
    ----------
    value
        The argument: whatever is no str is none of them.
    choices : collection of str
        The words, in the order in which they are named.
    name : str
        Of the argument.

    Raises
    ------
    InputError
        It is another.
    """
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}={shown(value)}; choose from {', '.join(choices)}")


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
        They are none, or of a range too many for memory.
    """
    if isinstance(values, range):
        values = listed(values, name, "numbers", MOST_NUMBERS)
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
    except MemoryError:
        raise InputError(f"{name}={shown(values)}; give fewer numbers than that") from None
    # A tensor with a gradient, and a list that holds itself.
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name}={shown(values)}; give real numbers") from None
