"""The program of ``docs/minimal.md`` beside the library."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import geoflow as gf

PROGRAM = Path(__file__).parents[2] / "docs" / "minimal.py"


@pytest.fixture(scope="module")
def minimal():
    spec = importlib.util.spec_from_file_location("minimal", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_short_and_needs_no_geoflow():
    text = PROGRAM.read_text()
    assert len(text.splitlines()) <= 150
    assert "geoflow" not in text


def test_its_functions_of_matrices_are_their_series(minimal):
    matrix = np.array([[-2.0, 0.7], [0.7, 0.1]])
    series, power, factorial = np.zeros((2, 2)), np.eye(2), 6.0
    for k in range(30):
        series += power / factorial
        power, factorial = power @ matrix, factorial * (k + 4)
    assert np.allclose(minimal.phi(3, matrix), series, rtol=1e-13)


@pytest.mark.parametrize("rtol", [1e-3, 1e-4])
def test_its_walk_is_that_of_the_library(minimal, rtol):
    loss, start = minimal.network(epochs=100)
    problem = gf.Problem.from_function(loss, start)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), gf.regularizers.squared_norm)
    tight = {"rtol": 1e-9, "atol": 0.0, "stop": None, "t_end": 0.3}
    exact = gf.walk(flow, "dopri8", snapshot_times=[0.3], **tight)["theta"].values[0]
    *_, (time, point) = minimal.walk(loss, start, 0.3, rtol=rtol)
    assert time == 0.3
    assert abs(point.loss - flow.level_set.level) <= 1e-9 * flow.level_set.level
    error = torch.linalg.vector_norm(point.theta - torch.from_numpy(exact))
    moved = torch.linalg.vector_norm(point.theta - start)
    assert error <= rtol * start.norm()
    assert moved > 0.1 * start.norm()
