"""Brownian paths, their principal components, and whether a walk could be one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from geoflow.analysis.components.path_components import (
    SIMULATED,
    check_sizes,
    components_of_steps,
    participation_ratio,
    step_gram,
)
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.system import kinds
from geoflow.system.limits import OPERATIONS, check_work
from geoflow.system.memory import check_memory

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BrownianTest:
    """A walk beside simulated Brownian paths.

    Attributes
    ----------
    statistic : float
        Participation ratio of the walk's principal components.
    null : array of float64, shape (n_simulations,)
        The same of the simulated paths.
    p_value : float
        Two-sided; at least 2/(n_simulations + 1).
    """

    statistic: float
    null: Floats
    p_value: float


def brownian_variance_ratio(n_points: int, n_components: int | None = None) -> Floats:
    """Explained variance ratios of a Brownian path's principal components, in high dimension.

    λ_k ∝ 1/(2 sin(kπ/2N))² for k = 1 … N − 1, of N evenly spaced points as P → ∞; 6/(π²k²) as
    N → ∞ as well (Antognini & Sohl-Dickstein 2018, NeurIPS). The scores are cosines.

    Parameters
    ----------
    n_points : int
        N.
    n_components : int, optional
        None: all N − 1.

    Raises
    ------
    InputError
        Fewer than 2 points, or more components than N − 1.
    """
    check_sizes(n_points, n_components)
    k = np.arange(1, n_points)
    values = 1 / (2 * np.sin(k * np.pi / (2 * n_points))) ** 2
    ratios: Floats = values[:n_components] / values.sum()
    return ratios


def brownian_path(
    n_points: int, dimension: int, *, step_lengths: Floats | None = None, seed: int = 0
) -> Floats:
    """Draw a random walk from the origin with independent, isotropic steps, shape (N, dimension).

    Parameters
    ----------
    n_points, dimension : int
        N and P.
    step_lengths : array, shape (N − 1,), optional
        Lengths that the steps are scaled to. None: as they come, normal of unit variance in each
        direction.
    seed : int
        Decides the steps.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    check_sizes(n_points, None)
    dimension = kinds.as_whole(dimension, "dimension", 1)
    named = f"n_points={n_points}, dimension={dimension}: the steps"
    check_memory(3 * 8 * n_points * dimension, named, "use fewer")
    steps = np.random.default_rng(check_seed(seed)).standard_normal((n_points - 1, dimension))
    if step_lengths is not None:
        lengths = kinds.as_numbers(step_lengths, "step_lengths")
        usable = np.isfinite(lengths) & (lengths >= 0)
        if lengths.shape != (n_points - 1,) or not usable.all():
            raise InputError(f"step_lengths: give {n_points - 1} numbers, finite and not negative")
        steps *= (lengths / np.linalg.norm(steps, axis=1))[:, None]
    return np.concatenate([np.zeros((1, dimension)), np.cumsum(steps, axis=0)])


def brownian_test(
    points: Any,
    *,
    dimension: int | None = None,
    n_simulations: int = 999,
    seed: int = 0,
) -> BrownianTest:
    """Test whether a walk could be a random walk with independent, isotropic steps.

    The statistic is the participation ratio of the principal components,
    (Σ λ_k)²/Σ λ_k²: how many directions the path uses. It is 5/2 for a long Brownian path in high
    dimension, 1 for a straight line and for a relaxation at one rate, above 5/2 for steps that tend
    to turn back. The null distribution is simulated: random walks whose steps have the lengths of
    the walk's own, so that uneven steps are no reason to reject. Given the seed, the p-value is
    decided; under the null hypothesis it is below any α with probability at most α.

    Parameters
    ----------
    points : array, shape (N, P)
        In the order of the walk; of NumPy or Dask, or a lazy one, which is read in blocks.
    dimension : int, optional
        Of the space the steps are isotropic in; None: P. Where the steps of a diffusion span d
        effective directions, the null hypothesis is wider with d than with P.
    n_simulations : int
        The least p-value is 2/(n_simulations + 1).
    seed : int
        Of the simulations.

    Raises
    ------
    InputError
        Points that cannot be used, or another argument.
    """
    seed = check_seed(seed)
    gram, _ = step_gram(points)
    dimension = points.shape[1] if dimension is None else dimension
    return simulate(gram, dimension, n_simulations, seed).test


class Simulated(NamedTuple):
    """A test, with what was simulated for it.

    Attributes
    ----------
    test : BrownianTest
        The walk beside the simulated paths.
    ratios, content : array of float64, shape (n_simulations, k)
        Explained variance ratios and cosine content of each path.
    example : array of float64, shape (N − 1, N − 1)
        Inner products of the steps of the first.
    """

    test: BrownianTest
    ratios: Floats
    content: Floats
    example: Floats


def simulate(
    gram: Floats, dimension: int, n_simulations: int, seed: int, n_components: int = 1
) -> Simulated:
    """Simulate Brownian paths with the step lengths of a walk, and test the walk against them.

    Parameters
    ----------
    gram : array, shape (N − 1, N − 1)
        Inner products of the walk's steps, from
        :func:`~geoflow.analysis.components.path_components.step_gram`.
    dimension, n_simulations, seed
        See :func:`brownian_test`.
    n_components : int
        Components kept of each path.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    check_simulations(n_simulations, seed, dimension)
    check_cost(len(gram) + 1, n_simulations, n_components)
    lengths = np.sqrt(np.diagonal(gram))
    rng = np.random.default_rng(check_seed(seed))
    n_steps = len(gram)
    at_once = max(1, SIMULATED // n_steps**2)
    null, found = [], []
    example = gram
    for start in range(0, n_simulations, at_once):
        count = min(at_once, n_simulations - start)
        simulated = _isotropic_gram(rng, count, n_steps, dimension) * np.outer(lengths, lengths)
        if start == 0:
            example = simulated[0]
        components = components_of_steps(simulated, n_components)
        null.append(participation_ratio(components.values))
        found.append((components.ratios, components.content))
    all_null = np.concatenate(null)
    statistic = float(participation_ratio(components_of_steps(gram[None], 1).values)[0])
    tails = [1 + int((all_null <= statistic).sum()), 1 + int((all_null >= statistic).sum())]
    p_value = min(1.0, 2 * min(tails) / (n_simulations + 1))
    test = BrownianTest(statistic, all_null, p_value)
    ratios, content = (np.concatenate(part) for part in zip(*found, strict=True))
    return Simulated(test, ratios, content, example)


def _isotropic_gram(rng: np.random.Generator, count: int, n_steps: int, dimension: int) -> Floats:
    """Inner products of random unit vectors, shape (count, n_steps, n_steps).

    In high dimension by Bartlett's decomposition of the Wishart distribution, which is exact and
    whose cost does not grow with the dimension.
    """
    if dimension <= n_steps:
        factor = rng.standard_normal((count, n_steps, dimension))
    else:
        factor = np.tril(rng.standard_normal((count, n_steps, n_steps)), -1)
        diagonal = np.arange(n_steps)
        factor[:, diagonal, diagonal] = np.sqrt(
            rng.chisquare(dimension - diagonal, (count, n_steps))
        )
    factor /= np.linalg.norm(factor, axis=2, keepdims=True)
    gram: Floats = factor @ factor.swapaxes(1, 2)
    return gram


def check_simulations(n_simulations: int, seed: int, dimension: int = 1) -> None:
    """Refuse what no Brownian paths can be simulated with.

    Raises
    ------
    InputError
        An argument that cannot be used.
    """
    dimension = kinds.as_whole(dimension, "dimension")
    n_simulations = kinds.as_whole(n_simulations, "n_simulations")
    if dimension < 1 or n_simulations < 2:
        raise InputError(f"dimension={dimension}, n_simulations={n_simulations}; use more")
    check_seed(seed)


def check_cost(n_points: int, n_simulations: int, n_components: int) -> None:
    """Refuse simulations of paths that memory cannot hold, or that would take hours.

    Raises
    ------
    InputError
        They would.
    """
    # Ratios and contents, in parts and joined; the statistic.
    needed = 8 * n_simulations * (4 * n_components + 4)
    check_memory(needed, f"n_simulations={n_simulations}: what is kept of each", "use fewer")
    # The eigenvalues of each path.
    named = f"n_simulations={n_simulations} of {n_points} points"
    check_work(4 * n_simulations * n_points**3, OPERATIONS, named, "operations")
