"""A walk that a jump of L holds up says so; one that a kink holds up does not."""

import pytest
import torch

import geoflow as gf
from geoflow.walking.jumps import beside

START = [-1.0, 1.0, 0.5]


def square(theta):
    return torch.dot(theta, theta)


def routed(theta):
    """Three times as much from x = 0.3 on, as where another expert is taken."""
    return square(theta) * (1 + 2 * (theta[0] > 0.3))


def last(theta):
    return theta[2]


def to_the_right(theta):
    return -theta[0]


def up_to(loss, regularizer, solver):
    start = torch.tensor(START, dtype=torch.float64)
    losses = loss if isinstance(loss, list) else [loss]
    problems = [gf.Problem.from_function(one, start) for one in losses]
    flow = gf.RegularizingFlow(gf.LevelSet(problems), regularizer)
    ds = gf.walk(flow, solver, stop=None, t_end=4.0, max_evaluations=2000)
    assert ds.attrs["status"] == "step_size_underflow"
    return ds


@pytest.mark.parametrize("loss", [routed, [last, routed]], ids=["one", "two"])
@pytest.mark.parametrize("solver", ["bdf", "exponential", "rkc"])
def test_a_jump_of_the_loss_is_named_with_its_height(solver, loss):
    ds = up_to(loss, to_the_right, solver)
    assert 0.3 - 1e-9 < ds["theta"].values[-1, 0] <= 0.3
    # From |θ|² = 2.25 to three times as much.
    assert "; L jumps there by 4.500e+00, as by top-k routing" in ds.attrs["status_message"]
    assert "loosen rtol" not in ds.attrs["status_message"]


@pytest.mark.parametrize("solver", ["bdf", "exponential"])
def test_a_kink_is_no_jump(solver):
    ds = up_to(square, lambda t: 30 * (t[0] - 0.5).abs().sqrt() - t[0], solver)
    assert "jumps" not in ds.attrs["status_message"]
    assert "; loosen rtol" in ds.attrs["status_message"]


EPS = 2.0**-52


def at_a_jump(ahead, behind=0.0, level_rtol=1e-6, where=0.0, regularizer=to_the_right):
    """What is said at x = 0 of a loss of 1 that is ``ahead`` more beyond, and ``behind`` before."""
    start = torch.tensor([-1.0, 1.0], dtype=torch.float64)

    def loss(theta):
        beyond = torch.where(theta[0] > where, ahead, 0.0)
        return theta[1] + beyond + torch.where((theta[0] < 0) & (theta[0] > -0.5), behind, 0.0)

    level_set = gf.LevelSet(gf.Problem.from_function(loss, start), 1.0, level_rtol)
    flow = gf.RegularizingFlow(level_set, regularizer)
    return beside(flow, flow.evaluate(torch.tensor([0.0, 1.0], dtype=torch.float64)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        # More than the tolerance of the level, which is 10⁻⁶; or than 1000 roundings of L.
        ({"ahead": 1.1e-6}, "1.100e-06"),
        ({"ahead": 0.9e-6}, ""),
        ({"ahead": 1100 * EPS, "level_rtol": 1e-15}, "2.4"),
        ({"ahead": 900 * EPS, "level_rtol": 1e-15}, ""),
        # And more than ten times what there is on the side that the walk has come from.
        ({"ahead": 1e-3, "behind": 0.9e-4}, "1.000e-03"),
        ({"ahead": 1e-3, "behind": 1.1e-4}, ""),
        # Within 64 roundings of θ.
        ({"ahead": 1e-3, "where": 60 * EPS}, "1.000e-03"),
        ({"ahead": 1e-3, "where": 70 * EPS}, ""),
        # To where L is not defined is no jump, and of a flow at rest nothing is ahead.
        ({"ahead": float("inf")}, ""),
        ({"ahead": float("nan")}, ""),
        ({"ahead": 1e-3, "regularizer": lambda theta: theta[1]}, ""),
    ],
)
def test_a_jump_is_told_from_tolerance_rounding_and_noise(settings, said):
    found = at_a_jump(**settings)
    assert found.startswith(f"L jumps there by {said}") if said else found == ""
