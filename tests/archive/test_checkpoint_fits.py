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
