"""Exact counts of evaluations, and budgets of them."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from geoflow.errors import EvaluationLimitError, InputError

if TYPE_CHECKING:
    from geoflow.problems.protocol import ProblemLike

# Of two threads one has the budget: shared by all problems, so that they hold no lock.
_TAKING = threading.Lock()


class Counted(ABC):
    """What counts its evaluations and can be given a budget of them."""

    _n_gradient = _n_hvp = 0
    _limit: float | None = None
    # Problems that draw from one budget with this one, and where that ends; see shared_budget.
    _shared: tuple[Sequence[ProblemLike], int] | None = None

    @property
    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Evaluations so far: ``{"gradient": n, "hvp": m}``."""

    @property
    def evaluations(self) -> int:
        """Cost so far in gradient evaluations; a Hessian-vector product counts 2."""
        counts = self.counts
        return counts["gradient"] + 2 * counts["hvp"]

    @contextmanager
    def budget(self, evaluations: int) -> Iterator[None]:
        """Allow at most this many more :attr:`evaluations` inside the block.

        Raises
        ------
        EvaluationLimitError
            From the evaluation that would pass the limit, before it is made.
        InputError
            There is a budget already: another walk is evaluating, and the counts would mix.
        """
        with _TAKING:
            if self._limit is not None:
                raise InputError(
                    "problem: another walk is evaluating it; make a problem for each walk at a time"
                )
            self._limit = self.evaluations + evaluations
        try:
            yield
        finally:
            self._limit = None

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Leave counts and budget as they are: what is measured inside the block is no cost."""
        before = self._n_gradient, self._n_hvp, self._limit
        # Of an evaluation that has a budget it stays taken.
        self._limit = None if self._limit is None else math.inf
        try:
            yield
        finally:
            self._n_gradient, self._n_hvp, self._limit = before

    def _check_budget(self, evaluations: int) -> None:
        if self._limit is None or self._limit == math.inf:
            return
        if self.evaluations + evaluations > self._limit:
            raise EvaluationLimitError(f"the budget ends at {self._limit} evaluations")
        if self._shared:
            problems, limit = self._shared
            if sum(p.evaluations for p in problems) + evaluations > limit:
                raise EvaluationLimitError(f"the budget ends at {limit} evaluations of them all")


@contextmanager
def shared_budget(problems: Sequence[ProblemLike], evaluations: int) -> Iterator[None]:
    """Allow several problems at most this many more evaluations together inside the block.

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
        limit = sum(problem.evaluations for problem in problems) + evaluations
        sharing = [p for p in problems if isinstance(p, Counted)] if len(problems) > 1 else []
        for problem in sharing:
            problem._shared = problems, limit
        try:
            yield
        finally:
            for problem in sharing:
                problem._shared = None
