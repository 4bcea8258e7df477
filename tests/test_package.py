"""The package as a whole: what it exports hides nothing."""

import importlib
import pkgutil
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import geoflow

PACKAGES = ["geoflow"] + [
    m.name for m in pkgutil.walk_packages(geoflow.__path__, "geoflow.") if m.ispkg
]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_module_is_hidden_by_something_of_its_name(name):
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__):
        found = getattr(package, module.name, None)
        assert found is None or isinstance(found, types.ModuleType), f"{name}.{module.name}"


@pytest.mark.parametrize("name", PACKAGES)
def test_everything_a_package_promises_is_there(name):
    package = importlib.import_module(name)
    for exported in getattr(package, "__all__", []):
        assert hasattr(package, exported)


HEAVY = ("matplotlib", "scipy.stats", "scipy.integrate", "sklearn", "mlxtend", "distributed")
# Light, but of no use before a file is opened.
LATE = (*HEAVY, "h5py")
PRINT_LOADED = f"import sys, geoflow; print(*[m for m in {LATE} if m in sys.modules])"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_importing_geoflow_imports_nothing_heavy_that_it_may_not_need():
    assert run(PRINT_LOADED).stdout.strip() == ""


@pytest.mark.parametrize(
    "command",
    [["--help"], ["info", "FILE"], pytest.param(["validate", "FILE"], marks=pytest.mark.slow)],
)
def test_commands_that_only_look_import_nothing_heavy(command):
    file = str(Path(__file__).parent / "data" / "schema-1.0.nc")
    arguments = [file if text == "FILE" else text for text in command]
    code = f"""
import contextlib, sys
from geoflow import cli
with contextlib.suppress(SystemExit):
    cli.main({arguments!r})
print("loaded:", *[m for m in {HEAVY} if m in sys.modules])
"""
    assert run(code).stdout.splitlines()[-1].strip() == "loaded:"


def test_what_is_imported_when_used_is_there_and_listed():
    code = """
import geoflow as gf, xarray
assert "plots" in dir(gf) and "analysis" in dir(gf) and "walk" in dir(gf)
assert callable(gf.plots.overview) and callable(gf.analysis.fit_pca)
assert xarray.Dataset.geoflow is gf.accessor.GeoflowAccessor
assert not hasattr(gf, "nothing")
print("there")
"""
    assert run(code).stdout == "there\n"


def test_every_module_of_the_interface_is_on_its_page_once():
    """All but the command line, which has a page of its own, and packages that hold no code."""
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. automodule:: (\S+)", page, re.MULTILINE)
    modules = {
        m.name
        for m in pkgutil.walk_packages(geoflow.__path__, "geoflow.")
        if not m.ispkg and not m.name.startswith(("geoflow.cli.", "geoflow.__main__"))
    }
    assert sorted(set(listed) - {"geoflow.solvers", "geoflow.manifold.regularizers"}) == sorted(
        modules
    )
    assert len(listed) == len(set(listed))


def test_what_a_tab_offers_is_what_a_user_types():
    import geoflow as gf

    folders = ("analysis", "baselines", "comparisons", "experiments", "plots", "regularizers")
    for name in (*folders, "report"):
        folder = getattr(gf, name)
        assert dir(folder) == sorted(folder.__all__), name
        # Numbers and texts aside, each says what it is.
        for item in (getattr(folder, n) for n in dir(folder) if not n.isupper()):
            assert item.__doc__, item
    assert set(dir(gf.solvers)) < set(gf.solvers.__all__)
    assert {"BDF", "Solver", "names", "get"} <= set(dir(gf.solvers))
