"""What settings are is seen: help(gf.walk) shows its defaults, a notebook a solver."""

import inspect

import pytest

import geoflow as gf
from geoflow.solvers import BDF, RKC, Exponential, TorchDiffEq
from geoflow.walking.stopping import Plateau, Stationary


@pytest.mark.parametrize(
    "settings",
    [
        BDF(pairs=10),
        Exponential(basis="float32"),
        RKC(),
        TorchDiffEq("rk4", step_size=0.1),
        TorchDiffEq("dopri5"),
        Stationary(170.0),
        Plateau(window=2.0, rtol=1e-3),
    ],
)
def test_it_is_the_call_that_makes_it_again(settings):
    again = eval(repr(settings))
    assert type(again) is type(settings)
    assert again.options == settings.options


def test_the_signature_of_walk_has_no_address():
    assert "Stationary(degrees=175.0)" in str(inspect.signature(gf.walk))
