"""Data that are larger than memory: read batch by batch, the same sums at each evaluation."""

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import geoflow as gf

N_FEATURES = 784


class Made(Dataset):
    """Examples that are nowhere until they are asked for."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitems__(self, which):
        i = torch.tensor(which, dtype=torch.float64)[:, None]
        inputs = torch.sin((i + 1) * torch.arange(1.0, N_FEATURES + 1) / 7)
        return inputs, (i[:, 0].long() * 7) % 10

    def __getitem__(self, i):
        inputs, targets = self.__getitems__([i])
        return inputs[0], targets[0]


def batch_loss(module, batch):
    inputs, targets = batch
    loss = nn.functional.cross_entropy(module(inputs), targets, reduction="sum")
    return loss, len(targets)


def problem(n, **options):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(N_FEATURES, 20), nn.Tanh(), nn.Linear(20, 10))
    batches = DataLoader(Made(n), batch_size=1000, collate_fn=lambda found: found)
    return gf.Problem.from_batches(module, batch_loss, batches, **options)


def peak(n):
    """Bytes that a process holds at the most that evaluates twice, to the same bits."""
    code = f"""
import resource, sys
sys.path.insert(0, {sys.path[0]!r}); sys.path.insert(0, {__file__.rpartition("/")[0]!r})
import torch
torch.set_num_threads(1)
from test_large_data import problem
p = problem({n})
first, second = (p.value_and_gradient(p.theta0) for _ in range(2))
assert all(torch.equal(a, b) for a, b in zip(first, second))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_ten_times_the_data_take_no_more_memory():
    # All 60,000 at once would be 376 MB.
    assert peak(60_000) < 1.1 * peak(6_000)


def test_batches_give_the_loss_of_all_examples():
    found = problem(3500)
    inputs, targets = Made(3500).__getitems__(range(3500))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(N_FEATURES, 20), nn.Tanh(), nn.Linear(20, 10))
    whole = gf.Problem.from_module(module, nn.functional.cross_entropy, inputs, targets)
    for a, b in zip(
        found.value_and_gradient(found.theta0), whole.value_and_gradient(whole.theta0), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_a_float32_network_is_summed_in_float64():
    """The number of batches costs no digits: twenty are as exact as one."""
    found = problem(20_000, dtype=torch.float32)
    exact = float(problem(20_000).loss(found.theta0.double()))
    error = abs(float(found.loss(found.theta0)) - exact)
    assert error < 4 * torch.finfo(torch.float32).eps * exact
