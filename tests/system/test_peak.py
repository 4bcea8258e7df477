"""Bytes alive at the peak are those of the tensors that a function makes."""

import torch

from geoflow.system.peak import peak_bytes

N = 1_000


def test_what_is_freed_is_counted_no_more_and_what_was_there_never():
    x = torch.ones(N, dtype=torch.float64)

    def chain():
        a = x + 1
        b = a + 1
        del a
        return b + 1

    assert peak_bytes(chain) == 2 * 8 * N
    assert peak_bytes(lambda: x.view(10, -1).T) == 0
    assert peak_bytes(lambda: x.add_(1)) == 0


def test_what_a_backward_pass_holds_is_counted():
    x = torch.ones(N, requires_grad=True)

    def gradient(n):
        y = x
        for _ in range(n):
            y = y.tanh()
        return torch.autograd.grad(y.sum(), x)

    five, nine = (peak_bytes(lambda n=n: gradient(n)) for n in (5, 9))
    # Each keeps its result until it has been gone back through.
    assert nine - five == 4 * 4 * N
    assert 5 * 4 * N <= five <= 8 * 4 * N
