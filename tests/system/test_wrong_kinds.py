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
    walked,
)
from geoflow.analysis.components import brownian, path_components
from geoflow.baselines.paper_loop import predictor_corrector
from geoflow.problems import parts
from geoflow.system import kinds
from geoflow.system.progress import progress_bar


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
        "complex": np.complex128(1.5 + 2j),
        "complexes": np.array([1.5 + 2j, 2.5 + 1j]),
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
        ("pca", "n_components"): (lambda v: pca.along(walk, v), "nothing number"),
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


def _spectra(t, **arguments):
    spectra.along(t["walk"], t["flow"], **arguments)


def _slice(t, **arguments):
    landscape.on_plane(t["walk"], t["flow"], **arguments)


def _pca(t, **arguments):
    pca.along(t["walk"], null_models=True, **arguments)


def _periodogram(t, **arguments):
    clock = np.arange(20.0)
    gf.analysis.lomb_scargle(clock, np.sin(clock**2), **{"n_simulations": 19, **arguments})


def _relaxation(t, **arguments):
    relaxation.along(t["walk"], **arguments)


def _predictions(t, **arguments):
    examples = {"inputs": {"x": torch.zeros(2, 3, dtype=torch.float64)}, "classification": False}
    predictions.along(t["walk"], t["network"], **examples | arguments)


def _class_dim(t, **arguments):
    _predictions(t, **{"classification": True} | arguments)


def _symmetry(t, **arguments):
    symmetry.along(t["walk"], t["network"], **{"classification": False} | arguments)


def _eigenvalues(t, **arguments):
    gf.analysis.extreme_eigenvalues(gf.analysis.loss_hessian(t["problem"], t["theta"]), **arguments)


def _density(t, **arguments):
    gf.analysis.spectral_density(gf.analysis.loss_hessian(t["problem"], t["theta"]), **arguments)


def _density_of(t):
    operator = gf.analysis.loss_hessian(t["problem"], t["theta"])
    return gf.analysis.spectral_density(operator, n_probes=2, n_steps=2)


def _trace(t, **arguments):
    gf.analysis.trace(gf.analysis.loss_hessian(t["problem"], t["theta"]), **arguments)


def _bezier(t, **arguments):
    between.bezier(t["problem"], t["theta"], t["theta"], **arguments)


def _barrier(t, **arguments):
    between.barrier(t["problem"], between.straight(t["theta"], t["theta"]), **arguments)


def _fit_pca(t, **arguments):
    gf.analysis.fit_pca([np.eye(4)], **{"n_components": 2, **arguments})


def _compare(t, **arguments):
    null_models.compare(np.random.default_rng(0).standard_normal((9, 3)), **arguments)


def _through(t, **arguments):
    planes.through(t["walk"], **arguments)


def _walk(t, **arguments):
    gf.walk(t["flow"], **arguments)


def _resume(t, **arguments):
    gf.resume(t["folder"] / "walk.nc", t["flow"], **arguments)


def _path(t, **arguments):
    gf.regularization_path(t["flow"], [1.2 * t["flow"].level_set.level], **arguments)


def _resume_path(t, **arguments):
    gf.resume_path(t["folder"] / "p.nc", t["flow"], **arguments)


def _save(t, **arguments):
    gf.save_trajectory(t["walk"], t["folder"] / "new.nc", **arguments)


def _loop(t, **arguments):
    predictor_corrector(t["flow"], steps=1, **arguments)


WHOLE = {
    _spectra: ("k", "n_probes", "n_steps", "n_trace", "n_points", "max_products"),
    _eigenvalues: ("k", "max_products"),
    _density: ("n_probes", "n_steps"),
    _trace: ("n_products",),
    _slice: ("points", "batch_size"),
    _pca: ("n_components", "n_simulations"),
    _fit_pca: ("n_components",),
    _compare: ("n_components", "n_simulations", "dimension"),
    _periodogram: ("n_simulations",),
    _relaxation: ("n_terms",),
    _predictions: ("batch_size",),
    _class_dim: ("class_dim",),
    _bezier: ("evaluations",),
    _barrier: ("points",),
}
REAL = {
    _spectra: ("tol",),
    _eigenvalues: ("tol",),
    _slice: ("margin",),
    _periodogram: ("oversampling", "max_frequency"),
    _relaxation: ("start", "confidence"),
    _bezier: ("learning_rate",),
}
SWITCHES = {
    _spectra: ("overwrite", "progress"),
    _slice: ("overwrite", "progress"),
    _pca: ("standardise", "progress"),
    _fit_pca: ("standardise", "progress"),
    _predictions: ("classification", "progress"),
    _symmetry: ("classification", "progress"),
    _walk: ("overwrite", "progress"),
    _resume: ("progress",),
    _path: ("overwrite", "progress", "smallest_eigenvalue"),
    _resume_path: ("progress",),
    _save: ("overwrite",),
    _loop: ("adaptive_corrector",),
}
# No float holds the one; the other has more digits than Python writes.
LARGE, LONG = 10**400, 10**5000
# What None has a meaning for.
OPTIONAL = ("batch_size", "max_frequency", "start", "dimension", "n_components", "class_dim")


@pytest.mark.parametrize(
    ("function", "argument", "value"),
    [
        (function, argument, value)
        for kind, values in (
            (WHOLE, ("a", None, 2.5, True, [3, 4], LONG)),
            (REAL, ("a", None, True, [3, 4], LARGE)),
            (SWITCHES, ("a", None, 1, "False")),
        )
        for function, arguments in kind.items()
        for argument in arguments
        for value in values
        if not (value is None and argument in OPTIONAL and function is not _predictions)
    ],
    ids=lambda value: "long" if value is LONG else None,
)
def test_an_analysis_names_a_number_that_is_none(function, argument, value, things):
    with pytest.raises(gf.InputError) as caught:
        function(things, **{argument: value})
    message = str(caught.value)
    named = kinds.shown(value) if value in (LONG, LARGE) else repr(value)
    assert message.startswith(f"{argument}={named}")
    assert "\n" not in message
    assert len(message) <= 300


@pytest.mark.parametrize("function", [_spectra, _predictions, _symmetry])
@pytest.mark.parametrize(
    ("snapshots", "message"),
    [
        (0, r"snapshots=0; give whole numbers in a list, such as \[0, -1\]"),
        ("01", "snapshots='01'; give whole numbers"),
        ([1.5], r"snapshots=\[1.5\]; give whole numbers"),
        (["a"], r"snapshots=\['a'\]; give whole numbers"),
        ([True], r"snapshots=\[True\]; give whole numbers"),
        (np.array([0.0]), r"snapshots=array\(\[0.\]\); give whole numbers"),
        (np.array([]), r"snapshots=.*; give whole numbers|none is given"),
        ([0, 0], r"snapshots=\[0, 0\]: 0 is given twice; give each once"),
        (np.array([0, 99]), r"snapshots=\[0, 99\]: 99 is not there"),
    ],
)
def test_snapshots_that_are_no_indices_are_refused(function, snapshots, message, things):
    with pytest.raises(gf.InputError, match=message):
        function(things, snapshots=snapshots)


def test_snapshots_are_taken_from_an_array_as_from_a_list(things):
    walk = things["walk"]
    n = walk.sizes["snapshot"]
    for chosen in (np.array([0, -1]), range(0, n, n - 1), torch.tensor([0, n - 1]), (0, n - 1)):
        assert walked.snapshot_indices(walk, chosen, 5) == [0, n - 1]
    # Of one snapshot the first is the last.
    single = walk.isel(snapshot=[0])
    assert walked.snapshot_indices(single, [0, -1], 5) == [0]
    listed, array = (planes.through(walk, c) for c in ([0, 1, -1], np.array([0, 1, -1])))
    assert np.array_equal(listed.directions, array.directions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: _spectra(t, tol=np.nan), "tol=nan; use a number from 0 to 1 such as 1e-6"),
        (lambda t: _eigenvalues(t, tol=-1), "tol=-1; use a number from 0 to 1 such as 1e-6"),
        (lambda t: _eigenvalues(t, tol=np.inf), "tol=inf; use"),
        (lambda t: _spectra(t, n_trace=5), "n_trace=5; use at least 6"),
        (
            lambda t: _spectra(t, tensors=["2.bias"], operators=["tangent"], k=1),
            "operator 'tangent': there are no tangent directions, so no eigenvalues",
        ),
        (lambda t: _slice(t, observables={"a": 3}), r"observables\['a'\] is a int without theta0"),
        (lambda t: _slice(t, observables={3: float}), "observables: 3 is taken or not a name"),
        (
            lambda t: _slice(t, points=2, observables={"a": lambda theta: "x"}),
            r"observables\['a'\]\(θ\)='x'; give a real number",
        ),
        (
            lambda t: _periodogram(t, levels=0.9),
            "levels=0.9; use numbers between 0 and 1 in a list",
        ),
        (lambda t: _periodogram(t, levels=["a"]), r"levels=\['a'\]; give real numbers"),
        (
            lambda t: _predictions(t, inputs={"x": torch.zeros(2, 2, dtype=torch.float64)}),
            r"inputs\['x'\] of shape \(2, 2\) and torch.float64: module does not take them",
        ),
        (
            lambda t: _predictions(t, inputs={"x": torch.zeros(2, 3, dtype=torch.int64)}),
            r"inputs\['x'\] of shape \(2, 3\) and torch.int64: module does not take them",
        ),
        (
            lambda t: _predictions(t, inputs={"x": torch.zeros(0, 3)}),
            r"inputs\['x'\] has shape \(0, 3\); give one example or more",
        ),
        (lambda t: _predictions(t, inputs={1: torch.zeros(1, 3)}), "inputs: a name=1 is of type"),
        (lambda t: _spectra(t, operators="hessian"), "operators='hessian'; give names in a list"),
        (lambda t: _spectra(t, operators=3), "operators=3; give names in a list"),
        (lambda t: _spectra(t, tensors=3), "tensors=3; give names in a list"),
        (lambda t: _spectra(t, tensors=[3]), r"tensors=\[3\]; give names in a list"),
        (lambda t: _spectra(t, operators=np.array(["x", "y"])), "choose from hessian, tangent"),
        (lambda t: _density_of(t).grid(2.5), "n_points=2.5; give a whole number"),
        (lambda t: _density_of(t).on("a"), "abscissa='a'; give real numbers"),
        (lambda t: _density_of(t).on([0.0], width=0), "width=0; use a positive number"),
        (lambda t: pca.null_models_of(t["walk"], "a"), "walk='a'; give a whole number"),
        (lambda t: brownian.brownian_variance_ratio(2.5), "n_points=2.5; give a whole number"),
        (lambda t: brownian.brownian_path("a", 2), "n_points='a'; give a whole number"),
        (lambda t: brownian.brownian_path(4, 2.5), "dimension=2.5; give a whole number"),
        (lambda t: _through(t, snapshots=["a", 1, 2]), "through=.* give whole numbers in a list"),
        (lambda t: gf.LevelSet(t["problem"], level=True), "level=True; give a real number"),
        (lambda t: gf.LevelSet(t["problem"], level_rtol=True), "level_rtol=True; give a real"),
        (lambda t: gf.Plateau(window=True), "window=True; give a real number"),
        (lambda t: gf.Stationary(np.True_), "degrees=.*True.*; give a real number"),
        (lambda t: gf.interpolate(t["walk"], None, t["flow"]), "times=None; give real numbers"),
        (
            lambda t: gf.interpolate(t["walk"], [np.nan], t["flow"]),
            r"times=\[nan\]; use incr",
        ),
        (
            # So little beyond the end that they look the same in six digits.
            lambda t: gf.interpolate(t["walk"], [_end(t) * (1 + 1e-12)], t["flow"]),
            r"times=(\d\S+) to \1; the walk has 0.0 to (?!\1)\d",
        ),
        (
            lambda t: gf.interpolate(t["walk"], [0.0, None], t["flow"]),
            r"times=\[0.0, None\]; give real numbers",
        ),
    ],
)
def test_an_argument_that_cannot_be_used_is_named(call, message, things):
    with pytest.raises(gf.InputError, match=message):
        call(things)


def _end(things):
    return float(things["walk"]["time"][-1])


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
    # As long as the line is, and of a longer one both ends.
    digits = "0123456789" * 5
    assert kinds.shown(digits) == repr(digits)
    assert kinds.shown(digits * 3).startswith("'012345678901234567890")
    assert kinds.shown(digits * 3).endswith("3456789'")


@pytest.mark.parametrize(
    "call",
    [
        lambda t, x: gf.Stationary(x),
        lambda t, x: gf.Plateau(x),
        lambda t, x: gf.LevelSet(t["problem"], x),
        lambda t, x: gf.LevelSet(t["problem"], [x]),
        lambda t, x: gf.LevelSet(t["problem"], level_rtol=x),
        lambda t, x: _walk(t, checkpoint_seconds=x),
        lambda t, x: _walk(t, t_end=x),
        lambda t, x: _path(t, degrees=x),
        lambda t, x: gf.interpolate(t["walk"], [x], t["flow"]),
        lambda t, x: gf.diff(t["walk"], t["walk"], rtol=x),
    ],
)
@pytest.mark.parametrize("number", [LARGE, -LARGE, LONG], ids=["large", "small", "long"])
def test_a_number_that_no_float_holds_is_refused_in_one_line(call, number, things):
    with pytest.raises(gf.InputError) as caught:
        call(things, number)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 300


def test_a_level_is_taken_from_an_array_without_dimensions(things):
    problem = things["problem"]
    for level in (np.array(3.0), np.float64(3.0), torch.tensor(3.0), np.array([3.0]), [3]):
        assert gf.LevelSet(problem, level=level).level == 3.0
    assert gf.LevelSet(problem, np.array(None)).level == gf.LevelSet(problem).level


@pytest.mark.parametrize("wrong", ["False", "no", np.nan, 0, np.array([0])])
def test_what_is_no_switch_replaces_no_file(wrong, things, tmp_path):
    file = tmp_path / "walk.nc"
    gf.save_trajectory(things["walk"], file)
    before = file.read_bytes()
    calls = [
        lambda: gf.walk(things["flow"], max_evaluations=30, archive=file, overwrite=wrong),
        lambda: gf.save_trajectory(things["walk"], file, overwrite=wrong),
        lambda: _spectra(things, snapshots=[0], archive=file, overwrite=wrong),
        lambda: _slice(things, points=2, archive=file, overwrite=wrong),
    ]
    for call in calls:
        with pytest.raises(gf.InputError, match=r"overwrite=.*; give True or False"):
            call()
    assert file.read_bytes() == before


@pytest.mark.parametrize("wrong", [torch.ones(2), torch.ones(()), "no", 1])
def test_a_bar_is_wanted_or_not(wrong, things):
    with pytest.raises(gf.InputError, match=r"progress=.*; give True or False"):
        gf.walk(things["flow"], max_evaluations=30, progress=wrong)
    with pytest.raises(gf.InputError, match=r"progress=.*; give True or False"):
        progress_bar(wrong, range(3))


IMAGINARY = np.random.default_rng(0).standard_normal((9, 3)) + 1j


def _with_complex(t):
    """Calls with complex arrays in the place of real ones."""
    walk, theta = t["walk"], t["theta"]
    tensors, n = t["problem"].tensors, len(theta)
    real = IMAGINARY.real
    fitted = gf.analysis.fit_pca([real], 2)
    angles = walk["angle"].isel(step=walk["snapshot_step"]).astype(complex)
    angles = angles.drop_vars(["time", "arc_length"], errors="ignore").rename("angles")
    return {
        "step_lengths": lambda: brownian.brownian_path(4, 2, step_lengths=IMAGINARY[:3, 0]),
        "times": lambda: null_models.compare(real, times=np.arange(9) + 1j),
        "scores": lambda: path_components.cosine_content(IMAGINARY),
        "points: distance": lambda: fitted.distance(IMAGINARY),
        "points: transform": lambda: fitted.transform(IMAGINARY),
        "points: fit": lambda: gf.analysis.fit_pca([IMAGINARY], 2),
        "points: test": lambda: brownian.brownian_test(IMAGINARY, n_simulations=9),
        "angles": lambda: periodogram.along(walk, [angles], n_simulations=9),
        "origin": lambda: planes.Plane(np.ones(3) + 1j, np.eye(3)[:2]),
        "directions": lambda: planes.Plane(np.ones(3), np.eye(3)[:2] + 1j),
        "direction": lambda: planes.filter_normalised(np.ones(n) + 1j, np.ones(n), tensors),
        "theta: filters": lambda: planes.filter_normalised(np.ones(n), np.ones(n) + 1j, tensors),
        "theta": lambda: between.align(t["network"], theta + 1j, theta),
        "target": lambda: between.align(t["network"], theta, theta + 1j),
        "distance_to: the target": lambda: gf.regularizers.distance_to(theta + 1j),
        "batch_loss returned the weight": lambda: parts.as_weight(np.complex128(2 + 1j)),
        "level": lambda: gf.LevelSet(t["problem"], np.complex128(3 + 1j)),
        "value": lambda: gf.Event("angle", value=np.complex128(3 + 1j)),
        "observables": lambda: gf.walk(
            t["flow"], observables={"own": lambda theta: np.complex128(3 + 1j)}
        ),
        "times: elements": lambda: gf.interpolate(
            walk, np.array([np.complex128(0.01 + 1j), 0.02], dtype=object), t["flow"]
        ),
    }


def test_no_imaginary_part_is_lost(things):
    for name, call in _with_complex(things).items():
        with pytest.raises(gf.InputError) as caught:
            call()
        assert name.partition(":")[0] in str(caught.value), name
        assert "\n" not in str(caught.value)
