import pytest
import torch

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
