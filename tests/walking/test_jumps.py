"""A walk that a jump of L holds up says so; one that a kink holds up does not."""

import pytest
import torch

import geoflow as gf

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
