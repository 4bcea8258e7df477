"""Settings of the process hold while any thread asks for them, and then are as before."""

import threading
from contextlib import contextmanager

import pytest
import torch

from geoflow.problems import arithmetic
from geoflow.problems.derivatives import twice_differentiable
from geoflow.system.process import Setting
from waiting import join, start, wait


@contextmanager
def beside(context):
    """Another thread is inside a context, and leaves it when it is told to."""
    entered, leave = threading.Event(), threading.Event()

    def other():
        with context:
            entered.set()
            wait(leave)

    thread = start(other)
    wait(entered)

    def end():
        leave.set()
        join(thread)

    try:
        yield end
    finally:
        end()


def kernels():
    cuda = torch.backends.cuda
    return (
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        torch.backends.cudnn.enabled,
    )


def test_second_derivatives_in_two_threads_keep_their_kernels_and_give_back_the_others():
    before = kernels()
    with beside(twice_differentiable()) as end:
        with twice_differentiable():
            end()
            # Those of the thread that has ended are not those of this one.
            assert kernels() == (False, False, True, False)
        assert kernels() == before


def test_one_that_ends_later_keeps_them_too():
    before = kernels()
    with twice_differentiable():
        with beside(twice_differentiable()):
            pass
        assert kernels() == (False, False, True, False)
    assert kernels() == before
    with arithmetic.exact(torch.device("cpu")), beside(twice_differentiable()) as end:
        end()
        assert kernels()[:3] == before[:3]
    assert kernels() == before


def test_precision_is_full_while_any_thread_evaluates_on_any_device():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with beside(arithmetic.exact(torch.device("cpu"))) as end:
            with arithmetic.exact(torch.device("meta")):
                end()
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_an_error_inside_gives_it_back_and_an_own_block_within_does_not():
    held = []

    @contextmanager
    def made():
        held.append(1)
        try:
            yield
        finally:
            held.pop()

    setting = Setting(made)

    def failing():
        with setting():
            with setting():
                assert held == [1]
            assert held == [1]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert not held
