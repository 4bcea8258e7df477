"""The flow in float32 of a comparison is the one in float64, or it is refused."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import geoflow as gf
from geoflow.comparisons import compare
from geoflow.comparisons.counterpart import check_counterpart
from geoflow.errors import InputError
from geoflow.manifold import regularizers

START = (1.5, 0.5, 0.3)


def first(theta):
    return theta[0]


def sphere(dtype, level=2.59, regularizer=first, start=START, loss=lambda t: t.square().sum()):
    problem = gf.Problem.from_function(loss, torch.tensor(start, dtype=dtype))
    return gf.RegularizingFlow(gf.LevelSet(problem, level), regularizer)


OTHERS = [
    ({"level": 5.0}, "its level is 5 where that of flow is 2.59;"),
    ({"regularizer": lambda t: -t[0]}, "its R at theta0 is -1.5 where that of flow is 1.5;"),
    ({"regularizer": lambda t: 1.01 * t[0]}, "its R at theta0 is 1.515 where"),
    ({"regularizer": lambda t: t[0] + t[1] - 0.5}, "its gradient of R at theta0 is"),
    ({"start": (-1.0, 1.0, 0.3)}, "its theta0 is"),
    ({"start": (*START, 0.1)}, "its P is 4 where that of flow is 3;"),
    ({"loss": lambda t: 1.5 * t.square().sum()}, "its loss at theta0 is 3.885 where"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS, ids=[m for _, m in OTHERS])
def test_another_flow_in_float32_is_refused_before_the_first_walk(other, message):
    flow, single = sphere(torch.float64), sphere(torch.float32, **other)
    with pytest.raises(InputError) as caught:
        compare(flow, ["bdf:float32"], [1e-3], [0.1], float32=single)
    said = str(caught.value)
    assert said.startswith("float32 is another flow: its ")
    assert message in said
    assert "\n" not in said
    assert flow.problem.evaluations <= 5


def test_several_constraints_in_float32_are_refused():
    theta0 = torch.tensor(START)
    parts = [gf.Problem.from_function(lambda t, i=i: 1 + t[i], theta0) for i in (0, 1)]
    single = gf.RegularizingFlow(gf.LevelSet(parts), lambda t: t.square().sum())
    with pytest.raises(InputError, match="its level set has 2 constraints"):
        compare(sphere(torch.float64), ["bdf"], [1e-3], [0.1], float32=single)


def test_the_same_flow_in_float32_is_walked_to_its_closed_form():
    ds = compare(
        sphere(torch.float64), ["bdf:float32"], [1e-3], [0.1], float32=sphere(torch.float32)
    )
    assert ds["status"].item() == "t_end"
    assert ds["theta_error"].item() < 1e-3
    # tan(φ/2) grows as e^(t/r), φ the angle from the first axis.
    r = np.linalg.norm(START)
    phi = 2 * np.arctan(np.tan(np.arccos(START[0] / r) / 2) * np.exp(0.1 / r))
    assert ds["reference_regularizer"].item() == pytest.approx(r * np.cos(phi), rel=1e-6)


@pytest.mark.parametrize("steps", [0, 300, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("classes", [True, False], ids=["cross-entropy", "squared"])
def test_what_float32_rounds_is_no_difference(classes, steps):
    # To losses that float32 resolves to some digits only, and R's that it hardly knows.
    def made(dtype):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(32, 4, generator=generator, dtype=torch.float64)
        y = (x[:, 0] > x[:, 1]).long() if classes else x.sum(1, keepdim=True).sin()
        module = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2 if classes else 1))
        module = module.double()
        for p in module.parameters():
            p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
        loss = nn.functional.cross_entropy if classes else nn.functional.mse_loss
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(module(x), y).backward()
            optimizer.step()
        return gf.Problem.from_module(module, loss, x, y, dtype=dtype)

    double, single = made(torch.float64), made(torch.float32)
    level = gf.LevelSet(double).level
    for name in (
        "squared_norm",
        "l1",
        "gradient_norm",
        "hessian_trace",
        "path_norm + 0.1*sharpness",
    ):
        flow = gf.RegularizingFlow(gf.LevelSet(double), regularizers.get(name))
        with warnings.catch_warnings():
            # Of the cross-entropy, which float32 knows to 2e-4.
            warnings.filterwarnings("ignore", "level_rtol=.*in float32" if classes else "none")
            level_sets = gf.LevelSet(single), gf.LevelSet(single, level, 1e-5)
        for level_set in level_sets:
            check_counterpart(gf.RegularizingFlow(level_set, regularizers.get(name)), flow)


def test_what_cannot_be_evaluated_at_its_start_is_left_to_its_walk():
    def cap(theta):
        return theta.square().sum() if theta.dtype == torch.float64 else 2.59 + 0 * theta.sum()

    flow, single = sphere(torch.float64), sphere(torch.float32, loss=cap)
    ds = compare(flow, ["bdf:float32"], [1e-3], [0.1], float32=single)
    assert ds["status"].item() == "critical_point"
