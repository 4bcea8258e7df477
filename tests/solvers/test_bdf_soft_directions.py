"""Directions that are soft beside all the curvature a walk has met: they are followed too."""

import functools

import numpy as np
import pytest
import torch

import geoflow as gf
import references
from geoflow.solvers.multistep import corrector
from geoflow.solvers.multistep.corrector import correct
from geoflow.solvers.multistep.history import History
from geoflow.solvers.multistep.secant import SecantPairs


def sphere(stiffness, n, start=0.7):
    """R is stiff in one coordinate, and of slope one in another; the stiff one relaxes first."""

    def regularizer(theta):
        return stiffness * (theta[0] - 0.5) ** 2 + theta[1]

    theta0 = torch.cat(
        [torch.tensor([start]).double(), torch.linspace(1, 0.5, n - 1, dtype=torch.float64)]
    )
    problem = gf.Problem.from_function(lambda theta: theta @ theta, theta0)
    return gf.RegularizingFlow(gf.LevelSet(problem), regularizer)


@functools.cache
def reference(stiffness, n):
    return references.tight(sphere(stiffness, n), [1.0], rtol=1e-9)[-1]


@pytest.mark.parametrize(
    "rtol", [1e-4, *(pytest.param(r, marks=pytest.mark.slow) for r in (1e-3, 1e-6))]
)
@pytest.mark.parametrize(("stiffness", "n"), [(1e4, 3), (1e6, 3), (1e6, 12)])
def test_the_slow_motion_after_a_stiff_transient_is_followed(stiffness, n, rtol):
    flow = sphere(stiffness, n)
    ds = gf.walk(flow, "bdf", rtol=rtol, atol=1e-3 * rtol, stop=None, t_end=1.0)
    expected = reference(stiffness, n)
    error = np.linalg.norm(ds["theta"].values[-1] - expected) / np.linalg.norm(expected)
    assert error < 10 * rtol


def all_stiff(flow, n_pairs=8):
    """Pairs of the stiff coordinate alone."""
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    s = torch.zeros_like(flow.problem.theta0)
    s[0] = 1.0
    for _ in range(n_pairs):
        pairs.add(s, 2e6 * s)
    return pairs


def test_a_step_is_solved_where_all_that_is_known_is_stiff():
    flow = sphere(1e6, 3, start=0.5)
    start = flow.evaluate(flow.problem.theta0)
    # Predicted to stay where it is. Were all as stiff as the pairs, it would all but do so.
    step, allowed = 1e-2, 1e-4
    formula = History(start.theta[None], np.zeros(1)).formula(1, step, 0 * start.velocity)
    solved = correct(flow, formula, all_stiff(flow), allowed, closely=False)
    assert solved.iterations > 0
    # The implicit Euler step: what is left of it is small beside the motion.
    left = solved.state.theta - start.theta - step * solved.state.velocity
    moved = float((solved.state.theta - start.theta).norm())
    assert moved > 0.5 * step * start.tangent_norm
    tangent = left - solved.state.normals.split(left).part
    assert float(tangent.norm()) < 2 * corrector.NEGLIGIBLE * allowed


def test_a_sum_of_vectors_and_rows_has_the_length_of_the_vector_it_is():
    n = 60
    generator = torch.Generator().manual_seed(0)
    pairs = SecantPairs(40, [], np.zeros((0, 0)))
    curvatures = torch.logspace(-1, 3, n, dtype=torch.float64)
    for _ in range(30):
        s = torch.randn(n, generator=generator, dtype=torch.float64)
        s /= s.norm()
        pairs.add(s, curvatures * s)
        pairs.read(s[None], 0.1)
    assert pairs.directions is not None
    vectors = torch.randn((2, n), generator=generator, dtype=torch.float64).float()
    read = pairs.read(vectors, 0.1)
    weights = np.array([1.5, -0.5])
    for bulk in (None, 0.0):
        solved = pairs.solved(read, 0.1, bulk=bulk)
        made = solved.combined(weights[None])[0]
        assert pairs.length(read, solved.parts(weights)) == pytest.approx(float(made.norm()), 1e-4)
