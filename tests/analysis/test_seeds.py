"""A seed that no archive can hold is refused before anything is computed or written."""

import numpy as np
import pytest

import geoflow as gf
import references
from geoflow import cli
from geoflow.analysis import between, null_models, pca, periodogram, planes, relaxation, spectra
from geoflow.analysis.components.brownian import brownian_test
from geoflow.cli.terminal import BAD_INPUT
from geoflow.errors import InputError


@pytest.fixture(scope="module")
def walked():
    flow = references.sphere_linear().flow
    return flow, gf.walk(flow, t_end=1.0, stop=None, max_snapshots=6).load()


def _calls(flow, ds, archive, seed):
    problem, points = flow.problem, np.eye(4)
    operator = gf.analysis.loss_hessian(problem, problem.theta0)
    ends = problem.theta0, 2 * problem.theta0
    t = np.arange(20.0)
    return {
        "spectra": lambda: spectra.along(ds, flow, seed=seed, archive=archive),
        "pca": lambda: pca.along(ds, 2, null_models=True, seed=seed),
        "null_models": lambda: null_models.compare(points, seed=seed),
        "brownian_test": lambda: brownian_test(points, seed=seed),
        "planes": lambda: planes.random(ds, problem.tensors, seed=seed),
        "periodogram": lambda: periodogram.along(ds, seed=seed),
        "lomb_scargle": lambda: gf.analysis.lomb_scargle(t, np.sin(t), seed=seed),
        "relaxation": lambda: relaxation.along(ds, seed=seed),
        "bezier": lambda: between.bezier(problem, *ends, seed=seed),
        "extreme_eigenvalues": lambda: gf.analysis.extreme_eigenvalues(operator, 1, seed=seed),
        "spectral_density": lambda: gf.analysis.spectral_density(operator, seed=seed),
        "trace": lambda: gf.analysis.trace(operator, seed=seed),
    }


@pytest.mark.parametrize(
    ("seed", "message"), [(2**63, "below 2.*63"), (-1, "seed=-1"), (0.5, "whole number")]
)
def test_a_seed_is_refused_before_any_product_of_the_loss(walked, tmp_path, seed, message):
    flow, ds = walked
    before = flow.problem.counts
    for call in _calls(flow, ds, tmp_path / "out.nc", seed).values():
        with pytest.raises(InputError, match=message):
            call()
    assert flow.problem.counts == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        ["spectrum"],
        ["slice", "--random"],
        ["pca", "--null-models"],
        ["periodogram"],
        ["relaxation"],
    ],
    ids=lambda c: c[0],
)
def test_a_command_refuses_it_before_a_file_is_read(command, tmp_path, capsys):
    name, *options = command
    arguments = [name, str(tmp_path / "none.nc"), *options, "--out", str(tmp_path / "o.nc")]
    assert cli.main([*arguments, "--seed", str(2**63)]) == BAD_INPUT
    assert "use zero or a positive number below 2**63" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
