"""Options of a solver by its name: those that it has, and which one is none."""

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.errors import InputError
from geoflow.solvers import Exponential, TorchDiffEq, from_config, from_text


def flow():
    problem = gf.Problem.from_function(
        lambda t: (torch.tensor([1.0, 4.0], dtype=t.dtype) * t * t).sum(),
        torch.tensor([1.0, 0.5], dtype=torch.float64),
    )
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda t: (t - 3).square().sum())


def test_a_fixed_step_goes_with_the_name():
    expected = gf.solvers.TorchDiffEq("rk4", step_size=0.01).options
    assert from_text("rk4:step_size=0.01").options == expected
    assert from_config({"name": "rk4", "step_size": 0.01}).options == expected
    # By its name alone it is what it is called.
    assert from_config({"name": "rk4"}).options == gf.solvers.get("rk4").options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "rk4", "step": 0.01}, "rk4 has no such options as 'step'; it takes step_size, "),
        ({"name": "dopri5", "step": 1}, "as 'step'; it takes reproject_every, error_norm"),
        ({"name": "bdf", "vectors": 3}, "as 'vectors'; it takes pairs, max_order"),
        ({"name": "bdf", "method": 3}, "bdf has no such options as 'method'; it takes pairs, "),
        ({"name": "rkc", "stages": 3}, "rkc has no such options as 'stages'; use 'rkc'"),
    ],
)
def test_an_option_that_is_none_is_named_with_those_that_are(options, said):
    name, option, value = options["name"], *list(options.items())[1]
    with pytest.raises(InputError, match=said):
        from_config(options)
    with pytest.raises(InputError, match=said):
        from_text(f"{name}:{option}={value}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "bdf", "pairs": -1}, r"'pairs': -1}: pairs=-1; use a positive"),
        ({"name": "rk4", "method": "euler"}, "names two methods; give one"),
        ({"name": "rk4", "step_size": "x"}, "step_size='x'; give a real number"),
        ({"name": "mine"}, "none of geoflow's own; pass solver= with the name"),
        ({"name": ["rk4"]}, "none of geoflow's own; pass solver= with the name"),
        ({}, "none of geoflow's own; pass solver= with the name"),
    ],
)
def test_what_else_cannot_be_used_is_said(options, said):
    with pytest.raises(InputError, match=said):
        from_config(options)


def test_adams_that_is_re_projected_at_each_step_is_rk4():
    """As the page of the solvers says: there it has no history."""

    def end(name, every):
        solver = gf.solvers.TorchDiffEq(name, step_size=0.01, reproject_every=every)
        return gf.walk(flow(), solver, stop=None, t_end=0.2)["theta"][-1].values

    assert np.array_equal(end("explicit_adams", None), end("rk4", None))
    assert not np.array_equal(end("explicit_adams", 0.1), end("rk4", 0.1))


def test_reproject_every_goes_with_a_text_that_has_other_options():
    solver = gf.walking.settings.WalkSettings(
        solver="rk4:step_size=0.03", reproject_every=0.1
    ).make_solver()
    assert solver.options == from_text("rk4:step_size=0.03,reproject_every=0.1").options
    # As the name alone does.
    assert from_text("dopri5", 0.1).options == gf.solvers.get("dopri5", 0.1).options


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rk4:reproject_every=0.2", "reproject_every=0.1: solver=.* gives one too; choose one"),
        ("bdf:max_order=2", "reproject_every=0.1: bdf re-projects at every step; leave it out"),
        ("rk5:step_size=1", "solver='rk5' is not known"),
    ],
)
def test_reproject_every_beside_a_text_is_refused_with_the_reason(text, said):
    with pytest.raises(InputError, match=said):
        gf.walk(flow(), text, reproject_every=0.1)


@pytest.mark.parametrize("make", [from_text, from_config, gf.solvers.get])
@pytest.mark.parametrize("given", [3, None, ["rk4"]])
def test_what_is_no_text_and_no_config_is_named(make, given):
    with pytest.raises(InputError, match="solver="):
        make(given)


@pytest.mark.parametrize("value", [np.array([1.0, 2.0]), ["float32"], {}, torch.ones(2), 3])
def test_what_is_no_word_is_none_of_the_words(value):
    with pytest.raises(InputError, match=r"basis=.*; choose from float64, float32"):
        Exponential(basis=value)
    with pytest.raises(InputError, match=r"method=.*; choose from dopri5, "):
        TorchDiffEq(value)
    with pytest.raises(InputError, match=r"error_norm=.*dopri5 takes one of state, coordinate"):
        TorchDiffEq("dopri5", error_norm=value)
    with pytest.raises(InputError, match=r"solver=.* is not known; use one of exponential, bdf"):
        gf.solvers.get(value)
