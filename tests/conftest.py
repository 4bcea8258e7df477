import signal

import pytest
import torch

import crashes
import geoflow as gf
import references

pytest.register_assert_rewrite("invariants")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def sphere():
    return references.sphere_linear()


@pytest.fixture
def network():
    return references.small_network()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Walks of ``crashes`` that nothing has interrupted, by solver."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: crashes.walk(name, folder / f"{name}.nc").load() for name in crashes.SETTINGS}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The archive of a walk of ``crashes``."""
    path = tmp_path_factory.mktemp("archive") / "walk.nc"
    crashes.walk("rk4", path).close()
    return path


@pytest.fixture(scope="module")
def ds(path):
    """What that archive holds."""
    with gf.open_trajectory(path) as ds:
        return ds.load()


@pytest.fixture(autouse=True)
def _interruptible():
    """Take SIGINT as Python does, also where the shell started the tests with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
