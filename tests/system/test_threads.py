"""NumPy's BLAS has one thread while a solver steps, and its own number again afterwards."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import scipy.linalg  # noqa: F401
import torch
from threadpoolctl import ThreadpoolController

import geoflow as gf
from geoflow.analysis.curvature.matrix_free import extreme_eigenvalues
from geoflow.analysis.curvature.operators import loss_hessian
from geoflow.solvers import BDF
from geoflow.system.threads import one_blas_thread


def threads():
    pools = ThreadpoolController().select(threading_layer="pthreads").info()
    return {pool["num_threads"] for pool in pools}


@pytest.fixture(autouse=True)
def _three():
    pools = ThreadpoolController().select(threading_layer="pthreads")
    if not pools.lib_controllers:
        pytest.skip("NumPy's BLAS has no threads of its own here")
    with pools.limit(limits=3):
        yield


def test_one_thread_in_the_block_and_as_before_after_an_error():
    seen = set()

    def failing():
        with one_blas_thread():
            seen.update(threads())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert seen == {1}
    assert threads() == {3}


def test_one_block_within_another_leaves_the_limit_to_it():
    with one_blas_thread():
        with one_blas_thread():
            assert threads() == {1}
        assert threads() == {1}
    assert threads() == {3}


def test_blocks_of_two_threads_that_overlap_leave_the_number_as_it_was():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    with one_blas_thread():
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
    leave.set()
    thread.join()
    assert threads() == {3}
    with one_blas_thread():
        assert threads() == {1}


def test_a_solver_steps_with_one_thread_and_observables_have_all():
    seen = SimpleNamespace(step=set(), observable=set())

    class Looking(BDF):
        def step(self, *args):
            seen.step |= threads()
            return super().step(*args)

    def observed(theta):
        seen.observable |= threads()
        return 0.0

    theta0 = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    problem = gf.Problem.from_function(lambda theta: theta.square().sum(), theta0)
    flow = gf.RegularizingFlow(gf.LevelSet(problem), lambda theta: theta[0])
    gf.walk(flow, Looking(), max_evaluations=20, observables={"seen": observed})
    assert seen.step == {1}
    assert seen.observable == {3}


def test_arpack_works_with_one_thread():
    seen = []

    def product(v):
        seen.append(threads())
        return torch.arange(1.0, 101.0, dtype=torch.float64) * v

    problem = gf.Problem.from_function(
        lambda theta: theta.square().sum(), torch.ones(100, dtype=torch.float64)
    )
    hessian = loss_hessian(problem, problem.theta0)
    found = extreme_eigenvalues(replace(hessian, product=product), k=1)
    assert found.values[0] == pytest.approx(100.0)
    # All of its products but those that find the size of A first.
    assert seen.count({1}) > len(seen) / 2


def test_the_threads_of_torch_are_left_as_they_are():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_blas_thread():
            assert torch.get_num_threads() == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
