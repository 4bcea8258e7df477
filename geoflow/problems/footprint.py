"""What one evaluation of a problem holds in memory, found by making one."""

from __future__ import annotations

import copy
import itertools
from weakref import WeakKeyDictionary

from geoflow.errors import InputError
from geoflow.problems.problem import Problem
from geoflow.problems.protocol import ProblemLike
from geoflow.system.footprint import peak_bytes

# Vectors of θ's size in an evaluation and a re-projection, where it is not known.
EVALUATION = 5
# Reverse mode twice, in units of an evaluation, where a product cannot be made.
PRODUCT = 3

_evaluations: WeakKeyDictionary[Problem, int] = WeakKeyDictionary()
_products: WeakKeyDictionary[Problem, int] = WeakKeyDictionary()


def evaluation_bytes(problem: ProblemLike) -> int:
    """Bytes that one evaluation and one re-projection hold at their peak, activations included.

    Found at ``theta0`` the first time, by one evaluation of the first two chunks or batches, which
    is not counted: of batches of different sizes a later one may take more. Of a problem that is
    not geoflow's, five vectors like θ are assumed. What an operation takes for itself while it
    runs is not seen.
    """
    vector = problem.n_parameters * problem.theta0.element_size()
    several = getattr(problem, "problems", ())
    if several:
        return max(evaluation_bytes(p) for p in several)
    if not isinstance(problem, Problem):
        return EVALUATION * vector
    if problem not in _evaluations:
        part = _first_parts(problem)
        _evaluations[problem] = peak_bytes(lambda: part._evaluated(part.theta0))
    # Where it is projected, the point moved and the gradient of before are there too.
    return max(_evaluations[problem] + 2 * vector, EVALUATION * vector)


def product_bytes(problem: ProblemLike) -> int:
    """The same of one Hessian-vector product, and no less than that of an evaluation."""
    usual = evaluation_bytes(problem)
    if not isinstance(problem, Problem):
        return PRODUCT * usual
    if problem not in _products:
        part, theta = _first_parts(problem), problem.theta0
        try:
            _products[problem] = peak_bytes(lambda: part._derived(theta, theta))
        except InputError:
            # Then products are differences.
            _products[problem] = 0
    return max(_products[problem], usual)


def _first_parts(problem: Problem) -> Problem:
    """The same of its first two chunks or batches, so that what is added up is there."""
    part = copy.copy(problem)
    part._parts = tuple(itertools.islice(problem._parts, 2))
    return part
