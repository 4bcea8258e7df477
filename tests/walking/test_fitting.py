"""Whether a walk is taken up with what it was begun with: the same, rounded otherwise, another."""

import math
import warnings

import pytest
import torch

from geoflow.errors import ArchiveError
from geoflow.walking.fitting import check_same

THEN = {
    "train_loss": 0.01,
    "gradient_norm": 0.3,
    "regularizer": 7.0,
    "tangent_norm": 1.5,
    "multiplier": 4.0,
}


def test_the_same_numbers_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(dict(THEN), THEN, torch.float64)


@pytest.mark.parametrize("name", THEN)
def test_one_last_digit_is_told(name):
    now = {**THEN, name: math.nextafter(THEN[name], 10.0)}
    with pytest.warns(UserWarning, match=f"recorded, of {name}, so .* threads or of processes"):
        check_same(now, THEN, torch.float64)


@pytest.mark.parametrize("name", THEN)
def test_another_flow_is_refused(name):
    with pytest.raises(ArchiveError, match="recorded"):
        check_same({**THEN, name: 1.001 * THEN[name]}, THEN, torch.float64)
