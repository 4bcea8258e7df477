import math

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError


def record(angle=90.0, time=0.0, regularizer=1.0):
    radians = math.radians(angle)
    return {
        "angle": angle,
        "tangent_norm": 3 * math.sin(radians),
        "multiplier": -3 * math.cos(radians) / 0.01,
        "gradient_norm": 0.01,
        "time": time,
        "regularizer": regularizer,
    }


@pytest.mark.parametrize(
    ("angle", "stops"),
    [(5.0, False), (90.0, False), (174.99, False), (175.01, True), (180.0, True)],
)
def test_stationary_stops_at_its_angle_and_not_at_its_mirror_image(angle, stops):
    end = gf.Stationary(175.0)([record(angle)])
    assert (end is not None) == stops
    if end:
        assert end[0] == "stationary"
        assert f"{angle:.3f}" in end[1]


def test_plateau_waits_for_its_window():
    stop = gf.Plateau(window=1.0, rtol=1e-2)
    falling = [record(time=0.1 * i, regularizer=2 - 0.1 * i) for i in range(12)]
    assert stop(falling) is None
    flat = [record(time=0.1 * i, regularizer=2 - 1e-4 * i) for i in range(12)]
    assert stop(flat[:10]) is None
    assert stop(flat)[0] == "plateau"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gf.Stationary(90.0), "degrees=90.0"),
        (lambda: gf.Stationary(180.0), "degrees=180.0"),
        (lambda: gf.Plateau(window=0), "window=0"),
        (lambda: gf.Plateau(rtol=math.nan), "rtol=nan"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_walk_into_no_number_ends_before_it():
    """Beyond the circle's top R is none: an explicit method steps there unawares."""

    def regularizer(theta):
        away = (theta - theta.new_tensor([3.0, 0.0])).square().sum()
        return away if float(theta.detach()[0]) < 0 else away * math.nan

    theta0 = torch.tensor([-1.2, 1.6], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta.square().sum(), theta0)
    ds = gf.walk(gf.RegularizingFlow(gf.LevelSet(problem), regularizer), "euler")
    assert ds.attrs["status"] == "numerical_failure"
    assert "R = nan and ‖∇R‖ = nan at a trial point" in ds.attrs["status_message"]
    assert np.isfinite(ds["regularizer"]).all()


@pytest.mark.parametrize("value", [None, "1", [1.0], 1j])
@pytest.mark.parametrize("name", ["window", "rtol"])
def test_a_plateau_of_no_number_is_refused(name, value):
    with pytest.raises(InputError, match=f"{name}="):
        gf.Plateau(**{name: value})
