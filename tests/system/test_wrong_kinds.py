"""Arguments of the wrong kind get one line that names them, wherever they are given."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.analysis import (
    between,
    landscape,
    null_models,
    pca,
    periodogram,
    planes,
    predictions,
    relaxation,
    spectra,
    symmetry,
)
from geoflow.system import kinds


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds")
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(10, n, generator=generator, dtype=torch.float64) for n in (3, 1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
    network = torch.nn.Sequential(*layers).double()
    problem = gf.Problem.from_module(network, torch.nn.functional.mse_loss, x, y)
    # Far enough below the loss of theta = 0 for a path upwards.
    level = 0.5 * float(y.square().mean())
    flow = gf.RegularizingFlow(gf.LevelSet(problem, level), gf.regularizers.squared_norm)
    walk = gf.walk(flow, t_end=0.02, stop=None, archive=folder / "walk.nc").load()
    path = gf.regularization_path(
        flow, [1.1 * flow.level_set.level], 150.0, archive=folder / "p.nc"
    )
    return {
        "folder": folder,
        "network": network,
        "problem": problem,
        "flow": flow,
        "walk": walk,
        "path": path.load(),
        "theta": problem.theta0,
        "array": np.zeros(3),
        "nothing": None,
        "text": "nonsense",
        "number": 3,
        "numbers": [1.0, 2.0],
        "dict": {"a": 1},
    }


def _calls(t):
    """By function and argument: the call with that argument, and what may be given for it."""
    flow, walk, network, theta = t["flow"], t["walk"], t["network"], t["theta"]
    problem, folder = t["problem"], t["folder"]
    state = flow.evaluate(theta)
    line, level = between.straight(theta, theta), [1.2 * flow.level_set.level]
    file, of_path = folder / "walk.nc", folder / "p.nc"
    return {
        ("LevelSet", "problem"): (gf.LevelSet, "problem"),
        ("LevelSet", "level"): (lambda v: gf.LevelSet(problem, level=v), "nothing number"),
        ("LevelSet", "level_rtol"): (lambda v: gf.LevelSet(problem, level_rtol=v), "number"),
        ("LevelSet", "level_atol"): (lambda v: gf.LevelSet(problem, level_atol=v), "number"),
        ("walk", "flow"): (lambda v: gf.walk(v), "flow"),
        ("resume", "path"): (lambda v: gf.resume(v, flow), "text"),
        ("resume", "flow"): (lambda v: gf.resume(file, v), "nothing flow"),
        ("interpolate", "ds"): (lambda v: gf.interpolate(v, [0.0], flow), "walk"),
        ("interpolate", "times"): (lambda v: gf.interpolate(walk, v, flow), "numbers number array"),
        ("interpolate", "flow"): (lambda v: gf.interpolate(walk, [0.0], v), "flow"),
        ("load_into", "module"): (lambda v: gf.load_into(v, walk), "network"),
        ("load_into", "ds"): (lambda v: gf.load_into(network, v), "walk path"),
        ("load_into", "snapshot"): (lambda v: gf.load_into(network, walk, v), "number"),
        ("diff", "a"): (lambda v: gf.diff(v, walk), "walk path"),
        ("diff", "b"): (lambda v: gf.diff(walk, v), "walk path"),
        ("open_trajectory", "path"): (gf.open_trajectory, "text"),
        ("open_path", "path"): (gf.open_path, "text"),
        ("open_sweep", "folder"): (gf.open_sweep, "text"),
        ("save_trajectory", "ds"): (
            lambda v: gf.save_trajectory(v, folder / "new.nc"),
            "walk",
        ),
        ("validate", "path"): (gf.validate, "text"),
        ("regularization_path", "flow"): (lambda v: gf.regularization_path(v, level), "flow"),
        ("regularization_path", "levels"): (
            lambda v: gf.regularization_path(flow, v),
            "numbers theta",
        ),
        ("regularization_path", "degrees"): (
            lambda v: gf.regularization_path(flow, level, v),
            "",
        ),
        ("regularization_path", "observables"): (
            lambda v: gf.regularization_path(flow, level, observables=v),
            "nothing dict",
        ),
        ("regularization_path", "max_evaluations"): (
            lambda v: gf.regularization_path(flow, level, max_evaluations=v),
            "nothing number",
        ),
        ("regularization_path", "path"): (
            lambda v: gf.regularization_path(flow, level, archive=v),
            "nothing text",
        ),
        ("regularization_path", "provenance"): (
            lambda v: gf.regularization_path(flow, level, provenance=v),
            "nothing dict walk path",
        ),
        ("resume_path", "path"): (lambda v: gf.resume_path(v, flow, level), "text"),
        ("resume_path", "flow"): (lambda v: gf.resume_path(of_path, v, level), "nothing flow"),
        ("resume_path", "levels"): (
            lambda v: gf.resume_path(of_path, flow, v),
            "numbers theta array",
        ),
        ("resume_path", "max_evaluations"): (
            lambda v: gf.resume_path(of_path, flow, level, max_evaluations=v),
            "nothing number",
        ),
        ("resume_path", "observables"): (
            lambda v: gf.resume_path(of_path, flow, level, observables=v),
            "nothing dict",
        ),
        ("best_on_path", "ds"): (gf.best_on_path, "path"),
        ("best_on_path", "by"): (lambda v: gf.best_on_path(t["path"], v), "text"),
        ("RegularizingFlow", "level_set"): (
            lambda v: gf.RegularizingFlow(v, gf.regularizers.squared_norm),
            "",
        ),
        ("pca", "datasets"): (pca.along, "walk"),
        ("pca", "n_components"): (lambda v: pca.along(walk, v), "number"),
        ("null_models_of", "ds"): (pca.null_models_of, "walk path"),
        ("fit_pca", "points"): (gf.analysis.fit_pca, ""),
        ("null_models", "points"): (null_models.compare, ""),
        ("extreme_eigenvalues", "operator"): (gf.analysis.extreme_eigenvalues, ""),
        ("spectral_density", "operator"): (gf.analysis.spectral_density, ""),
        ("trace", "operator"): (gf.analysis.trace, ""),
        ("loss_hessian", "problem"): (lambda v: gf.analysis.loss_hessian(v, theta), "problem"),
        ("loss_hessian", "theta"): (lambda v: gf.analysis.loss_hessian(problem, v), "theta"),
        ("gauss_newton", "problem"): (lambda v: gf.analysis.gauss_newton(v, theta), "problem"),
        ("gauss_newton", "theta"): (lambda v: gf.analysis.gauss_newton(problem, v), "theta"),
        ("tangent_hessian", "flow"): (lambda v: gf.analysis.tangent_hessian(v, state), "flow"),
        ("tangent_hessian", "state"): (lambda v: gf.analysis.tangent_hessian(flow, v), ""),
        ("normal_curvature", "direction"): (
            lambda v: gf.analysis.normal_curvature(flow, state, v),
            "theta",
        ),
        ("spectra", "ds"): (lambda v: spectra.along(v, flow), "walk"),
        ("spectra", "flow"): (lambda v: spectra.along(walk, v), "flow"),
        ("on_plane", "ds"): (lambda v: landscape.on_plane(v, flow), "walk"),
        ("on_plane", "flow"): (lambda v: landscape.on_plane(walk, v), "flow"),
        ("on_plane", "plane"): (lambda v: landscape.on_plane(walk, flow, v), "nothing"),
        ("principal", "ds"): (planes.principal, "walk"),
        ("random", "ds"): (lambda v: planes.random(v, problem.tensors), "walk"),
        ("random", "tensors"): (lambda v: planes.random(walk, v), ""),
        ("through", "ds"): (lambda v: planes.through(v, [0, 1, 2]), "walk"),
        ("through", "through"): (lambda v: planes.through(walk, v), ""),
        ("align", "module"): (lambda v: between.align(v, theta, theta), "network"),
        ("align", "theta"): (lambda v: between.align(network, v, theta), "theta"),
        ("straight", "start"): (lambda v: between.straight(v, theta), "theta"),
        ("straight", "end"): (lambda v: between.straight(theta, v), "theta"),
        ("bezier", "problem"): (lambda v: between.bezier(v, theta, theta), "problem"),
        ("bezier", "start"): (lambda v: between.bezier(problem, v, theta), "theta"),
        ("barrier", "problem"): (lambda v: between.barrier(v, line), "problem"),
        ("barrier", "curve"): (lambda v: between.barrier(problem, v), ""),
        ("predictions", "ds"): (
            lambda v: predictions.along(v, network, {"x": theta}, classification=False),
            "walk",
        ),
        ("predictions", "module"): (
            lambda v: predictions.along(walk, v, {"x": theta}, classification=False),
            "network",
        ),
        ("predictions", "inputs"): (
            lambda v: predictions.along(walk, network, v, classification=False),
            "",
        ),
        ("symmetry", "ds"): (lambda v: symmetry.along(v, network, classification=False), "walk"),
        ("symmetry", "module"): (
            lambda v: symmetry.along(walk, v, classification=False),
            "network",
        ),
        ("periodogram", "ds"): (periodogram.along, "walk"),
        ("relaxation", "ds"): (relaxation.along, "walk"),
        ("lomb_scargle", "times"): (
            lambda v: gf.analysis.lomb_scargle(v, np.zeros(3)),
            "array numbers number",
        ),
    }


def test_what_is_of_the_wrong_kind_is_named_in_one_line(things):
    raised, wrong = 0, []
    for (function, argument), (call, right) in _calls(things).items():
        for name, value in things.items():
            if name == "folder" or name in right.split():
                continue
            try:
                call(value)
            except gf.GeoflowError as error:
                message = str(error)
                raised += argument in message
                if "\n" in message or len(message) > 300:
                    wrong.append((function, argument, name, message))
            except Exception as error:
                wrong.append((function, argument, name, repr(error)))
            else:
                wrong.append((function, argument, name, "taken"))
    assert wrong == []
    assert raised > 500


# By argument of a sweep: what may be given for it.
SWEPT = {
    "experiment": "",
    "seeds": "",
    "out": "text",
    "regularizer": "",
    "constraints": "nothing",
    "solver": "",
    "rtol": "number",
    "atol": "number",
    "t_end": "nothing number",
    "stop": "nothing",
    "degrees": "nothing",
    "max_evaluations": "nothing number",
    "reproject_every": "nothing",
    "snapshot_times": "nothing numbers",
    "snapshot_every": "nothing number",
    "max_snapshots": "number",
    "theta_dtype": "nothing",
    "epochs": "nothing number",
    "dtype": "nothing",
    "device": "nothing",
    "data": "nothing text",
    "scheduler": "nothing text",
    "workers": "nothing number",
    "threads": "number",
}
TRAINED = {
    **{n: SWEPT[n] for n in ("experiment", "seeds", "out", "epochs", "data", "scheduler")},
    **{n: SWEPT[n] for n in ("workers", "threads")},
    **{"penalties": "numbers theta array", "validation": "number", "dtype": "", "device": ""},
}


@pytest.mark.parametrize("argument", SWEPT)
def test_an_argument_of_a_sweep_is_refused_before_a_process_is_started(argument, things):
    _refused(gf.sweep, argument, SWEPT[argument], things)


@pytest.mark.parametrize("argument", TRAINED)
def test_an_argument_of_a_sweep_of_trainings_is_refused_too(argument, things):
    _refused(gf.sweep_weight_decay, argument, TRAINED[argument], things)


def _refused(sweep, argument, right, things):
    out = things["folder"] / "sweep"
    for name, value in things.items():
        if name == "folder" or name in right.split():
            continue
        arguments = {"experiment": "iris_ff", "seeds": [0], "out": out, argument: value}
        with pytest.raises(gf.InputError) as caught:
            sweep(**arguments)
        message = str(caught.value)
        # A seed is told by itself, and a regularisation function by what it is.
        known = argument in message or argument.rstrip("s") in message or name == "text"
        assert known, (name, message)
        assert "\n" not in message, (name, message)
        assert len(message) <= 300, (name, message)
        assert not out.exists()


def test_every_argument_of_a_sweep_is_among_these():
    for sweep, known in ((gf.sweep, SWEPT), (gf.sweep_weight_decay, TRAINED)):
        assert set(inspect.signature(sweep).parameters) == {*known, "progress"}


def test_a_dataset_of_which_a_part_is_taken_out_loads_into_no_network(things):
    walk, network = things["walk"], things["network"]
    for ds, message in (
        (walk.drop_vars("tensor_shape"), "ds has no 'tensor_shape'"),
        (walk.isel(tensor=0), "ds: tensor_name is not along 'tensor'"),
        (walk.isel(parameter=0), "ds: theta is not along 'parameter'"),
        (walk.isel(snapshot=0), "snapshot=-1: there are 0"),
    ):
        with pytest.raises(gf.InputError, match=message):
            gf.load_into(network, ds)
    with pytest.raises(gf.InputError, match="snapshot=True; give a whole number"):
        gf.load_into(network, walk, snapshot=True)


def test_levels_in_the_place_of_the_flow_are_told_where_they_go(things):
    with pytest.raises(gf.InputError, match=r"flow=\[0.1\] .* levels=\[…\]"):
        gf.resume_path(things["folder"] / "p.nc", [0.1])


def test_a_value_is_shown_in_one_short_line():
    assert kinds.shown(torch.nn.Sequential(torch.nn.Linear(1, 1))) == "Sequential("
    assert kinds.shown("a" * 1000).startswith("'aaa")
    assert len(kinds.shown(np.zeros((100, 100)))) <= kinds.LONGEST
