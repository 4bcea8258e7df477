"""What a walk spends: evaluations of the level set's loss, and apart from them those of R."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import SupportsFloat

from torch import Tensor

from geoflow.manifold.protocol import Flow, apart_from
from geoflow.problems.counting import Counted, own_counts, own_evaluations, shared_budget
from geoflow.trajectories.records import Observable

# By the name of its record, n_regularizer_gradient.
APART = "regularizer_gradient"


def counts_of(flow: Flow) -> dict[str, int]:
    """Evaluations so far by this thread, by the names of their records without ``n_``.

    ``gradient`` and ``hvp`` of the level set's loss; where R evaluates other problems,
    ``regularizer_gradient`` of these, a Hessian-vector product counting 2.
    """
    apart = apart_from(flow)
    counts = dict(own_counts(flow.problem))
    return counts | ({APART: sum(map(own_evaluations, apart))} if apart else {})


def spent(counts: Mapping[str, int]) -> dict[str, int]:
    """Cost in gradient evaluations by what has a budget: the loss, and R where it counts apart."""
    found = {"gradient": counts["gradient"] + 2 * counts["hvp"]}
    return found | ({APART: counts[APART]} if APART in counts else {})


@contextmanager
def budgets(flow: Flow, counts: Mapping[str, int], max_evaluations: int) -> Iterator[None]:
    """Allow the loss what is left of a walk's budget, and the problems of R together as much again.

    Parameters
    ----------
    flow : Flow
        What is walked.
    counts : dict
        Spent before.
    max_evaluations : int
        The budget of each.
    """
    before = spent(counts)
    apart = apart_from(flow)
    left = {name: max(max_evaluations - cost, 0) for name, cost in before.items()}
    with flow.problem.budget(left["gradient"]), shared_budget(apart, left.get(APART, 0)):
        yield


def uncounted(flow: Flow, function: Observable) -> Observable:
    """A function of θ whose evaluations are no cost of the walk that measures it.

    A problem of another class than geoflow's own counts them as it does.
    """
    problems = [p for p in (flow.problem, *apart_from(flow)) if isinstance(p, Counted)]

    def measured(theta: Tensor) -> SupportsFloat:
        with ExitStack() as stack:
            for problem in problems:
                stack.enter_context(problem.uncounted())
            return function(theta)

    # What a walk that is taken up may have recorded.
    if hasattr(function, "earlier"):
        vars(measured)["earlier"] = uncounted(flow, function.earlier)
    return measured
