"""Counts that are given as floats, as 1e4 is, and what is finite."""

import math
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.baselines import predictor_corrector
from geoflow.errors import InputError
from geoflow.system import kinds


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (1e4, 10_000),
        (np.float32(3), 3),
        (np.array(5.0), 5),
        (torch.tensor(20.0), 20),
        (torch.tensor(20), 20),
        (Fraction(8, 2), 4),
        (Decimal(7), 7),
        # No float holds it.
        (sys.maxsize, 2**63 - 1),
    ],
)
def test_what_is_whole_is_a_count(value, count):
    found = kinds.as_count(value, "n", 1, kinds.COUNTED)
    assert type(found) is int
    assert found == count


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *(
            (value, "give a whole number")
            for value in (
                2.5,
                True,
                np.True_,
                "5",
                b"5",
                None,
                math.nan,
                math.inf,
                2 + 0j,
                np.complex128(2),
                torch.tensor([1, 2]),
                torch.tensor(2.0, device="meta"),
                np.timedelta64(3, "s"),
            )
        ),
        (0.0, "use at least 1"),
        (-3, "use at least 1"),
        (2.0**63, r"use a whole number below 2\*\*63"),
        (2**63, r"use a whole number below 2\*\*63"),
        (10**400, "give a smaller whole number"),
    ],
)
def test_what_is_none_is_refused_in_one_line(value, message):
    with pytest.raises(InputError, match=rf"^n=.*; {message}$"):
        kinds.as_count(value, "n", 1, kinds.COUNTED)


def test_a_budget_is_the_same_wherever_it_is_given():
    axes = torch.linspace(1, 3, 3, dtype=torch.float64)
    start = torch.ones(3, dtype=torch.float64)
    problem = gf.Problem.from_function(lambda t: axes @ (t - 2) ** 2, start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), "squared_norm")
    level = 0.99 * flow.level_set.level
    budgets = {
        "max_evaluations": (
            lambda n: gf.walk(flow, t_end=0.01, max_evaluations=n),
            lambda n: gf.regularization_path(flow, [level], max_evaluations=n),
            lambda n: predictor_corrector(flow, steps=2, max_evaluations=n),
        ),
        "evaluations": (lambda n: problem.budget(n).__enter__(),),
    }
    for name, uses in budgets.items():
        for use in uses:
            for wrong in (2.5, "5", True):
                with pytest.raises(InputError, match=rf"^{name}={wrong!r}; give a whole number$"):
                    use(wrong)
    for use in budgets["max_evaluations"]:
        for n in (1e4, Fraction(10_000), np.float64(1e4)):
            assert '"max_evaluations": 10000,' in use(n).attrs["config"]
    with problem.budget(np.float32(100)):
        problem.value_and_gradient(start)


@pytest.mark.parametrize("value", [1, 1.5, np.float32(2), torch.tensor([2.0]), Fraction(1, 3)])
def test_finite_numbers_are_finite(value):
    assert kinds.is_finite(value)


@pytest.mark.parametrize(
    "value", [math.inf, math.nan, 10**400, "1", b"1", None, 1j, np.complex64(1), torch.ones(2)]
)
def test_all_else_is_not(value):
    assert not kinds.is_finite(value)
