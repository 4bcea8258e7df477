"""Exact counts of evaluations, and budgets of them."""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from geoflow.errors import EvaluationLimitError, InputError

if TYPE_CHECKING:
    from geoflow.problems.protocol import ProblemLike

# Held while the counts of a problem change: shared by all, so that they hold no lock.
_CHANGING = threading.Lock()
# The thread that has a budget of a problem, by the number of the problem.
_WALKING: dict[int, int] = {}


class _Own:
    """What one thread has spent on a problem, and what it may."""

    def __init__(self) -> None:
        self.gradient = self.hvp = 0
        self.limit: float | None = None
        # Problems that draw from one budget with it, and where that ends; see shared_budget.
        self.shared: tuple[Sequence[ProblemLike], int] | None = None


class _Spent(threading.local):
    def __init__(self) -> None:
        self.on: WeakKeyDictionary[Counted, _Own] = WeakKeyDictionary()


_SPENT = _Spent()


class Counted(ABC):
    """What counts its evaluations and can be given a budget of them.

    Several threads may evaluate one. Counts are those of all of them; a budget, and what is left
    uncounted, are those of the thread that asks for it: what others evaluate meanwhile is not
    limited by its budget, takes nothing from it, and is counted.
    """

    _n_gradient = _n_hvp = 0

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Evaluations so far, of all threads: ``{"gradient": n, "hvp": m}``."""

    @property
    def evaluations(self) -> int:
        """Cost so far in gradient evaluations; a Hessian-vector product counts 2."""
        return _cost(self.counts)

    @contextmanager
    def budget(self, evaluations: int) -> Iterator[None]:
        """Allow this thread at most this many more :attr:`evaluations` inside the block.

        Raises
        ------
        EvaluationLimitError
            From the evaluation that would pass the limit, before it is made.
        InputError
            There is a budget already: another walk is evaluating.
        """
        own = self._own()
        with _CHANGING:
            if id(self) in _WALKING:
                raise InputError(
                    "problem: another walk is evaluating it; make a problem for each walk at a time"
                )
            _WALKING[id(self)] = threading.get_ident()
        own.limit = _cost(self._own_counts) + evaluations
        try:
            yield
        finally:
            own.limit = None
            _WALKING.pop(id(self), None)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave counts and budget as they are: what this thread measures inside is no cost."""
        own = self._own()
        before = own.gradient, own.hvp, own.limit
        # Of an evaluation that has a budget it stays taken.
        own.limit = None if own.limit is None else math.inf
        try:
            yield
        finally:
            self._count(before[0] - own.gradient, before[1] - own.hvp)
            own.limit = before[2]

    def _own(self) -> _Own:
        """What the calling thread has spent, and may."""
        return _SPENT.on.setdefault(self, _Own())

    @property
    def _own_counts(self) -> dict[str, int]:
        own = self._own()
        return {"gradient": own.gradient, "hvp": own.hvp}

    def _count(self, gradient: int = 0, hvp: int = 0) -> None:
        """Count evaluations of the calling thread."""
        own = self._own()
        own.gradient, own.hvp = own.gradient + gradient, own.hvp + hvp
        with _CHANGING:
            self._n_gradient, self._n_hvp = self._n_gradient + gradient, self._n_hvp + hvp

    def _check_budget(self, evaluations: int) -> None:
        own = self._own()
        if own.limit is None or own.limit == math.inf:
            return
        if _cost(self._own_counts) + evaluations > own.limit:
            raise EvaluationLimitError(f"the budget ends at {own.limit} evaluations")
        if own.shared:
            problems, limit = own.shared
            if sum(map(own_evaluations, problems)) + evaluations > limit:
                raise EvaluationLimitError(f"the budget ends at {limit} evaluations of them all")


def own_counts(problem: ProblemLike) -> dict[str, int]:
    """Evaluations of a problem by the calling thread, of which differences say what it spends.

    One of another class than geoflow's own does not tell threads apart.
    """
    return problem._own_counts if isinstance(problem, Counted) else problem.counts


def own_evaluations(problem: ProblemLike) -> int:
    """The same as a cost in gradient evaluations."""
    return _cost(own_counts(problem)) if isinstance(problem, Counted) else problem.evaluations


def _cost(counts: dict[str, int]) -> int:
    return counts["gradient"] + 2 * counts["hvp"]


@contextmanager
def shared_budget(problems: Sequence[ProblemLike], evaluations: int) -> Iterator[None]:
    """Allow this thread that many more evaluations of several problems together in the block.

    One of another class than geoflow's own does not see what the others spend: it may take this
    many by itself.

    Raises
    ------
    EvaluationLimitError
        From the evaluation that would pass the limit, before it is made.
    InputError
        One has a budget already.
    """
    with ExitStack() as stack:
        for problem in problems:
            stack.enter_context(problem.budget(evaluations))
        limit = sum(map(own_evaluations, problems)) + evaluations
        sharing = [p for p in problems if isinstance(p, Counted)] if len(problems) > 1 else []
        for problem in sharing:
            problem._own().shared = problems, limit
        try:
            yield
        finally:
            for problem in sharing:
                problem._own().shared = None


def _forget_others() -> None:
    """In a forked process: the threads whose budgets these are have no end there."""
    global _CHANGING
    _CHANGING = threading.Lock()
    for problem, thread in [*_WALKING.items()]:
        if thread != threading.get_ident():
            del _WALKING[problem]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_others)
