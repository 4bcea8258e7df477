"""All errors of geoflow reach another process, and can be copied."""

import copy
import importlib
import inspect
import multiprocessing
import pickle
import pkgutil
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

import geoflow as gf
from geoflow.errors import BranchError, ConvergenceError, GeoflowError


def classes():
    """GeoflowError and all of its children, wherever they are."""
    for module in pkgutil.walk_packages(gf.__path__, "geoflow."):
        if module.name != "geoflow.__main__":
            importlib.import_module(module.name)
    found, left = [], [GeoflowError]
    while left:
        found.append(left.pop())
        left += found[-1].__subclasses__()
    return [c for c in dict.fromkeys(found) if c.__module__.startswith("geoflow.")]


def made(kind):
    """An error of a class, with something for each argument that it has beside the message."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = {p.name: f"its {p.name}" for p in parameters if p.kind is p.KEYWORD_ONLY}
    error = kind("a message", **named)
    error.add_note("a note")
    return error, named


@pytest.mark.parametrize(
    "again",
    [
        copy.copy,
        copy.deepcopy,
        *(lambda error, n=n: pickle.loads(pickle.dumps(error, n)) for n in range(6)),
    ],
)
def test_every_error_is_the_same_after_a_copy_and_a_pickle(again):
    found = classes()
    assert {ConvergenceError, BranchError} < set(found)
    for kind in found:
        error, named = made(kind)
        other = again(error)
        assert type(other) is kind
        assert (str(other), other.args) == (str(error), error.args)
        assert other.__notes__ == ["a note"]
        assert {name: getattr(other, name) for name in named} == named


def out_of_reach(level):
    problem = gf.Problem.from_function(lambda t: t @ t + 1, torch.ones(3, dtype=torch.float64))
    return float(gf.LevelSet(problem, level).project(problem.theta0).loss)


@pytest.mark.slow
def test_a_pool_of_processes_gets_the_error():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        future = pool.submit(out_of_reach, 0.5)
        with pytest.raises(ConvergenceError, match=r"did not converge") as caught:
            future.result(timeout=100)
    assert caught.value.reason == "iterations"
    assert caught.value.residual > 0
