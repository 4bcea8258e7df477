"""Exact counts of evaluations, and budgets of them."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from geoflow.errors import EvaluationLimitError, InputError
from geoflow.system import kinds

if TYPE_CHECKING:
    from geoflow.problems.protocol import ProblemLike

# Held while the counts of a problem change: shared by all, so that they hold no lock.
_CHANGING = threading.Lock()


@dataclass(frozen=True, eq=False)
class _Budget:
    """What a thread may spend on one problem, or on several together.

    Attributes
    ----------
    allowed : int
        Evaluations.
    limit : int
        What the thread has spent where they are spent.
    thread : int
        Its number.
    problems : sequence of ProblemLike
        Those that draw from it; empty for the one that has it.
    """

    allowed: int
    limit: int
    thread: int = field(default_factory=threading.get_ident)
    problems: Sequence[ProblemLike] = ()


# By the number of the problem.
_WALKING: dict[int, _Budget] = {}


class _Own:
    """What one thread has spent on a problem, and what it may."""

    def __init__(self) -> None:
        self.gradient = self.hvp = 0
        # Its own, and one that it draws from with others; see shared_budget.
        self.budget: _Budget | None = None
        self.shared: _Budget | None = None


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
            It is no whole number, or below zero; or there is a budget already: another walk is
            evaluating.
        """
        allowed = kinds.as_count(evaluations, "evaluations", 0)
        own = self._own()
        # Before it is taken: counts of a user's class may fail.
        budget = _Budget(allowed, _cost(self._own_counts) + allowed)
        # Inside, as Ctrl-C may come anywhere: what is taken is given back.
        try:
            with _CHANGING:
                if _WALKING.setdefault(id(self), budget) is not budget:
                    raise InputError(
                        "problem: another walk is evaluating it; make a problem for each walk at a "
                        "time"
                    )
            own.budget = budget
            yield
        finally:
            if _WALKING.get(id(self)) is budget:
                own.budget = None
                del _WALKING[id(self)]

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave counts and budget as they are: what this thread measures inside is no cost."""
        own = self._own()
        gradient, hvp, budget = own.gradient, own.hvp, own.budget
        try:
            # It stays taken.
            own.budget = None
            yield
        finally:
            self._count(gradient - own.gradient, hvp - own.hvp)
            own.budget = budget

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
        if own.budget is None:
            return
        if _cost(self._own_counts) + evaluations > own.budget.limit:
            raise EvaluationLimitError(
                f"the budget of {own.budget.allowed} evaluations is spent; allow more"
            )
        shared = own.shared
        if shared and sum(map(own_evaluations, shared.problems)) + evaluations > shared.limit:
            raise EvaluationLimitError(
                f"the budget of {shared.allowed} evaluations of them all is spent; allow more"
            )


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
        budget = _Budget(evaluations, limit, problems=problems)
        sharing = [p for p in problems if isinstance(p, Counted)] if len(problems) > 1 else []
        try:
            for problem in sharing:
                problem._own().shared = budget
            yield
        finally:
            for problem in sharing:
                problem._own().shared = None


def _forget_others() -> None:
    """In a forked process: the threads whose budgets these are have no end there."""
    global _CHANGING
    _CHANGING = threading.Lock()
    for problem, budget in [*_WALKING.items()]:
        if budget.thread != threading.get_ident():
            del _WALKING[problem]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_others)
