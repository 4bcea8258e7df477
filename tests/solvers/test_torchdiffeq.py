import numpy as np
import pytest
import torch

import geoflow as gf
import invariants
import references
from geoflow import solvers
from geoflow.errors import InputError
from geoflow.solvers import TorchDiffEq
from geoflow.solvers.torchdiffeq import ADAPTIVE, FIXED

TIMES = [0.0, 0.25, 0.7, 1.0]


def worst_error(ds, reference):
    errors = [
        torch.linalg.vector_norm(torch.from_numpy(ds["theta"].values[i]) - reference.exact(t))
        for i, t in enumerate(ds["snapshot_time"].values)
    ]
    return float(max(errors))


@pytest.mark.parametrize("name", [*ADAPTIVE, *FIXED])
@pytest.mark.parametrize("make", [references.sphere_linear, references.oja])
def test_every_method_meets_its_tolerance_at_the_snapshot_times(name, make):
    reference = make()
    # Euler's fixed step at 1e-5 would take 6,000 evaluations of nothing new.
    rtol = 1e-3 if name == "euler" else 1e-5
    ds = gf.walk(
        reference.flow, name, rtol=rtol, atol=1e-9, t_end=1.0, stop=None, snapshot_times=TIMES
    )
    assert ds.attrs["status"] == "t_end"
    assert ds["snapshot_time"].values.tolist() == TIMES
    invariants.check_walk(ds, reference.flow)
    # The tolerance bounds each step's error: their sum, which the flow may stretch by some.
    allowed = 3 * (ds.sizes["step"] - 1) * rtol * float(reference.flow.problem.theta0.norm())
    assert worst_error(ds, reference) <= allowed


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("make", [references.sphere_linear, references.oja])
def test_fixed_step_methods_show_their_order(name, make):
    # Tight, so that re-projection to the tolerance does not hide the method's own error.
    reference = make()
    flow = gf.RegularizingFlow(
        gf.LevelSet(reference.flow.problem, level_rtol=1e-14), reference.flow.regularizer
    )
    steps = [0.2, 0.1, 0.05, 0.025] if FIXED[name] >= 3 else [0.05, 0.025, 0.0125, 0.00625]
    errors = []
    for step in steps:
        ds = gf.walk(
            flow, TorchDiffEq(name, step_size=step), t_end=1.0, stop=None, snapshot_times=[1.0]
        )
        assert ds.sizes["step"] == round(1 / step) + 1
        errors.append(worst_error(ds, reference))
    assert abs(references.order_of_convergence(steps, errors) - TorchDiffEq(name).order) <= 0.2


def test_a_multistep_method_keeps_its_history_between_reprojections(sphere):
    def walk(reproject_every):
        solver = TorchDiffEq("explicit_adams", step_size=0.01, reproject_every=reproject_every)
        return gf.walk(sphere.flow, solver, t_end=1.0, stop=None)

    # RK4 starts each history with three steps of four evaluations; then one a step.
    assert int(walk(0.5)["n_gradient"][-1]) < 0.5 * int(walk(None)["n_gradient"][-1])


def test_no_point_is_evaluated_twice(sphere):
    seen = []
    problem = sphere.flow.problem
    original = problem.value_and_gradient
    problem.value_and_gradient = lambda theta: (seen.append(theta.clone()), original(theta))[1]
    ds = gf.walk(sphere.flow, "dopri5", rtol=1e-6, t_end=1.0, stop=None)
    assert len(seen) == int(ds["n_gradient"][-1]) > 10
    assert len({tuple(theta.tolist()) for theta in seen}) == len(seen)


def test_the_step_size_is_carried_over(sphere):
    ds = gf.walk(sphere.flow, "dopri5", rtol=1e-8, atol=1e-10, t_end=1.0, stop=None)
    sizes = ds["step_size"].values[1:]
    # Without it, every step would start from torchdiffeq's own careful first guess.
    assert sizes[1:-2].min() > 0.5 * sizes[0]
    split = gf.walk(
        sphere.flow,
        "dopri5",
        rtol=1e-8,
        atol=1e-10,
        t_end=1.0,
        stop=None,
        snapshot_times=[0.5, 0.5 + 1e-6],
    )
    # A step cut short by a snapshot does not make the next ones short.
    assert split.sizes["step"] <= ds.sizes["step"] + 4


def test_reprojection_can_be_rarer_than_steps(network):
    every = gf.walk(network, "bosh3", rtol=1e-4, t_end=0.2, stop=None)
    rare = gf.walk(network, "bosh3", rtol=1e-4, t_end=0.2, stop=None, reproject_every=0.1)
    tolerance = network.level_set.tolerance
    assert np.abs(every["level_residual"]).max() <= tolerance
    assert np.abs(rare["level_residual"]).max() > tolerance
    on_level = np.abs(rare["level_residual"].values) <= tolerance
    times = rare["time"].values
    assert on_level[np.argmax(times >= 0.1)]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "implicit_adams"}, "method='implicit_adams'"),
        ({"method": "dopri5", "step_size": 0.1}, "chooses its own steps"),
        ({"method": "rk4", "step_size": -1.0}, "step_size=-1.0"),
        ({"method": "rk4", "step_size": np.inf}, "step_size=inf"),
        ({"method": "rk4", "reproject_every": np.nan}, "reproject_every=nan"),
        ({"method": "dopri5", "reproject_every": 0.0}, "reproject_every=0.0"),
        ({"method": "rk4", "step_size": "a"}, "step_size='a'; give a real number"),
        ({"method": "rk4", "step_size": True}, "step_size=True; give a real number"),
        ({"method": "dopri5", "reproject_every": "a"}, "reproject_every='a'; give a real number"),
        ({"method": ["rk4"]}, "choose from dopri5, "),
    ],
)
def test_bad_input(kwargs, message):
    with pytest.raises(InputError, match=message):
        TorchDiffEq(**kwargs)


def turned(rotation):
    """Down θ₁ on an ellipsoid, in coordinates turned by an orthogonal matrix."""
    axes = torch.tensor([1.0, 4.0, 25.0], dtype=torch.float64)

    def loss(theta):
        x = rotation @ theta
        return x @ (axes * x)

    start = rotation.T @ torch.tensor([1.0, 0.3, 0.02], dtype=torch.float64)
    problem = gf.Problem.from_function(loss, start)
    return gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: (rotation @ theta)[0])


@pytest.mark.parametrize("name", [*ADAPTIVE, "exponential", "bdf", "rkc"])
def test_rtol_is_of_the_norm_whatever_the_coordinates(name):
    """One meaning for all solvers: coordinates in which no entry of θ is small change no step."""
    q, _ = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [2, -1, 1], [3, 1, -2]], dtype=torch.float64))
    plain, other = (
        gf.walk(turned(r), name, rtol=1e-4, atol=1e-9, t_end=0.3, stop=None)
        for r in (torch.eye(3, dtype=torch.float64), q)
    )
    assert plain.sizes["step"] == other.sizes["step"]
    assert np.allclose(plain["time"], other["time"], rtol=1e-4)
    assert np.allclose(plain["theta"].values, other["theta"].values @ q.numpy().T, atol=1e-6)


def test_archives_of_before_go_on_by_the_size_of_each_coordinate():
    now = {"name": "dopri5", **TorchDiffEq("dopri5").options}
    assert now["error_norm"] == "state"
    assert solvers.from_config(now).error_norm == "state"
    then = {name: value for name, value in now.items() if name != "error_norm"}
    assert solvers.from_config(then).error_norm == "coordinate"
    assert "error_norm" not in TorchDiffEq("rk4").options
    assert solvers.get("dopri5").error_norm == "state"


@pytest.mark.parametrize(("method", "norm"), [("dopri5", "max"), ("rk4", "state")])
def test_an_error_norm_that_is_none_is_refused(method, norm):
    with pytest.raises(InputError, match=f"error_norm='{norm}': {method} takes"):
        TorchDiffEq(method, error_norm=norm)


def test_what_was_evaluated_at_a_steps_end_is_not_evaluated_again():
    """dopri5's last stage is the next step's first, also where no re-projection is due."""
    solver = TorchDiffEq("dopri5", reproject_every=100.0)
    ds = gf.walk(references.oja().flow, solver, rtol=1e-9, t_end=1.0, stop=None)
    whole = np.diff(ds["n_rejected"])[1:] == 0
    assert whole.sum() > 3
    assert set(np.diff(ds["n_gradient"])[1:][whole]) == {6}


@pytest.mark.parametrize("name", [*ADAPTIVE, *FIXED])
def test_a_text_with_an_option_is_the_method_that_it_names(name):
    assert gf.solvers.from_text(f"{name}:reproject_every=0.5").name == name
    option = ("error_norm", "coordinate") if name in ADAPTIVE else ("step_size", 0.25)
    solver = gf.solvers.from_text(f"{name}:{option[0]}={option[1]}")
    assert (solver.name, getattr(solver, option[0])) == (name, option[1])
    with pytest.raises(InputError, match="names two"):
        gf.solvers.from_text(f"{name}:method={'rk4' if name != 'rk4' else 'dopri5'}")
