"""Experiments by name: the paper's five, and those that are registered in this process.

An archive holds the name of its experiment and no code: a name means what is registered under it
in the process that opens the archive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from geoflow.errors import InputError
from geoflow.experiments.own import Function, OwnExperiment
from geoflow.experiments.paper import EXPERIMENTS
from geoflow.experiments.prepared import Data, PreparedExperiment
from geoflow.experiments.trained import Experiment, Start
from geoflow.system.kinds import check_kind, shown

__all__ = [
    "Data",
    "Experiment",
    "OwnExperiment",
    "PreparedExperiment",
    "Start",
    "get",
    "names",
    "not_of_paper",
    "of_paper",
    "register",
    "registered",
]

_REGISTERED: dict[str, OwnExperiment] = {}


def names() -> list[str]:
    """Names of all experiments, the paper's first."""
    return [*EXPERIMENTS, *_REGISTERED]


def get(name: str) -> Experiment | OwnExperiment:
    """Return the experiment of this name.

    Raises
    ------
    InputError
        There is none.
    """
    check_kind(name, str, "experiment", "the name of one, such as 'iris_ff'")
    found = EXPERIMENTS.get(name) or _REGISTERED.get(name)
    if found is None:
        raise InputError(
            f"experiment {shown(name)} is not known; use one of {', '.join(names())}; "
            "if it is your own, register it first, or name its file with --problem"
        )
    return found


def of_paper(name: str) -> Experiment:
    """Return the experiment of the paper of this name.

    Raises
    ------
    InputError
        There is none, or it is one's own, of which only its problem is known and not how its
        network is trained: its loss may be of no network and no data at all.
    """
    check_kind(name, str, "experiment", "the name of one, such as 'iris_ff'")
    if name not in EXPERIMENTS:
        raise InputError(not_of_paper(f"experiment {name!r}"))
    return EXPERIMENTS[name]


def not_of_paper(given: str) -> str:
    """Say why what was given is not trained with weight decay, and what does for it."""
    return (
        f"{given} is not of the paper, and geoflow does not know how its network is trained; use "
        f"one of {', '.join(EXPERIMENTS)}, or for your own a path, whose points are weight-decay "
        "solutions (geoflow path, gf.regularization_path)"
    )


def register(name: str, function: Function) -> None:
    """Give one's own experiment a name, for every command and function that takes one.

    It is known in this process, and in the workers of the sweeps that it starts. A function
    defined again, as by running a cell of a notebook again, takes the place of the earlier one.

    Parameters
    ----------
    name : str
        Letters, digits, ``_``, ``.`` and ``-``; no name that is taken.
    function : callable
        ``function(seed)`` → :class:`~geoflow.experiments.PreparedExperiment`, or
        :class:`~geoflow.Problem` where nothing else is known. The same seed must give the same
        problem. Of the options ``data``, ``epochs``, ``dtype`` (a ``torch.dtype``), ``device`` and
        ``progress`` it is given those that it names in its signature.

    Raises
    ------
    InputError
        A name that is taken or cannot be used, or what cannot be called with a seed.

    Examples
    --------
    >>> def bowl(seed):
    ...     start = torch.full((3,), 1.0 + seed, dtype=torch.float64)
    ...     return gf.Problem.from_function(lambda theta: theta.square().sum(), start)
    >>> gf.experiments.register("bowl", bowl)
    >>> float(gf.experiments.get("bowl").prepare(seed=1).problem.loss(torch.ones(3).double()))
    3.0
    """
    _check_name(name)
    experiment = OwnExperiment(name, function)
    there = _REGISTERED.get(name)
    if name in EXPERIMENTS or (there is not None and not _defined_again(there, experiment)):
        raise InputError(f"name={name!r} is taken; choose another")
    _REGISTERED[name] = experiment


@contextmanager
def registered(experiment: OwnExperiment) -> Iterator[None]:
    """Register an experiment for the length of a block.

    Raises
    ------
    InputError
        Its name is taken.
    """
    if experiment.name in names():
        raise InputError(f"{experiment.name!r} is the name of another experiment; choose another")
    _REGISTERED[experiment.name] = experiment
    try:
        yield
    finally:
        del _REGISTERED[experiment.name]


def _check_name(name: object) -> None:
    # The names of figures start with it.
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"name={shown(name)}; use letters, digits, '_', '.' and '-'")


def _defined_again(a: OwnExperiment, b: OwnExperiment) -> bool:
    """Whether both are one function, at two times: at the top of a module, by one name."""
    if a.function is b.function:
        return True
    places = {
        (getattr(e.function, "__module__", None), getattr(e.function, "__qualname__", None))
        for e in (a, b)
    }
    module, name = next(iter(places))
    return len(places) == 1 and isinstance(name, str) and name.isidentifier() and bool(module)
