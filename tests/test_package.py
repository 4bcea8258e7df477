"""The package as a whole: what it exports hides nothing."""

import importlib
import pkgutil
import types

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
