"""What one evaluation of a problem, or a higher derivative of its loss, holds in memory."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from weakref import WeakKeyDictionary

from geoflow.errors import InputError
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike
from geoflow.system.peak import peak_bytes

# Vectors of θ's size in an evaluation and a re-projection, where it is not known.
EVALUATION = 5
# Reverse mode twice, in units of an evaluation, where a product cannot be made.
PRODUCT = 3

_products: WeakKeyDictionary[Problem, int] = WeakKeyDictionary()
_thirds: WeakKeyDictionary[Problem, int] = WeakKeyDictionary()


def evaluation_bytes(problem: ProblemLike) -> int:
    """Bytes that one evaluation and one re-projection hold at their peak, activations included.

    As a problem found it when it was made; of one that is not geoflow's, five vectors like θ are
    assumed.
    """
    vector = problem.n_parameters * problem.theta0.element_size()
    several = getattr(problem, "problems", ())
    if several:
        return max(evaluation_bytes(p) for p in several)
    if not isinstance(problem, Problem):
        return EVALUATION * vector
    # Where it is projected, the point moved and the gradient of before are there too.
    return max(problem.evaluation_bytes + 2 * vector, EVALUATION * vector)


def product_bytes(problem: ProblemLike) -> int:
    """The same of one Hessian-vector product, and no less than that of an evaluation.

    Found at ``theta0`` the first time, by one product on the first two chunks or batches, which is
    not counted: of batches of different sizes a later one may take more. What an operation takes
    for itself while it runs is not seen.
    """
    usual = evaluation_bytes(problem)
    if not isinstance(problem, Problem):
        return PRODUCT * usual
    if problem not in _products:
        part, theta = _first_two(problem), problem.theta0
        _products[problem] = _peak(lambda: part._derived(theta, theta))
    return max(_products[problem], usual)


def third_bytes(problem: ProblemLike) -> int:
    """The same of a third derivative along a vector, and no less than that of a product."""
    usual = product_bytes(problem)
    if not isinstance(problem, Problem):
        return usual
    if problem not in _thirds:
        part, theta = _first_two(problem), problem.theta0
        _thirds[problem] = _peak(lambda: part._derived_thrice(theta, theta))
    return max(_thirds[problem], usual)


def _first_two(problem: Problem) -> Problem:
    """A problem of its first two chunks: two, so that what is added up is there."""
    part = copy.copy(problem)
    part._parts = tuple(itertools.islice(problem._parts, 2))
    return part


def _peak(derive: Callable[[], object]) -> int:
    try:
        return peak_bytes(derive)
    except InputError:
        # Then differences take its place.
        return 0
