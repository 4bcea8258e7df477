"""Curvature spectra along a walk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from geoflow.analysis.curvature.costs import products_needed, vectors_held
from geoflow.analysis.curvature.matrix_free import (
    LEAST_PRODUCTS,
    Eigenpairs,
    Floats,
    check_max_products,
    checked_tol,
    extreme_eigenvalues,
    spectral_density,
    trace,
)
from geoflow.analysis.curvature.operators import (
    Curvature,
    gauss_newton,
    loss_hessian,
    normal_curvature,
    tangent_hessian,
    tensor_subspace,
)
from geoflow.analysis.curvature.spectra_dataset import assemble
from geoflow.analysis.walked import snapshot_indices, state_at, walk_attributes
from geoflow.archive.pieces import Pieces, fingerprint
from geoflow.errors import InputError
from geoflow.experiments.prepared import check_seed
from geoflow.manifold.flow_state import FlowState
from geoflow.manifold.flows import RegularizingFlow
from geoflow.problems import arithmetic
from geoflow.problems.counting import own_counts
from geoflow.problems.dtypes import dtype_name
from geoflow.problems.footprint import product_bytes
from geoflow.problems.scaling import power_of_two
from geoflow.system import kinds
from geoflow.system.limits import EVALUATIONS, check_work
from geoflow.system.memory import check_memory
from geoflow.system.messages import note
from geoflow.system.progress import duration, progress_bar

OPERATORS = ("hessian", "tangent", "gauss_newton")
DEFAULT_OPERATORS = ("hessian", "tangent")
DEFAULT_SNAPSHOTS = 5

# Vectors of θ's size: a state, and what takes a vector into the tangent space and back.
STATE_AND_PRODUCT = 4 + 4

# To which a spectrum is seen to end at zero, relative to its largest eigenvalue.
NULL_TOL = 1e-3


@arithmetic.without_autocast()
def along(
    ds: xr.Dataset,
    flow: RegularizingFlow,
    *,
    snapshots: kinds.Wholes | None = None,
    operators: Sequence[str] = DEFAULT_OPERATORS,
    tensors: Sequence[str] | None = None,
    k: int = 5,
    n_probes: int = 8,
    n_steps: int = 64,
    n_trace: int = 60,
    n_points: int = 1025,
    tol: float = 1e-6,
    max_products: int = 1000,
    seed: int = 0,
    archive: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> xr.Dataset:
    """Spectra of ∇²L, of its Gauss–Newton part and of the tangent-space Hessian A along a walk.

    Parameters
    ----------
    ds : xarray.Dataset
        A trajectory in schema 1.0 to 1.2.
    flow : RegularizingFlow
        The flow it is a walk of, with the same problem.
    snapshots : sequence of int, optional
        Indices along ``snapshot``, negative ones from the end. None: five, the first and the last
        among them, or all where there are fewer.
    operators : sequence of str
        ``"hessian"`` for ∇²L, ``"tangent"`` for A = Π(∇²R + λ∇²L)Π on the tangent space,
        ``"gauss_newton"`` for the Gauss–Newton part of ∇²L.
    tensors : sequence of str, optional
        Names of parameter tensors to restrict the operators, and the velocity, to. None: all.
    k : int
        Eigenvalues at each end; the k largest span the top eigenspace.
    n_probes, n_steps : int
        See :func:`~geoflow.analysis.curvature.matrix_free.spectral_density`.
    n_trace : int
        Products for :func:`~geoflow.analysis.curvature.matrix_free.trace`.
    n_points : int
        Abscissae of the density.
    tol, max_products : float, int
        See :func:`~geoflow.analysis.curvature.matrix_free.extreme_eigenvalues`; for each end.
    seed : int
        Decides every probe; the same probes at every snapshot, so that differences between
        snapshots are not those of the probes.
    archive : str or Path, optional
        Write the result here. Each snapshot is kept beside it once it is done, so that the same
        call goes on where it was interrupted; with other snapshots too.
    overwrite : bool
        Replace the archive where it exists, and start over where an unfinished analysis with
        other settings lies beside it.
    progress : bool
        Say on standard error how long it will take, and show a bar there if it is a terminal.

    Returns
    -------
    xarray.Dataset
        Dimensions ``snapshot``, ``operator``, ``rank``, ``probe``, ``lanczos`` and ``point``; the
        snapshots keep their flow time and step, and ranks count from 0 at each end. The abscissae
        differ from snapshot to snapshot, as the range of the spectrum does; ``node`` and ``weight``
        are the quadrature itself, not broadened. A random direction would have a
        ``velocity_overlap`` of k/n.

    Raises
    ------
    InputError
        An argument that cannot be used, or a flow that the dataset is not a walk of.
    ArchiveError
        The archive cannot be written; the snapshots that were done are kept.
    """
    kinds.check_kind(flow, RegularizingFlow, "flow", kinds.A_FLOW)
    kinds.check_switch(overwrite, "overwrite")
    kinds.check_switch(progress, "progress")
    seed = check_seed(seed)
    indices = snapshot_indices(ds, snapshots, DEFAULT_SNAPSHOTS)
    operators = kinds.as_names(operators, "operators")
    tensors = None if tensors is None else kinds.as_names(tensors, "tensors")
    _check_operators(operators)
    max_products, tol = check_max_products(max_products), checked_tol(tol)
    k = kinds.as_whole(k, "k", 1)
    n_probes = kinds.as_whole(n_probes, "n_probes", 2)
    n_steps = kinds.as_whole(n_steps, "n_steps", 1)
    n_trace = kinds.as_whole(n_trace, "n_trace", LEAST_PRODUCTS)
    n_points = kinds.as_whole(n_points, "n_points", 2)
    cost = {
        "k": k,
        "n_probes": n_probes,
        "n_steps": n_steps,
        "n_trace": n_trace,
        "max_products": max_products,
    }
    _check_cost(flow, len(indices) * len(operators), n_points, cost, tensors)
    attributes = {
        "kind": "spectra",
        "title": "Curvature spectra along a walk",
        **walk_attributes(ds),
        "seed": seed,
        "k": k,
        "tol": tol,
        "n_trace": n_trace,
        "tensors": "" if tensors is None else " ".join(tensors),
    }
    limits: dict[str, Any] = {"tol": tol, "max_products": max_products, "seed": seed}

    def at(index: int) -> xr.Dataset:
        state = state_at(ds, flow, index)
        before = own_counts(flow.problem)["hvp"]
        per_operator = []
        for name in operators:
            operator = _operator(name, flow, state, tensors)
            largest = extreme_eigenvalues(operator, k, which="largest", **limits)
            smallest, smallest_residual = _smallest(operator, k, largest, limits)
            spectrum = spectral_density(operator, n_probes=n_probes, n_steps=n_steps, seed=seed)
            abscissa = spectrum.grid(n_points)
            density, density_error = spectrum.on(abscissa)
            estimate = trace(operator, n_products=n_trace, seed=seed)
            per_operator.append(
                {
                    "largest_eigenvalue": largest.values,
                    "largest_residual": largest.residuals,
                    "smallest_eigenvalue": smallest,
                    "smallest_residual": smallest_residual,
                    "trace": estimate.value,
                    "trace_error": estimate.standard_error,
                    "abscissa": abscissa,
                    "density": density,
                    "density_error": density_error,
                    "node": spectrum.nodes,
                    "weight": spectrum.weights,
                    "velocity_overlap": overlap(operator, largest.vectors, state),
                    "dimension": operator.size,
                }
            )
        curvature = normal_curvature(flow, state, state.velocity)
        spent = own_counts(flow.problem)["hvp"] - before
        row = (per_operator, curvature, flow.values(state)["multiplier"], spent)
        return assemble(ds, [index], operators, [row], attributes)

    settings = {
        **attributes,
        **cost,
        "operators": list(operators),
        "n_points": n_points,
        "walk": fingerprint(ds),
        "device": str(flow.problem.device),
        "dtype": dtype_name(flow.problem.dtype),
    }
    with Pieces(archive, settings, overwrite=overwrite, of=ds) as pieces:
        names = [f"snapshot-{index:06d}" for index in indices]
        todo = [i for i, n in zip(indices, names, strict=True) if n in pieces.missing(names)]
        if todo:
            tried = _tried(state_at(ds, flow, todo[0]), flow, operators, tensors)
            if progress:
                _announce(tried, len(todo), cost)
            # Their graphs are freed.
            del tried
        shown = progress_bar(progress, indices, "spectra", unit="snapshot")
        done = [
            pieces.compute(name, partial(at, index))
            for index, name in zip(shown, names, strict=True)
        ]
        found = xr.concat(
            done,
            "snapshot",
            data_vars="minimal",
            coords="minimal",
            compat="equals",
            join="exact",
            combine_attrs="override",
        ).assign_attrs(attributes)
        pieces.finish(found)
    return found


def overlap(operator: Curvature, eigenvectors: np.ndarray[Any, Any], state: FlowState) -> float:
    """Squared cosine of the flow's velocity with the span of eigenvectors, in the subspace.

    From 0 to 1; a random direction has k/n on average. NaN where the velocity is zero, or an
    eigenvector did not converge.

    Parameters
    ----------
    operator : Curvature
        Whose eigenvectors they are.
    eigenvectors : array, shape (n, k)
        Orthonormal, in the operator's coordinates.
    state : FlowState
        Gives the velocity.
    """
    velocity = operator.subspace.coordinates(state.velocity).double().cpu().numpy()
    velocity = velocity * power_of_two(float(np.abs(velocity).max()))
    norm = float(np.linalg.norm(velocity))
    if norm == 0:
        return math.nan
    return float(((eigenvectors.T @ (velocity / norm)) ** 2).sum())


def _check_cost(
    flow: RegularizingFlow,
    n_spectra: int,
    n_points: int,
    cost: Mapping[str, int],
    tensors: Sequence[str] | None,
) -> None:
    """Refuse what would take days, or more memory than there is, even with the fewest products."""
    products, _ = products_needed(flow.problem.n_parameters, **cost)
    check_work(
        n_spectra * products,
        EVALUATIONS,
        ", ".join(f"{name}={cost[name]}" for name in ("k", "n_probes", "n_steps", "n_trace")),
        "Hessian-vector products",
    )
    # The density of each probe, its mean, its error and the abscissae.
    needed = 8 * n_points * (cost["n_probes"] + 3 * n_spectra)
    check_memory(needed, f"n_points={n_points}: the points of the densities", "use fewer")
    named = ", ".join(f"{name}={cost[name]}" for name in ("k", "n_steps", "n_trace"))
    check_memory(
        spectrum_bytes(flow, cost, tensors),
        f"{named}: the vectors of {flow.problem.n_parameters:,} parameters and a product",
        "ask for fewer, for chosen tensors, or for fewer examples at a time (batch_size)",
        flow.problem.device,
    )


def spectrum_bytes(
    flow: RegularizingFlow, cost: Mapping[str, int], tensors: Sequence[str] | None = None
) -> int:
    """Bytes that the spectra of one snapshot take at their peak, activations included.

    Parameters
    ----------
    flow : RegularizingFlow
        What is walked.
    cost : mapping of str to int
        ``k``, ``n_steps`` and ``n_trace`` of :func:`along`.
    tensors : sequence of str, optional
        To which the operators are restricted.
    """
    like = flow.problem.theta0
    size = tensor_subspace(flow.problem, tensors).size
    held = vectors_held(size, **{name: cost[name] for name in ("k", "n_steps", "n_trace")})
    whole = STATE_AND_PRODUCT * like.numel() * like.element_size()
    return held * size * like.element_size() + whole + product_bytes(flow.problem)


def _tried(
    state: FlowState,
    flow: RegularizingFlow,
    operators: Sequence[str],
    tensors: Sequence[str] | None,
) -> list[Curvature]:
    """All operators at a point, each after a product: what one of them cannot do is said at once.

    Otherwise it would be said after all the work on those before it, of which nothing is kept.
    """
    made = [_operator(name, flow, state, tensors) for name in operators]
    for operator in made:
        operator(_ones(operator))
    return made


def _ones(operator: Curvature) -> torch.Tensor:
    return torch.ones_like(operator.subspace.coordinates(operator.theta))


def _announce(operators: Sequence[Curvature], n_snapshots: int, cost: Mapping[str, int]) -> None:
    """Say on standard error how long it will take, from one timed product of each operator.

    None of them is the operator's first, which takes longer.
    """
    least = most = 0
    shortest = longest = 0.0
    for operator in operators:
        x = _ones(operator)
        before = time.perf_counter()
        float(operator(x).sum())
        each = time.perf_counter() - before
        low, high = products_needed(operator.size, **cost)
        least, most = least + n_snapshots * low, most + n_snapshots * high
        shortest += n_snapshots * low * each
        longest += n_snapshots * high * each
    note(
        f"spectra of {n_snapshots} snapshots: {duration(shortest)} to {duration(longest)}, for "
        f"{least:,} to {most:,} Hessian-vector products"
    )


def _operator(
    name: str, flow: RegularizingFlow, state: FlowState, tensors: Sequence[str] | None
) -> Curvature:
    if name == "hessian":
        return loss_hessian(flow.problem, state.theta, tensors)
    if name == "gauss_newton":
        return gauss_newton(flow.problem, state.theta, tensors)
    return tangent_hessian(flow, state, tensors)


def _smallest(
    operator: Curvature, k: int, largest: Eigenpairs, limits: dict[str, Any]
) -> tuple[Floats, Floats]:
    """The k smallest eigenvalues, and bounds on their errors."""
    if operator.nullity >= k:
        # To find the zeros one by one takes many products. But the k smallest lie between the
        # least of all and them: it is enough to see that nothing is far below zero.
        least = extreme_eigenvalues(operator, 1, which="smallest", **limits | {"tol": NULL_TOL})
        bound = abs(least.values[0]) + least.residuals[0]
        if bound <= 2 * NULL_TOL * abs(largest.values[0]):
            return np.zeros(k), np.full(k, bound)
    found = extreme_eigenvalues(operator, k, which="smallest", **limits)
    return found.values, found.residuals


def _check_operators(operators: Sequence[str]) -> None:
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown or not operators or len(set(operators)) < len(operators):
        raise InputError(f"operators={list(operators)!r}; choose from {', '.join(OPERATORS)}")
