"""What a solver carries, held against what it says of it where a walk is taken up from a file."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from geoflow.errors import ArchiveError
from geoflow.solvers.base import Carry, Solver
from geoflow.system.kinds import shown

# Numbers looked at in one go: beside a carry there may be little memory.
PIECE = 2**20


def taken_up(solver: Solver, carry: Carry, theta: Tensor) -> Carry:
    """The carry of a checkpoint as its solver can go on with it.

    By what its ``taken_up(carry, theta)`` says where it has one, which refuses what it cannot have
    made and puts tensors where they belong; the others' is taken as it is.

    Parameters
    ----------
    solver : Solver
        That of the walk.
    carry : dict
        As it was read.
    theta : Tensor, shape (P,)
        θ of the checkpoint, where the walk is to go on.

    Raises
    ------
    ArchiveError
        Names the first entry that the solver cannot have made.
    """
    own = getattr(solver, "taken_up", None)
    found: Carry = carry if own is None else own(carry, theta)
    return found


def check_numbers(
    carry: Carry,
    *names: str,
    least: float = 0.0,
    most: float = math.inf,
    optional: bool = False,
) -> None:
    """Refuse entries that are no finite numbers, not between two, or missing and not optional.

    Raises
    ------
    ArchiveError
        Names the first of them.
    """
    for name in names:
        if optional and name not in carry:
            continue
        value = carry[name] if name in carry else _missing(name)
        try:
            # What is carried as a tensor, so that a file has all of its digits.
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError):
            number = math.nan
        if not (math.isfinite(number) and least <= number <= most):
            raise ArchiveError(f"{called(name)} is {shown(value)}")


def check_wholes(
    carry: Carry,
    *names: str,
    least: float = 0.0,
    most: float = math.inf,
    optional: bool = False,
) -> None:
    """Refuse entries that are no whole numbers, and else as :func:`check_numbers`.

    Raises
    ------
    ArchiveError
        Names the first of them.
    """
    check_numbers(carry, *names, least=least, most=most, optional=optional)
    for name in names:
        if name in carry and float(carry[name]) % 1:
            raise ArchiveError(f"{called(name)} is {shown(carry[name])}, no whole number")


def check_tensor(
    carry: Carry, name: str, shape: tuple[int | None, ...], dtype: torch.dtype
) -> Tensor:
    """A finite tensor of a carry.

    Parameters
    ----------
    carry : dict
        That of a checkpoint.
    name : str
        Of the entry.
    shape : tuple of int
        Its shape; None: any length.
    dtype : torch.dtype
        Its dtype.

    Raises
    ------
    ArchiveError
        It is missing, another, or not finite.
    """
    value = carry[name] if name in carry else _missing(name)
    if not isinstance(value, Tensor):
        raise ArchiveError(f"{called(name)} is {shown(value)}, no tensor")
    fits = len(shape) == value.ndim and all(
        wanted in (None, n) for wanted, n in zip(shape, value.shape, strict=True)
    )
    if not fits or value.dtype != dtype:
        raise ArchiveError(
            f"{called(name)} is {value.dtype} of shape {tuple(value.shape)}, not {dtype} of shape "
            f"({', '.join('n' if n is None else str(n) for n in shape)})"
        )
    check_finite(name, value)
    return value


def check_finite(name: str, value: Tensor) -> None:
    """Refuse a tensor with a number that is none.

    Raises
    ------
    ArchiveError
        By the name of its entry.
    """
    if not all(bool(part.isfinite().all()) for part in value.reshape(-1).split(PIECE)):
        raise ArchiveError(f"{called(name)} is not finite")


def called(name: str) -> str:
    """What an entry of a carry is called in a message."""
    return f"{name} of its checkpoint, carried by the solver,"


def _missing(name: str) -> Any:
    raise ArchiveError(f"{called(name)} is missing")
