"""What a walk takes of memory, estimated before it starts."""

from __future__ import annotations

import torch

from geoflow.manifold.linearization import by_differences
from geoflow.manifold.protocol import Flow
from geoflow.problems.footprint import evaluation_bytes, product_bytes
from geoflow.solvers import BDF, Exponential, Solver, bytes_of, vectors_of
from geoflow.system import memory
from geoflow.system.memory import CPU, check_memory
from geoflow.walking.snapshots import Every, SnapshotRule, Thinned

# Vectors of θ's size in a state.
STATE = 4


def vector_bytes(flow: Flow, solver: Solver) -> int:
    """Bytes that a walk takes beside its snapshots: state, evaluation and the solver's vectors.

    Within a tenth of what was measured where the solver uses all that it may
    (``studies/memory.py``), but for cvode, which takes half. More than it takes where a Krylov
    space stays smaller. An evaluation is with its activations, see
    :func:`~geoflow.problems.footprint.evaluation_bytes`.
    The records, some 150 bytes a step, are left out.
    """
    theta = flow.problem.theta0
    # The gradients of several constraints: at two states, and twice in an evaluation.
    several = 4 * (flow.level_set.n_constraints - 1)
    state = (STATE + several) * theta.numel() * theta.element_size()
    return state + _evaluation(flow, solver) + bytes_of(solver, theta)


def snapshot_bytes(flow: Flow, rule: SnapshotRule, dtype: torch.dtype) -> int:
    """Bytes of the snapshots at the most.

    Of snapshots at the multiples of a flow time the number is not known beforehand: none counts.
    """
    return _number(rule) * flow.problem.n_parameters * dtype.itemsize


def walk_bytes(flow: Flow, solver: Solver, rule: SnapshotRule, dtype: torch.dtype) -> int:
    """Bytes that a walk takes at its peak, all on one device and its snapshots in memory."""
    theta, kept = flow.problem.theta0, snapshot_bytes(flow, rule, dtype)
    # At the end the snapshots are stacked: one array beside the single ones.
    end = STATE * theta.numel() * theta.element_size() + 2 * kept
    return max(vector_bytes(flow, solver) + kept, end)


def check_walk_memory(
    flow: Flow, solver: Solver, rule: SnapshotRule, dtype: torch.dtype, *, in_memory: bool
) -> None:
    """Refuse a walk that would not fit, before its first evaluation.

    Parameters
    ----------
    flow, solver, rule
        What is walked, how, and what is kept.
    dtype : torch.dtype
        In which θ is kept.
    in_memory : bool
        Whether snapshots are kept in memory, and not streamed.

    Raises
    ------
    InputError
        More memory is needed than the problem's device has, or than there is for the snapshots.
    """
    problem = flow.problem
    of = f"{problem.n_parameters:,} parameters"
    needed = vector_bytes(flow, solver)
    check_memory(
        needed,
        f"solver={solver.name!r}: the {STATE + vectors_of(solver)} vectors of a walk "
        f"in {of} and an evaluation's {_mib(_evaluation(flow, solver))}",
        _remedy(flow, solver, needed),
        problem.device,
    )
    if in_memory:
        on_cpu = problem.device.type == "cpu"
        check_memory(
            walk_bytes(flow, solver, rule, dtype)
            if on_cpu
            else 2 * snapshot_bytes(flow, rule, dtype),
            f"{_number(rule)} snapshots of {of}{' beside the vectors of a walk' * on_cpu}",
            "keep fewer (max_snapshots) or in float32 (theta_dtype), or name an archive",
            CPU,
        )


def _evaluation(flow: Flow, solver: Solver) -> int:
    """Bytes of an evaluation, or of the product that a linearization asks for in this dtype.

    Of R, where it is of higher derivatives, if that is more.
    """
    linear = isinstance(solver, Exponential | BDF) and not by_differences(flow.problem.theta0.dtype)
    of_loss = product_bytes(flow.problem) if linear else evaluation_bytes(flow.problem)
    return max(of_loss, getattr(flow, "regularizer_bytes", 0))


def _remedy(flow: Flow, solver: Solver, needed: int) -> str:
    """Which option to turn: that which takes the most of it, or which alone is enough."""
    theta = flow.problem.theta0
    available = memory.available_memory(flow.problem.device)
    missing = needed - (needed if available is None else available)
    if _evaluation(flow, solver) > bytes_of(solver, theta):
        return "evaluate fewer examples at a time (batch_size), or a problem in float32"
    if isinstance(solver, Exponential):
        most = solver.max_vectors - -(-missing // (theta.numel() * solver.itemsize(theta)))
        if most >= 2:
            return f"use 'exponential:max_vectors={most}', 'rkc', or a problem in float32"
    return "use a solver with fewer, such as 'rkc', or a problem in float32"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _number(rule: SnapshotRule) -> int:
    if isinstance(rule, Every):
        return 0
    return rule.limit if isinstance(rule, Thinned) else len(rule.times)  # type: ignore[attr-defined]
