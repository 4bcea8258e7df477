"""What can be walked together, and whether a walk is taken up with what it was begun with."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from geoflow.errors import ArchiveError, InputError, ObservableError
from geoflow.manifold.protocol import Flow, State
from geoflow.problems.protocol import ProblemLike
from geoflow.solvers import Solver, check_needs
from geoflow.system import kinds
from geoflow.trajectories.layout import layout_of
from geoflow.trajectories.records import Observable, value_of
from geoflow.walking.events import Event
from geoflow.walking.stopping import Goals

# What another machine changes in the last digits only; differences of nearly equal numbers, as
# the residual is one, it changes whole.
COMPARED: Mapping[str, str] = {
    "train_loss": "the loss",
    "gradient_norm": "the norm of the loss gradient",
    "regularizer": "the regularisation function",
}

# What changes so many roundings of θ away by this part of a difference, changes at random.
ROUNDINGS, PART = (-16, -4, 4, 16), 0.1

# Second differences of gradients magnify their rounding, which is another on another machine.
EARLIER_UNITS = 100

# Of R and its gradient, which earlier versions had by differences.
OF_R = {"regularizer", "tangent_norm", "multiplier"}

# And those that say what ∇R is: its parts, in units of its own length.
GRADIENT = {"tangent_norm", "multiplier", "gradient_norm"}


def check_fit(
    flow: Flow,
    solver: Solver,
    goals: Goals,
    observables: Mapping[str, Observable],
    events: Sequence[Event] = (),
) -> None:
    """Refuse, before the first evaluation, what cannot be walked together.

    Raises
    ------
    InputError
        Several constraints of which the flow records nothing; or a solver, a stop, events or
        observables that do not fit the flow.
    """
    n = flow.level_set.n_constraints
    if n > 1 and not hasattr(flow, "constraint_values"):
        raise InputError(
            f"flow: its level set has {n} constraints, of which {type(flow).__name__} records "
            "nothing; give it a method constraint_values, as RegularizingFlow has one"
        )
    check_needs(solver, flow)
    goals.check_scalars(flow.scalars, observables)
    for event in events:
        event.check(flow.scalars, observables)
    if events and "event" in observables:
        raise InputError("observables: 'event' is taken in a walk with events; choose another name")
    for name in observables:
        if name in flow.scalars:
            raise InputError(f"observables: {name!r} is taken by the flow; choose another name")


def check_same(
    now: Mapping[str, float],
    then: Mapping[str, float],
    dtype: torch.dtype,
    earlier: Callable[[], Mapping[str, float] | None] = lambda: None,
) -> None:
    """Compare the flow's scalars where a walk is taken up with those recorded there.

    Those of now, or as earlier versions computed them where that is given.

    Raises
    ------
    ArchiveError
        L, ‖∇L‖, R or ∇R is another, by more than another machine makes it.
    """
    rounded = [name for name in now if now[name] != then[name]]
    if not rounded:
        return
    different = differences(now, then, dtype)
    if different:
        if is_earlier(earlier(), then, dtype):
            said = (
                f"flow: {different[0]} by an earlier version, from differences of gradients over a "
                "step that was too long; the walk goes on with R and its gradient as they are"
            )
            warnings.warn(said, stacklevel=3)
            return
        raise ArchiveError(
            f"flow: {different[0]}; go on with the network, the loss function and the "
            "regularisation function that the walk started with"
        )
    warnings.warn(
        f"other last digits than those recorded, of {', '.join(rounded)}, so the walk goes on but "
        "not bit for bit: another machine, number of threads or of processes, or version of torch",
        stacklevel=3,
    )


def earlier_values(flow: Flow, state: State) -> Mapping[str, float] | None:
    """The flow's scalars as earlier versions computed them; None where that is no other."""
    earlier = getattr(flow, "earlier_state", None)
    once = None if earlier is None else earlier(state)
    return None if once is None else flow.values(once)


def is_earlier(
    values: Mapping[str, float] | None, then: Mapping[str, float], dtype: torch.dtype
) -> bool:
    """Whether what was recorded is what earlier versions computed, as far as its rounding tells.

    That of R and its gradient: of the loss they computed nothing otherwise.
    """
    if values is None or differences(values, then, dtype, EARLIER_UNITS):
        return False
    of_loss = {name: value for name, value in values.items() if name not in OF_R}
    return not differences(of_loss, then, dtype)


def tensors_differ(problem: ProblemLike, then: Sequence[Sequence[Any]]) -> str:
    """Show the first tensor that differs from the one recorded; empty where all are the same.

    Parameters
    ----------
    problem : ProblemLike
        Has the tensors of now.
    then : list
        Name and shape of each that was recorded.
    """
    for pair in zip_longest(layout_of(problem), then):
        if pair[0] != pair[1]:
            return " and ".join(map(kinds.shown, pair))
    return ""


def differences(
    now: Mapping[str, float],
    then: Mapping[str, float],
    dtype: torch.dtype,
    units: float = 1.0,
) -> list[str]:
    """Say in what the flow's scalars differ from those recorded, by more than rounding in dtype.

    By more than so many units of what rounding is taken for.
    """
    rtol = units * math.sqrt(torch.finfo(dtype).eps)
    different = [
        f"{what} is {now[name]:.9g} where {then[name]:.9g} was recorded"
        for name, what in COMPARED.items()
        if name in now and not math.isclose(now[name], then[name], rel_tol=rtol)
    ]
    if now.keys() >= GRADIENT and not different:
        parts = [(s["tangent_norm"], s["multiplier"] * s["gradient_norm"]) for s in (now, then)]
        if not math.dist(*parts) <= rtol * math.hypot(*parts[1]):
            different = [
                "the gradient of the regularisation function has parts along and normal to the "
                "level set of {:.9g} and {:.9g} where {:.9g} and {:.9g} were recorded".format(
                    *parts[0], *parts[1]
                )
            ]
    return different


def observed_otherwise(
    observables: Mapping[str, Observable],
    theta: NDArray[Any],
    like: Tensor,
    then: Mapping[str, float],
    sizes: Mapping[str, float],
    called: str = "observables[{!r}]",
) -> str:
    """Say which function of θ is another than that whose value was recorded; empty for none.

    A value that rounding of θ changes as much tells nothing, as that of numbers that cancel, and
    neither does noise: such a function is taken as it is, and so is one that cannot be evaluated.

    Parameters
    ----------
    observables : mapping of str to callable
        Functions of now.
    theta : array, shape (P,)
        As it was kept.
    like : Tensor
        θ as the functions take it: its dtype and device.
    then, sizes : mapping of str to float
        Value that was recorded at θ, and the greatest of all that were, in size.
    called : str
        What a function is, of its name.
    """
    there = torch.from_numpy(theta.copy())
    eps = torch.finfo(there.dtype).eps
    rtol = math.sqrt(eps)

    def value(function: Observable, name: str, at: Tensor) -> float:
        return value_of(function, at.to(like), called.format(name))

    for name, function in observables.items():
        if not math.isfinite(then[name]):
            continue
        try:
            now = value(function, name, there)
            if math.isclose(now, then[name], rel_tol=rtol, abs_tol=rtol * sizes[name]):
                continue
            beside = [value(function, name, there + k * eps * there.abs()) for k in ROUNDINGS]
        except ObservableError:
            continue
        if max(abs(other - now) for other in beside) >= PART * abs(now - then[name]):
            continue
        if (earlier := getattr(function, "earlier", None)) is not None:
            once = earlier(there.to(like))
            rough = EARLIER_UNITS * rtol
            if once is not None and math.isclose(once, then[name], rel_tol=rough):
                continue
        return f"{called.format(name)} is {now:.9g} where {then[name]:.9g} was recorded"
    return ""
