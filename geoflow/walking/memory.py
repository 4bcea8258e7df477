"""What a walk takes of memory, estimated before it starts."""

from __future__ import annotations

import torch

from geoflow.manifold.protocol import Flow
from geoflow.solvers import Solver, vectors_of
from geoflow.system.memory import CPU, check_memory
from geoflow.walking.snapshots import Every, SnapshotRule, Thinned

# Vectors of θ's size: those of a state; above them, those of an evaluation and a re-projection.
STATE, EVALUATION = 4, 5


def vector_bytes(flow: Flow, solver: Solver) -> int:
    """Bytes that a walk takes beside its snapshots: state, evaluation and the solver's vectors.

    Within a quarter of what was measured where the solver uses all that it may
    (``studies/memory.py``); more than it takes where a Krylov space stays smaller. Activations
    are not in it, which a ``batch_size`` bounds, nor the records, some 150 bytes a step.
    """
    theta = flow.problem.theta0
    # The gradients of several constraints: at two states, in an evaluation, and orthonormal.
    several = 4 * (flow.level_set.n_constraints - 1)
    vectors = STATE + EVALUATION + vectors_of(solver) + several
    return vectors * theta.numel() * theta.element_size()


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
    check_memory(
        vector_bytes(flow, solver),
        f"solver={solver.name!r}: the {STATE + EVALUATION + vectors_of(solver)} vectors of a walk "
        f"in {of}",
        "use a solver with fewer, such as 'rkc', or a problem in float32",
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


def _number(rule: SnapshotRule) -> int:
    if isinstance(rule, Every):
        return 0
    return rule.limit if isinstance(rule, Thinned) else len(rule.times)  # type: ignore[attr-defined]
