"""A checkpoint is held against the walk beside which it is kept."""

import numpy as np
import pytest
import torch

from geoflow.archive.checkpoint import Checkpoint
from geoflow.errors import ArchiveError


def test_a_checkpoint_in_another_dtype_is_that_of_no_walk():
    theta = torch.ones(3, dtype=torch.float32)
    kept = Checkpoint(2, {"theta": theta}, None, {"gradient": 5, "hvp": 0})
    recorded = {"gradient": np.array([1, 5]), "hvp": np.zeros(2, int)}
    kept.check_fits(2, 3, "float32", recorded)
    with pytest.raises(ArchiveError, match=r"theta of its checkpoint is torch.float32, not float"):
        kept.check_fits(2, 3, "float64", recorded)


def test_a_checkpoint_counts_no_fewer_evaluations_than_its_step():
    theta = torch.zeros(2, dtype=torch.float64)
    recorded = {"gradient": np.array([1, 5, 9])}
    Checkpoint(2, {"theta": theta}, None, {"gradient": 5}).check_fits(3, 2, "float64", recorded)
    with pytest.raises(ArchiveError, match="counts fewer evaluations than n_gradient"):
        Checkpoint(3, {"theta": theta}, None, {"gradient": 8}).check_fits(3, 2, "float64", recorded)


def test_a_checkpoint_counts_what_the_walk_has_recorded():
    kept = Checkpoint(
        1,
        {"theta": torch.zeros(2, dtype=torch.float64)},
        None,
        {"gradient": 1, "regularizer_gradient": 1},
    )
    said = r"^its checkpoint counts n_regularizer_gradient, which its records do not$"
    with pytest.raises(ArchiveError, match=said):
        kept.check_fits(1, 2, "float64", {"gradient": np.array([1])})
    with pytest.raises(ArchiveError, match=said):
        kept.check_counts({"gradient": 1})


def test_a_checkpoint_of_no_step_or_of_more_than_there_are_is_that_of_another_walk():
    theta = torch.zeros(2, dtype=torch.float64)
    for n_steps in (0, 4):
        kept = Checkpoint(n_steps, {"theta": theta}, None, {"gradient": 9})
        with pytest.raises(ArchiveError, match="is that of another walk"):
            kept.check_fits(3, 2, "float64", {"gradient": np.array([1, 5, 9])})


def test_all_of_a_checkpoints_state_is_finite():
    state = {"theta": torch.zeros(2, dtype=torch.float64), "momentum": torch.tensor([0.0, np.inf])}
    with pytest.raises(ArchiveError, match="momentum of its checkpoint is not finite"):
        Checkpoint(1, state, None, {"gradient": 1}).check_fits(1, 2, "float64", {"gradient": [1]})


def test_what_is_unpacked_is_aligned_and_has_counted_products():
    # As a file may give it: torch's own memory begins at multiples of 64 bytes.
    arrays = {"theta": np.zeros(9)[1:]}
    state = {"n_steps": 1, "devices": {}, "carry": None, "counts": {"gradient": 1, "hvp": 0}}
    found = Checkpoint.unpack(arrays, state)
    assert found.theta.data_ptr() != arrays["theta"].ctypes.data
    assert found.theta.data_ptr() % 64 == 0
    with pytest.raises(ArchiveError, match="cannot be used"):
        Checkpoint.unpack(arrays, state | {"counts": {"gradient": 1}})
