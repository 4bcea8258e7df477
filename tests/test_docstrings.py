"""Examples in docstrings, run; and the names that a user's tab key shows."""

import doctest
import importlib
import pkgutil
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import geoflow as gf
from geoflow.experiments import registry

MODULES = [
    m.name for m in pkgutil.walk_packages(gf.__path__, "geoflow.") if "__main__" not in m.name
]


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(name)
        names = {"gf": gf, "torch": torch, "np": np}
        yield from (t for t in finder.find(module, name, globs=names) if t.examples)


FOUND = {test.name: test for test in examples()}


def test_the_first_things_that_a_user_calls_have_examples():
    shown = {name.rsplit(".", 1)[-1] for name in FOUND}
    assert {"walk", "RegularizingFlow", "Stationary", "Event", "load_into", "register"} <= shown


@pytest.mark.parametrize("name", FOUND)
def test_its_example_says_what_it_gives(name, monkeypatch):
    monkeypatch.setattr(registry, "_REGISTERED", {})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with torch.random.fork_rng(devices=[]):
        runner.run(FOUND[name])
    assert runner.failures == 0


def test_the_tab_key_shows_what_a_user_needs_and_nothing_else():
    shown = {name for name in dir(gf) if not name.startswith("_")}
    packages = {name for name in shown if isinstance(getattr(gf, name), types.ModuleType)}
    assert packages == {
        "analysis",
        "baselines",
        "comparisons",
        "experiments",
        "plots",
        "regularizers",
        "report",
        "solvers",
    }
    assert shown - packages <= set(gf.__all__)
    assert {"walk", "Problem", "LevelSet", "RegularizingFlow", "resume"} <= shown


def test_the_page_has_each_of_these_names_by_its_task_once():
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    table = page.split("| to | use |")[1].split("\n\n")[0]
    named = re.findall(r"`gf\.(\w+)`", table)
    assert sorted(named) == sorted(name for name in dir(gf) if not name.startswith("_"))
